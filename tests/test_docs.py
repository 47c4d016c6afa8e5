"""Links between the pages of the documentation lead somewhere."""

import re

import pytest
from small import ROOT

PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "cluster/*.md") for path in ROOT.glob(pattern))
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    headings = HEADING.findall(CODE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_page_is_reached_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} <= set(LINK.findall(text))

"""Links between the pages of the documentation lead somewhere, and the table of errors is that of the code.

`python tests/test_docs.py` writes the table into docs/errors.md.
"""

import re
import shlex

import pytest
from small import ROOT

from ssdd import cli
from ssdd.config import ConfigError, PredictConfig
from ssdd.data.problems import REMEDIES
from ssdd.jobs import ERRORS

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


BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:python ray_jobs/(\w+)\.py|\bssdd (\w+)) (.*)")
FLAGS = {  # of the scripts themselves
    "check": dict(json={}, sheet={}),
    "static": dict(output={}),
    "evaluate": dict(submission={}, train=dict(action="store_true")),
}


def commands(page):
    """The jobs and the arguments of the commands in a page's blocks of code."""
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            found = COMMAND.search(line.partition(" #")[0].replace("'", " "))
            if found and "..." not in line and "[" not in line:
                yield found[1] or found[2], shlex.split(found[3])


COMMANDS = [(page.name, job, args) for page in PAGES for job, args in commands(page)]


def error_of(args):
    try:
        cli.parse(args)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("page", "job", "args"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_commands_of_the_pages_have_flags_that_exist(page, job, args):
    if job in ("label", "export"):
        return  # test_own_images runs them
    if job == "predict":
        cli.options(PredictConfig, args)
        return
    _, rest = cli.script_flags(args, **FLAGS.get(job, {}))
    error = error_of(rest)
    assert not error or "no such file" in error.lower(), "weights and configurations that are not here"


def test_commands_were_found():
    assert {"README.md", "sweeps.md", "workspace.md", "other-methods.md"} <= {page for page, _, _ in COMMANDS}
    assert {"static", "dynamic", "check", "predict", "sweep_crf"} <= {job for _, job, _ in COMMANDS}


ERROR_PAGE = ROOT / "docs" / "errors.md"
TABLES = re.compile(r"(?<=<!-- tables -->\n).*", re.DOTALL)


def error_tables():
    """The errors that end a job with a message alone, and the problems of a data set with their remedies."""
    lines = ["| error | meaning |", "|---|---|"]
    for error in sorted(ERRORS, key=lambda error: error.__name__):
        lines.append(f"| `{error.__name__}` | {' '.join(error.__doc__.split())} |")
    lines += ["", "## Problems of a data set", "", "| problem | what to do |", "|---|---|"]
    lines += [f"| {kind} | {remedy} |" for kind, remedy in sorted(REMEDIES.items())]
    return "\n".join(lines) + "\n"


def test_the_table_of_errors_is_that_of_the_code():
    assert TABLES.search(ERROR_PAGE.read_text()).group() == error_tables(), "run python tests/test_docs.py"


if __name__ == "__main__":
    ERROR_PAGE.write_text(TABLES.sub(lambda _: error_tables(), ERROR_PAGE.read_text()))

"""What is wrong with a data set: problems are collected and raised together, as one message with remedies."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_SHOWN_PER_KIND = 20
_REMEDIES = {
    "missing image": "put the file there, or take the id out of the split",
    "ambiguous image": "keep one of the files",
    "unreadable image": "copy it again from its source, or take the id out of the split",
    "missing labels": "add a line `image_id,class;class` to labels.csv (the id without .jpg); in a folder "
    "without labels.csv, Annotations/ID.xml or SegmentationClass/ID.png will do",
    "malformed labels": "write `image_id,class;class` in labels.csv, <object><name> in an XML file",
    "unknown class": "write a name as in classes.txt (without that file: as in VOC), or add it there",
    "no class": "name at least one foreground class of the image, or take the id out of the split",
    "missing mask": "add the mask as a palette PNG, or take the id out of the split",
    "bad mask": "store class indices in an 8-bit palette or greyscale PNG of the image's size",
    "unsafe id": "write plain file names without extension: no folder, no leading dot, no '..'",
    "duplicate id": "keep it once",
}
Problem = tuple[str, str]  # its kind, a key of _REMEDIES, and the detail, which names the file and the field


class DataError(ValueError):
    """Input that cannot be used; the message lists every problem with its file, field and remedy."""

    problems: tuple[Problem, ...] = ()
    """All (kind, detail) pairs, also those that the message only counts."""


def fault(kind: str, detail: str) -> DataError:
    """The error for one problem; a check raises it and `collecting` gathers it."""
    error = DataError(f"{detail}; {_REMEDIES[kind]}")
    error.problems = ((kind, detail),)
    return error


def listing(title: str, problems: Sequence[Problem], shown: int = _SHOWN_PER_KIND) -> DataError:
    """One error for all `problems`, grouped by kind; its message has at most `shown` of a kind."""
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, detail in problems:
        groups[kind].append(detail)
    lines = [f"{title}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    for kind, details in groups.items():
        lines.append(f"{kind} ({len(details)}): {_REMEDIES[kind]}")
        lines += [f"  - {detail}" for detail in details[:shown]]
        if len(details) > shown:
            lines.append(f"  ... and {len(details) - shown} more")
    error = DataError("\n".join(lines))
    error.problems = tuple(problems)
    return error


@contextmanager
def collecting(problems: list[Problem]) -> Iterator[None]:
    """Add what `fault` reports inside the block to `problems`, and go on after it."""
    try:
        yield
    except DataError as error:
        problems += error.problems

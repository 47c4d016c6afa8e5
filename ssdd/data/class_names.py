"""Class names: the file classes.txt, and the spellings that mean the background or "no label"."""

import re
import unicodedata
from collections.abc import Sequence

from ssdd.data.problems import DataError, read_text
from ssdd.storage.paths import AnyPath

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""The 20 foreground classes of PASCAL VOC; the first has index 1."""
BACKGROUND = "background"
IGNORE = 255
"""The value of mask pixels without a label. A pixel has 8 bits, so a data set has up to 254 foreground classes."""
_NUMBERED = re.compile(r"\W*?(-?\d+)[\W_]+(\S.*)")


def normal_form(text: str) -> str:
    """A text in the Unicode form NFC: file systems and editors store accents in different forms."""
    return unicodedata.normalize("NFC", text)


def is_background(name: str) -> bool:
    """Whether a name is `background` or `bg`. Case, punctuation and a number at the beginning do not matter."""
    return _plain(name) in (BACKGROUND, "bg")


def is_ignore(name: str) -> bool:
    """Whether a name means that a pixel or an image has no label: `ignore`, `void`, `unlabelled` and so on."""
    return _plain(name) in ("ignore", "ignored", "void", "unlabelled", "unlabeled")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", without_number(name)[1]).casefold()


def without_number(name: str) -> tuple[int | None, str]:
    """The number at the beginning of a name (None without a number), and the rest of the name."""
    numbered = _NUMBERED.fullmatch(name)
    return (int(numbered[1]), numbered[2]) if numbered else (None, name)


def read_classes(path: AnyPath) -> list[str]:
    """The foreground classes in a classes.txt, see `parse_classes`. Raises DataError."""
    return parse_classes(read_text(path).splitlines(), str(path))


def parse_classes(text: Sequence[str], source: str) -> list[str]:
    """The foreground classes in the lines of a classes.txt, one class per line; messages name `source`.

    A first line that means the background is dropped, and so are labelme's first two lines, `__ignore__` and
    `_background_`. If every class has a number before its name, the numbers are dropped as well; they must be the
    classes' values in the masks.

    Raises:
        problems.DataError: the file has no class or too many, repeats a class, names the background or `ignore` in a
            later line, or has numbers that do not follow the order of the lines.
    """
    lines = [normal_form(line.strip()) for line in text if line.strip()]
    head = 0
    if lines and is_background(lines[0]):
        head = 1
    elif len(lines) > 1 and _plain(lines[0]) == "ignore" and is_background(lines[1]):
        head = 2
    elif lines and {BACKGROUND, "bg"} & set(re.split(r"[\W_]+", lines[0].casefold())):
        raise DataError(
            f"{source}: the first line {lines[0]!r} seems to mean the background; write `background` there, or give "
            "the class another name"
        )
    names = lines[head:]
    if not 0 < len(names) < IGNORE:
        raise DataError(f"{source}: has {len(names)} foreground classes; write 1 to {IGNORE - 1}, one per line")
    for name in names:
        if is_background(name):
            raise DataError(
                f"{source}: {name!r} is not in the first line, but the background has index 0 in the masks; move it to "
                "the first line or delete it"
            )
        if is_ignore(name):
            raise DataError(
                f"{source}: {name!r} is no class: pixels without a label have the value {IGNORE} in the masks; delete "
                "the line. Each later class then gets a mask value that is lower by 1: check that the masks have it"
            )
    numbers, bare = zip(*map(without_number, names), strict=True)
    is_numbered = None not in numbers
    if is_numbered:
        _check_numbers(source, lines, head)
        names = list(bare)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        note = " (without the number at the beginning of each line)" if is_numbered else ""
        raise DataError(
            f"{source}: these names appear more than once: {', '.join(repeated)}{note}; keep one line of each"
        )
    return names


def _check_numbers(source: str, lines: list[str], head: int) -> None:
    """Raise DataError if a line's number is not its class's mask value. The first `head` lines may have no number."""
    for expected, line in enumerate(lines, start=1 - head):
        number, _ = without_number(line)
        if number not in (expected, None):
            raise DataError(
                f"{source}: {line!r} has the number {number}, but by its place the class has the value {expected} in "
                "the masks (0 is the background); order the lines by the values in the masks, or remove all numbers"
            )

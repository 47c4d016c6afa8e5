"""What is wrong with a data set: problems are collected and raised together, as one message with remedies."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ssdd.storage.paths import AnyPath

_SHOWN_PER_KIND = 20
_REMEDIES = {
    "missing image": "put the file there, or take the id out of the split",
    "ambiguous image": "keep one of the files",
    "unreadable image": "copy it again from its source, or take the id out of the split",
    "no permission": "give the user that runs the job the right to read it (chmod -R a+rX FOLDER, say)",
    "large image": "shrink it, or allow more with --max-pixels where the memory suffices (docs/data.md)",
    "huge image": "shrink it: Pillow reads at most 179 million pixels",
    "large metadata": "save it without its metadata (exiftool -all= FILE, say)",
    "missing labels": "add a line `image_id,class;class` to labels.csv (the id without .jpg); in a folder "
    "without labels.csv, Annotations/ID.xml or SegmentationClass/ID.png will do",
    "malformed labels": "write `image_id,class;class` in labels.csv, <object><name> in an XML file",
    "unknown class": "write a name as in classes.txt (without that file: as in VOC), or add it there",
    "no class": "name at least one foreground class of the image, or take the id out of the split",
    "missing mask": "add the mask as a palette PNG, or take the id out of the split",
    "ambiguous mask": "keep one of the files",
    "ambiguous labels": "keep one of the files",
    "ambiguous list": "keep one of the files",
    "bad mask": "store class indices in an 8-bit palette or greyscale PNG of the image's size",
    "bad maps": "save a dictionary {class: map}, or as IRN does, of finite scores in 0..1 (docs/other-methods.md)",
    "unreadable maps": "copy the file again from its source, or take the id out of the split",
    "refused pickle": "save numbers, numpy arrays and torch tensors alone; anything else could run code",
    "masks and maps": "give a folder that holds either masks ID.png or class maps ID.npy",
    "mask of the turned image": "give --apply-exif, so that photographs are turned as their EXIF data say",
    "mask of the stored image": "leave --apply-exif out, so that photographs are read as they are stored",
    "masks of 0 and 255": "store the index of the object's class where they hold 255, which means `no label`",
    "masks with another numbering": "renumber the values of the masks, or order classes.txt by them",
    "masks with another class's colour": "renumber the values of the masks as in VOC, or save them with VOC's palette",
    "masks that contradict the labels": "find out which are right: masks hold the classes' indices in the order of "
    "classes.txt (without it: of VOC)",
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
def permitted(path: AnyPath) -> Iterator[None]:
    """A missing permission inside the block becomes a DataError: it does not mean that the file is absent."""
    try:
        yield
    except PermissionError as error:
        raise fault("no permission", f"{error.filename or path}: permission denied") from error


def read_text(path: AnyPath) -> str:
    """The text of a file, UTF-8 with or without a byte-order mark, which spreadsheets write."""
    with permitted(path):
        try:
            return path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from error
        except PermissionError:
            raise
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); copy it again from its source") from error


@contextmanager
def collecting(problems: list[Problem]) -> Iterator[None]:
    """Add what `fault` reports inside the block to `problems`, and go on after it."""
    try:
        yield
    except DataError as error:
        problems += error.problems

"""Problems of a data set: they are collected and raised together, as one error whose message has remedies."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ssdd.storage.paths import AnyPath

_SHOWN_PER_KIND = 20
REMEDIES = {
    "missing image": "put the file there, or take the id out of the split",
    "ambiguous image": "keep one of the files",
    "unreadable image": "copy it again from its source, or take the id out of the split",
    "no permission": "give the user that runs the job permission to read it (for example chmod -R a+rX FOLDER)",
    "large image": "shrink it, or allow more pixels with --max-pixels if there is enough memory (docs/data.md)",
    "huge image": "shrink it: Pillow reads at most 179 million pixels",
    "large metadata": "save it without its metadata (for example exiftool -all= FILE)",
    "missing labels": "add a line `image_id,class;class` to labels.csv (the id without .jpg), or, in a "
    "folder without labels.csv, add Annotations/ID.xml or SegmentationClass/ID.png",
    "malformed labels": "write `image_id,class;class` in labels.csv, or <object><name> in an XML file",
    "unknown class": "use a name from classes.txt (without that file: from VOC), or add the name to classes.txt",
    "no class": "name at least one foreground class of the image, or take the id out of the split",
    "missing mask": "add the mask as a palette PNG, or take the id out of the split",
    "ambiguous mask": "keep one of the files",
    "ambiguous labels": "keep one of the files",
    "ambiguous list": "keep one of the files",
    "bad mask": "store class indices in an 8-bit palette or greyscale PNG of the image's size",
    "bad maps": "save a dictionary {class: map}, or {'keys': classes, 'high_res': maps} as IRN does, with finite "
    "scores in 0..1 (docs/other-methods.md)",
    "unreadable maps": "copy the file again from its source, or take the id out of the split",
    "refused pickle": "save only numbers, numpy arrays and torch tensors; anything else could run code",
    "masks and maps": "give a folder that holds either masks ID.png or class maps ID.npy",
    "mask of the turned image": "give --apply-exif, so that photographs are turned by their EXIF orientation",
    "mask of the stored image": "leave --apply-exif out, so that photographs are read as they are stored",
    "masks of 0 and 255": "store the index of the object's class in place of 255, which means `no label`",
    "masks with another numbering": "renumber the values of the masks, or order classes.txt by them",
    "masks with another class's colour": "renumber the values of the masks as in VOC, or save them with VOC's palette",
    "masks that contradict the labels": "find out whether the masks or the labels are wrong: masks must hold class "
    "indices in the order of classes.txt (without it: VOC's order)",
    "unsafe id": "write plain file names without extension: no folder, no leading dot, no '..'",
    "duplicate id": "keep it once",
}
Problem = tuple[str, str]  # (kind, detail): the kind is a key of REMEDIES, the detail names the file and the field


class DataError(ValueError):
    """Input that cannot be used; the message names the first problems of each kind, with file, field and remedy."""

    problems: tuple[Problem, ...] = ()
    """All (kind, detail) pairs, also those that the message only counts."""


def fault(kind: str, detail: str) -> DataError:
    """The error for one problem; a check raises it and `collecting` gathers it."""
    error = DataError(f"{detail}; {REMEDIES[kind]}")
    error.problems = ((kind, detail),)
    return error


def listing(title: str, problems: Sequence[Problem], shown: int = _SHOWN_PER_KIND) -> DataError:
    """One error for all `problems`, grouped by kind; its message shows at most `shown` of each kind."""
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, detail in problems:
        groups[kind].append(detail)
    lines = [f"{title}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    for kind, details in groups.items():
        lines.append(f"{kind} ({len(details)}): {REMEDIES[kind]}")
        lines += [f"  - {detail}" for detail in details[:shown]]
        if len(details) > shown:
            lines.append(f"  ... and {len(details) - shown} more")
    error = DataError("\n".join(lines))
    error.problems = tuple(problems)
    return error


@contextmanager
def permitted(path: AnyPath) -> Iterator[None]:
    """Turn a PermissionError inside the block into a DataError, so that it is not taken for a missing file."""
    try:
        yield
    except PermissionError as error:
        raise fault("no permission", f"{error.filename or path}: permission denied") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message; torch and ONNX append whole programs to their messages."""
    return str(error).strip().split("\n")[0]


def read_bytes(path: AnyPath, kind: str) -> bytes:
    """The bytes of a file. Raises DataError of `kind` if there is no such file, and OSError if the disk fails.

    A failing disk must end the job: with `--skip-broken`, images would be left out that are sound.
    """
    try:
        with permitted(path):
            return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise fault(kind, f"{path}: {error}") from error


def read_text(path: AnyPath) -> str:
    """The text of a UTF-8 file, with or without the byte-order mark that spreadsheets write. Raises DataError."""
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
    """Add the problems of a DataError inside the block to `problems`, and continue after the block."""
    try:
        yield
    except DataError as error:
        problems += error.problems

"""Reading and checking a folder in the PASCAL VOC layout, on a disk or in an object store.

ROOT/JPEGImages/ID.jpg                    images (.jpeg and .png are read too)
ROOT/ImageSets/Segmentation/SPLIT.txt     the ids of a split, one a line
ROOT/classes.txt                          the foreground classes, one a line (without it: the VOC classes)
ROOT/labels.csv                           image-level labels, `image_id,class;class`, or else
ROOT/Annotations/ID.xml                   the `<object><name>` entries, or else
ROOT/SegmentationClass/ID.png             the mask: class indices, 0 is background, 255 is "ignore"
"""

import csv
import hashlib
import itertools
import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssdd.paths import ABSENT, AnyPath, FilesIn, stat, threaded, to_path

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""The 20 foreground classes of PASCAL VOC; the first has index 1."""

_BACKGROUND, _IGNORE = "background", 255
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SHOWN_PER_KIND = 20
# What Pillow's JPEG and PNG readers raise on damaged bytes, SyntaxError being a broken PNG chunk.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

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
_Problem = tuple[str, str]  # its kind, a key of _REMEDIES, and the detail, which names the file and the field


class DataError(ValueError):
    """Input that cannot be used; the message lists every problem with its file, field and remedy."""

    problems: tuple[_Problem, ...] = ()
    """All (kind, detail) pairs, also those that the message only counts."""


def _fault(kind: str, detail: str) -> DataError:
    """The error for one problem; a check raises it and `_collecting` gathers it."""
    error = DataError(f"{detail}; {_REMEDIES[kind]}")
    error.problems = ((kind, detail),)
    return error


def listing(title: str, problems: Sequence[_Problem], shown: int = _SHOWN_PER_KIND) -> DataError:
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
def _collecting(problems: list[_Problem]) -> Iterator[None]:
    """Add what `_fault` reports inside the block to `problems`, and go on after it."""
    try:
        yield
    except DataError as error:
        problems += error.problems


@dataclass(frozen=True)
class Record:
    """One image of a split; `presence` holds its foreground class indices (1..K), sorted."""

    image_id: str
    image_path: AnyPath
    mask_path: AnyPath | None
    presence: tuple[int, ...]


@dataclass(frozen=True)
class VOCFolder:
    """A VOC-layout folder: its absolute root and its classes, `classes[0]` being the background."""

    root: AnyPath
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, background included."""
        return len(self.classes)

    def _images(self, files: FilesIn | None = None) -> dict[str, list[str]]:
        """The files of every image by its id: one listing of the folder instead of several look-ups an id."""
        images: dict[str, list[str]] = defaultdict(list)
        for name in (files or FilesIn(self.root / "JPEGImages")).names():
            stem, dot, suffix = name.rpartition(".")
            if dot + suffix.lower() in _IMAGE_SUFFIXES and not name.startswith("."):
                images[stem].append(name)
        return dict(images)

    def _image(self, name: str) -> AnyPath:
        return self.root / "JPEGImages" / name

    def _csv(self) -> AnyPath:
        return self.root / "labels.csv"

    def _xml(self, image_id: str) -> AnyPath:
        return self.root / "Annotations" / f"{image_id}.xml"

    def _mask(self, image_id: str) -> AnyPath:
        return self.root / "SegmentationClass" / f"{image_id}.png"


def open_folder(root: AnyPath) -> VOCFolder:
    """The folder at `root`; DataError if it has no JPEGImages or its classes.txt is unusable."""
    root = root.absolute() if isinstance(root, Path) else root  # workers on a cluster have another working directory
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds JPEGImages/")
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"{root}: has no JPEGImages/ folder; put the images there, as JPEGImages/ID.jpg")
    listed = root / "classes.txt"
    return VOCFolder(root, (_BACKGROUND, *(_read_classes(listed) if listed.exists() else VOC_CLASSES)))


def _read_classes(path: AnyPath) -> list[str]:
    names = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    names = names[1:] if names[:1] == [_BACKGROUND] else names
    if not 0 < len(names) < _IGNORE:  # a mask is 8 bit, and 255 is taken
        raise DataError(f"{path}: has {len(names)} foreground classes; write 1 to {_IGNORE - 1}, one a line")
    repeated = sorted({name for name in names if names.count(name) > 1 or name == _BACKGROUND})
    if repeated:
        raise DataError(f"{path}: names more than once: {', '.join(repeated)}; keep one line of each")
    return names


def _read_text(path: AnyPath) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from error


def read_split(folder: VOCFolder, split: str) -> list[str]:
    """The ids of a split, in the list's order.

    A line's first word is the id; further columns, as in VOC's own lists, are ignored. In a folder without
    ImageSets, the split "train" is all images. DataError for a missing or empty list, and for ids that are
    repeated or are not plain file names.
    """
    entries = list(_split_entries(folder, split))
    problems, seen = [], set()
    for where, image_id in entries:
        if not _is_plain(image_id):
            problems.append(("unsafe id", f"{where}: {image_id!r}"))
        elif image_id in seen:
            problems.append(("duplicate id", f"{where}: {image_id!r}"))
        seen.add(image_id)
    if problems:
        raise listing(f"{folder.root}, split {split!r}", problems)
    return [image_id for _, image_id in entries]


def _split_entries(folder: VOCFolder, split: str) -> Iterator[tuple[str, str]]:
    """Where an id stands, and the id; at least one."""
    if split == "train" and not (folder.root / "ImageSets").exists():
        images = folder._images()
        if not images:
            raise DataError(f"{folder.root}/JPEGImages: is empty; put {', '.join(_IMAGE_SUFFIXES)} files there")
        yield from ((str(folder._image(images[image_id][0])), image_id) for image_id in sorted(images))
        return
    lists = folder.root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not (_is_plain(split) and path.is_file()):
        known = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such split; write the ids there, one a line, or use one of: {known}")
    lines = [(number, line.split()) for number, line in enumerate(_read_text(path).splitlines(), start=1)]
    if not any(words for _, words in lines):
        raise DataError(f"{path}: is empty; write one image id a line")
    yield from ((f"{path}, line {number}", words[0]) for number, words in lines if words)


def _is_plain(name: str) -> bool:
    """Whether a name read from a file can be joined to a folder without leaving it."""
    return name.isprintable() and not name.startswith(".") and not any(part in name for part in ("/", "\\", ".."))


def load_records(
    folder: VOCFolder,
    split: str,
    *,
    need_labels: bool = True,
    need_masks: bool = False,
    skip_broken: bool = False,
) -> tuple[list[Record], list[_Problem]]:
    """The records of a split, in its order, after decoding every image and mask of it.

    Labels come from labels.csv if there is one, else from the image's XML file, else from its mask; without
    `need_labels` they are not read and `presence` is empty. A mask that exists is checked, needed or not.
    Raises one DataError that lists every problem of every id. With `skip_broken` it does so only if no record is
    without a problem; else those records come with the problems of the others, for `listing`.
    """
    ids = read_split(folder, split)
    rows = _read_rows(folder._csv()) if need_labels and folder._csv().exists() else None
    masks = FilesIn(folder.root / "SegmentationClass")
    xmls = FilesIn(folder.root / "Annotations") if need_labels and rows is None else None
    checker = _Checker(folder, folder._images(), masks, xmls, rows, need_labels, need_masks)
    checked = list(threaded(checker.check, ids, folder.root))
    problems = [problem for _, found in checked for problem in found]
    sound = [record for record, found in checked if not found]
    if problems and not (skip_broken and sound):
        raise listing(f"{folder.root}, split {split!r}", problems)
    return sound, problems


_Rows = dict[str, list[tuple[int, list[str]]]]  # by image id: its lines' numbers and cells


def _read_rows(path: AnyPath) -> _Rows:
    rows: _Rows = defaultdict(list)
    reader = csv.reader(_read_text(path).splitlines(), skipinitialspace=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and cells[0].lower() != "image_id":
                rows[cells[0]].append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; write `image_id,class;class`") from error
    return dict(rows)


@dataclass(frozen=True)
class _Checker:
    """Makes the record of an id and finds what is wrong with its files; the threads share it."""

    folder: VOCFolder
    images: dict[str, list[str]]
    masks: FilesIn
    xmls: FilesIn | None  # None: nobody asks for them
    rows: _Rows | None  # None: there is no labels.csv
    need_labels: bool
    need_masks: bool

    def check(self, image_id: str) -> tuple[Record, list[_Problem]]:
        problems: list[_Problem] = []
        mask_path = self.folder._mask(image_id) if self.masks.stat(f"{image_id}.png") != ABSENT else None
        path: AnyPath = Path()
        size, presence = None, []
        mask_classes: list[int] | None = None
        with _collecting(problems):
            path = self._find_image(image_id)
            size = _probe_image(path)
        with _collecting(problems):
            if mask_path:
                mask_classes = self._check_mask(mask_path, size)
            elif self.need_masks:
                raise _fault("missing mask", str(self.folder._mask(image_id)))
        with _collecting(problems):
            if self.need_labels:
                presence = self._presence(image_id, mask_path, mask_classes)
        return Record(image_id, path, mask_path, tuple(presence)), problems

    def _find_image(self, image_id: str) -> AnyPath:
        found = self.images.get(image_id, [])
        if not found:
            wanted = self.folder.root / "JPEGImages" / f"{image_id}.jpg"
            raise _fault("missing image", f"{wanted} (nor {', '.join(_IMAGE_SUFFIXES[1:])})")
        if len(found) > 1:
            others = ", ".join(found[1:])
            raise _fault("ambiguous image", f"{self.folder._image(found[0])}: there is also {others}")
        return self.folder._image(found[0])

    def _check_mask(self, path: AnyPath, image_size: tuple[int, int] | None) -> list[int]:
        """The foreground classes in a mask."""
        mask = read_mask(path)
        values = [int(value) for value in np.flatnonzero(np.bincount(mask.ravel())) if value != _IGNORE]
        faults = []
        if image_size and mask.shape[::-1] != image_size:
            faults.append("size {1}x{0}, but the image has {2}x{3}".format(*mask.shape, *image_size))
        if values and values[-1] >= self.folder.num_classes:
            strange = [value for value in values if value >= self.folder.num_classes]
            faults.append(f"values {strange} outside 0..{self.folder.num_classes - 1} and {_IGNORE}")
        if faults:
            raise _fault("bad mask", f"{path}: {'; '.join(faults)}")
        return [value for value in values if value > 0]

    def _presence(self, image_id: str, mask_path: AnyPath | None, mask_classes: list[int] | None) -> list[int]:
        xml = self.folder._xml(image_id)
        if self.rows is not None:
            where, names = self._names_in_csv(self.rows.get(image_id, []), image_id)
        elif self.xmls is not None and self.xmls.stat(xml.name) != ABSENT:
            where, names = f"{xml}, object/name", _names_in_xml(xml)
        elif mask_path is None:
            raise _fault("missing labels", f"{image_id}: neither labels.csv nor {xml} nor a mask")
        elif mask_classes is None:
            return []  # the mask is bad, which is reported already
        else:
            where, names = str(mask_path), [self.folder.classes[value] for value in mask_classes]
        wanted = {name.strip() for name in names} - {"", _BACKGROUND}
        unknown = sorted(wanted.difference(self.folder.classes))
        if unknown:
            raise _fault("unknown class", f"{where}: {', '.join(map(repr, unknown))}")
        if not wanted:
            raise _fault("no class", f"{where}: no foreground class")
        return sorted(self.folder.classes.index(name) for name in wanted)

    def _names_in_csv(self, rows: list[tuple[int, list[str]]], image_id: str) -> tuple[str, list[str]]:
        """Where the classes of an image stand in labels.csv, and their names."""
        where = f"{self.folder._csv()}, line {', '.join(str(number) for number, _ in rows)} ({image_id})"
        if not rows:
            raise _fault("missing labels", f"{self.folder._csv()}: no line for image_id {image_id!r}")
        if len(rows) > 1:
            raise _fault("malformed labels", f"{where}: the image_id is repeated")
        cells = rows[0][1]
        if len(cells) != 2:
            raise _fault("malformed labels", f"{where}: number of fields is {len(cells)}, not 2")
        return f"{where}, classes", cells[1].split(";")


def _names_in_xml(path: AnyPath) -> list[str]:
    try:
        objects = ElementTree.fromstring(path.read_bytes()).findall("object")
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: its encoding
        raise _fault("malformed labels", f"{path}: not readable XML ({error})") from error
    return [entry.findtext("name", "") for entry in objects]


def fingerprint(folder: VOCFolder, split: str) -> str:
    """A hash (hex SHA-256) that changes with whatever `load_records` reads for the split.

    It covers the classes, the ids, and each file's name under the root, size and modification time; nothing
    is decoded. Raises DataError where `read_split` does.
    """
    of_images, of_masks = FilesIn(folder.root / "JPEGImages"), FilesIn(folder.root / "SegmentationClass")
    ids, images = read_split(folder, split), folder._images(of_images)
    csv = stat(folder._csv())
    of_xmls = FilesIn(folder.root / "Annotations") if csv == ABSENT else None
    digest = hashlib.sha256(json.dumps([folder.classes, ids, csv]).encode())
    for image_id in ids:
        mask, xml = f"{image_id}.png", f"{image_id}.xml"
        files = [(name, *of_images.stat(name)) for name in images.get(image_id, [])]
        files.append((mask, *of_masks.stat(mask)))
        if of_xmls is not None:
            files.append((xml, *of_xmls.stat(xml)))
        digest.update(json.dumps(files).encode())
    return digest.hexdigest()


def stats(paths: Sequence[AnyPath]) -> str:
    """A hash (hex SHA-256) of files' names, sizes and modification times."""
    folders = {folder: FilesIn(folder) for folder in {path.parent for path in paths}}
    found = [(str(path), *folders[path.parent].stat(path.name)) for path in paths]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def find_masks(folder: VOCFolder, ids: Sequence[str], *places: AnyPath) -> list[list[AnyPath]]:
    """Other methods' masks ID.png of a folder's images, each decoded and checked; a list for each of `places`.

    Raises one DataError that lists every mask that is missing, does not decode, has another size than its image, or
    has a value that is no class (255, too: such a mask has to name a class at every pixel).
    """
    for place in places:
        if not place.is_dir():
            raise DataError(f"{place}: no such folder; give the folder that holds the masks ID.png")
    images, masks = folder._images(), {place: FilesIn(place) for place in places}

    def check(path: AnyPath) -> list[_Problem]:
        image_id = path.stem
        problems: list[_Problem] = []
        with _collecting(problems):
            if masks[path.parent].stat(path.name) == ABSENT:
                raise _fault("missing mask", str(path))
            mask = read_mask(path)
            with _decoding(folder._image(images[image_id][0]), "unreadable image") as data:
                width, height = _open_image(data).size
            if mask.shape != (height, width):
                raise _fault(
                    "bad mask", f"{path}: size {mask.shape[1]}x{mask.shape[0]}, but the image has {width}x{height}"
                )
            if mask.max() >= folder.num_classes:
                raise _fault("bad mask", f"{path}: value {mask.max()} outside 0..{folder.num_classes - 1}")
        return problems

    paths = [[place / f"{image_id}.png" for image_id in ids] for place in places]
    checked = threaded(check, itertools.chain(*paths), places[0])
    problems = [problem for found in checked for problem in found]
    if problems:
        raise listing(", ".join(map(str, places)), problems)
    return paths


@contextmanager
def _decoding(source: str | AnyPath | bytes, kind: str) -> Iterator[bytes]:
    """The bytes of a source; what Pillow says against them inside the block becomes a DataError."""
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        yield source if isinstance(source, bytes) else to_path(source).read_bytes()
    except UnidentifiedImageError as error:  # its own message shows a memory address
        raise _fault(kind, f"{name}: not a JPEG or PNG file, or its header is damaged") from error
    except _DECODE_ERRORS as error:
        raise _fault(kind, f"{name}: {error}") from error


def _open_image(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=("JPEG", "PNG"))  # no other reader for files of unknown origin


def _probe_image(path: AnyPath) -> tuple[int, int]:
    """The (width, height) of an image that decodes to its end."""
    with _decoding(path, "unreadable image") as data:
        image = _open_image(data)
        size = image.size
        image.draft(None, (1, 1))  # JPEG: 1/8 scale, several times faster and still reads every byte
        image.load()
    return size


def read_image(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a JPEG or PNG, given as path or bytes, to RGB: uint8 (H, W, 3).

    The pixels are as stored: an EXIF orientation is not applied, because masks align with the stored pixels.
    Other modes are converted, 16-bit ones by their high byte; transparency is dropped. Raises DataError.
    """
    with _decoding(source, "unreadable image") as data:
        image = _open_image(data)
        image.load()
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it at 255
        return np.stack([(np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)] * 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return np.array(image.convert("RGB"))  # a copy: what Pillow exposes is read-only


def read_mask(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a palette or 8-bit greyscale PNG, given as path or bytes, to its indices: uint8 (H, W).

    DataError for any other file: the values of a colour image or of another depth are no class indices.
    """
    with _decoding(source, "bad mask") as data:
        # Pillow scales 2 and 4-bit grey to 0..255, so the header and not the mode tells what the values are.
        depth, colour = data[24:26] if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 26 else (0, 0)
        if colour != 3 and (depth, colour) != (8, 0):  # 3 is palette, 0 is greyscale
            raise ValueError("not a palette PNG nor an 8-bit greyscale one")
        return np.array(_open_image(data))


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode class indices, uint8 (H, W), as a PNG with the VOC palette; `read_mask` inverts it exactly."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask is uint8 (H, W) and not empty, this is {mask.dtype} {mask.shape}")
    image = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
    # Pillow takes the bits a pixel (1, 2, 4 or 8) from the palette's length: end it at the last index.
    image.putpalette(voc_palette()[: int(mask.max()) + 1].tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """The VOC colour map, uint8 (256, 3): an index's bits 0, 1, 2, 3, ... are top bits of R, G, B, R, ..."""
    index, channel = np.arange(256)[:, None], np.arange(3)
    levels = [((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)]
    return np.bitwise_or.reduce(levels).astype(np.uint8)

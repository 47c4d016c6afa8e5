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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ssdd.data import codec
from ssdd.data.problems import DataError, Problem, collecting, fault, listing
from ssdd.storage.paths import ABSENT, AnyPath, FilesIn, stat, threaded

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
"""The 20 foreground classes of PASCAL VOC; the first has index 1."""
_BACKGROUND, _IGNORE = "background", 255
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


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
) -> tuple[list[Record], list[Problem]]:
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
    checker = _Checker(
        folder=folder,
        images=folder._images(),
        masks=masks,
        xmls=xmls,
        rows=rows,
        need_labels=need_labels,
        need_masks=need_masks,
    )
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


@dataclass(frozen=True, kw_only=True)
class _Checker:
    """Makes the record of an id and finds what is wrong with its files; the threads share it."""

    folder: VOCFolder
    images: dict[str, list[str]]
    masks: FilesIn
    xmls: FilesIn | None  # None: nobody asks for them
    rows: _Rows | None  # None: there is no labels.csv
    need_labels: bool
    need_masks: bool

    def check(self, image_id: str) -> tuple[Record, list[Problem]]:
        problems: list[Problem] = []
        mask_path = self.folder._mask(image_id) if self.masks.stat(f"{image_id}.png") != ABSENT else None
        path: AnyPath = Path()
        size, presence = None, []
        mask_classes: list[int] | None = None
        with collecting(problems):
            path = self._find_image(image_id)
            size = codec.probe_image(path)
        with collecting(problems):
            if mask_path:
                mask_classes = self._check_mask(mask_path, size)
            elif self.need_masks:
                raise fault("missing mask", str(self.folder._mask(image_id)))
        with collecting(problems):
            if self.need_labels:
                presence = self._presence(image_id, mask_path, mask_classes)
        return Record(image_id, path, mask_path, tuple(presence)), problems

    def _find_image(self, image_id: str) -> AnyPath:
        found = self.images.get(image_id, [])
        if not found:
            wanted = self.folder.root / "JPEGImages" / f"{image_id}.jpg"
            raise fault("missing image", f"{wanted} (nor {', '.join(_IMAGE_SUFFIXES[1:])})")
        if len(found) > 1:
            others = ", ".join(found[1:])
            raise fault("ambiguous image", f"{self.folder._image(found[0])}: there is also {others}")
        return self.folder._image(found[0])

    def _check_mask(self, path: AnyPath, image_size: tuple[int, int] | None) -> list[int]:
        """The foreground classes in a mask."""
        mask = codec.read_mask(path)
        values = [int(value) for value in np.flatnonzero(np.bincount(mask.ravel())) if value != _IGNORE]
        faults = []
        if image_size and mask.shape[::-1] != image_size:
            faults.append("size {1}x{0}, but the image has {2}x{3}".format(*mask.shape, *image_size))
        if values and values[-1] >= self.folder.num_classes:
            strange = [value for value in values if value >= self.folder.num_classes]
            faults.append(f"values {strange} outside 0..{self.folder.num_classes - 1} and {_IGNORE}")
        if faults:
            raise fault("bad mask", f"{path}: {'; '.join(faults)}")
        return [value for value in values if value > 0]

    def _presence(self, image_id: str, mask_path: AnyPath | None, mask_classes: list[int] | None) -> list[int]:
        xml = self.folder._xml(image_id)
        if self.rows is not None:
            where, names = self._names_in_csv(self.rows.get(image_id, []), image_id)
        elif self.xmls is not None and self.xmls.stat(xml.name) != ABSENT:
            where, names = f"{xml}, object/name", _names_in_xml(xml)
        elif mask_path is None:
            raise fault("missing labels", f"{image_id}: neither labels.csv nor {xml} nor a mask")
        elif mask_classes is None:
            return []  # the mask is bad, which is reported already
        else:
            where, names = str(mask_path), [self.folder.classes[value] for value in mask_classes]
        wanted = {name.strip() for name in names} - {"", _BACKGROUND}
        unknown = sorted(wanted.difference(self.folder.classes))
        if unknown:
            raise fault("unknown class", f"{where}: {', '.join(map(repr, unknown))}")
        if not wanted:
            raise fault("no class", f"{where}: no foreground class")
        return sorted(self.folder.classes.index(name) for name in wanted)

    def _names_in_csv(self, rows: list[tuple[int, list[str]]], image_id: str) -> tuple[str, list[str]]:
        """Where the classes of an image stand in labels.csv, and their names."""
        where = f"{self.folder._csv()}, line {', '.join(str(number) for number, _ in rows)} ({image_id})"
        if not rows:
            raise fault("missing labels", f"{self.folder._csv()}: no line for image_id {image_id!r}")
        if len(rows) > 1:
            raise fault("malformed labels", f"{where}: the image_id is repeated")
        cells = rows[0][1]
        if len(cells) != 2:
            raise fault("malformed labels", f"{where}: number of fields is {len(cells)}, not 2")
        return f"{where}, classes", cells[1].split(";")


def _names_in_xml(path: AnyPath) -> list[str]:
    try:
        objects = ElementTree.fromstring(path.read_bytes()).findall("object")
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: its encoding
        raise fault("malformed labels", f"{path}: not readable XML ({error})") from error
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

    def check(path: AnyPath) -> list[Problem]:
        image_id = path.stem
        problems: list[Problem] = []
        with collecting(problems):
            if masks[path.parent].stat(path.name) == ABSENT:
                raise fault("missing mask", str(path))
            mask = codec.read_mask(path)
            with codec.decoding(folder._image(images[image_id][0]), "unreadable image") as data:
                width, height = codec.open_image(data).size
            if mask.shape != (height, width):
                raise fault(
                    "bad mask", f"{path}: size {mask.shape[1]}x{mask.shape[0]}, but the image has {width}x{height}"
                )
            if mask.max() >= folder.num_classes:
                raise fault("bad mask", f"{path}: value {mask.max()} outside 0..{folder.num_classes - 1}")
        return problems

    paths = [[place / f"{image_id}.png" for image_id in ids] for place in places]
    checked = threaded(check, itertools.chain(*paths), places[0])
    problems = [problem for found in checked for problem in found]
    if problems:
        raise listing(", ".join(map(str, places)), problems)
    return paths

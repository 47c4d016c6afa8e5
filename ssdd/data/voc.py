"""A folder in the PASCAL VOC layout, on a disk or in an object store: its classes, image lists and files.

ROOT/JPEGImages/ID.jpg                    images (.jpeg and .png are read too)
ROOT/ImageSets/Segmentation/SPLIT.txt     the ids of a split, one per line
ROOT/classes.txt                          the foreground classes, one per line (without it: the VOC classes)
ROOT/labels.csv                           image-level labels, `image_id,class;class`, or else
ROOT/Annotations/ID.xml                   the `<object><name>` entries, or else
ROOT/SegmentationClass/ID.png             the mask: class indices, 0 is background, 255 is "ignore"

Suffixes are matched in any case, names in any Unicode form; ids are in the form NFC. `records` reads and checks the
content of the files.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssdd.data.class_names import BACKGROUND, VOC_CLASSES, normal_form, read_classes
from ssdd.data.files import FilesByName
from ssdd.data.problems import DataError, listing, permitted, read_text
from ssdd.storage.paths import ABSENT, AnyPath, FilesIn, Stat, is_folder, stat

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class VOCFolder:
    """A VOC-layout folder: its absolute root and its classes; `classes[0]` is the background."""

    root: AnyPath
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, background included."""
        return len(self.classes)

    @property
    def has_voc_classes(self) -> bool:
        """Whether the classes are VOC's, in VOC's order."""
        return self.classes[1:] == VOC_CLASSES

    def images(self) -> FilesByName:
        """The photographs by id; each call lists the folder again."""
        return FilesByName(self.root / "JPEGImages", IMAGE_SUFFIXES, "image")

    def masks(self) -> FilesByName:
        """The true masks by id; each call lists the folder again."""
        return FilesByName(self.root / "SegmentationClass", (".png",), "mask")

    def xmls(self) -> FilesByName:
        """The XML files with labels by id; each call lists the folder again."""
        return FilesByName(self.root / "Annotations", (".xml",), "labels")

    @property
    def csv(self) -> AnyPath:
        """The path of labels.csv, which may be absent."""
        return self.root / "labels.csv"

    def stat_of_csv(self) -> Stat:
        """Size and modification time of labels.csv, or ABSENT. Raises DataError without permission to read them."""
        with permitted(self.csv):
            return stat(self.csv)

    def lists(self) -> FilesByName:
        """The files of the image lists by name; each call lists the folder again."""
        return FilesByName(self.root / "ImageSets" / "Segmentation", (".txt",), "list")


def open_folder(root: AnyPath) -> VOCFolder:
    """Open the folder at `root`. Raises DataError if it has no JPEGImages or its classes.txt is unusable."""
    # The root is made absolute, because workers on a cluster may have another working directory.
    root = root.absolute() if isinstance(root, Path) else root
    with permitted(root):
        if not is_folder(root):
            raise DataError(f"{root}: no such folder; give the folder that holds JPEGImages/")
        if not is_folder(root / "JPEGImages"):
            raise DataError(f"{root}: has no JPEGImages/ folder; put the images there, as JPEGImages/ID.jpg")
        classes_file = root / "classes.txt"
        classes = VOC_CLASSES if stat(classes_file) == ABSENT else read_classes(classes_file)
    return VOCFolder(root, (BACKGROUND, *classes))


def read_split(folder: VOCFolder, split: str) -> list[str]:
    """The ids of a split, in the list's order.

    A line is an id. VOC's lists for each class also have a label after the id (`ID 1`, `ID -1`): the number at the end
    of a line is dropped if the rest of the line is the id of an image and the whole line is not.
    In a folder without ImageSets, the split "train" has all images.

    Raises:
        problems.DataError: the list is missing or empty, or ids are repeated or are not plain file names.
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
    """Yield the place of each id, for messages, and the id. Raises DataError if there is no id."""
    with permitted(folder.root):
        has_lists = is_folder(folder.root / "ImageSets")
    if split == "train" and not has_lists:
        names = folder.images().names()
        if not names:
            raise DataError(f"{folder.root}/JPEGImages: is empty; put {', '.join(IMAGE_SUFFIXES)} files there")
        yield from ((f"{folder.root}/JPEGImages", name) for name in names)
        return
    lists = folder.lists()
    path = lists.find(normal_form(split))
    if path is None:
        others = ", ".join(lists.names()) or "none"
        raise DataError(
            f"{lists.folder / f'{split}.txt'}: no such split; write the ids there, one per line, or use one of: "
            f"{others}"
        )
    lines = [normal_form(line.strip()) for line in read_text(path).splitlines()]
    if not any(lines):
        raise DataError(f"{path}: is empty; write one image id per line")
    may_have_labels = any(re.search(r"\s", line) for line in lines)
    images: FilesByName | tuple[str, ...] = folder.images() if may_have_labels else ()
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        labelled = re.fullmatch(r"(.*\S)\s+[+-]?\d+", line)
        is_labelled = labelled and line not in images and labelled[1] in images
        yield f"{path}, line {number}", labelled[1] if labelled and is_labelled else line


def _is_plain(name: str) -> bool:
    """Whether a name from a file can be joined to a folder's path without leaving the folder."""
    return name.isprintable() and not name.startswith(".") and not any(part in name for part in ("/", "\\", ".."))


def fingerprint(folder: VOCFolder, split: str) -> str:
    """A hash (hex SHA-256) that changes with everything that `records.examine` reads for the split.

    It covers the classes, the ids, and each file's name, size and modification time; no image is decoded. Raises
    DataError if `read_split` does, or if permission to list the files is missing.
    """
    ids, images, masks = read_split(folder, split), folder.images(), folder.masks()
    csv = folder.stat_of_csv()
    xmls = folder.xmls() if csv == ABSENT else None
    digest = hashlib.sha256(json.dumps([folder.classes, ids, csv]).encode())
    for image_id in ids:
        files = [files.stats(image_id) for files in (images, masks, xmls) if files is not None]
        digest.update(json.dumps(files).encode())
    return digest.hexdigest()


def stats(paths: Sequence[AnyPath]) -> str:
    """A hash (hex SHA-256) of files' names, sizes and modification times."""
    folders = {folder: FilesIn(folder) for folder in {path.parent for path in paths}}
    entries = []
    for path in paths:
        with permitted(path):
            entries.append((path.name, *folders[path.parent].stat(path.name)))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

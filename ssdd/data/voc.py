"""A folder in the PASCAL VOC layout, on a disk or in an object store: its classes, image lists and files.

ROOT/JPEGImages/ID.jpg                    images (.jpeg and .png are read too)
ROOT/ImageSets/Segmentation/SPLIT.txt     the ids of a split, one a line
ROOT/classes.txt                          the foreground classes, one a line (without it: the VOC classes)
ROOT/labels.csv                           image-level labels, `image_id,class;class`, or else
ROOT/Annotations/ID.xml                   the `<object><name>` entries, or else
ROOT/SegmentationClass/ID.png             the mask: class indices, 0 is background, 255 is "ignore"

Suffixes are matched in any case, names in any Unicode form; ids are in the form NFC. `records` reads and checks what
the files hold.
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
    """A VOC-layout folder: its absolute root and its classes, `classes[0]` being the background."""

    root: AnyPath
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, background included."""
        return len(self.classes)

    @property
    def has_voc_classes(self) -> bool:
        """Whether they are VOC's, in VOC's order."""
        return self.classes[1:] == VOC_CLASSES

    def images(self) -> FilesByName:
        """The photographs by id, listed anew."""
        return FilesByName(self.root / "JPEGImages", IMAGE_SUFFIXES, "image")

    def masks(self) -> FilesByName:
        """The true masks by id, listed anew."""
        return FilesByName(self.root / "SegmentationClass", (".png",), "mask")

    def xmls(self) -> FilesByName:
        """The XML files with labels by id, listed anew."""
        return FilesByName(self.root / "Annotations", (".xml",), "labels")

    @property
    def csv(self) -> AnyPath:
        """Where labels.csv is, if there is one."""
        return self.root / "labels.csv"

    def stat_of_csv(self) -> Stat:
        """Of labels.csv; ABSENT without one. DataError where the disk refuses to say."""
        with permitted(self.csv):
            return stat(self.csv)

    def lists(self) -> FilesByName:
        """The files of the image lists by name, listed anew."""
        return FilesByName(self.root / "ImageSets" / "Segmentation", (".txt",), "list")


def open_folder(root: AnyPath) -> VOCFolder:
    """The folder at `root`; DataError if it has no JPEGImages or its classes.txt is unusable."""
    root = root.absolute() if isinstance(root, Path) else root  # workers on a cluster have another working directory
    with permitted(root):
        if not is_folder(root):
            raise DataError(f"{root}: no such folder; give the folder that holds JPEGImages/")
        if not is_folder(root / "JPEGImages"):
            raise DataError(f"{root}: has no JPEGImages/ folder; put the images there, as JPEGImages/ID.jpg")
        listed = root / "classes.txt"
        classes = VOC_CLASSES if stat(listed) == ABSENT else read_classes(listed)
    return VOCFolder(root, (BACKGROUND, *classes))


def read_split(folder: VOCFolder, split: str) -> list[str]:
    """The ids of a split, in the list's order.

    A line is an id. If there is no image with that id, and the line ends with a number, and what stands before it is
    the id of an image, then the number is a label, as in VOC's lists for each class (`ID 1`, `ID -1`). In a folder
    without ImageSets, the split "train" is all images.

    Raises:
        problems.DataError: a missing or empty list, and ids that are repeated or are not plain file names.
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
            f"{lists.folder / f'{split}.txt'}: no such split; write the ids there, one a line, or use one of: {others}"
        )
    lines = [normal_form(line.strip()) for line in read_text(path).splitlines()]
    if not any(lines):
        raise DataError(f"{path}: is empty; write one image id a line")
    with_label = any(re.search(r"\s", line) for line in lines)
    images: FilesByName | tuple[str, ...] = folder.images() if with_label else ()
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        labelled = re.fullmatch(r"(.*\S)\s+[+-]?\d+", line)
        is_labelled = labelled and line not in images and labelled[1] in images
        yield f"{path}, line {number}", labelled[1] if labelled and is_labelled else line


def _is_plain(name: str) -> bool:
    """Whether a name read from a file can be joined to a folder without leaving it."""
    return name.isprintable() and not name.startswith(".") and not any(part in name for part in ("/", "\\", ".."))


def fingerprint(folder: VOCFolder, split: str) -> str:
    """A hash (hex SHA-256) that changes with whatever `records.load` reads for the split.

    It covers the classes, the ids, and each file's name under the root, size and modification time; nothing
    is decoded. Raises DataError where `read_split` does, and where the disk refuses to say what is there.
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
    every = []
    for path in paths:
        with permitted(path):
            every.append((str(path), *folders[path.parent].stat(path.name)))
    return hashlib.sha256(json.dumps(every).encode()).hexdigest()

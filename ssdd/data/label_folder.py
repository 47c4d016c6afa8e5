"""A data folder in VOC's layout out of photographs and labels: of class folders, COCO's JSON, XML files or a CSV."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdd.data import codec
from ssdd.data.class_names import is_background, normal_form
from ssdd.data.labels import names_in, read_xml
from ssdd.data.problems import DataError, Problem, collecting, listing, read_text
from ssdd.storage.artifacts import whole

_KEPT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
"""Formats that stay as they are; the others become PNG. MPO is a telephone's JPEG with a second picture behind it."""


@dataclass(frozen=True)
class Labels:
    """Photographs and what is in them."""

    classes: list[str]
    """In the order of classes.txt."""
    images: dict[Path, set[str]]
    """The classes of each file."""


@dataclass(kw_only=True)
class Report:
    """What became of the photographs."""

    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    """How many photographs have each class."""
    unlabelled: list[Path] = field(default_factory=list)
    """Left out: the method needs at least one class of each image."""
    same: int = 0
    """Files that are another one's copy; their classes were joined."""
    train: int = 0
    val: int = 0

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.images} images: {self.train} in the list train, {self.val} in val"
        width = max(map(len, self.classes), default=0)
        yield from (f"  {name:<{width}}  {count:>7}" for name, count in self.classes.items())
        if self.same:
            yield f"{self.same} files are copies of others; each image has the classes of all its copies"
        if self.unlabelled:
            shown = ", ".join(str(path) for path in self.unlabelled[:5])
            yield f"{len(self.unlabelled)} images without a class are left out: {shown}" + ", ..." * (
                len(self.unlabelled) > 5
            )


def read(source: Path, images: Path | None = None) -> Labels:
    """The labels of a source, by what it is.

    Args:
        source: a folder with a folder for each class; a folder of VOC's XML files; COCO's `instances.json`; or a CSV
            with a line `FILE,CLASS` (or `FILE,CLASS;CLASS`) for each image or each class of an image.
        images: where the photographs are that the source names. Default: beside the JSON or CSV; for XML files
            `JPEGImages` beside their folder, or that folder itself.

    Raises:
        problems.DataError: the source is none of these, or names files that are not there.
    """
    if source.is_dir():
        xmls = sorted(path for path in source.iterdir() if path.suffix.lower() == ".xml")
        return _from_xml(xmls, images or _beside(source)) if xmls else _from_folders(source)
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder; give class folders, XML files, a COCO JSON or a CSV")
    read_file = {".json": _from_coco, ".csv": _from_csv, ".txt": _from_csv, ".tsv": _from_csv}.get(
        source.suffix.lower()
    )
    if read_file is None:
        raise DataError(f"{source}: is neither a folder nor a .json nor a .csv")
    return read_file(source, images or source.parent)


def _beside(folder: Path) -> Path:
    photographs = folder.parent / "JPEGImages"
    return photographs if photographs.is_dir() else folder


def _from_folders(source: Path) -> Labels:
    found: dict[Path, set[str]] = {}
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in codec.PHOTOGRAPH_SUFFIXES and not path.name.startswith("."):
                found[path] = {folder.name}
    if not found:
        raise DataError(f"{source}: has no folders with photographs; put those of a class into SOURCE/CLASS/")
    return _labels([folder.name for folder in folders], found)


def _from_coco(source: Path, images: Path) -> Labels:
    text = read_text(source)
    try:
        data = json.loads(text)
        names = {category["id"]: category["name"] for category in data["categories"]}
        found: dict[int, set[str]] = {entry["id"]: set() for entry in data["images"]}
        for annotation in data["annotations"]:
            found[annotation["image_id"]].add(names[annotation["category_id"]])
        files = {entry["id"]: images / entry["file_name"] for entry in data["images"]}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{source}: not the annotations of COCO ({type(error).__name__}: {error})"
        raise DataError(f"{reason}; images, annotations and categories are needed") from error
    return _present(source, [names[i] for i in sorted(names)], {files[i]: own for i, own in found.items()})


def _from_xml(sources: list[Path], images: Path) -> Labels:
    found: dict[Path, set[str]] = {}
    problems: list[Problem] = []
    for source in sources:
        with collecting(problems):
            root = read_xml(source)
            name = root.findtext("filename", "") or f"{source.stem}.jpg"
            found[images / Path(name).name] = set(names_in(root))
    if problems:
        raise listing(str(sources[0].parent), problems)
    return _present(sources[0].parent, sorted(set().union(*found.values())), found)


def _from_csv(source: Path, images: Path) -> Labels:
    text = read_text(source)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",\t|")
    except csv.Error:
        dialect = csv.excel
    found: dict[Path, set[str]] = {}
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), dialect) if any(row)]
    if rows and Path(rows[0][0]).suffix.lower() not in codec.PHOTOGRAPH_SUFFIXES:  # a header
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise DataError(f"{source}: row {number} has {len(row)} fields, not 2; write `FILE,CLASS` on each line")
        found.setdefault(images / row[0], set()).update(name.strip() for name in row[1].split(";"))
    return _present(source, sorted(set().union(*found.values())), found)


def _present(source: Path, classes: list[str], found: dict[Path, set[str]]) -> Labels:
    """The labels, if all files are there."""
    missing = [("missing image", str(path)) for path in found if not path.is_file()]
    if missing:
        raise listing(f"{source} (--images says where the photographs are)", missing)
    return _labels(classes, found)


def _labels(classes: Iterable[str], found: dict[Path, set[str]]) -> Labels:
    """Without the background, which is no class, and names that nothing has."""

    def clean(names: Iterable[str]) -> list[str]:
        every = dict.fromkeys(normal_form(name.strip()) for name in names)
        return [name for name in every if name and not is_background(name)]

    images = {path: set(clean(names)) for path, names in found.items()}
    used = set().union(*images.values()) if images else set()
    return Labels([name for name in clean(classes) if name in used], images)


def write(
    labels: Labels,
    output: Path,
    *,
    val: float = 0.1,
    copy: bool = False,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> Report:
    """Make a data folder, which appears when it is whole: JPEGImages, labels.csv, classes.txt, the lists train and val.

    Args:
        labels: of the photographs.
        output: a folder that does not exist.
        val: share of the images that go into the list val; every class keeps images to train on.
        copy: copy the photographs. Otherwise they are linked (hard links) where the output is on the same disk. Those
            that are neither JPEG nor PNG become PNG.
        seed: of the split.
        progress: shows how far an iterable has come.

    Raises:
        problems.DataError: `output` is there already, a photograph cannot be read, a class's name cannot be written
            into labels.csv, or no image has a class.
    """
    if output.exists():
        raise DataError(f"{output}: is there already; name a new folder")
    bad = [name for name in labels.classes if ";" in name or "\n" in name]
    if bad:
        raise DataError(f"classes {', '.join(map(repr, bad))}: labels.csv separates classes by `;`; rename them")
    report = Report()
    problems: list[Problem] = []
    by_content: dict[str, tuple[Path, set[str]]] = {}
    for path in progress(labels.images):
        with collecting(problems):
            data = _checked(path)
            digest = hashlib.sha256(data).hexdigest()
            report.same += digest in by_content
            by_content.setdefault(digest, (path, set()))[1].update(labels.images[path])
    if problems:
        raise listing("photographs", problems)
    report.unlabelled = [path for path, own in by_content.values() if not own]
    chosen = {path: own for path, own in by_content.values() if own}
    if not chosen:
        raise DataError("no image has a class; each needs at least one")
    ids = _ids(list(chosen))
    in_val = _val_list(list(chosen.values()), val, seed)
    with whole(output) as aside:
        (aside / "JPEGImages").mkdir(parents=True)
        for path, image_id in progress(ids.items()):
            _place(path, aside / "JPEGImages", image_id, copy)
        (aside / "classes.txt").write_text("".join(f"{name}\n" for name in labels.classes), encoding="utf-8")
        with (aside / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", "classes"])
            order = labels.classes.index
            writer.writerows([ids[path], ";".join(sorted(own, key=order))] for path, own in chosen.items())
        lists = aside / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, wanted in (("train", False), ("val", True)):
            members = [ids[path] for path, is_val in zip(chosen, in_val, strict=True) if is_val == wanted]
            if members:
                (lists / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in members), encoding="utf-8")
            setattr(report, name, len(members))
    report.images = len(chosen)
    report.classes = {name: sum(name in own for own in chosen.values()) for name in labels.classes}
    return report


def _checked(path: Path) -> bytes:
    """A photograph's bytes, if it decodes to its end."""
    with codec.decoding(path, "unreadable image", codec.PHOTOGRAPH_KINDS) as data:
        with Image.open(io.BytesIO(data), formats=codec.PHOTOGRAPH_FORMATS) as image:
            image.load()
        return data


def _place(path: Path, folder: Path, image_id: str, copy: bool) -> None:
    """Put a photograph into the data folder."""
    with Image.open(path, formats=codec.PHOTOGRAPH_FORMATS) as image:
        suffix = _KEPT.get(image.format or "")
        if suffix is None:
            image.save(folder / f"{image_id}.png", "PNG", exif=image.getexif())
            return
    target = folder / f"{image_id}{suffix}"
    if not copy:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(path, target)


def _ids(paths: list[Path]) -> dict[Path, str]:
    """An id for each file: its name without suffix, where that is not unique with the folder's name before it."""

    def plain(text: str) -> str:
        kept = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in normal_form(text))
        return kept.replace("..", "_").lstrip(".") or "image"

    stems: dict[str, int] = {}
    for path in paths:
        stems[plain(path.stem)] = stems.get(plain(path.stem), 0) + 1
    taken: set[str] = set()
    ids = {}
    for path in paths:
        name = plain(path.stem)
        if stems[name] > 1:
            name = f"{plain(path.parent.name)}_{name}"
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        ids[path] = unique
    return ids


def _val_list(classes: list[set[str]], share: float, seed: int) -> list[bool]:
    """Whether each image goes into the list val: a random share, of which no class is left without training images."""
    wanted = round(share * len(classes))
    left: dict[str, int] = {}
    for own in classes:
        for name in own:
            left[name] = left.get(name, 0) + 1
    chosen = [False] * len(classes)
    for k in np.random.default_rng(seed).permutation(len(classes)):
        if sum(chosen) == wanted:
            break
        if all(left[name] > 1 for name in classes[k]):
            chosen[k] = True
            for name in classes[k]:
                left[name] -= 1
    return chosen

"""Make a data folder in VOC's layout from photographs and labels: class folders, COCO's JSON, XML files or a CSV."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdd.data import codec
from ssdd.data.class_names import is_background, is_ignore, normal_form, parse_classes, without_number
from ssdd.data.files import FilesByName
from ssdd.data.labels import names_in, read_xml
from ssdd.data.photographs import is_hidden
from ssdd.data.problems import DataError, Problem, collecting, fault, listing, read_text
from ssdd.storage.artifacts import whole

_KEPT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
"""Formats that are kept; the others become PNG. MPO, from telephones, is a JPEG with a second picture behind it."""
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")
"""Pillow's names of the pixel formats that a PNG can store."""
_SPLITS = ("train", "training", "val", "valid", "validation", "test")
"""Usual names of folders that are parts of a data set, in lower case."""


@dataclass(frozen=True)
class Labels:
    """Photographs and their classes."""

    classes: list[str]
    """The class names, in the order of classes.txt."""
    images: dict[Path, set[str]]
    """The class names of each file."""
    unused: list[str] = field(default_factory=list)
    """Classes of the source that no photograph has."""
    others: list[Path] = field(default_factory=list)
    """Files in class folders that do not have the suffix of a photograph."""


@dataclass(kw_only=True)
class Report:
    """How many photographs were used, and which were left out."""

    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    """How many photographs have each class."""
    unlabelled: list[Path] = field(default_factory=list)
    """Photographs that were left out, because the method needs at least one class for each image."""
    unused: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    """`Labels.unused` and `Labels.others`."""
    same: int = 0
    """The number of files that are copies of an earlier one, which gets the classes of all its copies."""
    train: int = 0
    val: int = 0

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield f"{self.images} images: {self.train} in the list train, {self.val} in val"
        width = max(map(len, self.classes), default=0)
        yield from (f"  {name:<{width}}  {count:>7}" for name, count in self.classes.items())
        if self.same:
            yield f"{self.same} files are copies of others; each image has the classes of all its copies"
        if self.unlabelled:
            yield f"{len(self.unlabelled)} images without a class are left out: {_shown(self.unlabelled)}"
        if self.others:
            yield f"{len(self.others)} files without the suffix of a photograph are left out: {_shown(self.others)}"
        if self.unused:
            yield f"{len(self.unused)} classes without an image are left out: {_shown(self.unused)}"


def _shown(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:5])) + ", ..." * (len(items) > 5)


def read(source: Path, images: Path | None = None) -> Labels:
    """Read photographs and their classes from a source.

    Args:
        source: a folder that holds a folder for each class; a folder of VOC's XML files; COCO's `instances.json`; or a
            CSV with one or more lines for each image, `FILE,CLASS` or `FILE,CLASS;CLASS`.
        images: the folder of the photographs that the source names. Default: the folder of the JSON or CSV; for XML
            files `JPEGImages` beside their folder, or their folder if there is no `JPEGImages`.

    Raises:
        problems.DataError: the source is none of these, or names photographs that do not exist.
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
        raise DataError(
            f"{source}: is neither a folder nor a .json, .csv, .tsv or .txt file; give class folders, XML files, a "
            "COCO JSON or a CSV"
        )
    return read_file(source, images or source.parent)


def _beside(folder: Path) -> Path:
    photographs = folder.parent / "JPEGImages"
    return photographs if photographs.is_dir() else folder


def _from_folders(source: Path) -> Labels:
    names_of: dict[Path, set[str]] = {}
    others: list[Path] = []
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    all_splits = all(folder.name.lower() in _SPLITS for folder in folders)
    with_classes = [folder for folder in folders if all_splits and _has_folders_only(folder)]
    if with_classes:
        names = ", ".join(folder.name for folder in folders)
        example = next((folder for folder in with_classes if folder.name.lower().startswith("train")), with_classes[0])
        raise DataError(
            f"{source}: its folders {names} are parts of a data set, not classes; name one of them, for example "
            f"{example}, or put the photographs of each class into SOURCE/CLASS/"
        )
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_dir() or is_hidden(path.relative_to(folder).as_posix()):
                continue
            if path.suffix.lower() in codec.PHOTOGRAPH_SUFFIXES:
                names_of[path] = {folder.name}
            else:
                others.append(path)
    if not names_of:
        raise DataError(
            f"{source}: has no folders with photographs; put the photographs of each class into SOURCE/CLASS/"
        )
    loose = sorted(path for path in source.iterdir() if path.suffix.lower() in codec.PHOTOGRAPH_SUFFIXES)
    names_of |= {path: set() for path in loose if path.is_file() and not path.name.startswith(".")}
    return _labels([folder.name for folder in folders], names_of, others)


def _has_folders_only(folder: Path) -> bool:
    """Whether there are folders, which may be those of the classes, and no photographs beside them."""
    inner = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return any(p.is_dir() for p in inner) and not any(p.suffix.lower() in codec.PHOTOGRAPH_SUFFIXES for p in inner)


def _from_coco(source: Path, images: Path) -> Labels:
    text = read_text(source)
    try:
        data = json.loads(text)
        names = {category["id"]: str(category["name"]) for category in data["categories"]}
        names_of: dict[int, set[str]] = {entry["id"]: set() for entry in data["images"]}
        for annotation in data["annotations"]:
            names_of[annotation["image_id"]].add(names[annotation["category_id"]])
        files = {entry["id"]: images / entry["file_name"] for entry in data["images"]}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{source}: is not a COCO annotation file ({type(error).__name__}: {error})"
        raise DataError(f"{reason}; it must have the entries images, annotations and categories") from error
    united: dict[Path, set[str]] = {}  # of each file: merged annotation files list an image several times
    for image_id, classes in names_of.items():
        united.setdefault(files[image_id], set()).update(classes)
    return _present(source, [names[i] for i in sorted(names)], united)


def _from_xml(sources: list[Path], images: Path) -> Labels:
    names_of: dict[Path, set[str]] = {}
    read_from: dict[Path, Path] = {}
    problems: list[Problem] = []
    photographs = FilesByName(images, codec.PHOTOGRAPH_SUFFIXES, "image")
    for source in sources:
        with collecting(problems):
            root = read_xml(source)
            path = images / Path(root.findtext("filename", "") or f"{source.stem}.jpg").name
            if path.stem != source.stem or not path.is_file():
                # As in a data folder, the XML's own name decides: <filename> is often stale after a rename.
                found = photographs.find(normal_form(source.stem))
                path = images / found.name if found else path
            if path in read_from:
                raise fault("ambiguous labels", f"{source}: {read_from[path]} is about the same image, {path}")
            read_from[path] = source
            names_of[path] = set(names_in(root))
    if problems:
        raise listing(str(sources[0].parent), problems)
    return _present(sources[0].parent, sorted(set().union(*names_of.values())), names_of)


def _from_csv(source: Path, images: Path) -> Labels:
    text = read_text(source)
    lines = text.splitlines()
    file, semicolon, _ = next((line for line in lines if line.strip()), "").partition(";")
    by_semicolons = bool(semicolon) and not set(",\t|") & set(file)  # FILE;CLASS or FILE;CLASS;CLASS
    reader = csv.reader(lines, delimiter=";") if by_semicolons else csv.reader(lines, _dialect(text))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}; write `FILE,CLASS` on each line") from error
    if by_semicolons:
        rows = [(number, [row[0], ";".join(row[1:])]) for number, row in rows]
    if rows and not _is_photograph(images / rows[0][1][0]):  # a header
        rows = rows[1:]
    names_of: dict[Path, set[str]] = {}
    for number, row in rows:
        if len(row) != 2:
            raise DataError(f"{source}, line {number}: has {len(row)} fields, not 2; write `FILE,CLASS` on each line")
        names_of.setdefault(images / row[0], set()).update(row[1].split(";"))
    return _present(source, sorted(set().union(*names_of.values())), names_of)


def _dialect(text: str) -> Any:
    try:
        return csv.Sniffer().sniff(text[:4096], delimiters=",\t|")
    except csv.Error:
        return csv.excel


def _is_photograph(path: Path) -> bool:
    return path.suffix.lower() in codec.PHOTOGRAPH_SUFFIXES or path.is_file()


def _present(source: Path, classes: list[str], names_of: dict[Path, set[str]]) -> Labels:
    """`_labels`, if every photograph exists; else a DataError that lists those that are missing."""
    missing = [("missing image", str(path)) for path in names_of if not path.is_file()]
    if missing:
        raise listing(f"{source} (set the folder of the photographs with --images)", missing)
    return _labels(classes, names_of)


def _labels(classes: Iterable[str], names_of: dict[Path, set[str]], others: Iterable[Path] = ()) -> Labels:
    """The labels without names that mean the background or `ignore`, and without classes that no photograph has.

    If every class has a number before its name, the classes get the order of the numbers and lose them: in classes.txt
    a number would mean a mask value.

    Raises:
        problems.DataError: what is left of the names without their numbers is no name, or not unique.
    """

    def clean(names: Iterable[str]) -> list[str]:
        every = dict.fromkeys(normal_form(name.strip()) for name in names)
        return [name for name in every if name and not is_background(name) and not is_ignore(name)]

    images = {path: set(clean(names)) for path, names in names_of.items()}
    used = set().union(*images.values()) if images else set()
    every = clean(classes)
    chosen, unused = [name for name in every if name in used], [name for name in every if name not in used]
    numbered = {name: without_number(name) for name in chosen}
    if all(number is not None for number, _ in numbered.values()):
        chosen = [bare for _, bare in sorted(numbered.values())]
        if len(set(chosen)) < len(chosen) or any(map(_is_number, chosen)):
            raise DataError(
                f"classes {', '.join(numbered)}: the number before each name would mean the class's value in masks; "
                "rename the classes so that no number comes first"
            )
        images = {path: {numbered[name][1] for name in names} for path, names in images.items()}
    return Labels(chosen, images, unused, list(others))


def _is_number(name: str) -> bool:
    return name.isdigit() or without_number(name)[0] is not None


def write(
    labels: Labels,
    output: Path,
    *,
    val: float = 0.1,
    copy: bool = False,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> Report:
    """Make a data folder: JPEGImages, labels.csv, classes.txt and the lists train and val.

    The folder gets its name only when it is complete.

    Args:
        labels: the photographs and their classes.
        output: the data folder; it must not exist.
        val: the share of the images that go into the list val; every class keeps at least one training image.
        copy: whether to copy every photograph. Otherwise it is hard-linked where the disk allows that, and copied where
            not. In both cases, a photograph that is neither JPEG nor PNG becomes PNG.
        seed: the random seed of the split.
        progress: wraps an iterable and shows its progress.

    Raises:
        problems.DataError: `output` exists, a photograph cannot be read, no image has a class, there are too many
            classes, or classes.txt and labels.csv cannot have a class's name.
    """
    if output.exists():
        raise DataError(f"{output}: already exists; name a new folder")
    if not any(labels.images.values()):
        raise DataError("no image has a class; give every image at least one")
    bad = [name for name in labels.classes if ";" in name or name.splitlines() != [name]]
    if bad:
        raise DataError(
            f"classes {', '.join(map(repr, bad))}: names cannot have a line break or `;`, because labels.csv separates "
            "classes by `;`; rename them"
        )
    parse_classes(labels.classes, "classes")  # the other jobs would refuse what it refuses
    report = Report(unused=labels.unused, others=labels.others)
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
    report.unlabelled = [path for path, names in by_content.values() if not names]
    chosen = {path: names for path, names in by_content.values() if names}
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
            writer.writerows([ids[path], ";".join(sorted(names, key=order))] for path, names in chosen.items())
        lists = aside / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, wanted in (("train", False), ("val", True)):
            members = [ids[path] for path, is_val in zip(chosen, in_val, strict=True) if is_val == wanted]
            if members:
                (lists / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in members), encoding="utf-8")
            setattr(report, name, len(members))
    report.images = len(chosen)
    report.classes = {name: sum(name in names for names in chosen.values()) for name in labels.classes}
    return report


def _checked(path: Path) -> bytes:
    """A photograph's bytes, which are decoded to find damage."""
    with codec.decoding(path, "unreadable image", codec.PHOTOGRAPH_KINDS) as data:
        with Image.open(io.BytesIO(data), formats=codec.PHOTOGRAPH_FORMATS) as image:
            codec.refuse_32_bits(image)
            image.load()
        return data


def _storable(image: Image.Image) -> Image.Image:
    """The image, in colours that a PNG can store."""
    return image if image.mode in _PNG_MODES else image.convert("RGB")


def _place(path: Path, folder: Path, image_id: str, copy: bool) -> None:
    """Link, copy or convert a photograph into the data folder."""
    with Image.open(path, formats=codec.PHOTOGRAPH_FORMATS) as image:
        suffix = _KEPT.get(image.format or "")
        if suffix is None:
            _storable(image).save(folder / f"{image_id}.png", "PNG", exif=image.getexif())
            return
    target = folder / f"{image_id}{suffix}"
    if not copy:
        try:
            os.link(path.resolve(), target)
            return
        except FileExistsError:  # copying would write into the photograph that the existing file is a link to
            raise
        except OSError:  # another disk, or a disk without hard links
            pass
    shutil.copyfile(path, target)


def _ids(paths: list[Path]) -> dict[Path, str]:
    """A unique id for each file: its name without suffix, or FOLDER_NAME if several files have the same name.

    Ids that differ only in upper and lower case would be the same file on some disks, so they count as the same.
    """

    def plain(text: str) -> str:
        kept = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in normal_form(text))
        return kept.replace("..", "_").lstrip(". ").rstrip() or "image"

    stems = Counter(plain(path.stem).casefold() for path in paths)
    taken: set[str] = set()
    ids = {}
    for path in paths:
        name = plain(path.stem)
        if stems[name.casefold()] > 1:
            name = f"{plain(path.parent.name)}_{name}"
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        ids[path] = unique
    return ids


def _val_list(classes: list[set[str]], share: float, seed: int) -> list[bool]:
    """Whether each image goes into the list val: a random share that leaves each class at least one training image."""
    wanted = round(share * len(classes))
    training_images = Counter(name for names in classes for name in names)  # of each class
    chosen = [False] * len(classes)
    for k in np.random.default_rng(seed).permutation(len(classes)):
        if not wanted:
            break
        if all(training_images[name] > 1 for name in classes[k]):
            chosen[k] = True
            wanted -= 1
            training_images.subtract(classes[k])
    return chosen

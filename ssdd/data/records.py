"""Reading and checking the images of a list: every file is decoded, and what is wrong is reported together."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssdd.config import Config
from ssdd.data import class_maps, codec, mask_values
from ssdd.data.class_names import IGNORE
from ssdd.data.codec import Probe
from ssdd.data.files import FilesByName
from ssdd.data.labels import Labels
from ssdd.data.mask_values import MaskUse
from ssdd.data.problems import DataError, Problem, collecting, fault, listing, permitted
from ssdd.data.voc import IMAGE_SUFFIXES, VOCFolder, read_split
from ssdd.storage.paths import AnyPath, is_folder, threaded


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How image files are read."""

    max_pixels: int | None = None
    """An image with more is refused; None: Pillow's limit (179 million) alone."""
    apply_exif: bool = False
    """Whether photographs are turned as their EXIF data say."""

    @classmethod
    def of(cls, config: Config) -> "ReadOptions":
        """As a configuration says."""
        return cls(max_pixels=config.max_pixels, apply_exif=config.apply_exif)


@dataclass(frozen=True)
class Record:
    """One image of a split; `presence` holds its foreground class indices (1..K), sorted."""

    image_id: str
    image_path: AnyPath
    mask_path: AnyPath | None
    presence: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Examined:
    """An image list after every image and mask of it was decoded."""

    title: str
    """The folder and the list, for messages."""
    records: list[Record]
    """The images that nothing is wrong with, in the list's order."""
    problems: list[Problem]
    """Of the other images."""
    misread: list[Problem]
    """What shows that the values of the masks do not mean the classes: then no score and no training makes sense."""
    warnings: list[str]
    count: int = 0
    """Images in the list."""
    classes_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The foreground classes of each image that could be read, by its labels or else its mask."""
    images: dict[int, int] = field(default_factory=dict)
    """How many images have each class; for the background and 255, how many masks."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) of every image that could be decoded."""
    pixels: dict[int, int] = field(default_factory=dict)
    """Pixels of each value in all masks together."""

    def check(self, skip_broken: bool) -> None:
        """Raise one DataError that lists every problem; with `skip_broken` only if images cannot just be left out."""
        if self.misread or (self.problems and not (skip_broken and self.records)):
            # Where 255 stands for the object, no mask has a class.
            binary = any(kind == "masks of 0 and 255" for kind, _ in self.misread)
            others = [problem for problem in self.problems if not (binary and problem[0] == "no class")]
            raise listing(self.title, [*self.misread, *others])


def examine(
    folder: VOCFolder,
    split: str,
    *,
    need_labels: bool = True,
    options: ReadOptions = ReadOptions(),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, count: items,
) -> Examined:
    """Decode every image and mask of a split and read its labels.

    Labels come from labels.csv if there is one, else from the image's XML file, else from its mask. Without
    `need_labels` `presence` is empty: labels are compared with the masks where they can be read, and may be absent. A
    mask that exists is checked, needed or not.

    Args:
        folder: an open folder.
        split: name of the image list.
        need_labels: whether an image without labels is a problem.
        options: how image files are read.
        progress: shows how far an iterator of so many items has come.

    Raises:
        problems.DataError: a list or a labels.csv that cannot be read.
    """
    ids = read_split(folder, split)
    checker = _Checker(
        folder=folder,
        images=folder.images(),
        masks=folder.masks(),
        labels=Labels.open(folder),
        need_labels=need_labels,
        options=options,
    )
    looked = list(progress(threaded(checker.look, ids, folder.root), len(ids)))
    uses = [one.use for one in looked if one.use is not None]
    misread, warnings = mask_values.check(uses, folder.classes, folder.has_voc_classes)
    turned = sum(one.probe is not None and one.probe.orientation != 1 for one in looked)
    if turned and not options.apply_exif:
        warnings.append(f"{turned} of {len(ids)} photographs have an EXIF rotation, which is ignored; see --apply-exif")
    pixels: Counter[int] = Counter()
    for one in looked:
        pixels.update(one.pixels)
    return Examined(
        title=f"{folder.root}, split {split!r}",
        records=[one.record for one in looked if not one.problems],
        problems=[problem for one in looked for problem in one.problems],
        misread=misread,
        warnings=warnings,
        count=len(ids),
        images=dict(Counter(value for one in looked for value in one.shown)),
        classes_of={one.record.image_id: one.classes for one in looked if one.classes is not None},
        sizes=[(one.probe.width, one.probe.height) for one in looked if one.probe is not None],
        pixels=dict(sorted(pixels.items())),
    )


@dataclass(kw_only=True)
class _Looked:
    """What was seen of one image."""

    record: Record
    problems: list[Problem] = field(default_factory=list)
    probe: Probe | None = None
    use: MaskUse | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    classes: tuple[int, ...] | None = None
    """By its labels, else by its mask."""

    @property
    def shown(self) -> set[int]:
        """These, and 0 and 255 where they occur in the mask."""
        return {*(self.classes or ()), *(self.pixels.keys() & {0, IGNORE})}


@dataclass(frozen=True, kw_only=True)
class _Checker:
    """Makes the record of an id and finds what is wrong with its files; the threads share it."""

    folder: VOCFolder
    images: FilesByName
    masks: FilesByName
    labels: Labels
    need_labels: bool
    options: ReadOptions

    def look(self, image_id: str) -> _Looked:
        seen = _Looked(record=Record(image_id, Path(), None, ()))
        path: AnyPath = Path()
        mask_path: AnyPath | None = None
        with collecting(seen.problems):
            path = self._find_image(image_id)
            seen.probe = codec.probe_image(path, self.options.max_pixels)
        with collecting(seen.problems):
            mask_path = self.masks.find(image_id)
        labels, label_problems = self._read_labels(image_id)
        if mask_path is not None:
            with collecting(seen.problems):
                of_image = None if labels is None else frozenset(labels[1])
                seen.use, size, seen.pixels = _read_use(mask_path, of_image, self.folder.num_classes)
                self._check_mask(mask_path, size, seen.use.values, seen.probe)
        if labels is not None:
            seen.classes = tuple(labels[1])
        elif seen.use is not None:
            seen.classes = tuple(sorted(seen.use.foreground))
        presence: list[int] = []
        if not self.need_labels:  # unusable ones are as good as absent; unreadable ones are not
            seen.problems += [problem for problem in label_problems if problem[0] == "no permission"]
        else:
            seen.problems += label_problems
            with collecting(seen.problems):
                presence = [] if label_problems else self._presence(image_id, labels, mask_path, seen.use)
        seen.record = Record(image_id, path, mask_path, tuple(presence))
        return seen

    def _find_image(self, image_id: str) -> AnyPath:
        path = self.images.find(image_id)
        if path is not None:
            return path
        detail = f"{self.images.folder / f'{image_id}.jpg'} (nor {', '.join(IMAGE_SUFFIXES[1:])})"
        stem, dot, suffix = image_id.rpartition(".")
        if dot + suffix.lower() in IMAGE_SUFFIXES and stem in self.images:
            detail += f"; there is an image {stem!r}: lists name images without suffix"
        raise fault("missing image", detail)

    def _read_labels(self, image_id: str) -> tuple[tuple[str, list[int]] | None, list[Problem]]:
        """Where the image-level labels stand, and the classes, or None without such labels; what is wrong with them."""
        problems: list[Problem] = []
        with collecting(problems):
            return self.labels.of(image_id), problems
        return None, problems

    def _check_mask(self, path: AnyPath, size: tuple[int, int], values: frozenset[int], image: Probe | None) -> None:
        faults = [] if image is None else _size_faults(path, size, image, self.options)
        outside = sorted(value for value in values if self.folder.num_classes <= value < IGNORE)
        if outside:
            faults.append(f"values {outside} outside 0..{self.folder.num_classes - 1} and {IGNORE}")
        if faults:
            raise fault("bad mask", f"{path}: {'; '.join(faults)}")

    def _presence(
        self, image_id: str, labels: tuple[str, list[int]] | None, mask_path: AnyPath | None, use: MaskUse | None
    ) -> list[int]:
        """The foreground classes of an image by its labels, else by its mask."""
        if labels is not None:
            where, classes = labels
        elif mask_path is None:
            xml = self.folder.root / "Annotations" / f"{image_id}.xml"
            raise fault("missing labels", f"{image_id}: neither labels.csv nor {xml} nor a mask")
        elif use is None or max(use.foreground, default=0) >= self.folder.num_classes:
            return []  # the mask is bad, which is reported already
        else:
            where, classes = str(mask_path), sorted(use.foreground)
        if not classes:
            raise fault("no class", f"{where}: no foreground class")
        return classes


def _read_use(
    path: AnyPath, labels: frozenset[int] | None, num_classes: int
) -> tuple[MaskUse, tuple[int, int], dict[int, int]]:
    """What a mask holds, its (width, height), and its pixels of each value."""
    mask, palette = codec.read_indexed(path)
    counts = np.bincount(mask.ravel())
    pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    others = mask_values.other_colours(frozenset(pixels), palette, num_classes)
    return MaskUse(str(path), frozenset(pixels), labels, others), (mask.shape[1], mask.shape[0]), pixels


def _size_faults(
    path: AnyPath,
    size: tuple[int, int],
    image: Probe,
    options: ReadOptions,
    fits: Callable[[tuple[int, int], tuple[int, int]], bool] = operator.eq,
) -> list[str]:
    """What is wrong with a mask of some (width, height). DataError where it fits the image in its other rotation."""
    wanted, other = image.size(options.apply_exif), image.size(not options.apply_exif)
    if fits(size, wanted):
        return []
    if fits(size, other):
        kind = "mask of the stored image" if options.apply_exif else "mask of the turned image"
        which = "before" if options.apply_exif else "after"
        raise fault(kind, f"{path}: has the size {size[0]}x{size[1]} of the photograph {which} its EXIF rotation")
    return ["size {}x{}, but the image has {}x{}".format(*size, *wanted)]


@dataclass(frozen=True)
class OtherMask:
    """A mask of another method, or the class maps that it follows from."""

    path: AnyPath
    size: tuple[int, int]
    """(width, height) of its image."""
    maps: Literal["", "classes", "all"] = ""
    """Of which classes the file holds maps: all, or all but the background. Empty for a mask."""


def find_masks(
    folder: VOCFolder,
    ids: Sequence[str],
    *places: AnyPath,
    presence: Sequence[Sequence[int]] | None = None,
    options: ReadOptions = ReadOptions(),
) -> tuple[list[list[OtherMask]], list[str]]:
    """Other methods' masks ID.png or class maps ID.npy of a folder's images, read and checked; a list for each place.

    The second result are warnings.

    Args:
        folder: of the images.
        ids: of the images.
        places: folders, each of masks or of class maps.
        presence: for each id its foreground classes, which those of the masks and maps are compared with.
        options: how the photographs are read.

    Raises:
        problems.DataError: lists every file that is missing or cannot be read; every mask that has another size than
            its image, or a value that is no class (255, too: such a mask has to name a class at every pixel); all class
            maps that are not as `class_maps.read` needs them, or have another shape than their image; folders of both;
            and whole folders whose values mean other classes.
    """
    for place in places:
        with permitted(place):
            if not is_folder(place):
                raise DataError(f"{place}: no such folder; give the folder that holds the masks ID.png or maps ID.npy")
    images = folder.images()
    labels = dict(zip(ids, map(frozenset, presence), strict=True)) if presence is not None else {}
    problems: list[Problem] = []
    warnings: list[str] = []
    every = []
    for place in places:
        masks = FilesByName(place, (".png", class_maps.SUFFIX), "mask")
        check = partial(_check_other_mask, folder, images, masks, labels, options)
        checked = list(threaded(check, ids, place))
        uses = [use for _, use, _ in checked if use is not None]
        misread, told = mask_values.check(uses, folder.classes, folder.has_voc_classes, may_lack_classes=True)
        warnings += told
        found = [mask for mask, _, _ in checked if mask is not None]
        maps = [mask.path.name for mask in found if mask.maps]
        if maps:
            misread = [(kind, f"{detail}; a map counts as the value 1 + its key") for kind, detail in misread]
        if 0 < len(maps) < len(found):
            problems.append(("masks and maps", f"{place}: {len(maps)} of {len(found)} files are maps, {maps[0]} say"))
        problems += [*misread, *(problem for _, _, wrong in checked for problem in wrong)]
        every.append(found)
    if problems:
        raise listing(", ".join(map(str, places)), problems)
    return every, warnings


def _check_other_mask(
    folder: VOCFolder,
    images: FilesByName,
    masks: FilesByName,
    labels: dict[str, frozenset[int]],
    options: ReadOptions,
    image_id: str,
) -> tuple[OtherMask | None, MaskUse | None, list[Problem]]:
    problems: list[Problem] = []
    mask, use = None, None
    with collecting(problems):
        path = masks.find(image_id)
        if path is None:
            raise fault("missing mask", f"{masks.folder / f'{image_id}.png'} (nor {class_maps.SUFFIX})")
        image_path = images.find(image_id)
        assert image_path is not None  # the image list was checked before
        image = codec.probe_header(image_path)
        wanted = image.size(options.apply_exif)
        if path.name.lower().endswith(class_maps.SUFFIX):
            kind = "bad maps"
            maps = class_maps.read(path)
            mask = OtherMask(path, wanted, "all" if maps.has_background else "classes")
            use = MaskUse(str(path), frozenset({0, *maps.classes}), labels.get(image_id))
            size = maps.values.shape[:0:-1]
            faults = _size_faults(path, size, image, options, class_maps.fits) if maps.classes else []
        else:
            kind, mask = "bad mask", OtherMask(path, wanted)
            use, size, _ = _read_use(path, labels.get(image_id), folder.num_classes)
            faults = _size_faults(path, size, image, options)
        if faults:
            raise fault(kind, f"{path}: {'; '.join(faults)}")
        if max(use.values) >= folder.num_classes:
            what = "class" if mask.maps else "value"
            raise fault(kind, f"{path}: {what} {max(use.values)} outside 0..{folder.num_classes - 1}")
    return mask, use, problems

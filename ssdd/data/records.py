"""Read and check the images of a list: every file is decoded, and all problems are reported together."""

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
    """An image with more pixels is a problem; None: only Pillow's limit (179 million) applies."""
    apply_exif: bool = False
    """Whether photographs are turned by their EXIF orientation."""

    @classmethod
    def of(cls, config: Config) -> "ReadOptions":
        """The options in a configuration."""
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
    """The result of decoding every image and mask of a list."""

    title: str
    """The folder and the list, for messages."""
    records: list[Record]
    """The images without problems, in the list's order."""
    problems: list[Problem]
    """The problems of the other images."""
    misread: list[Problem]
    """Problems that show that masks hold other values than the class indices: scores with them would be useless."""
    warnings: list[str]
    count: int = 0
    """The number of images in the list."""
    classes_of: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By image id: the foreground classes, from the labels or else from the mask; no entry if neither could be read."""
    images: dict[int, int] = field(default_factory=dict)
    """By class: how many images have it. For the background and 255: how many masks have the value."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(width, height) of every image that could be decoded."""
    pixels: dict[int, int] = field(default_factory=dict)
    """By value: the number of pixels in all masks together."""

    def check(self, skip_broken: bool) -> None:
        """Raise one DataError with every problem; with `skip_broken`, only if masks are misread or no image is left."""
        if self.misread or (self.problems and not (skip_broken and self.records)):
            # Masks of 0 and 255 have no class, so "no class" would be listed for each of them.
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

    Labels come from labels.csv if it exists, else from the image's XML file, else from its mask. Without `need_labels`
    they may be absent, and `Record.presence` is empty; labels that can be read are still compared with masks. A mask
    that exists is always checked, even if it is not needed.

    Args:
        folder: an open folder.
        split: the name of the image list.
        need_labels: whether an image without labels is a problem.
        options: how image files are read.
        progress: wraps an iterator with the given number of items and shows its progress.

    Raises:
        problems.DataError: the list or labels.csv cannot be read.
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
    results = list(progress(threaded(checker.check_image, ids, folder.root), len(ids)))
    uses = [result.use for result in results if result.use is not None]
    misread, warnings = mask_values.check(uses, folder.classes, folder.has_voc_classes)
    turned = sum(result.probe is not None and result.probe.orientation != 1 for result in results)
    if turned and not options.apply_exif:
        warnings.append(f"{turned} of {len(ids)} photographs have an EXIF rotation, which is ignored; see --apply-exif")
    records = [result.record for result in results if not result.problems]
    if need_labels and len(records) > 1 and all(record.presence for record in records):
        for k in sorted(set.intersection(*(set(record.presence) for record in records))):
            warnings.append(
                f"every image has the class {folder.classes[k]}, so a classifier cannot learn where it is; add images "
                "of other classes that do not show it"
            )
    pixels: Counter[int] = Counter()
    for result in results:
        pixels.update(result.pixels)
    return Examined(
        title=f"{folder.root}, split {split!r}",
        records=records,
        problems=[problem for result in results for problem in result.problems],
        misread=misread,
        warnings=warnings,
        count=len(ids),
        images=dict(Counter(value for result in results for value in result.shown)),
        classes_of={result.record.image_id: result.classes for result in results if result.classes is not None},
        sizes=[(result.probe.width, result.probe.height) for result in results if result.probe is not None],
        pixels=dict(sorted(pixels.items())),
    )


def stray_masks(folder: VOCFolder) -> list[str]:
    """A warning if there are masks that belong to no photograph, of any list; else an empty list."""
    masks = folder.masks()
    strays = sorted(set(masks.names()) - set(folder.images().names()))
    if not strays:
        return []
    return [
        f"{len(strays)} masks belong to no photograph, for example {masks.folder / strays[0]}.png: a mask needs the "
        "name that its photograph has in JPEGImages/"
    ]


@dataclass(kw_only=True)
class _Result:
    """The record of one image, its problems, and what could be read of its files."""

    record: Record
    problems: list[Problem] = field(default_factory=list)
    probe: Probe | None = None
    use: MaskUse | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    classes: tuple[int, ...] | None = None
    """The foreground classes from the labels, or else from the mask; None if neither could be read."""

    @property
    def shown(self) -> set[int]:
        """The classes, and 0 and 255 if they occur in the mask."""
        return {*(self.classes or ()), *(self.pixels.keys() & {0, IGNORE})}


@dataclass(frozen=True, kw_only=True)
class _Checker:
    """Makes the records of images and finds the problems of their files; all threads share one checker."""

    folder: VOCFolder
    images: FilesByName
    masks: FilesByName
    labels: Labels
    need_labels: bool
    options: ReadOptions

    def check_image(self, image_id: str) -> _Result:
        result = _Result(record=Record(image_id, Path(), None, ()))
        path: AnyPath = Path()
        mask_path: AnyPath | None = None
        with collecting(result.problems):
            path = self._find_image(image_id)
            result.probe = codec.probe_image(path, self.options.max_pixels)
        with collecting(result.problems):
            mask_path = self.masks.find(image_id)
        labels, label_problems = self._read_labels(image_id)
        if mask_path is not None:
            with collecting(result.problems):
                label_set = None if labels is None else frozenset(labels[1])
                result.use, size, result.pixels = _read_use(mask_path, label_set, self.folder.num_classes)
                self._check_mask(mask_path, size, result.use.values, result.probe)
        if labels is not None:
            result.classes = tuple(labels[1])
        elif result.use is not None:
            result.classes = tuple(sorted(result.use.foreground))
        presence: list[int] = []
        if not self.need_labels:  # faulty labels then count as absent, but a denied permission is a problem
            result.problems += [problem for problem in label_problems if problem[0] == "no permission"]
        else:
            result.problems += label_problems
            with collecting(result.problems):
                presence = [] if label_problems else self._presence(image_id, labels, mask_path, result.use)
        result.record = Record(image_id, path, mask_path, tuple(presence))
        return result

    def _find_image(self, image_id: str) -> AnyPath:
        path = self.images.find(image_id)
        if path is not None:
            return path
        detail = f"{self.images.folder / f'{image_id}.jpg'} (or {', '.join(IMAGE_SUFFIXES[1:])})"
        stem, dot, suffix = image_id.rpartition(".")
        if dot + suffix.lower() in IMAGE_SUFFIXES and stem in self.images:
            detail += f"; there is an image {stem!r}: write ids without suffix"
        raise fault("missing image", detail)

    def _read_labels(self, image_id: str) -> tuple[tuple[str, list[int]] | None, list[Problem]]:
        """The place and the classes of the image-level labels (None without such labels), and the labels' problems."""
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
        """The foreground classes of an image from its labels, or else from its mask."""
        if labels is not None:
            where, classes = labels
        elif mask_path is None:
            xml = self.folder.root / "Annotations" / f"{image_id}.xml"
            raise fault("missing labels", f"{image_id}: neither labels.csv nor {xml} nor a mask")
        elif use is None or max(use.foreground, default=0) >= self.folder.num_classes:
            return []  # the mask is bad, and this problem is already in the list
        else:
            where, classes = str(mask_path), sorted(use.foreground)
        if not classes:
            raise fault("no class", f"{where}: no foreground class")
        return classes


def _read_use(
    path: AnyPath, labels: frozenset[int] | None, num_classes: int
) -> tuple[MaskUse, tuple[int, int], dict[int, int]]:
    """The values in a mask, its (width, height), and the number of pixels with each value."""
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
    """What is wrong with a mask's (width, height). Raises DataError if it fits only with the opposite --apply-exif."""
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
    """A mask of another method, or class maps from which a mask is made."""

    path: AnyPath
    size: tuple[int, int]
    """(width, height) of the mask's image."""
    maps: Literal["", "classes", "all"] = ""
    """Empty for a mask. For class maps: "all" if the background has a map, else "classes"."""


def find_masks(
    folder: VOCFolder,
    ids: Sequence[str],
    *places: AnyPath,
    presence: Sequence[Sequence[int]] | None = None,
    options: ReadOptions = ReadOptions(),
) -> tuple[list[list[OtherMask]], list[str]]:
    """Read and check other methods' masks ID.png or class maps ID.npy of a folder's images.

    Args:
        folder: the data folder with the images.
        ids: the images' ids.
        places: folders; each has either masks or class maps.
        presence: the foreground classes of each image, to be compared with the classes in its masks and maps.
        options: how the photographs are read.

    Returns:
        A list for each place, in the order of `ids`, and warnings.

    Raises:
        problems.DataError: one error that lists all problems: files that are missing or unreadable; masks of another
            size than their image, or with a value that is not a class (255 is none: every pixel needs a class); class
            maps that `class_maps.read` refuses, or with another aspect ratio than their image; folders with both masks
            and maps; folders whose values stand for other classes.
    """
    for place in places:
        with permitted(place):
            if not is_folder(place):
                raise DataError(f"{place}: no such folder; give the folder that holds the masks ID.png or maps ID.npy")
    images = folder.images()
    labels = dict(zip(ids, map(frozenset, presence), strict=True)) if presence is not None else {}
    problems: list[Problem] = []
    warnings: list[str] = []
    masks_of_places = []
    for place in places:
        masks = FilesByName(place, (".png", class_maps.SUFFIX), "mask")
        check = partial(_check_other_mask, folder, images, masks, labels, options)
        checked = list(threaded(check, ids, place))
        uses = [use for _, use, _ in checked if use is not None]
        misread, new_warnings = mask_values.check(uses, folder.classes, folder.has_voc_classes, may_lack_classes=True)
        warnings += new_warnings
        usable = [mask for mask, _, _ in checked if mask is not None]
        maps = [mask.path.name for mask in usable if mask.maps]
        if any(mask.maps == "classes" for mask in usable):
            misread = [(kind, f"{detail}; here a map with key k counts as value k + 1") for kind, detail in misread]
        if 0 < len(maps) < len(usable):
            problems.append(
                ("masks and maps", f"{place}: {len(maps)} of {len(usable)} files are maps, for example {maps[0]}")
            )
        problems += [*misread, *(problem for _, _, file_problems in checked for problem in file_problems)]
        masks_of_places.append(usable)
    if problems:
        raise listing(", ".join(map(str, places)), problems)
    return masks_of_places, warnings


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
            raise fault("missing mask", f"{masks.folder / f'{image_id}.png'} (or {class_maps.SUFFIX})")
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

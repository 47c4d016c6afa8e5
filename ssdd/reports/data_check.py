"""Check a data set as a job would read it: its lists, classes and sizes, with errors and warnings.

Nothing is trained, and Ray is not needed. The files are read by the same code that every job runs first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssdd.config import Config, ConfigError
from ssdd.data import codec, records, voc
from ssdd.data.class_names import IGNORE
from ssdd.data.files import FilesByName
from ssdd.data.problems import DataError, listing
from ssdd.data.records import Examined, ReadOptions
from ssdd.data.voc import VOCFolder
from ssdd.storage.paths import AnyPath, to_path

SHEET_IMAGES = 12
SHEET_SIDE = 480
"""The sheet shows every k-th pixel of a photograph: k is its longer side / SHEET_SIDE, rounded down (at least 1)."""
Progress = Callable[[str, Iterator[Any], int], Iterator[Any]]
Sample = tuple[str, np.ndarray, np.ndarray | None, list[str]]
"""An image's id, its photograph (uint8 (H, W, 3)), its mask (uint8 (H, W)) or None, and the names of its labels."""


@dataclass(kw_only=True)
class DataCheck:
    """The result of a check."""

    data: str
    classes: tuple[str, ...] = ()
    """Names, background first."""
    lists: dict[str, Examined] = field(default_factory=dict)
    """The training list and the list that is scored, by name."""
    other_lists: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Messages of the errors that would end a job; each says what to do."""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON data."""
        lists = {
            name: {
                "images": examined.count,
                "usable": len(examined.records),
                "sizes": [list(size) for size in _extremes(examined)],
                "classes": {
                    self.name_of(value): {"images": images, "pixels": pixels}
                    for value, images, pixels in self._uses(examined)
                },
            }
            for name, examined in self.lists.items()
        }
        return {
            "data": self.data,
            "classes": list(self.classes),
            "lists": lists,
            "other_lists": self.other_lists,
            "errors": self.errors,
            "warnings": self.warnings,
        }

    def lines(self) -> Iterator[str]:
        """The result as lines for the terminal."""
        yield f"data {self.data}"
        if self.classes:
            yield f"{len(self.classes) - 1} foreground classes: {', '.join(self.classes[1:])}"
        for name, examined in self.lists.items():
            yield f"list {name}: {examined.count} images, {len(examined.records)} without a problem"
            smallest, largest = ("{}x{}".format(*size) for size in _extremes(examined) or [(0, 0)] * 2)
            if examined.sizes:
                yield f"  sizes {smallest} to {largest}"
            yield f"  {'value':>5}  {'class':20}  {'images':>8}  {'pixels':>14}"
            for value, images, pixels in self._uses(examined):
                yield f"  {value:>5}  {self.name_of(value):20}  {images:>8}  {pixels:>14,}"
        if self.other_lists:
            yield f"lists that were not read: {', '.join(self.other_lists)} (choose them by --train-split and --split)"
        yield from (f"warning: {warning}" for warning in self.warnings)
        yield from (f"error: {error}" for error in self.errors)
        yield "no errors" if not self.errors else f"{len(self.errors)} error(s)"

    def name_of(self, value: int) -> str:
        """The class name of a mask value."""
        if value == IGNORE:
            return "(no label)"
        return self.classes[value] if value < len(self.classes) else f"(no class: {value})"

    def _uses(self, examined: Examined) -> list[tuple[int, int, int]]:
        """(value, number of images, number of pixels) for each value that is a class or occurs in a mask."""
        values = sorted({*range(len(self.classes)), *examined.pixels})
        return [(value, examined.images.get(value, 0), examined.pixels.get(value, 0)) for value in values]


def run(config: Config, progress: Progress = lambda name, items, count: items) -> DataCheck:
    """Check the configuration's `data` folder, lists `train_split` and `split`, and folders `knowledge` and `advice`.

    Raises:
        ConfigError: `data` is not set.
    """
    if config.data is None:
        raise ConfigError("--data: name the folder to check; the embedded data set needs no check")
    check = DataCheck(data=str(config.data))
    with _noting(check):
        folder = voc.open_folder(_expanded(config.data))
        check.data, check.classes = str(folder.root), folder.classes
        lists = folder.lists().names()
        wanted = {config.train_split: True}
        if config.split != "val" or "val" in lists:
            wanted.setdefault(config.split, False)
        else:
            check.warnings.append("there is no image list `val`: the networks will not be scored")
        check.other_lists = [name for name in lists if name not in wanted]
        for name, need_labels in wanted.items():
            with _noting(check):
                _check_list(check, folder, name, need_labels, config, partial(progress, name))
        check.warnings += records.stray_masks(folder)
        _check_masks(check, folder, config)
    return check


@contextmanager
def _noting(check: DataCheck) -> Iterator[None]:
    """Add a DataError to the check's errors, and continue after the `with` block."""
    try:
        yield
    except DataError as error:
        check.errors.append(str(error))


def _expanded(path: AnyPath) -> AnyPath:
    """The path with `~` replaced by the user's home folder, as in the jobs."""
    return path.expanduser() if isinstance(path, Path) else path


def _check_list(
    check: DataCheck, folder: VOCFolder, name: str, need_labels: bool, config: Config, progress: Callable[..., Any]
) -> None:
    options = ReadOptions.of(config)
    examined = records.examine(folder, name, need_labels=need_labels, options=options, progress=progress)
    check.lists[name] = examined
    check.warnings += [f"list {name}: {warning}" for warning in examined.warnings]
    examined.check(config.skip_broken)
    if examined.problems:
        check.warnings.append(f"left out: {listing(examined.title, examined.problems)}")


def _check_masks(check: DataCheck, folder: VOCFolder, config: Config) -> None:
    """Check knowledge and advice of the training list's images."""
    train = check.lists.get(config.train_split)
    if config.knowledge is None or config.advice is None or train is None:
        return
    ids = [record.image_id for record in train.records]
    presence = [record.presence for record in train.records]
    places = (_expanded(config.knowledge), _expanded(config.advice))
    _, warnings = records.find_masks(folder, ids, *places, presence=presence, options=ReadOptions.of(config))
    check.warnings += warnings


def _extremes(examined: Examined) -> list[tuple[int, int]]:
    """The sizes (width, height) with the fewest and the most pixels; empty if no image could be read."""
    by_area = sorted(examined.sizes, key=lambda size: (size[0] * size[1], size))
    return [by_area[0], by_area[-1]] if by_area else []


def samples(check: DataCheck, config: Config) -> list[Sample]:
    """At most SHEET_IMAGES images for `figures.data_sheet`, from the first list that has any.

    Images with a class that no earlier image of the list shows come first. Unreadable photographs are left out.
    """
    if not check.lists:
        return []
    folder = VOCFolder(to_path(check.data), check.classes)
    images, masks, options = folder.images(), folder.masks(), ReadOptions.of(config)
    for examined in check.lists.values():
        seen: set[int] = set()
        first: list[str] = []
        later: list[str] = []
        for image_id, shown in examined.classes_of.items():
            (later if set(shown) <= seen else first).append(image_id)
            seen |= set(shown)
        if first or later:
            values = []
            for image_id in (first + later)[:SHEET_IMAGES]:
                pixels = _sample(images, masks, options, image_id)
                if pixels is not None:
                    names = [check.name_of(value) for value in examined.classes_of[image_id]]
                    values.append((image_id, *pixels, names))
            return values
    return []


def _sample(
    images: FilesByName, masks: FilesByName, options: ReadOptions, image_id: str
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The photograph and the mask of one image of the sheet, shrunk; None where the photograph cannot be read."""
    try:
        path, mask_path = images.find(image_id), masks.find(image_id)
        if path is None:
            return None
        codec.probe_image(path, options.max_pixels)
        image = codec.read_image(codec.image_bytes(path, options.apply_exif))
        mask = None if mask_path is None else codec.read_mask(mask_path)
    except DataError:
        return None
    if mask is not None and mask.shape != image.shape[:2]:
        mask = None
    step = max(1, max(image.shape) // SHEET_SIDE)
    return image[::step, ::step], None if mask is None else mask[::step, ::step]

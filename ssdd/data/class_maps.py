"""Class maps of another method: `ID.npy` with a map of scores for each class of an image, as PSA and IRN write them.

They are dictionaries. Foreground classes count from 0 there, and from 1 here.

    PSA (and those who build on it)    {class: map (H, W), ...}
    PSA's maps after its CRF           {0: map of the background, 1 + class: map, ...}, which sum to 1 at each pixel
    IRN                                {"keys": classes (n,), "high_res": maps (n, H, W), "cam": maps at stride 4}
    CLIP-ES                            {"keys": classes (n,), "attn_highres": maps (n, H, W)}
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdd.data import plain_pickle
from ssdd.data.problems import DataError, fault
from ssdd.storage.paths import AnyPath

SUFFIX = ".npy"
_MAPS = ("high_res", "attn_highres", "cam")
"""The entry with the maps beside "keys"; the first one of these that is there."""
_ROUNDING = 1e-3
"""Scores may lie so far outside 0..1; half precision has that accuracy."""


@dataclass(frozen=True)
class ClassMaps:
    """The scores of one image."""

    classes: tuple[int, ...]
    """What each map is of: 0 is the background, where it has a map, 1 the first foreground class."""
    values: np.ndarray
    """Float32 (n, h, w) in 0..1; (0, 0, 0) without any class."""

    @property
    def has_background(self) -> bool:
        """Whether the background has a map."""
        return 0 in self.classes


def read(path: AnyPath) -> ClassMaps:
    """The class maps in a file.

    Raises:
        problems.DataError: the file is damaged, is no such dictionary, holds anything but numbers, arrays and tensors
            (which is refused, not run), or its maps are not of one shape, not finite, or outside 0..1.
    """
    content = plain_pickle.read(path)
    classes, planes = _entries(path, content)
    if len(set(classes)) != len(classes) or min(classes, default=0) < 0:
        raise _bad(path, f"classes {sorted(classes)}, which should be different numbers from 0")
    if len(planes) != len(classes):
        raise _bad(path, f"{len(planes)} maps of {len(classes)} classes")
    if not classes:
        return ClassMaps((), np.zeros((0, 0, 0), np.float32))
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) > 1:
        raise _bad(path, f"maps of different shapes: {', '.join(map(str, shapes))}")
    values = np.stack(planes).astype(np.float32)
    if not np.isfinite(values).all():
        raise _bad(path, "a score that is no number")
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise _bad(path, f"scores from {low:.3g} to {high:.3g}, outside 0..1")
    has_background = "keys" not in content and 0 in classes and len(classes) > 1 and _sum_to_1(values)
    return ClassMaps(classes if has_background else tuple(1 + c for c in classes), values.clip(0, 1))


def fits(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether maps of some (width, height) can be of a whole image of some (width, height): at any stride, rounded."""
    return abs(size[0] * image[1] - size[1] * image[0]) <= sum(image)


def _entries(path: AnyPath, content: dict[Any, Any]) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The classes as the file numbers them, and their maps (h, w)."""
    keys: Any = list(content)
    planes: Any = list(content.values())
    if "keys" in content:
        name = next((name for name in _MAPS if name in content), None)
        if name is None:
            raise _bad(path, f'"keys", but no maps: none of {", ".join(_MAPS)}')
        keys, planes = (_items(content[entry]) for entry in ("keys", name))
    if not all(type(key) is int for key in keys):
        raise _bad(path, f'the keys {keys[:5]}, which should be whole numbers, or "keys" and "{_MAPS[0]}"')
    for plane in planes:
        if not (isinstance(plane, np.ndarray) and plane.ndim == 2 and plane.size and plane.dtype.kind in "fiub"):
            shape = plane.shape if isinstance(plane, np.ndarray) else type(plane).__name__
            raise _bad(path, f"a map that is {shape}, which should be numbers (height, width)")
    return tuple(keys), planes


def _items(value: Any) -> list[Any]:
    """The numbers of an array (n,), or the parts of one with more dimensions."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    return list(value) if isinstance(value, list | np.ndarray) and np.ndim(value) else [value]


def _sum_to_1(values: np.ndarray) -> bool:
    return bool(np.allclose(values.sum(0), 1, atol=0.01))


def _bad(path: AnyPath, what: str) -> DataError:
    return fault("bad maps", f"{path}: holds {what}")

"""Class maps of another method: `ID.npy` with a map of scores for each class of an image, as PSA and IRN write them.

Each file holds one dictionary. The lines below number the foreground classes from 0; this project numbers them from 1.

    PSA, methods that build on it    {class: map (H, W), ...}
    PSA's maps after its CRF         {0: map of the background, 1 + class: map, ...}; they sum to 1 at each pixel
    IRN                              {"keys": classes (n,), "high_res": maps (n, H, W), "cam": maps at stride 4}
    CLIP-ES                          {"keys": classes (n,), "attn_highres": maps (n, H, W)}
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdd.data import plain_pickle
from ssdd.data.problems import DataError, fault
from ssdd.storage.paths import AnyPath

SUFFIX = ".npy"
_MAPS = ("high_res", "attn_highres", "cam")
"""Names of the entry with the maps in a file that has "keys"; of several, the first in this order is read."""
_ROUNDING = 1e-3
"""How far scores may lie outside 0..1: the accuracy of half precision."""


@dataclass(frozen=True)
class ClassMaps:
    """The scores of one image."""

    classes: tuple[int, ...]
    """The class of each map: 0 is the background (if it has a map), 1 the first foreground class."""
    values: np.ndarray
    """Float32 (n, h, w) in 0..1; the shape is (0, 0, 0) if there is no class."""

    @property
    def has_background(self) -> bool:
        """Whether the background has a map."""
        return 0 in self.classes


def read(path: AnyPath) -> ClassMaps:
    """Read the class maps in a file.

    Raises:
        problems.DataError: the file is damaged or holds none of the dictionaries above; its pickle names a function or
            type that is not needed for numbers, arrays or tensors (such a function is never run); or the maps differ in
            shape, are not finite, or have scores outside 0..1.
    """
    content = plain_pickle.read(path)
    classes, planes = _entries(path, content)
    if len(set(classes)) != len(classes) or min(classes, default=0) < 0:
        raise _bad(path, f"the class numbers {sorted(classes)} must be distinct and not negative")
    if len(planes) != len(classes):
        raise _bad(path, f"the number of maps is {len(planes)}, but the number of classes is {len(classes)}")
    if not classes:
        return ClassMaps((), np.zeros((0, 0, 0), np.float32))
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) > 1:
        raise _bad(path, f"the maps have different shapes: {', '.join(map(str, shapes))}")
    values = np.stack(planes).astype(np.float32)
    if not np.isfinite(values).all():
        raise _bad(path, "a map has a score that is not a finite number")
    low, high = float(values.min()), float(values.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise _bad(path, f"the scores range from {low:.3g} to {high:.3g}, but must lie in 0..1")
    has_background = "keys" not in content and 0 in classes and len(classes) > 1 and _sum_to_1(values)
    return ClassMaps(classes if has_background else tuple(1 + c for c in classes), values.clip(0, 1))


def fits(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether maps can cover a whole image: both (width, height) have the same aspect ratio, up to rounding."""
    return abs(size[0] * image[1] - size[1] * image[0]) <= sum(image)


def _entries(path: AnyPath, content: dict[Any, Any]) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The classes as the file numbers them, and their maps (h, w)."""
    keys: Any = list(content)
    planes: Any = list(content.values())
    if "keys" in content:
        name = next((name for name in _MAPS if name in content), None)
        if name is None:
            raise _bad(path, f'there is an entry "keys", but no entry with maps ({", ".join(_MAPS)})')
        keys, planes = (_items(content[entry]) for entry in ("keys", name))
    if not all(type(key) is int for key in keys):
        raise _bad(path, f"the keys {keys[:5]} must be integers, the class numbers")
    for plane in planes:
        if not (isinstance(plane, np.ndarray) and plane.ndim == 2 and plane.size and plane.dtype.kind in "fiub"):
            kind = f"shape {plane.shape}" if isinstance(plane, np.ndarray) else f"type {type(plane).__name__}"
            raise _bad(path, f"a map has the {kind}, but must be an array of numbers (height, width)")
    return tuple(keys), planes


def _items(value: Any) -> list[Any]:
    """The items of an array or a list along its first axis; any other value as a list of one item."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    return list(value) if isinstance(value, list | np.ndarray) and np.ndim(value) else [value]


def _sum_to_1(values: np.ndarray) -> bool:
    return bool(np.allclose(values.sum(0), 1, atol=0.01))


def _bad(path: AnyPath, what: str) -> DataError:
    return fault("bad maps", f"{path}: {what}")

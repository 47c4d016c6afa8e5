"""Arrays as table cells: half-precision maps, 8-bit maps, resizing. No torch here: CRF processes import this module."""

import io

import numpy as np
from PIL import Image


def pack(array: np.ndarray) -> bytes:
    """An array as .npy bytes; floating point is stored in half precision."""
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """The inverse of `pack`; half precision comes back as float32."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def pack_unit(values: np.ndarray) -> bytes:
    """A map (h, w) of values in 0..1 as a grey PNG, in steps of 1/255; used for difference maps."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def unpack_unit(data: bytes) -> np.ndarray:
    """The inverse of `pack_unit`: float32 (h, w)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image, np.float32) / 255


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of float (..., h, w) to (..., *size); pixel centres at half-integers, as in torch."""
    flat = values.reshape(-1, *values.shape[-2:]).astype(np.float32)
    planes = [np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)) for plane in flat]
    return np.stack(planes).reshape(*values.shape[:-2], *size)

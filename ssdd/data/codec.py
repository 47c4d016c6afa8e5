"""Images, masks and presence labels as arrays: decoding, checking and encoding single files."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssdd.data.problems import fault
from ssdd.storage.paths import AnyPath, to_path

# What Pillow's JPEG and PNG readers raise on damaged bytes, SyntaxError being a broken PNG chunk.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


@contextmanager
def decoding(source: str | AnyPath | bytes, kind: str) -> Iterator[bytes]:
    """The bytes of a source; what Pillow says against them inside the block becomes a DataError."""
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        yield source if isinstance(source, bytes) else to_path(source).read_bytes()
    except UnidentifiedImageError as error:  # its own message shows a memory address
        raise fault(kind, f"{name}: not a JPEG or PNG file, or its header is damaged") from error
    except _DECODE_ERRORS as error:
        raise fault(kind, f"{name}: {error}") from error


def open_image(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=("JPEG", "PNG"))  # no other reader for files of unknown origin


def probe_image(path: AnyPath) -> tuple[int, int]:
    """The (width, height) of an image that decodes to its end."""
    with decoding(path, "unreadable image") as data:
        image = open_image(data)
        size = image.size
        image.draft(None, (1, 1))  # JPEG: 1/8 scale, several times faster and still reads every byte
        image.load()
    return size


def read_image(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a JPEG or PNG, given as path or bytes, to RGB: uint8 (H, W, 3).

    The pixels are as stored: an EXIF orientation is not applied, because masks align with the stored pixels.
    Other modes are converted, 16-bit ones by their high byte; transparency is dropped. Raises DataError.
    """
    with decoding(source, "unreadable image") as data:
        image = open_image(data)
        image.load()
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it at 255
        return np.stack([(np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)] * 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return np.array(image.convert("RGB"))  # a copy: what Pillow exposes is read-only


def read_mask(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a palette or 8-bit greyscale PNG, given as path or bytes, to its indices: uint8 (H, W).

    DataError for any other file: the values of a colour image or of another depth are no class indices.
    """
    with decoding(source, "bad mask") as data:
        # Pillow scales 2 and 4-bit grey to 0..255, so the header and not the mode tells what the values are.
        depth, colour = data[24:26] if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 26 else (0, 0)
        if colour != 3 and (depth, colour) != (8, 0):  # 3 is palette, 0 is greyscale
            raise ValueError("not a palette PNG nor an 8-bit greyscale one")
        return np.array(open_image(data))


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode class indices, uint8 (H, W), as a PNG with the VOC palette; `read_mask` inverts it exactly."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask is uint8 (H, W) and not empty, this is {mask.dtype} {mask.shape}")
    image = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
    # Pillow takes the bits a pixel (1, 2, 4 or 8) from the palette's length: end it at the last index.
    image.putpalette(voc_palette()[: int(mask.max()) + 1].tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """The VOC colour map, uint8 (256, 3): an index's bits 0, 1, 2, 3, ... are top bits of R, G, B, R, ..."""
    index, channel = np.arange(256)[:, None], np.arange(3)
    levels = [((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)]
    return np.bitwise_or.reduce(levels).astype(np.uint8)


def presence_vector(foreground: Iterable[int], num_classes: int) -> np.ndarray:
    """Bool (num_classes,): an image's foreground classes and background."""
    vector = np.zeros(num_classes, bool)
    vector[[0, *foreground]] = True
    return vector

"""Images, masks and presence labels as arrays: decoding, checking and encoding single files."""

import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ssdd.data import exif
from ssdd.data.problems import DataError, fault, read_bytes
from ssdd.storage.paths import AnyPath, to_path

PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PHOTOGRAPH_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""The formats that photographs outside a data set may have, as Pillow names them; a data set has only JPEG and PNG."""
PHOTOGRAPH_KINDS = "JPEG, PNG, WebP, BMP or TIFF"
# Pillow's readers raise these errors on damaged bytes, for example SyntaxError on a broken PNG chunk and TypeError on a
# TIFF whose offsets are texts.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, OverflowError, LookupError),
    *(struct.error, zlib.error),
)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `probe_image` has its own limit

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image upright, by EXIF orientation."""


class Probe(NamedTuple):
    """The size and the EXIF orientation in the header of an image."""

    width: int
    height: int
    """Width and height are in pixels, as stored."""
    orientation: int
    """EXIF orientation: with 1 the stored image is upright; with 2 to 8 it must be mirrored or rotated."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the EXIF rotation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def size(self, apply_exif: bool) -> tuple[int, int]:
        """Width and height, after the EXIF rotation if `apply_exif` is set, else as stored."""
        return self.upright if apply_exif else (self.width, self.height)


@contextmanager
def decoding(source: str | AnyPath | bytes, kind: str, expected: str = "JPEG or PNG") -> Iterator[bytes]:
    """Yield the bytes of a file, or the given bytes; a decoding error in the block becomes a DataError of `kind`."""
    name = "bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(to_path(source), kind)
    try:
        yield data
    except DataError:  # a subclass of ValueError, which is handled below
        raise
    except UnidentifiedImageError as error:  # its own message shows a memory address
        raise fault(kind, f"{name}: not a {expected} file, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise fault("huge image", f"{name}: {error}") from error
    except _DECODE_ERRORS as error:
        if "text chunk" in str(error) or "MAX_TEXT_CHUNK" in str(error):
            raise fault("large metadata", f"{name}: its text metadata are larger than Pillow allows") from error
        raise fault(kind, f"{name}: {error}") from error


def open_image(data: bytes) -> Image.Image:
    # A data set's files must not reach Pillow's readers of other formats, because the files may come from anyone.
    return Image.open(BytesIO(data), formats=("JPEG", "PNG"))


def probe_image(path: AnyPath, max_pixels: int | None = None) -> Probe:
    """The header of an image; the whole file is decoded to find damage.

    Raises:
        problems.DataError: the image cannot be decoded, or it has more than `max_pixels` pixels.
    """
    with decoding(path, "unreadable image") as data:
        image = open_image(data)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise fault("large image", f"{path}: {width}x{height} are more than {max_pixels} pixels")
        probe = Probe(width, height, _orientation(image))
        image.draft(None, (1, 1))  # a JPEG is decoded at 1/8 scale: several times faster, but every byte is read
        image.load()
    return probe


def probe_header(path: AnyPath) -> Probe:
    """The header of an image. A PNG with metadata is decoded, because these may follow the pixels. Raises DataError."""
    with decoding(path, "unreadable image") as data:
        image = open_image(data)
        return Probe(*image.size, 1 if exif.without_metadata(data) == data else _orientation(image))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":
        image.load()  # `getexif` would decode the image, too, but hide errors
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:  # damaged metadata count as absent
        return 1
    return orientation if orientation in range(1, 9) else 1


def image_bytes(path: AnyPath, apply_exif: bool) -> bytes:
    """The bytes of an image file as tables store them: an EXIF orientation is removed unless it is to be applied.

    The image is not encoded again, because that would change the pixels of a JPEG. Raises DataError.
    """
    with decoding(path, "unreadable image") as data:
        bare = exif.without_metadata(data)
        if apply_exif or bare == data or _orientation(open_image(data)) == 1:
            return data
        if _orientation(open_image(bare)) != 1:
            raise ValueError("its EXIF orientation cannot be removed")
        return bare


def read_image(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a JPEG or PNG, given as path or bytes, to RGB: uint8 (H, W, 3).

    An EXIF orientation is always applied (`image_bytes` removes those to be ignored). Images in other colour modes are
    converted (of 16 bits the high byte is kept), and transparency is dropped. Raises DataError.
    """
    with decoding(source, "unreadable image") as data:
        image = turned(open_image(data))
    return to_rgb(image)


def read_image_reduced(source: bytes, side: int) -> np.ndarray:
    """Decode as `read_image` does, for a training sample that is resized to (side, side).

    A JPEG whose width and height are at least 4 * side is decoded at 1/2, 1/4 or 1/8 of its size, which takes a
    fraction of the time. Both sides still have at least 2 * side pixels, so that the later resize averages over pixels.
    """
    with decoding(source, "unreadable image") as data:
        image = open_image(data)
        image.draft(None, (2 * side, 2 * side))  # has no effect on a PNG
        image = turned(image)
    return to_rgb(image)


def read_photograph(source: str | AnyPath | bytes, apply_exif: bool, max_pixels: int | None = None) -> np.ndarray:
    """Decode a photograph of any of `PHOTOGRAPH_FORMATS`, given as path or bytes, to RGB: uint8 (H, W, 3).

    Args:
        source: the photograph. If the file has several pictures, the first one is read.
        apply_exif: whether an EXIF orientation is applied. Pillow always applies it to a TIFF.
        max_pixels: the largest number of pixels; None: only Pillow's limit applies.

    Raises:
        problems.DataError: the photograph cannot be read, or is too large.
    """
    with decoding(source, "unreadable image", PHOTOGRAPH_KINDS) as data:
        image: Image.Image = Image.open(BytesIO(data), formats=PHOTOGRAPH_FORMATS)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            name = "bytes" if isinstance(source, bytes) else source
            raise fault("large image", f"{name}: {width}x{height} are more than {max_pixels} pixels")
        refuse_32_bits(image)
        return to_rgb(turned(image) if apply_exif else image)


def refuse_32_bits(image: Image.Image) -> None:
    """Raise ValueError if the pixels of an open image have 32 bits, which have no agreed range."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError("its pixels have 32 bits: save it in grey with 8 or 16 bits, or in colour")


def turned(image: Image.Image) -> Image.Image:
    """An open image, turned upright by its EXIF orientation; its pixels are decoded."""
    orientation = _orientation(image)
    image.load()
    if image.format == "TIFF":  # Pillow has already turned it
        return image
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image, converted to RGB as in `read_image` but not turned: uint8 (H, W, 3)."""
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it at 255
        return np.stack([(np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)] * 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct conversion to RGB
    if image.mode != "RGB":  # `convert` would copy an RGB image
        image = image.convert("RGB")
    return np.array(image)  # a copy, because Pillow's own buffer is read-only


def read_mask(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a palette or 8-bit greyscale PNG, given as path or bytes, to its indices: uint8 (H, W).

    Raises DataError for any other file: neither colours nor grey levels of 1, 2, 4 or 16 bits are class indices.
    """
    with decoding(source, "bad mask") as data:
        return np.array(_open_indexed(data))


def read_indexed(source: str | AnyPath | bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask, decoded as by `read_mask`, and its palette, uint8 (N, 3), or None for a greyscale mask."""
    with decoding(source, "bad mask") as data:
        image = _open_indexed(data)
        palette = image.getpalette("RGB") if image.mode == "P" else None
        return np.array(image), None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)


def _open_indexed(data: bytes) -> Image.Image:
    """Open a palette or 8-bit greyscale PNG. Raises ValueError for any other file."""
    # Pillow scales grey of 2 or 4 bits to 0..255 and gives it the mode of 8-bit grey, so the header is checked.
    depth, colour = data[24:26] if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 26 else (0, 0)
    if colour != 3 and (depth, colour) != (8, 0):  # 3 is palette, 0 is greyscale
        raise ValueError("not a palette PNG nor an 8-bit greyscale one")
    return open_image(data)


def encode_photograph(pixels: np.ndarray, kind: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """Encode RGB, uint8 (H, W, 3). A JPEG can have at most 65,500 pixels on each side."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode class indices, uint8 (H, W), as a PNG with the VOC palette; `read_mask` inverts it exactly."""
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask must be uint8 (H, W) and not empty, but this one is {mask.dtype} {mask.shape}")
    image = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
    # Pillow derives the bits per pixel (1, 2, 4 or 8) from the palette's length, so the palette ends at the last index.
    image.putpalette(voc_palette()[: int(mask.max()) + 1].tobytes())
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """The VOC colour map, uint8 (256, 3): bit 3 * k + c of an index becomes bit 7 - k of colour channel c."""
    index, channel = np.arange(256)[:, None], np.arange(3)
    levels = [((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)]
    return np.bitwise_or.reduce(levels).astype(np.uint8)


def presence_vector(foreground: Iterable[int], num_classes: int) -> np.ndarray:
    """Bool (num_classes,): True at an image's foreground classes and at the background."""
    vector = np.zeros(num_classes, bool)
    vector[[0, *foreground]] = True
    return vector

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
from ssdd.data.problems import DataError, fault, permitted
from ssdd.storage.paths import AnyPath, to_path

PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PHOTOGRAPH_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What a photograph may be that is no image of a data set, by Pillow's names."""
PHOTOGRAPH_KINDS = "JPEG, PNG, WebP, BMP or TIFF"
# What Pillow's readers raise on damaged bytes, SyntaxError being a broken PNG chunk.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `probe_image` has a limit of its own

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


class Probe(NamedTuple):
    """What the header of an image says."""

    width: int
    height: int
    """In pixels, as stored."""
    orientation: int
    """EXIF's: 1 as stored, 2 to 8 to be mirrored or rotated."""

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the rotation."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def size(self, apply_exif: bool) -> tuple[int, int]:
        """Width and height, after the rotation or as stored."""
        return self.upright if apply_exif else (self.width, self.height)


@contextmanager
def decoding(source: str | AnyPath | bytes, kind: str, expected: str = "JPEG or PNG") -> Iterator[bytes]:
    """The bytes of a source; what Pillow says against them inside the block becomes a DataError of a kind."""
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            yield source
        else:
            path = to_path(source)
            with permitted(path):
                data = path.read_bytes()
            yield data
    except DataError:  # which is a ValueError
        raise
    except UnidentifiedImageError as error:  # its own message shows a memory address
        raise fault(kind, f"{name}: not a {expected} file, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise fault("huge image", f"{name}: {error}") from error
    except _DECODE_ERRORS as error:
        if "text chunk" in str(error) or "MAX_TEXT_CHUNK" in str(error):
            raise fault("large metadata", f"{name}: its text metadata are larger than Pillow reads") from error
        raise fault(kind, f"{name}: {error}") from error


def open_image(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=("JPEG", "PNG"))  # no other reader for files of unknown origin


def probe_image(path: AnyPath, max_pixels: int | None = None) -> Probe:
    """The header of an image that decodes to its end.

    Raises:
        problems.DataError: it does not, or it has more than `max_pixels` pixels.
    """
    with decoding(path, "unreadable image") as data:
        image = open_image(data)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise fault("large image", f"{path}: {width}x{height} are more than {max_pixels} pixels")
        probe = Probe(width, height, _orientation(image))
        image.draft(None, (1, 1))  # JPEG: 1/8 scale, several times faster and still reads every byte
        image.load()
    return probe


def probe_header(path: AnyPath) -> Probe:
    """The header of an image. A PNG with metadata, which may stand behind its pixels, is decoded. Raises DataError."""
    with decoding(path, "unreadable image") as data:
        image = open_image(data)
        return Probe(*image.size, 1 if exif.without_metadata(data) == data else _orientation(image))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":
        image.load()  # `getexif` would do so, and hide an error
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:  # damaged metadata say nothing
        return 1
    return found if found in range(1, 9) else 1


def image_bytes(path: AnyPath, apply_exif: bool) -> bytes:
    """The bytes of an image file as tables store them: with an EXIF orientation only if it is to be applied.

    The pixels stay what they are, for a JPEG is changed by being encoded again. Raises DataError.
    """
    with decoding(path, "unreadable image") as data:
        bare = exif.without_metadata(data)
        if apply_exif or bare == data or _orientation(open_image(data)) == 1:
            return data
        if _orientation(open_image(bare)) != 1:
            raise ValueError("its EXIF orientation cannot be taken away")
        return bare


def read_image(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a JPEG or PNG, given as path or bytes, to RGB: uint8 (H, W, 3).

    An EXIF orientation is applied; `image_bytes` takes it away where it is not to be. Other modes are converted,
    16-bit ones by their high byte; transparency is dropped. Raises DataError.
    """
    with decoding(source, "unreadable image") as data:
        image = open_image(data)
        image = turned(image)
    return to_rgb(image)


def read_photograph(source: str | AnyPath | bytes, apply_exif: bool, max_pixels: int | None = None) -> np.ndarray:
    """Decode a photograph of any of `PHOTOGRAPH_FORMATS`, given as path or bytes, to RGB: uint8 (H, W, 3).

    Args:
        source: of which the first picture is read where it has several.
        apply_exif: whether an EXIF orientation is applied. That of a TIFF always is, by Pillow.
        max_pixels: a larger photograph is refused; None: Pillow's limit alone.

    Raises:
        problems.DataError: it cannot be read, or is too large.
    """
    with decoding(source, "unreadable image", PHOTOGRAPH_KINDS) as data:
        image: Image.Image = Image.open(BytesIO(data), formats=PHOTOGRAPH_FORMATS)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            name = "bytes" if isinstance(source, bytes) else source
            raise fault("large image", f"{name}: {width}x{height} are more than {max_pixels} pixels")
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            raise ValueError("its pixels have 32 bits: save grey levels of 8 or 16 bits, or colours")
        return to_rgb(turned(image) if apply_exif else image)


def turned(image: Image.Image) -> Image.Image:
    """An open image as its EXIF orientation says; the pixels are read."""
    orientation = _orientation(image)
    image.load()
    if image.format == "TIFF":  # Pillow has turned it
        return image
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image as they are stored, as RGB: uint8 (H, W, 3), see `read_image`."""
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it at 255
        return np.stack([(np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)] * 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return np.array(image.convert("RGB"))  # a copy: what Pillow exposes is read-only


def read_mask(source: str | AnyPath | bytes) -> np.ndarray:
    """Decode a palette or 8-bit greyscale PNG, given as path or bytes, to its indices: uint8 (H, W).

    DataError for any other file: the values of a colour image or of another depth are no class indices.
    """
    return read_indexed(source)[0]


def read_indexed(source: str | AnyPath | bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask as by `read_mask`, and its palette, uint8 (N, 3); None for greyscale."""
    with decoding(source, "bad mask") as data:
        # Pillow scales 2 and 4-bit grey to 0..255, so the header and not the mode tells what the values are.
        depth, colour = data[24:26] if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 26 else (0, 0)
        if colour != 3 and (depth, colour) != (8, 0):  # 3 is palette, 0 is greyscale
            raise ValueError("not a palette PNG nor an 8-bit greyscale one")
        image = open_image(data)
        mask = np.array(image)
        palette = image.getpalette("RGB") if colour == 3 else None
        return mask, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)


def encode_photograph(pixels: np.ndarray, kind: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """Encode RGB, uint8 (H, W, 3). A JPEG's sides have at most 65,500 pixels."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return buffer.getvalue()


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

"""The CPU part of predict: read photographs as rows of a pipeline, and write masks. This module imports no torch."""

import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssdd.crf import CRFParams, segment_present, without_absent
from ssdd.data import codec
from ssdd.data.class_names import IGNORE
from ssdd.data.problems import DataError
from ssdd.storage import maps
from ssdd.storage.paths import AnyPath, RemoteError
from ssdd.storage.tables import Row

MASKS, OVERLAYS, PROBABILITIES, ASIDE = "masks", "overlays", "probabilities", ".unfinished"
_LARGEST_JPEG = 65_500
"""Overlays with a longer side than this, in pixels, are written as PNG, because JPEG files cannot be much larger."""
MOST_BYTES = 2**30
"""The largest size of a photograph's file; Arrow cannot store values of 2 GiB."""
READ_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("output", pa.string()),
        ("image", pa.binary()),
        ("absent", pa.list_(pa.uint8())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Photograph:
    """A photograph to segment."""

    name: str
    """The photograph's path below the root."""
    output: str
    """The path of its mask below the folder of masks, without suffix."""
    absent: tuple[int, ...] = ()
    """The foreground classes that the photograph does not have."""


def read(root: AnyPath, item: list[Photograph]) -> Iterator[pa.Table]:
    """Read some photographs' files as rows, one at a time; the column `error` has the reason if a file cannot be read.

    Raises OSError or RemoteError if no file of several can be read: the disk or the object store has failed, not the
    files. Files that are gone, or that may not be read, are rows.
    """
    refused = 0
    for photograph in item:
        data, error, path = b"", "", root / photograph.name
        try:
            with path.open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                data, error = b"", f"the file has more than {MOST_BYTES >> 20} MB"
        except (FileNotFoundError, PermissionError) as reason:
            error = reason.strerror or str(reason)
        except (OSError, RemoteError) as reason:
            error, refused = getattr(reason, "strerror", None) or str(reason), refused + 1
            if refused == len(item) > 1:
                raise
        row = {"image_id": photograph.name, "output": photograph.output, "image": data, "error": error}
        yield pa.Table.from_pylist([row | {"absent": list(photograph.absent)}], schema=READ_SCHEMA)


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Write the output files of rows with probabilities, and return the rows of the predictions table.

    For a row with an error, no files are written and the error is kept. A file on a disk gets its final
    name when it is complete.
    """

    folder: AnyPath
    classes: tuple[str, ...]
    """Class names, background first."""
    crf: CRFParams | None
    min_probability: float
    sharpen: float
    below: float
    overlay: bool
    probabilities: bool
    apply_exif: bool

    def __call__(self, rows: list[Row]) -> list[Row]:
        return [self._finish(row) for row in rows]

    def _finish(self, row: Row) -> Row:
        result = {"path": row["image_id"], "output": row["output"], "error": row["error"]}
        result |= {"width": 0, "height": 0, "probability": 0.0, "classes": [], "shares": []}
        if row["error"]:
            return result
        try:
            return result | self._outputs(row)
        except (OSError, ValueError) as error:
            # Pillow's errors and too long file names concern this photograph only; other errors concern the disk.
            if getattr(error, "errno", None) not in (None, errno.ENAMETOOLONG):
                raise
            return result | {"error": str(error)}

    def _outputs(self, row: Row) -> Row:
        """Write the files of a row, and return its columns of the predictions table."""
        image = codec.read_photograph(row["image"], self.apply_exif)
        probs = without_absent(maps.resize(maps.unpack(row["probs"]), image.shape[:2]), row["absent"])
        largest = probs.max(0)
        mask = segment_present(image, probs, self.crf, self.min_probability, self.sharpen)
        if self.below:
            mask[largest < self.below] = IGNORE
        output = row["output"]
        self._write(f"{MASKS}/{output}.png", codec.encode_mask(mask))
        if self.overlay:
            from ssdd.reports import figures  # importing matplotlib takes a second

            picture = figures.named_overlay(image, mask, self.classes)
            if max(mask.shape) <= _LARGEST_JPEG:
                self._write(f"{OVERLAYS}/{output}.jpg", codec.encode_photograph(picture, "JPEG"))
            else:
                self._write(f"{OVERLAYS}/{output}.png", codec.encode_photograph(picture))
        if self.probabilities:
            self._write(f"{PROBABILITIES}/{output}.npy", maps.pack(probs))
        values, counts = np.unique(mask, return_counts=True)
        names = {int(value): self.classes[value] for value in values if value != IGNORE}
        return {
            "height": mask.shape[0],
            "width": mask.shape[1],
            "probability": float(largest.mean()),
            "classes": list(names.values()),
            "shares": [float(count) / mask.size for value, count in zip(values, counts, strict=True) if value in names],
        }

    def _write(self, name: str, data: bytes) -> None:
        target = self.folder / name
        if not isinstance(target, Path):
            target.write_bytes(data)
            return
        aside = Path(str(self.folder), ASIDE, uuid.uuid4().hex)
        aside.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)


def decode(rows: list[Row], apply_exif: bool, max_pixels: int) -> list[np.ndarray | None]:
    """Decode each row's photograph to uint8 (H, W, 3). If it cannot be used, give None and set `error` in the row."""
    decoded: list[np.ndarray | None] = []
    for row in rows:
        image = None
        if not row["error"]:
            try:
                image = codec.read_photograph(row["image"], apply_exif, max_pixels)
            except DataError as error:
                row["error"] = error.problems[0][1].removeprefix("bytes: ")
        decoded.append(image)
    return decoded

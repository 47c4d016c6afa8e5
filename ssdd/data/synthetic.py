"""The embedded data set: small drawn scenes, written in PASCAL VOC's folder layout.

Like a real data set it has image labels and pixel masks, but it is made in seconds and without a download.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdd.data import codec, drawn_scenes
from ssdd.data.drawn_objects import CLASSES
from ssdd.data.drawn_scenes import IGNORE, SPLITS

FORMAT = 1  # increase it whenever the drawings change, so that an older folder is not used as a current one
RECORD = "synthetic.json"


def generate(
    root: Path, *, train: int = 288, val: int = 120, size: tuple[int, int] = (160, 128), seed: int = 0
) -> Path:
    """Draw a data folder in VOC's layout, and return `root`. Equal arguments give equal files.

    Masks are palette PNGs: 0 background, 1..K `CLASSES`, 255 object borders. The folder gets its name only when it is
    complete. A folder that already holds the same drawing is not changed; other files in `root` raise FileExistsError.
    """
    root = Path(root)
    counts = dict(zip(SPLITS, (train, val), strict=True))
    record = {"format": FORMAT, "classes": list(CLASSES), **counts, "size": list(size), "seed": seed}
    if _holds(root, record):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root}: holds other files than the drawing {record}; name a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as work:
        folder = Path(work, "drawing")
        _write(folder, counts, size, seed)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        try:
            os.rename(folder, root)
        except OSError:
            if not _holds(root, record):  # another process may have finished the same drawing first
                raise
    return root


def _holds(root: Path, record: dict[str, Any]) -> bool:
    path = root / RECORD
    return path.is_file() and json.loads(path.read_text()) == record


def _write(folder: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    images, masks, sets = (folder / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))
    for path in (images, masks, sets):
        path.mkdir(parents=True)
    rows = ["image_id,classes"]
    for split, count in counts.items():
        names = [f"{split}_{index:04d}" for index in range(count)]
        for index, name in enumerate(names):
            rgb, mask = drawn_scenes.render(seed, split, index, size)
            Image.fromarray(rgb).save(images / f"{name}.jpg", quality=92)
            picture = Image.fromarray(mask)
            picture.putpalette(codec.voc_palette().tobytes())
            picture.save(masks / f"{name}.png")
            present = ";".join(CLASSES[label - 1] for label in np.unique(mask) if 0 < label < IGNORE)
            rows.append(f"{name},{present}")
        (sets / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))  # the modification times are equal on every machine, too

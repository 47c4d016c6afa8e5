"""The CRF steps of the inference pipelines: they process table rows in CPU actors. This module imports no torch."""

import numpy as np

from ssdd.crf import CRFParams, dense_crf, segment_image
from ssdd.data import codec
from ssdd.storage import maps
from ssdd.storage.tables import Row


def with_background(cam: np.ndarray, alpha: float, factor: float = 1.0) -> np.ndarray:
    """Prepend PSA's background score, factor * (1 - highest map)^alpha: maps (n, h, w) in 0..1 -> (1 + n, h, w)."""
    if not len(cam):  # an image without any class
        return np.ones((1, *cam.shape[1:]), np.float32)
    return np.concatenate([factor * (1 - cam.max(0, keepdims=True)) ** alpha, cam]).astype(np.float32)


def combine_labels(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """AffinityNet's labels: background where `high` is background, elsewhere the foreground of `low`.

    Args:
        low, high: class masks of the CRFs with the small and the large alpha, uint8 (H, W). With a small alpha the
            background score is large, so that the foreground of `low` is certain.

    Returns:
        uint8 (H, W), 255 where neither mask is certain.
    """
    label = np.where(low == 0, 255, low)
    return np.where(high == 0, 0, label).astype(np.uint8)


def affinity_labels(alpha_low: float, alpha_high: float, crf: CRFParams, rows: list[Row]) -> list[Row]:
    """Run the CRF on `cam` with a large and with a small background score, and combine both masks into `affinity`."""
    for row in rows:
        image, labels = codec.read_image(row["image"]), presence_labels(row)
        cam = np.clip(maps.resize(maps.unpack(row["cam"]), image.shape[:2]), 0, 1)
        low, high = (
            labels[dense_crf(image, with_background(cam, alpha), crf).argmax(0)] for alpha in (alpha_low, alpha_high)
        )
        row["affinity"] = codec.encode_mask(combine_labels(low, high))
    return [{name: row[name] for name in ("image_id", "cam", "affinity")} for row in rows]


def advise(crf: CRFParams, rows: list[Row]) -> list[Row]:
    """Add the masks at the image's size: knowledge from `probs`, and advice from `probs` after the CRF."""
    for row in rows:
        image, labels = codec.read_image(row["image"]), presence_labels(row)
        probs = maps.resize(maps.unpack(row["probs"]), image.shape[:2])
        row["knowledge"] = codec.encode_mask(labels[probs.argmax(0)])
        row["advice"] = codec.encode_mask(labels[dense_crf(image, probs, crf).argmax(0)])
    return [{name: row[name] for name in ("image_id", "probs", "knowledge", "advice")} for row in rows]


def presence_labels(row: Row) -> np.ndarray:
    """The indices of background and of the image's classes, uint8 (1 + n,)."""
    return np.array([0, *row["presence"]], np.uint8)


def present_masks(models: tuple[str, ...], rows: list[Row]) -> list[Row]:
    """Each model's mask at the image's size, from its probabilities of background and the image's classes."""
    out = []
    for row in rows:
        size, labels = codec.read_image(row["image"]).shape[:2], presence_labels(row)
        best = {name: maps.resize(maps.unpack(row[name]), size).argmax(0) for name in models}
        out.append({"image_id": row["image_id"]} | {name: codec.encode_mask(labels[b]) for name, b in best.items()})
    return out


def segment(
    models: tuple[str, ...], crfs: dict[str, CRFParams], min_probability: float, sharpen: float, rows: list[Row]
) -> list[Row]:
    """Test-time masks of each model at the image's size, see `crf.segment_image`.

    The column MODEL has the mask without a CRF, MODEL_NAME the mask after the CRF that `crfs` calls NAME.
    """
    out = []
    for row in rows:
        image = codec.read_image(row["image"])
        masks: Row = {"image_id": row["image_id"]}
        for name in models:
            probs = maps.resize(maps.unpack(row[name]), image.shape[:2])
            for ending, mask in segment_image(image, probs, crfs, min_probability, sharpen).items():
                masks[f"{name}_{ending}" if ending else name] = codec.encode_mask(mask)
        out.append(masks)
    return out

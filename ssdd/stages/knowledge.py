"""Knowledge and advice of the training list: PSA's seed masks, or two folders of another method's masks or maps."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ssdd.data import class_maps, codec, records, voc
from ssdd.data.class_maps import ClassMaps
from ssdd.data.records import OtherMask, ReadOptions
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, images, seeds
from ssdd.stages.images import Images
from ssdd.stages.seeds import Seeds
from ssdd.storage import maps
from ssdd.storage.paths import AnyPath, threaded
from ssdd.storage.tables import Row

SCHEMA = pa.schema([("image_id", pa.string()), ("knowledge", pa.binary()), ("advice", pa.binary())])


def run(session: Session) -> Seeds:
    """Knowledge and advice from the folders that the configuration names, or else from PSA."""
    knowledge, advice = session.config.knowledge, session.config.advice
    if knowledge is None or advice is None:
        return seeds.run(session)
    train = images.run(session, session.config.train_split)
    return from_folders(session, train, {"knowledge": knowledge, "advice": advice})


def from_folders(session: Session, train: Images, folders: dict[str, AnyPath]) -> Seeds:
    """Make `Seeds` from two folders with masks ID.png or class maps ID.npy.

    The result has no classifier, so later stages start from other weights, see `seeds.start_of`.

    Raises:
        problems.DataError: lists every file that is missing or unreadable, or does not fit its image or the classes,
            see `records.find_masks`.
    """
    folder = images.open_data(session)
    ids = [image_id for part in train.table.parts for image_id in part]
    parts = range(len(train.table.parts))
    presence = [row["presence"] for part in parts for row in train.table.read(part, ["presence"])]
    options, background = ReadOptions.of(session.config), session.config.maps_background
    files_of_each, warnings = records.find_masks(folder, ids, *folders.values(), presence=presence, options=options)
    for warning in warnings:
        session.console.line(f"warning: {warning}")
    files = dict(zip(folders, files_of_each, strict=True))
    recipe: dict[str, Any] = {"images": train.artifact}
    recipe |= {name: voc.stats([mask.path for mask in masks]) for name, masks in files.items()}
    score = f"(1 - the highest map)^{background:g}" if background >= 1 else f"{background:g}"
    for name, masks in files.items():
        without_background = sum(mask.maps == "classes" for mask in masks)
        if without_background:
            recipe["background"] = background
            session.console.line(f"{name}: {without_background} class maps, the background's score is {score}")
        if any(mask.maps == "all" for mask in masks):
            with_background = len(masks) - without_background
            session.console.line(f"{name}: {with_background} class maps with a map of the background")

    def row(i: int) -> Row:
        return {"image_id": ids[i]} | {name: _encoded(masks[i], background) for name, masks in files.items()}

    rows = partial(threaded, row, range(len(ids)), folders["knowledge"])
    table, artifact = session.build_table("masks", recipe, train.table.parts, SCHEMA, rows)
    return Seeds(train, table, artifact, None)


def _encoded(mask: OtherMask, background: float) -> bytes:
    """The mask as the bytes of a PNG file."""
    if not mask.maps:
        return mask.path.read_bytes()
    width, height = mask.size
    return codec.encode_mask(mask_of(class_maps.read(mask.path), background, (height, width)))


def mask_of(scores: ClassMaps, background: float, size: tuple[int, int]) -> np.ndarray:
    """The class with the highest score at each pixel, uint8 (*size).

    Args:
        scores: maps of the classes; they are resized if they do not have `size`.
        background: used if `scores` has no map of the background: below 1 the background's score, else the exponent
            in that score, see `Config.maps_background`.
        size: height and width.
    """
    if not scores.classes:
        return np.zeros(size, np.uint8)
    values = scores.values if scores.values.shape[1:] == size else maps.resize(scores.values, size)
    if scores.has_background:
        return np.array(scores.classes, np.uint8)[values.argmax(0)]
    if background < 1:
        values = np.concatenate([np.full((1, *size), background, np.float32), values])
    else:
        values = crf_rows.with_background(values, background)
    return np.array([0, *scores.classes], np.uint8)[values.argmax(0)]

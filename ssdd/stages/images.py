"""Stage 0: check an image list and store it as a table of encoded images, image-level labels and true masks."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ssdd.config import ConfigError
from ssdd.data import codec, records, synthetic, voc
from ssdd.data.class_names import IGNORE
from ssdd.data.problems import listing
from ssdd.data.records import ReadOptions, Record
from ssdd.data.voc import VOCFolder
from ssdd.runtime import progress
from ssdd.runtime.session import Session
from ssdd.storage.artifacts import Artifact, read_about
from ssdd.storage.paths import AnyPath, disk_beside, relative, threaded
from ssdd.storage.tables import Row, Table, cut, open_table, write_table

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("presence", pa.list_(pa.uint8())),
        ("truth", pa.binary()),
    ]
)
SKIPPED = "skipped.txt"
WARNINGS = "warnings.txt"


@dataclass(frozen=True)
class Images:
    """An image list of a data set."""

    table: Table
    artifact: Artifact
    classes: tuple[str, ...]
    """Class names, background first."""


def open_data(session: Session) -> VOCFolder:
    """The configuration's data folder, or else the embedded data set, which is drawn into a folder on disk.

    This folder lies in the workspace or, for a workspace in an object store, in ~/.cache/ssdd.
    """
    if session.config.data is not None:
        return voc.open_folder(session.config.data)
    try:
        return voc.open_folder(synthetic.generate(disk_beside(session.workspace) / "embedded"))
    except FileExistsError as error:
        raise ConfigError(f"{error}; delete that folder, and it is drawn again") from error


def run(session: Session, split: str, need_labels: bool = True) -> Images:
    """The table of one image list: `image_id`, `image` and `truth` (file bytes), `presence` (foreground classes).

    `truth` is None for an image without a true mask.

    Raises:
        problems.DataError: lists everything that is wrong with the folder, before anything else runs. With
            `skip_broken`, images that have a problem are left out instead, and the artifact lists them.
    """
    folder, config = open_data(session), session.config
    name, skip, options = f"images-{split}", config.skip_broken, ReadOptions.of(config)
    recipe = {
        "files": voc.fingerprint(folder, split),
        "classes": folder.classes,
        "labels": need_labels,
        "part_size": config.part_size,
        "apply_exif": options.apply_exif,
    }
    # A table of a list without problems is used with `skip_broken` and with other limits, too, if its images are small
    # enough. Then nothing that is built from it is made again.
    largest = read_about(session.store.identify(name, recipe)).get("largest", math.inf if skip else 0)
    strict = recipe | {"skip_broken": skip, "max_pixels": options.max_pixels}
    if largest > config.max_pixels or (skip and session.has(name, strict)):
        recipe = strict

    def make(path: AnyPath) -> dict[str, Any]:
        examined = records.examine(folder, split, need_labels=need_labels, options=options)
        examined.check(skip)
        if examined.problems:
            full_list = listing(examined.title, examined.problems, shown=len(examined.problems))
            (path / SKIPPED).write_text(f"{full_list}\n")
        if examined.warnings:
            (path / WARNINGS).write_text("".join(f"{warning}\n" for warning in examined.warnings))
        # Shuffle the list, which may be sorted by class, so that no part has a single class.
        order = np.random.default_rng(0).permutation(len(examined.records))
        shuffled = [examined.records[i] for i in order]
        parts = cut([record.image_id for record in shuffled], config.part_size)
        row = partial(_row, options.apply_exif)
        rows = progress.counted(threaded(row, shuffled, folder.root), len(shuffled), session.console.stage(name))
        write_table(path, parts, SCHEMA, rows)
        return {"largest": max(width * height for width, height in examined.sizes)}

    artifact = session.build(name, recipe, make)
    table = open_table(artifact.path)
    skipped = artifact.path / SKIPPED
    if skipped.exists():
        count = len(voc.read_split(folder, split)) - table.rows
        where = relative(skipped, session.workspace)
        session.console.line(f"[{name}] {count} images left out, {table.rows} remain; for the reasons see {where}")
        session.tracker.metrics({f"skipped.{split}": count})
    path = artifact.path / WARNINGS
    warnings = path.read_text().splitlines() if path.exists() else []
    if split == config.train_split:
        warnings += records.stray_masks(folder)
    for line in warnings:
        session.console.line(f"[{name}] warning: {line}")
    return Images(table, artifact, folder.classes)


def has_truth(table: Table) -> bool:
    """Whether any true mask of a list has a foreground class. Reading stops after the part with the first such mask."""
    rows = (row for part in range(len(table.parts)) for row in table.read(part, ["truth"]))
    truths = (codec.read_mask(row["truth"]) for row in rows if row["truth"] is not None)
    return any(bool(((truth > 0) & (truth != IGNORE)).any()) for truth in truths)


def _row(apply_exif: bool, record: Record) -> Row:
    return {
        "image_id": record.image_id,
        "image": codec.image_bytes(record.image_path, apply_exif),
        "presence": record.presence,
        "truth": record.mask_path.read_bytes() if record.mask_path else None,
    }

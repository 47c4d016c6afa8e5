"""Stage 0: a checked image list as a table: encoded image, image-level labels and, for evaluation, the true mask."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ssdd.config import Config, ConfigError
from ssdd.data import synthetic, voc
from ssdd.data.problems import listing
from ssdd.data.voc import Record, VOCFolder
from ssdd.runtime import progress
from ssdd.runtime.session import Session, resolve
from ssdd.storage.artifacts import Artifact
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


@dataclass(frozen=True)
class Images:
    """An image list of a data set."""

    table: Table
    artifact: Artifact
    classes: tuple[str, ...]
    """Class names, background first."""


def open_data(session: Session) -> VOCFolder:
    """The folder that the configuration names, or the embedded data set, drawn into the workspace."""
    path = data_path(session.config)
    if path is not None:
        return voc.open_folder(path)
    try:
        return voc.open_folder(synthetic.generate(disk_beside(session.workspace) / "embedded"))
    except FileExistsError as error:
        raise ConfigError(f"{error}; delete that folder, it will be drawn again") from error


def data_path(config: Config) -> AnyPath | None:
    """The folder that the configuration names, absolute; None for the embedded data set."""
    return None if config.data is None else resolve(config.data, default="data", flag="--data")


def located(config: Config) -> Config:
    """The same configuration with its data by an absolute path."""
    return replace(config, data=data_path(config))


def run(session: Session, split: str, need_labels: bool = True) -> Images:
    """The table of one image list: `image_id`, `image` (file bytes), `presence` (foreground classes), `truth`.

    Raises:
        problems.DataError: lists everything that is wrong with the folder, before anything else runs. With
            `skip_broken`, images that something is wrong with are left out instead, and listed in the artifact.
    """
    folder = open_data(session)
    name, skip = f"images-{split}", session.config.skip_broken
    recipe = {
        "files": voc.fingerprint(folder, split),
        "classes": folder.classes,
        "labels": need_labels,
        "part_size": session.config.part_size,
    } | ({"skip_broken": True} if skip else {})

    def make(path: AnyPath) -> None:
        records, problems = voc.load_records(folder, split, need_labels=need_labels, skip_broken=skip)
        if problems:
            every = listing(f"{folder.root}, split {split!r}", problems, shown=len(problems))
            (path / SKIPPED).write_text(f"{every}\n")
        # In random order: what users number by class must not come class by class.
        order = np.random.default_rng(0).permutation(len(records))
        records = [records[i] for i in order]
        parts = cut([record.image_id for record in records], session.config.part_size)
        rows = progress.counted(threaded(_row, records, folder.root), len(records), session.console.stage(name))
        write_table(path, parts, SCHEMA, rows)

    artifact = session.build(name, recipe, make)
    table = open_table(artifact.path)
    skipped = artifact.path / SKIPPED
    if skipped.exists():
        count = len(voc.read_split(folder, split)) - table.rows
        where = relative(skipped, session.workspace)
        session.console.line(f"[{name}] {count} images left out, {table.rows} remain; why: {where}")
        session.tracker.metrics({f"skipped.{split}": count})
    return Images(table, artifact, folder.classes)


def has_truth(table: Table) -> bool:
    """Whether any image of a list has a true mask; reads no further than to the first part with one."""
    return any(row["truth"] is not None for part in range(len(table.parts)) for row in table.read(part, ["truth"]))


def _row(record: Record) -> Row:
    return {
        "image_id": record.image_id,
        "image": record.image_path.read_bytes(),
        "presence": record.presence,
        "truth": record.mask_path.read_bytes() if record.mask_path else None,
    }

"""Stage 0: a checked image list as a table: encoded image, image-level labels and, for evaluation, the true mask."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssdd import synthetic, voc
from ssdd.config import Config, ConfigError
from ssdd.session import Session, resolve
from ssdd.store import Artifact
from ssdd.tables import Row, Table, cut
from ssdd.voc import VOCFolder

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("presence", pa.list_(pa.uint8())),
        ("truth", pa.binary()),
    ]
)


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
        return voc.open_folder(synthetic.generate(session.workspace / "embedded"))
    except FileExistsError as error:
        raise ConfigError(f"{error}; delete that folder, it will be drawn again") from error


def data_path(config: Config) -> Path | None:
    """The folder that the configuration names, absolute; None for the embedded data set."""
    return None if config.data is None else resolve(config.data, default="data", flag="--data")


def run(session: Session, split: str, need_labels: bool = True) -> Images:
    """The table of one image list: `image_id`, `image` (file bytes), `presence` (foreground classes), `truth`.

    Raises:
        voc.DataError: lists everything that is wrong with the folder, before anything else runs.
    """
    folder = open_data(session)
    recipe = {
        "files": voc.fingerprint(folder, split),
        "classes": folder.classes,
        "labels": need_labels,
        "part_size": session.config.part_size,
    }

    def rows() -> Iterator[Row]:
        for record in voc.load_records(folder, split, need_labels=need_labels):
            yield {
                "image_id": record.image_id,
                "image": record.image_path.read_bytes(),
                "presence": record.presence,
                "truth": record.mask_path.read_bytes() if record.mask_path else None,
            }

    # In random order: what users number by class must not come class by class.
    ids = voc.read_split(folder, split)
    parts = cut([ids[i] for i in np.random.default_rng(0).permutation(len(ids))], session.config.part_size)
    table, artifact = session.build_table(f"images-{split}", recipe, parts, SCHEMA, rows)
    return Images(table, artifact, folder.classes)

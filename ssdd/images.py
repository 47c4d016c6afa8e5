"""Stage 0: a checked image list as a table: encoded image, image-level labels and, for evaluation, the true mask."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from ssdd import synthetic, voc
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
    if session.config.data is None:
        return voc.open_folder(synthetic.generate(session.workspace / "embedded"))
    return voc.open_folder(resolve(session.config.data, default="data", flag="--data"))


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

    parts = cut(voc.read_split(folder, split), session.config.part_size)
    table, artifact = session.build_table(f"images-{split}", recipe, parts, SCHEMA, rows)
    return Images(table, artifact, folder.classes)

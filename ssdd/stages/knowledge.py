"""Knowledge and advice of the training list: PSA's seeds, or two folders of masks that another method made."""

from functools import partial

import pyarrow as pa

from ssdd.data import records, voc
from ssdd.data.records import ReadOptions
from ssdd.runtime.session import Session, resolve
from ssdd.stages import images, seeds
from ssdd.stages.images import Images
from ssdd.stages.seeds import Seeds
from ssdd.storage.paths import AnyPath, threaded
from ssdd.storage.tables import Row

SCHEMA = pa.schema([("image_id", pa.string()), ("knowledge", pa.binary()), ("advice", pa.binary())])


def run(session: Session) -> Seeds:
    """The masks in the folders that the configuration names, else PSA's."""
    knowledge, advice = session.config.knowledge, session.config.advice
    if knowledge is None or advice is None:
        return seeds.run(session)
    train = images.run(session, session.config.train_split)
    return given(
        session,
        train,
        {
            "knowledge": resolve(knowledge, default="knowledge", flag="--knowledge"),
            "advice": resolve(advice, default="advice", flag="--advice"),
        },
    )


def given(session: Session, train: Images, folders: dict[str, AnyPath]) -> Seeds:
    """Masks ID.png out of two folders, as `Seeds` whose networks start from ImageNet's backbone.

    Raises:
        problems.DataError: lists every mask that is missing, unreadable, of another size than its image, or has a value
            that is no class, and folders whose values mean other classes.
    """
    folder = images.open_data(session)
    ids = [image_id for part in train.table.parts for image_id in part]
    parts = range(len(train.table.parts))
    presence = [row["presence"] for part in parts for row in train.table.read(part, ["presence"])]
    options = ReadOptions.of(session.config)
    paths, warnings = records.find_masks(folder, ids, *folders.values(), presence=presence, options=options)
    for warning in warnings:
        session.console.line(f"warning: {warning}")
    files = dict(zip(folders, paths, strict=True))
    recipe = {"images": train.artifact} | {name: voc.stats(paths) for name, paths in files.items()}

    def row(i: int) -> Row:
        return {"image_id": ids[i]} | {name: paths[i].read_bytes() for name, paths in files.items()}

    rows = partial(threaded, row, range(len(ids)), folders["knowledge"])
    table, artifact = session.build_table("masks", recipe, train.table.parts, SCHEMA, rows)
    return Seeds(train, table, artifact, None)

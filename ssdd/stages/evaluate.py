"""Stage 4: mean IoU of knowledge, advice and m^D0 on the training list, and of the models on the scored list."""

import io
import math
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ssdd.config import ConfigError, NetworkConfig
from ssdd.data import codec
from ssdd.data.class_names import IGNORE
from ssdd.metrics import ConfusionMatrix
from ssdd.nets.inference import PredictStage
from ssdd.reports import figures
from ssdd.reports.diagnostics import DifferenceReport
from ssdd.reports.scores import Scores, collapsed
from ssdd.runtime import pipelines
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, images
from ssdd.stages.images import Images
from ssdd.stages.seeds import Seeds
from ssdd.stages.static import Refined
from ssdd.storage import maps
from ssdd.storage.artifacts import Artifact, whole
from ssdd.storage.paths import AnyPath, relative
from ssdd.storage.tables import Row, Table, read_joined

_DRAWING = threading.Lock()  # a comparison draws in several threads, which share matplotlib's text parser


@dataclass(frozen=True)
class Scored:
    """Scores of an image list, and each image's mean IoU, which decides which images the pictures show."""

    scores: Scores
    images: dict[str, dict[str, float]]
    """Image id -> mask column -> mean IoU in 0..1."""


def score(
    prefix: str,
    joined: list[Table],
    columns: Iterable[str],
    classes: tuple[str, ...],
    report: DifferenceReport | None = None,
) -> Scored:
    """Compare mask columns with `truth`. The scores are empty if no true mask has a foreground class.

    Args:
        prefix: the first part of the scores' names.
        joined: tables, read side by side, that have `truth` and the columns.
        columns: names of the mask columns.
        classes: names, background first.
        report: collects knowledge, advice and, if the last table has them, the difference maps of every image.
    """
    columns = list(columns)
    totals = {column: ConfusionMatrix(len(classes)) for column in columns}
    per_image: dict[str, dict[str, float]] = {}
    has_maps = report is not None and "d_knowledge" in joined[-1].columns()
    for row in rows_of(joined, ["truth", *columns, *(("d_knowledge", "d_advice") if has_maps else ())]):
        if row["truth"] is None:
            continue
        truth = codec.read_mask(row["truth"])
        if (truth == IGNORE).all():
            continue
        masks = {column: codec.read_mask(row[column]) for column in columns}
        per_image[row["image_id"]] = {}
        for column, mask in masks.items():
            image_matrix = ConfusionMatrix(len(classes))
            image_matrix.update(mask, truth)
            totals[column].counts += image_matrix.counts
            per_image[row["image_id"]][column] = image_matrix.mean_iou()
        if report:
            names = ("d_knowledge", "d_advice") if has_maps else ()
            d = [maps.resize(maps.unpack_unit(row[name]), truth.shape) for name in names]
            report.update(masks["knowledge"], masks["advice"], truth, *d)
    if not any(total.has_foreground for total in totals.values()):
        return Scored(Scores({}, {}), per_image)
    return Scored(scores_of(prefix, totals, classes, report), per_image)


def scores_of(
    prefix: str, totals: dict[str, ConfusionMatrix], classes: tuple[str, ...], report: DifferenceReport | None = None
) -> Scores:
    """Compute the scores PREFIX.MASK from the confusion matrix of each mask."""
    iou = {name: [None if math.isnan(v) else 100 * float(v) for v in m.iou()] for name, m in totals.items()}
    foreground = {f"{prefix}.{name}": m.foreground_ratio() for name, m in totals.items()}
    return Scores(
        {f"{prefix}.{name}": 100 * m.mean_iou() for name, m in totals.items()},
        {f"{prefix}.{name}": dict(zip(classes, values, strict=True)) for name, values in iou.items()},
        {f"{prefix}.{name}": value for name, value in report.metrics().items()} if report else {},
        {name: value for name, value in foreground.items() if not math.isnan(value)},
    )


def score_seeds(session: Session, seed_masks: Seeds) -> Scores:
    """Score knowledge and advice as `train.knowledge` and `train.advice`."""
    report = DifferenceReport(len(seed_masks.images.classes))
    tables = [seed_masks.images.table, seed_masks.table]
    scores = score("train", tables, ("knowledge", "advice"), seed_masks.images.classes, report).scores
    session.tracker.metrics(scores.flat())
    return scores


def score_refined(session: Session, refined: Refined) -> Scores:
    """Score knowledge, advice and m^D0 as `train.*`, measure where masks differ, and draw pictures like Fig. 7."""
    classes = refined.seeds.images.classes
    tables = [refined.seeds.images.table, refined.seeds.table, refined.table]
    columns = ("knowledge", "advice", "refined")
    report = DifferenceReport(len(classes))
    scored = score("train", tables, columns, classes, report)
    scores = scored.scores
    if scores.mean:
        _save(session, lambda: figures.reliability(*report.calibration()), "reliability", refined.artifact)
    session.tracker.metrics(scores.flat())
    chosen = _spread(tables, scored, lambda iou: iou["refined"] - max(iou["knowledge"], iou["advice"]), session)
    show_data = session.config.evaluate.show_data
    if chosen:
        _save(session, lambda: figures.refinement(chosen, classes, show_data), "refinement", refined.artifact)
    return scores


def export_refined(refined: Refined, folder: AnyPath) -> None:
    """Write the refined masks as ID.png into a new folder, which appears only when it is complete."""
    with whole(folder) as aside:
        aside.mkdir()
        for row in refined.table:
            (aside / f"{row['image_id']}.png").write_bytes(row["refined"])


def open_split(session: Session) -> Images | None:
    """The images to score the models on. None if the data has no list `val` and no other list was chosen."""
    split = session.config.split
    if split == "val" and split not in images.open_data(session).lists():
        session.console.line("the data has no image list `val`: the models will not be scored")
        return None
    return images.run(session, split, need_labels=False)


def score_models(
    session: Session,
    test: Images,
    models: dict[str, AnyPath],
    network: NetworkConfig,
    classes: tuple[str, ...],
    name: str,
    submission: AnyPath | None = None,
) -> Scores:
    """Predict an image list with several models, without and with CRFs, and score the images that have true masks.

    Args:
        session: cluster, workspace, tracking.
        test: the images.
        models: each model's folder, by the model's name.
        network: the models' network configuration.
        classes: the classes that the models were trained on, background first.
        name: follows `predictions-` in the picture's file name.
        submission: path of the archive to write for VOC's test server, with the masks `dynamic_crf`; None: no archive.
    """
    if test.classes != classes:
        raise ConfigError(
            f"the models were trained on the classes {', '.join(classes)}, but the data has {', '.join(test.classes)}; "
            "give --data a folder whose classes.txt names the same classes in the same order"
        )
    config = session.config
    crfs = {"crf": config.crf} | ({"gentle": config.gentle_crf} if config.evaluate.gentle else {})
    recipe = {
        "images": test.artifact,
        "models": {name: path.name for name, path in models.items()},
        # These three fields do not change the masks.
        "evaluate": replace(config.evaluate, train_images=0, panels=0, show_data=True),
        "crfs": crfs,
    }
    infer = partial(
        pipelines.infer,
        [test.table],
        ["image"],
        partial(PredictStage, network=network, evaluate=config.evaluate, classes=len(classes), models=models),
        partial(crf_rows.segment, tuple(models), crfs, config.evaluate.min_probability, config.evaluate.sharpen),
        config.inference_batch,
        session.plan,
    )
    columns = [column for name in models for column in (name, *(f"{name}_{ending}" for ending in crfs))]
    schema = pa.schema([("image_id", pa.string()), *((column, pa.binary()) for column in columns)])
    table, artifact = session.build_table("predictions", recipe, test.table.parts, schema, infer)
    if submission:
        write_submission(table, "dynamic_crf", submission)
        session.console.line(f"submission {submission}")
    scored = score(config.split, [test.table, table], columns, classes)
    session.tracker.metrics(scored.scores.flat())
    if scored.images and not scored.scores.mean:
        session.console.line(f"no true mask of the list {config.split} has a foreground class: there is no mean IoU")
    for model in models:
        if collapsed(scored.scores.per_class.get(f"{config.split}.{model}", {}), classes):
            rate = "--dynamic.train.lr" if model == "dynamic" else "--dynamic.baseline-lr"
            session.console.line(f"{model} gets no foreground pixel right: train again with a lower {rate}")
    draw_predictions(session, [test.table, table], scored, models, classes, f"predictions-{name}", artifact)
    return scored.scores


def draw_predictions(
    session: Session,
    joined: list[Table],
    scored: Scored,
    models: Iterable[str],
    classes: tuple[str, ...],
    name: str,
    source: Artifact,
) -> None:
    """Draw models' masks like Fig. 8, from the last model's greatest gain over `baseline` to its greatest loss.

    Without `baseline`, the images go from the last model's best one to its worst one.

    Args:
        session: cluster, workspace, tracking.
        joined: tables, read side by side, with the columns that `figures.predictions` shows.
        scored: the scores of the models' masks.
        models: the models' names.
        classes: names, background first.
        name: the picture's name.
        source: the artifact that the picture shows.
    """
    last = list(models)[-1]
    chosen = _spread(joined, scored, lambda iou: iou[last] - iou.get("baseline", 0), session)
    if chosen:
        show_data = session.config.evaluate.show_data
        _save(session, lambda: figures.predictions(chosen, classes, show_data), name, source)


def write_submission(table: Table, column: str, path: AnyPath) -> None:
    """Write masks as an archive for VOC's test server: results/VOC2012/Segmentation/comp6_test_cls/ID.png."""
    with whole(path) as aside, tarfile.open(aside, "w:gz") as archive:
        for row in table:
            entry = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_test_cls/{row['image_id']}.png")
            entry.size = len(row[column])
            archive.addfile(entry, io.BytesIO(row[column]))


def rows_of(joined: list[Table], columns: list[str], parts: Iterable[int] | None = None) -> Iterator[Row]:
    """The joined rows of several tables. `parts`: the numbers of the parts to read; None: all parts."""
    for part in range(len(joined[0].parts)) if parts is None else parts:
        yield from read_joined(joined, part, columns)


def _spread(
    joined: list[Table], scored: Scored, gain: Callable[[dict[str, float]], float], session: Session
) -> list[Row]:
    """Choose the images of a picture, at equal steps from the greatest gain to the greatest loss.

    So pictures also show failures. Without true masks, the first images are chosen.
    """
    count = session.config.evaluate.panels
    if scored.images:
        order = sorted(scored.images, key=lambda i: (gain(scored.images[i]), i), reverse=True)
        steps = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        chosen = [order[i] for i in steps]
    else:
        chosen = [i for ids in joined[0].parts for i in ids][:count]
    everything = [c for t in joined for c in t.columns() if c != "image_id"]
    wanted_ids = set(chosen)
    parts = [k for k, ids in enumerate(joined[0].parts) if wanted_ids.intersection(ids)]  # other parts are not read
    by_id = {row["image_id"]: row for row in rows_of(joined, everything, parts) if row["image_id"] in wanted_ids}
    return [by_id[i] for i in chosen]


def _save(session: Session, draw: Callable[[], Any], name: str, source: Artifact) -> None:
    """Draw and write a picture. The PNG's metadata contain the name of the artifact that the picture shows."""
    name += session.part
    path = session.workspace / "figures" / f"{name}.png"
    with _DRAWING:
        figure = draw()
        with whole(path) as aside:
            figure.savefig(aside, dpi=110, bbox_inches="tight", metadata={"Source": source.path.name})
        session.tracker.figure(figure, name)
    session.pictures.append(path)
    session.console.line(f"picture {relative(path, session.workspace)}")

"""Stage 4: mean IoU of knowledge, advice and m^D0 on the training list, and of the models on another one."""

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

_DRAWING = threading.Lock()  # matplotlib's text parser is one for all threads, and a comparison has several


@dataclass(frozen=True)
class Scored:
    """Scores of an image list, and the mean IoU of each of its images, by which pictures are chosen."""

    scores: Scores
    images: dict[str, dict[str, float]]


def score(
    prefix: str,
    joined: list[Table],
    columns: Iterable[str],
    classes: tuple[str, ...],
    report: DifferenceReport | None = None,
) -> Scored:
    """Scores of mask columns against `truth`; empty where no true mask has a foreground class.

    Args:
        prefix: of the scores' names.
        joined: tables with `truth` and the columns.
        columns: of masks.
        classes: names, background first.
        report: gets knowledge, advice and, where the tables have them, the difference maps of every image.
    """
    columns = list(columns)
    totals = {column: ConfusionMatrix(len(classes)) for column in columns}
    per_image: dict[str, dict[str, float]] = {}
    has_maps = report is not None and "d_knowledge" in joined[-1].columns()
    for row in rows_of(joined, ["truth", *columns, *(("d_knowledge", "d_advice") if has_maps else ())]):
        if row["truth"] is None:
            continue
        truth = codec.read_mask(row["truth"])
        masks = {column: codec.read_mask(row[column]) for column in columns}
        per_image[row["image_id"]] = {}
        for column, mask in masks.items():
            own = ConfusionMatrix(len(classes))
            own.update(mask, truth)
            totals[column].counts += own.counts
            per_image[row["image_id"]][column] = own.mean_iou()
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
    """The scores of masks from their confusion matrices, under the names PREFIX.MASK."""
    iou = {name: [None if math.isnan(v) else 100 * float(v) for v in m.iou()] for name, m in totals.items()}
    foreground = {f"{prefix}.{name}": m.foreground_ratio() for name, m in totals.items()}
    return Scores(
        {f"{prefix}.{name}": 100 * m.mean_iou() for name, m in totals.items()},
        {f"{prefix}.{name}": dict(zip(classes, values, strict=True)) for name, values in iou.items()},
        {f"{prefix}.{name}": value for name, value in report.metrics().items()} if report else {},
        {name: value for name, value in foreground.items() if not math.isnan(value)},
    )


def score_seeds(session: Session, made: Seeds) -> Scores:
    """`train.knowledge` and `train.advice`."""
    report = DifferenceReport(len(made.images.classes))
    tables = [made.images.table, made.table]
    scores = score("train", tables, ("knowledge", "advice"), made.images.classes, report).scores
    session.tracker.metrics(scores.flat())
    return scores


def score_refined(session: Session, refined: Refined) -> Scores:
    """`train.knowledge`, `train.advice`, `train.refined`, what the difference offers, and pictures like Fig. 7."""
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
    """The refined masks as ID.png in a new folder, which appears when it is whole."""
    with whole(folder) as aside:
        aside.mkdir()
        for row in refined.table:
            (aside / f"{row['image_id']}.png").write_bytes(row["refined"])


def open_split(session: Session) -> Images | None:
    """The images to score on; None where the data has no `val` list and no other was asked for."""
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
    """Predict an image list with several models, without and with CRFs; score where there are true masks.

    Args:
        session: cluster, workspace, tracking.
        test: the images.
        models: folders of the models by name.
        network: their configuration.
        classes: that they were trained for.
        name: of the images, for the picture's file.
        submission: where to write `dynamic_crf` for VOC's test server.
    """
    if test.classes != classes:
        raise ConfigError(
            f"the models know the classes {', '.join(classes)}, but the data has {', '.join(test.classes)}; "
            "give a folder whose classes.txt names the same ones in the same order"
        )
    config = session.config
    crfs = {"crf": config.crf} | ({"gentle": config.gentle_crf} if config.evaluate.gentle else {})
    recipe = {
        "images": test.artifact,
        "models": {name: path.name for name, path in models.items()},
        "evaluate": replace(config.evaluate, train_images=0, panels=0, show_data=True),  # which do not change the masks
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
            session.console.line(f"{model} gets no foreground pixel right: train again with a lower --dynamic.train.lr")
    last = list(models)[-1]
    chosen = _spread([test.table, table], scored, lambda iou: iou[last] - iou.get("baseline", 0), session)
    if chosen:
        show_data = config.evaluate.show_data
        _save(session, lambda: figures.predictions(chosen, classes, show_data), f"predictions-{name}", artifact)
    return scored.scores


def write_submission(table: Table, column: str, path: AnyPath) -> None:
    """An archive as VOC's test server takes it: results/VOC2012/Segmentation/comp6_test_cls/ID.png."""
    with whole(path) as aside, tarfile.open(aside, "w:gz") as archive:
        for row in table:
            entry = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_test_cls/{row['image_id']}.png")
            entry.size = len(row[column])
            archive.addfile(entry, io.BytesIO(row[column]))


def rows_of(joined: list[Table], columns: list[str], parts: Iterable[int] | None = None) -> Iterator[Row]:
    """The rows of tables side by side; of all parts if `parts` is None."""
    for part in range(len(joined[0].parts)) if parts is None else parts:
        yield from read_joined(joined, part, columns)


def _spread(
    joined: list[Table], scored: Scored, gain: Callable[[dict[str, float]], float], session: Session
) -> list[Row]:
    """Images at equal steps from the greatest gain to the greatest loss, so that failures are shown as well."""
    wanted = session.config.evaluate.panels
    if scored.images:
        order = sorted(scored.images, key=lambda i: (gain(scored.images[i]), i), reverse=True)
        steps = np.linspace(0, len(order) - 1, min(wanted, len(order))).round().astype(int)
        chosen = [order[i] for i in steps]
    else:
        chosen = [i for ids in joined[0].parts for i in ids][:wanted]
    everything = [c for t in joined for c in t.columns() if c != "image_id"]
    wanted_ids = set(chosen)
    parts = [k for k, ids in enumerate(joined[0].parts) if wanted_ids.intersection(ids)]  # the others stay unread
    found = {row["image_id"]: row for row in rows_of(joined, everything, parts) if row["image_id"] in wanted_ids}
    return [found[i] for i in chosen]


def _save(session: Session, draw: Callable[[], Any], name: str, source: Artifact) -> None:
    """Write a picture of an artifact, whose name stands in the file."""
    name += session.part
    path = session.workspace / "figures" / f"{name}.png"
    with _DRAWING:
        figure = draw()
        with whole(path) as aside:
            figure.savefig(aside, dpi=110, bbox_inches="tight", metadata={"Source": source.path.name})
        session.tracker.figure(figure, name)
    session.pictures.append(path)
    session.console.line(f"picture {relative(path, session.workspace)}")

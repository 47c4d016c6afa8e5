"""Stage 4: mean IoU of knowledge, advice and m^D0 on the training list, and of the models on another one."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssdd import crf_rows, data, dynamic, figures, images, maps, seeds, training, voc
from ssdd.config import ConfigError, EvaluateConfig, NetworkConfig, from_dict, to_dict
from ssdd.dynamic import Models
from ssdd.images import Images
from ssdd.metrics import ConfusionMatrix
from ssdd.networks import DynamicNet, SegmentationNet
from ssdd.seeds import Seeds
from ssdd.session import Session
from ssdd.static import Refined
from ssdd.store import write_text
from ssdd.tables import Row, Table, read_joined

PREDICTION_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("baseline", pa.binary()),
        ("baseline_crf", pa.binary()),
        ("dynamic", pa.binary()),
        ("dynamic_crf", pa.binary()),
    ]
)
TRAINED = "trained.json"


@dataclass(frozen=True)
class Scores:
    """Mean and per-class IoU in percent, by name (`train.knowledge`, ...)."""

    mean: dict[str, float]
    per_class: dict[str, dict[str, float | None]]

    def __or__(self, other: "Scores") -> "Scores":
        return Scores(self.mean | other.mean, self.per_class | other.per_class)


@dataclass(frozen=True)
class Trained:
    """What a workspace remembers of its last finished training: enough to score its models anywhere."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    models: dict[str, str]
    """Folders of `baseline` and `dynamic`, relative to the workspace."""


def score(prefix: str, joined: list[Table], columns: Iterable[str], classes: tuple[str, ...]) -> Scores:
    """Scores of mask columns against `truth`; empty where no image has a true mask."""
    columns = list(columns)
    matrices = {column: ConfusionMatrix(len(classes)) for column in columns}
    seen = False
    for row in _rows(joined, ["truth", *columns]):
        if row["truth"] is None:
            continue
        seen = True
        truth = voc.read_mask(row["truth"])
        for column, matrix in matrices.items():
            matrix.update(voc.read_mask(row[column]), truth)
    if not seen:
        return Scores({}, {})
    return Scores(
        {f"{prefix}.{c}": 100 * m.mean_iou() for c, m in matrices.items()},
        {
            f"{prefix}.{c}": {
                name: None if math.isnan(v) else 100 * float(v) for name, v in zip(classes, m.iou(), strict=True)
            }
            for c, m in matrices.items()
        },
    )


def score_seeds(session: Session, made: Seeds) -> Scores:
    """`train.knowledge` and `train.advice`."""
    scores = score("train", [made.images.table, made.table], ("knowledge", "advice"), made.images.classes)
    session.tracker.metrics(scores.mean)
    return scores


def score_refined(session: Session, refined: Refined) -> Scores:
    """`train.knowledge`, `train.advice`, `train.refined`, and panels like the paper's Fig. 7."""
    tables = [refined.seeds.images.table, refined.seeds.table, refined.table]
    columns = ("knowledge", "advice", "refined")
    scores = score("train", tables, columns, refined.seeds.images.classes)
    session.tracker.metrics(scores.mean)
    chosen = _spread(tables, lambda ious: ious["refined"] - max(ious["knowledge"], ious["advice"]), columns, session)
    _save(session, figures.refinement(chosen, refined.seeds.images.classes), "refinement")
    return scores


def run(session: Session) -> Scores:
    """Everything: trains what is missing, then scores it; writes `metrics.json` and the pictures."""
    test = open_split(session)  # first, so that what is wrong with it shows before anything is trained
    models = dynamic.run(session)
    scores = score_refined(session, models.refined)
    if test is not None:
        folders = {"baseline": models.baseline.path, "dynamic": models.dynamic.path}
        classes = models.refined.seeds.images.classes
        scores |= score_models(session, test, folders, session.config.network, classes, session.config.split)
    write_scores(session.workspace / "metrics.json", scores)
    remember(session, models)
    return scores


def rescore(session: Session) -> Scores:
    """Score the workspace's models on the configured data and split, or train them first if there are none.

    Scores of the training's own data and split replace those in `metrics.json`; others are written to
    `metrics-FOLDER-SPLIT.json`, and their picture to `predictions-FOLDER-SPLIT.png`.
    """
    trained = recall(session.workspace)
    if trained is None:
        return run(session)
    own = from_dict(trained.config)
    test = images.run(session, session.config.split, need_labels=False)
    models = {name: session.workspace / folder for name, folder in trained.models.items()}
    split = session.config.split
    is_own = (images.data_path(session.config), split) == (own.data, own.split)
    name = split if is_own else f"{images.open_data(session).root.name}-{split}"
    scores = score_models(session, test, models, own.network, trained.classes, name)
    if is_own:
        path = session.workspace / "metrics.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        per_class = earlier.pop("per_class", {})
        write_scores(path, Scores(earlier, per_class) | scores)
    else:
        write_scores(session.workspace / f"metrics-{name}.json", scores)
    return scores


def open_split(session: Session) -> Images | None:
    """The images to score on; None where the data has no `val` list and no other was asked for."""
    split = session.config.split
    if split == "val" and not (images.open_data(session).root / "ImageSets" / "Segmentation" / "val.txt").exists():
        session.console.line("the data has no image list `val`: the models will not be scored")
        return None
    return images.run(session, split, need_labels=False)


def score_models(
    session: Session,
    test: Images,
    models: dict[str, Path],
    network: NetworkConfig,
    classes: tuple[str, ...],
    name: str,
) -> Scores:
    """Predict an image list with the baseline and with SSDD, with and without CRF; score where there are true masks.

    Args:
        session: cluster, workspace, tracking.
        test: the images.
        models: folders of `baseline` and `dynamic`.
        network: their configuration.
        classes: that they were trained for.
        name: of the images, for the picture's file.
    """
    if test.classes != classes:
        raise ConfigError(
            f"the models know the classes {', '.join(classes)}, but the data has {', '.join(test.classes)}; "
            "give a folder whose classes.txt names the same ones in the same order"
        )
    config = session.config
    recipe = {
        "images": test.artifact,
        "models": {name: path.name for name, path in models.items()},
        "evaluate": replace(config.evaluate, panels=0),  # which does not change the masks
        "crf": config.crf,
    }
    infer = partial(
        data.infer,
        [test.table],
        ["image"],
        partial(PredictStage, network, config.evaluate, len(classes), models),
        partial(crf_rows.segment, tuple(models), config.crf, config.evaluate.min_probability),
        config.inference_batch,
        session.plan,
    )
    table, _ = session.build_table("predictions", recipe, test.table.parts, PREDICTION_SCHEMA, infer)
    columns = ("baseline", "baseline_crf", "dynamic", "dynamic_crf")
    scores = score(config.split, [test.table, table], columns, classes)
    session.tracker.metrics(scores.mean)
    for model in models:
        if collapsed(scores.per_class.get(f"{config.split}.{model}", {}), classes):
            session.console.line(f"{model} gets no foreground pixel right: train again with a lower --dynamic.train.lr")
    chosen = _spread([test.table, table], lambda ious: ious["dynamic"] - ious["baseline"], columns, session)
    _save(session, figures.predictions(chosen, classes), f"predictions-{name}")
    return scores


def collapsed(per_class: dict[str, float | None], classes: tuple[str, ...]) -> bool:
    """Whether a scored model got no pixel of any foreground class right."""
    return bool(per_class) and not any(per_class[name] for name in classes[1:])


class PredictStage:
    """Network actor: class probabilities of every model at the masks' resolution, packed under the model's name."""

    def __init__(self, network: NetworkConfig, evaluate: EvaluateConfig, classes: int, models: dict[str, Path]):
        kinds = {"baseline": SegmentationNet, "dynamic": DynamicNet}
        self.evaluate, self.size = evaluate, network.mask_size(evaluate.size)
        self.nets: dict[str, SegmentationNet] = {
            name: training.load(kinds[name](network, classes), path) for name, path in models.items()
        }

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = [voc.read_image(row["image"]) for row in rows]
        sides = [round(self.evaluate.size * scale) for scale in self.evaluate.scales]
        with torch.inference_mode():
            for name, net in self.nets.items():

                def probabilities(batch: Tensor, net: SegmentationNet = net) -> Tensor:
                    return net(batch).softmax(1)

                total = seeds.multi_scale(probabilities, decoded, sides, self.evaluate.mirror, self.size)
                for row, probs in zip(rows, (total / total.sum(1, keepdim=True)).cpu(), strict=True):
                    row[name] = maps.pack(probs.numpy())
        return rows


def remember(session: Session, models: Models) -> None:
    """Write `trained.json`."""
    record = Trained(
        to_dict(replace(session.config, data=images.data_path(session.config))),
        models.refined.seeds.images.classes,
        {
            name: str(artifact.path.relative_to(session.workspace))
            for name, artifact in (("baseline", models.baseline), ("dynamic", models.dynamic))
        },
    )
    write_text(session.workspace / TRAINED, json.dumps(to_dict(record), indent=1))


def recall(workspace: Path) -> Trained | None:
    """The workspace's `trained.json`, or None where nothing was trained to the end.

    Its configuration is without what belonged to the machine of the training.
    """
    path = workspace / TRAINED
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    try:
        config = replace(from_dict(record["config"]), num_cpus=None, workers=None, gpus=None)
        return Trained(to_dict(config), tuple(record["classes"]), record["models"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} was written by another version ({error}); run ray_jobs/dynamic.py again") from error


def write_scores(path: Path, scores: Scores) -> None:
    """Mean IoUs by name, and `per_class` beside them, all in percent."""
    write_text(path, json.dumps({**scores.mean, "per_class": scores.per_class}, indent=1) + "\n")


def table_lines(scores: Scores) -> list[str]:
    """The mean IoUs as lines for the terminal."""
    if not scores.mean:
        return ["no true masks: nothing to score"]
    width = max(map(len, scores.mean))
    return ["mean IoU (%)", *(f"  {name:<{width}}  {value:5.1f}" for name, value in scores.mean.items())]


def _rows(joined: list[Table], columns: list[str], parts: Iterable[int] | None = None) -> Iterator[Row]:
    for part in range(len(joined[0].parts)) if parts is None else parts:
        yield from read_joined(joined, part, columns)


def _spread(
    joined: list[Table], gain: Callable[[dict[str, float]], float], columns: Iterable[str], session: Session
) -> list[Row]:
    """Images at equal steps from the greatest gain to the greatest loss, so that failures are shown as well."""
    columns = list(columns)
    gains = []
    for row in _rows(joined, ["truth", *columns]):
        if row["truth"] is not None:
            truth = voc.read_mask(row["truth"])
            gains.append((gain({c: _image_iou(voc.read_mask(row[c]), truth) for c in columns}), row["image_id"]))
    wanted = session.config.evaluate.panels
    if gains:
        gains.sort(reverse=True)
        steps = np.linspace(0, len(gains) - 1, min(wanted, len(gains))).round().astype(int)
        chosen = [gains[i][1] for i in steps]
    else:
        chosen = [i for ids in joined[0].parts for i in ids][:wanted]
    everything = [c for t in joined for c in t.columns() if c != "image_id"]
    wanted_ids = set(chosen)
    parts = [k for k, ids in enumerate(joined[0].parts) if wanted_ids.intersection(ids)]  # the others stay unread
    found = {row["image_id"]: row for row in _rows(joined, everything, parts) if row["image_id"] in wanted_ids}
    return [found[i] for i in chosen]


def _image_iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    matrix = ConfusionMatrix(256)
    matrix.update(prediction, truth)
    return matrix.mean_iou()


def _save(session: Session, figure: Any, name: str) -> None:
    path = session.workspace / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    session.tracker.figure(figure, name)
    session.console.line(f"picture {path.relative_to(session.workspace)}")

"""The sweep of the biases of eq. 3. In the static stage they act after the training alone: difference maps are made
once, and any number of biases costs one pass over them. In the dynamic stage each point is a training.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch

from ssdd import data, figures, knowledge, maps, refine, static, sweep, voc
from ssdd.config import BiasConfig, Config, ConfigError, parse
from ssdd.metrics import ConfusionMatrix
from ssdd.session import Session
from ssdd.sweep import Kind, Outcome, Trial
from ssdd.sweep_alpha import KIND as ALPHA
from ssdd.sweep_crf import measured_on_train, need_truth
from ssdd.tables import Table, read_joined

BIAS, BACKGROUND = "static.bias.bias", "static.bias.background"
REFINED = "train.refined"
_STEPS = ",".join(f"{k / 20:g}" for k in range(-8, 12))


def run(session: Session, kind: Kind) -> Outcome:
    """Mean IoU of the masks at every bias and background bias, or with `sweep.stage dynamic` of trainings."""
    config = session.config
    if config.sweep.stage == "dynamic":
        return sweep.run(session, kind)
    wanted = sweep.points(config, sweep.space_of(kind, config))
    assert wanted is not None
    kind.prepare(session)
    folder = sweep.open_folder(session, kind.name)
    refined = static.run(session, knowledge.run(session))
    tables = [refined.seeds.images.table, refined.seeds.table, refined.table]
    classes = len(refined.seeds.images.classes)
    own = config.static.bias
    biases = [(p.get(BIAS, own.bias), p.get(BACKGROUND, own.background)) for p in wanted]
    counting = ray.remote(num_cpus=session.plan.unit)(count)
    light = [Table(t.path, ()) for t in tables]
    show, parts = session.console.stage(kind.name), len(refined.table.parts)
    totals = np.zeros((len(biases), classes, classes), np.int64)
    open_ = [counting.remote(light, k, classes, own, biases) for k in range(parts)]
    while open_:
        (done,), open_ = ray.wait(open_)
        totals += ray.get(done)
        show(parts - len(open_), parts)
    iou = [100 * ConfusionMatrix.of(counts).mean_iou() for counts in totals]
    trials = [Trial(point, {REFINED: value}) for point, value in zip(wanted, iou, strict=True)]
    return sweep.finish(session, kind.name, folder, trials, kind.figure)


def count(
    tables: list[Table], part: int, classes: int, own: BiasConfig, biases: list[tuple[float, float]]
) -> np.ndarray:
    """Confusion counts of m^D0 at each (bias, background bias) over one part, int64 (points, classes, classes).

    A pixel on which the masks differ takes advice where bias + b * background bias >= t: its b, -1, 0 or 1, says which
    of them is background, and its t is what remains of eq. 3. So it is enough to count pixels by t's rank among the
    points' sums.
    """
    sums = {b: np.array([bias + b * background for bias, background in biases], np.float32) for b in (-1, 0, 1)}
    order = {b: np.argsort(s, kind="stable") for b, s in sums.items()}
    cells = classes * classes
    # Of the pixels that turn to advice: their rank and cell with advice, and with knowledge.
    turning: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {b: [] for b in sums}
    agreed = np.zeros(cells, np.int64)
    columns = ["presence", "truth", "knowledge", "advice", "d_knowledge", "d_advice"]
    for row in read_joined(tables, part, columns):
        if row["truth"] is None:
            continue
        truth, known, advised = (voc.read_mask(row[n]) for n in ("truth", "knowledge", "advice"))
        valid = truth < classes
        # As if no advice were taken at all.
        agreed += np.bincount(truth[valid] * np.int64(classes) + known[valid], minlength=cells)
        differ = valid & (known != advised)
        gap = _rest_of_confidence(row, known, advised, differ, classes, own)
        t, k, a = truth[differ] * np.int64(classes), known[differ], advised[differ]
        side = (a == 0).astype(int) - (k == 0)
        for b, pixels in turning.items():
            of = side == b
            rank = np.searchsorted(sums[b][order[b]], -gap[of], side="left")
            where = rank * cells + t[of]
            pixels.append((where + a[of], where + k[of]))
    counts, ends = np.repeat(agreed[None], len(biases), 0), (len(biases) + 1) * cells
    for b, pixels in turning.items():
        if pixels:
            brought, taken = (np.bincount(np.concatenate(p), minlength=ends) for p in zip(*pixels, strict=True))
            counts[order[b]] += (brought - taken).reshape(-1, cells).cumsum(0)[:-1]
    return counts.reshape(-1, classes, classes)


def _rest_of_confidence(
    row: dict[str, Any], known: np.ndarray, advised: np.ndarray, where: np.ndarray, classes: int, own: BiasConfig
) -> np.ndarray:
    """Eq. 3 without the biases that are swept, d^K - d^A and the presence part, at some pixels: float32 (P,)."""
    presence = torch.from_numpy(data.presence_vector(row["presence"], classes))[None]
    k, a = (torch.from_numpy(mask)[None] for mask in (known, advised))
    vanished = refine.vanished(k, a, presence, own.vanish_ratio) & own.presence
    d_k, d_a = (
        torch.from_numpy(maps.resize(maps.unpack_unit(row[name]), known.shape)[where])[None]
        for name in ("d_knowledge", "d_advice")
    )
    at = torch.from_numpy(where)[None]
    return refine.confidence(d_k, d_a, k[at][None], a[at][None], vanished, 0.0, 0.0)[0].numpy()


def check(config: Config) -> None:
    """Refuse what cannot be swept."""
    measured_on_train(config)
    if config.sweep.search == "optuna":
        raise ConfigError("--sweep.search optuna: every point of the static stage costs the same: use grid or random")


def prepare(session: Session) -> None:
    """The training list must have true masks."""
    need_truth(session, session.config.train_split)


def heat_map(outcome: Outcome) -> figures.Figure:
    """Mean IoU over bias and background bias."""
    own = outcome.best.static.bias
    points = {
        (t.point.get(BIAS, own.bias), t.point.get(BACKGROUND, own.background)): t.metrics[REFINED]
        for t in outcome.trials
    }
    return figures.heat_map(points, ("bias", "background bias"), "mean IoU of $m^{D0}$ (%)")


def kind(stage: str) -> Kind:
    """The sweep of one stage's biases."""
    if stage == "dynamic":
        return replace(
            ALPHA,
            name="sweep_bias",
            space=("dynamic.bias1.bias=0.2,0.6", "dynamic.bias2.bias=0.2,0.6"),
            allowed=("dynamic.bias1.", "dynamic.bias2."),
        )
    return Kind(
        "sweep_bias",
        (f"{BIAS}={_STEPS}", f"{BACKGROUND}={_STEPS}"),
        (BIAS, BACKGROUND),
        (REFINED,),
        trial=None,
        check=check,
        prepare=prepare,
        figure=heat_map,
    )


def read_config(args: list[str] | None = None, description: str | None = None) -> Config:
    """As `sweep.read_config`, for the stage that the arguments name."""
    return sweep.read_config(kind(parse(args, description).sweep.stage), args, description)

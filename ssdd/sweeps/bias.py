"""The sweep of the biases of eq. 3: many points in one pass over stored difference maps, or trainings.

In the static stage the biases act after the training alone: difference maps are made once, and any number of biases
costs one pass over them. In the dynamic stage each point is a training.
"""

from dataclasses import replace

import numpy as np
import ray
import torch

from ssdd import refine
from ssdd.config import BiasConfig, Config, ConfigError
from ssdd.data import codec
from ssdd.metrics import ConfusionMatrix
from ssdd.reports import figures
from ssdd.runtime.session import Session
from ssdd.stages import knowledge, static
from ssdd.storage import maps
from ssdd.storage.tables import Row, Table, read_joined
from ssdd.sweeps import base
from ssdd.sweeps.alpha import ALPHA_SWEEP
from ssdd.sweeps.base import Kind, Outcome, Trial, measured_on_train, need_truth

BIAS, BACKGROUND = "static.bias.bias", "static.bias.background"
REFINED = "train.refined"
_STEPS = ",".join(f"{k / 20:g}" for k in range(-8, 12))


def run(session: Session, kind: Kind) -> Outcome:
    """Mean IoU of the masks at every bias and background bias, or with `sweep.stage dynamic` of trainings."""
    config = session.config
    if config.sweep.stage == "dynamic":
        return base.run(session, kind)
    wanted = base.points(config, base.space_of(kind, config))
    assert wanted is not None
    kind.prepare(session)
    folder = base.open_folder(session, kind.name)
    refined = static.run(session, knowledge.run(session))
    tables = [refined.seeds.images.table, refined.seeds.table, refined.table]
    classes = len(refined.seeds.images.classes)
    base_bias = config.static.bias
    biases = [(p.get(BIAS, base_bias.bias), p.get(BACKGROUND, base_bias.background)) for p in wanted]
    counting = ray.remote(num_cpus=session.plan.unit)(confusion_at_points)
    light = [Table(t.path, ()) for t in tables]  # without the id lists, which every task would carry
    show, parts = session.console.stage(kind.name), len(refined.table.parts)
    totals = np.zeros((len(biases), classes, classes), np.int64)
    running = [counting.remote(light, k, classes, base_bias, biases) for k in range(parts)]
    while running:
        (done,), running = ray.wait(running)
        totals += ray.get(done)
        show(parts - len(running), parts)
    iou = [100 * ConfusionMatrix.of(counts).mean_iou() for counts in totals]
    trials = [Trial(point, {REFINED: value}) for point, value in zip(wanted, iou, strict=True)]
    return base.finish(session, kind.name, folder, trials, kind.figure)


def confusion_at_points(
    tables: list[Table], part: int, classes: int, fixed: BiasConfig, points: list[tuple[float, float]]
) -> np.ndarray:
    """Confusion counts of m^D0 at many biases, over one part of the tables, in one pass over its pixels.

    A pixel where the masks differ takes advice where w >= 0 (eq. 4). Here w = sum + rest, where
    sum = bias + side * background bias is what the points vary: `side` is 1 where advice alone is background, -1 where
    knowledge alone is, and else 0. The rest, d^K - d^A and the presence part, is the pixel's own. So the pixel takes
    advice at just those points whose sum is at least its threshold, -rest. With the points sorted by their sums, these
    are the points from some rank on: each pixel is counted once, at that rank, and a cumulative sum does the rest.

    Example: three points with the biases 0, 0.2 and 0.1 and no background bias; a pixel with d^K = 0.3 and
    d^A = 0.45. Its threshold is 0.15, and the sorted sums are 0, 0.1 and 0.2: from rank 2 on, at the point with 0.2
    alone, the pixel counts with advice's class, and at the others with knowledge's.

    Args:
        tables: of images, seeds and refined masks, side by side.
        part: of the tables.
        classes: their number, background included.
        fixed: the parts of the bias that no point varies, `presence` and `vanish_ratio`.
        points: bias and background bias of each point.

    Returns:
        int64 (points, classes, classes), by true class and by the mask's class.
    """
    sums = {side: np.array([bias + side * background for bias, background in points]) for side in (-1, 0, 1)}
    sums = {side: values.astype(np.float32) for side, values in sums.items()}  # as eq. 3 is computed
    order = {side: np.argsort(values, kind="stable") for side, values in sums.items()}
    cells = classes * classes  # of a confusion matrix, which is counted as a vector: true class * classes + class
    with_knowledge = np.zeros(cells, np.int64)  # as if no pixel took advice
    # Of the pixels that take advice from a rank on: rank * cells + cell, with advice's class and with knowledge's.
    gained: dict[int, list[np.ndarray]] = {side: [] for side in sums}
    lost: dict[int, list[np.ndarray]] = {side: [] for side in sums}
    columns = ["presence", "truth", "knowledge", "advice", "d_knowledge", "d_advice"]
    for row in read_joined(tables, part, columns):
        if row["truth"] is None:
            continue
        truth, knowledge, advice = (codec.read_mask(row[name]) for name in ("truth", "knowledge", "advice"))
        labelled = truth < classes
        true_cells = truth * np.int64(classes)
        with_knowledge += np.bincount((true_cells + knowledge)[labelled], minlength=cells)
        differ = labelled & (knowledge != advice)
        threshold = -_rest_of_confidence(row, knowledge, advice, differ, classes, fixed)
        sides = (advice[differ] == 0).astype(int) - (knowledge[differ] == 0)
        for side in sums:
            here = sides == side
            rank = np.searchsorted(sums[side][order[side]], threshold[here], side="left")
            cell = rank * cells + true_cells[differ][here]
            gained[side].append(cell + advice[differ][here])
            lost[side].append(cell + knowledge[differ][here])
    counts = np.repeat(with_knowledge[None], len(points), 0)
    for side in sums:
        if gained[side]:
            ranks = (len(points) + 1) * cells  # the last rank is that of pixels that never take advice
            changes = np.bincount(np.concatenate(gained[side]), minlength=ranks)
            changes -= np.bincount(np.concatenate(lost[side]), minlength=ranks)
            counts[order[side]] += changes.reshape(-1, cells).cumsum(0)[:-1]
    return counts.reshape(-1, classes, classes)


def _rest_of_confidence(
    row: Row, knowledge: np.ndarray, advice: np.ndarray, where: np.ndarray, classes: int, fixed: BiasConfig
) -> np.ndarray:
    """Eq. 3 without the biases that are swept, d^K - d^A and the presence part, at some pixels: float32 (P,).

    Args:
        row: with presence and the difference maps.
        knowledge, advice: uint8 (H, W).
        where: bool (H, W), True at P pixels.
        classes: their number.
        fixed: what decides on the presence part.
    """
    presence = torch.from_numpy(codec.presence_vector(row["presence"], classes))[None]
    k, a = (torch.from_numpy(mask)[None] for mask in (knowledge, advice))
    vanished = refine.vanished(k, a, presence, fixed.vanish_ratio) & fixed.presence
    d_k, d_a = (
        torch.from_numpy(maps.resize(maps.unpack_unit(row[name]), knowledge.shape)[where])[None]
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
    best = outcome.best.static.bias
    points = {
        (t.point.get(BIAS, best.bias), t.point.get(BACKGROUND, best.background)): t.metrics[REFINED]
        for t in outcome.trials
    }
    return figures.heat_map(points, ("bias", "background bias"), "mean IoU of $m^{D0}$ (%)")


def bias_sweep(stage: str) -> Kind:
    """The sweep of one stage's biases."""
    if stage == "dynamic":
        return replace(
            ALPHA_SWEEP,
            name="sweep_bias",
            space=("dynamic.bias1.bias=0.2,0.6", "dynamic.bias2.bias=0.2,0.6"),
            allowed=("dynamic.bias1.", "dynamic.bias2."),
        )
    return Kind(
        name="sweep_bias",
        space=(f"{BIAS}={_STEPS}", f"{BACKGROUND}={_STEPS}"),
        allowed=(BIAS, BACKGROUND),
        metrics=(REFINED,),
        trial=None,
        check=check,
        prepare=prepare,
        figure=heat_map,
    )

"""The sweep of eq. 3's biases: many points in one pass over stored difference maps, or one training for each point.

In the static stage the biases act only after the training. The difference maps are made once, and one pass over them
measures any number of biases. In the dynamic stage each point is a training.
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
    """Measure m^D0 at every bias and background bias, or with `sweep.stage dynamic` run a training for each point."""
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
    light = [Table(t.path, ()) for t in tables]  # without the image ids, which would be sent to every task
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

    A pixel where the masks differ takes advice if its confidence w >= 0 (eq. 4). Here w = sum + rest. Only the sum,
    bias + side * background bias, depends on the point: `side` is 1 where only advice is background, -1 where only
    knowledge is background, and else 0. The rest, d^K - d^A plus the presence part, depends only on the pixel. So the
    pixel takes advice at exactly those points whose sum is at least its threshold, -rest. If the points are sorted by
    their sums, these are all points from some rank on. So the change of each pixel is counted once, at that rank, and a
    cumulative sum over the ranks gives the counts at every point.

    Example: three points have the biases 0, 0.2 and 0.1 and no background bias, and a pixel has d^K = 0.3 and
    d^A = 0.45. Its threshold is 0.15, and the sorted sums are 0, 0.1 and 0.2. From rank 2 on, that is only at the point
    with the bias 0.2, the pixel counts with advice's class. At the other points it counts with knowledge's class.

    Args:
        tables: images, seed masks and refined masks, read side by side.
        part: the number of the part to count.
        classes: the number of classes, background included.
        fixed: gives `presence` and `vanish_ratio`, which are the same at every point; its biases are ignored.
        points: bias and background bias of each point.

    Returns:
        int64 (points, classes, classes): at each point, the pixels by true class and by class in m^D0.
    """
    sums = {side: np.array([bias + side * background for bias, background in points]) for side in (-1, 0, 1)}
    sums = {side: values.astype(np.float32) for side, values in sums.items()}  # the precision of `refine.confidence`
    order = {side: np.argsort(values, kind="stable") for side, values in sums.items()}
    cells = classes * classes  # a confusion matrix is counted as a vector, at index true class * classes + class
    with_knowledge = np.zeros(cells, np.int64)  # the counts if no pixel takes advice
    # One number for each differing pixel, rank * cells + cell. From that rank on, the pixel counts in the cell of
    # advice's class (`gained`), and no longer in the cell of knowledge's class (`lost`).
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
            ranks = (len(points) + 1) * cells  # the last rank has the pixels that never take advice
            changes = np.bincount(np.concatenate(gained[side]), minlength=ranks)
            changes -= np.bincount(np.concatenate(lost[side]), minlength=ranks)
            counts[order[side]] += changes.reshape(-1, cells).cumsum(0)[:-1]
    return counts.reshape(-1, classes, classes)


def _rest_of_confidence(
    row: Row, knowledge: np.ndarray, advice: np.ndarray, where: np.ndarray, classes: int, fixed: BiasConfig
) -> np.ndarray:
    """Eq. 3 without the swept biases, that is d^K - d^A plus the presence part, at some pixels: float32 (P,).

    Args:
        row: a table row with `presence` and the difference maps.
        knowledge, advice: uint8 (H, W).
        where: bool (H, W), True at P pixels.
        classes: the number of classes, background included.
        fixed: its `presence` and `vanish_ratio` determine the presence part.
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
    """Raise ConfigError for a configuration that cannot be swept."""
    measured_on_train(config)
    if config.sweep.search == "optuna":
        raise ConfigError(
            "--sweep.search optuna: all points of the static stage are measured together; use grid or random"
        )


def prepare(session: Session) -> None:
    """Raise ConfigError if the training list has no true masks."""
    need_truth(session, session.config.train_split)


def heat_map(outcome: Outcome) -> figures.Figure:
    """Draw the mean IoU over bias and background bias."""
    best = outcome.best.static.bias
    points = {
        (t.point.get(BIAS, best.bias), t.point.get(BACKGROUND, best.background)): t.metrics[REFINED]
        for t in outcome.trials
    }
    return figures.heat_map(points, ("bias", "background bias"), "mean IoU of $m^{D0}$ (%)")


def bias_sweep(stage: str) -> Kind:
    """The sweep of the biases of one stage, `static` or `dynamic`."""
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

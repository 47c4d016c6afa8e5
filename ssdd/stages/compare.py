"""Stage 5, the paper's comparison (sec. 5.3): the same network, trained on several kinds of masks and with SSDD."""

import json
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray

from ssdd.config import ConfigError
from ssdd.nets import checkpoints
from ssdd.reports import page
from ssdd.reports.page import Cell, Number, Table
from ssdd.reports.scores import GATED, Scores, mean_known, per_class_lines, table_lines
from ssdd.runtime.plan import lanes
from ssdd.runtime.session import Session, StoppedError
from ssdd.stages import dynamic, evaluate, images, knowledge, log_model, report, seeds, static, training_images
from ssdd.stages.images import Images
from ssdd.stages.seeds import Seeds
from ssdd.storage.artifacts import Artifact, write_text
from ssdd.storage.paths import AnyPath

ROWS = {
    "baseline_knowledge": "knowledge m^K0",
    "baseline": "advice m^A0 (PSA retrained)",
    "gentle_baseline": "advice of the gentle CRF",
    "baseline_refined": "m^D0 (static only)",
    "dynamic": "SSDD",
}
"""The rows, one trained network each: the network's name in the scores, and a title that says what it learns from."""
RESULT = "compare.json"
GENTLE = "gentle_baseline"
"""The network that learns from the advice of `gentle_crf`, a CRF that changes masks less than the published one."""
BASELINES = ("baseline_knowledge", "baseline", GENTLE)
"""The networks that learn from masks without SSDD. SSDD must beat the strongest of them."""
# Ending of a score's name -> ending of its title: masks without a CRF, and after each of the two CRFs.
_ENDINGS = {"": "", "_crf": " + CRF", "_gentle": " + gentle CRF"}
T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """The scores of every repetition."""

    split: str
    random_seeds: tuple[int, ...]
    scores: list[Scores]


@dataclass(frozen=True)
class Gain:
    """SSDD's score minus one baseline's score, for each random seed."""

    over: str
    """The name of the strongest baseline's score, the one whose mean over the random seeds is the highest."""
    values: list[float]


def run(session: Session) -> Comparison:
    """Train and score every row with every random seed, several seeds at a time where the cluster has room.

    PSA's seed masks are made once. Writes `report-compare.html` and `compare.json`, which has the mean, the standard
    deviation and the values of each score.
    """
    config = session.config
    if config.rounds > 1 or config.static.weights or config.dynamic.weights:
        raise ConfigError(
            "compare trains every row itself, in one round; leave out --rounds, --static.weights and --dynamic.weights"
        )
    if GENTLE in config.compare.rows and config.knowledge is not None:
        raise ConfigError(
            f"--compare.rows: {GENTLE} needs PSA's probabilities, but --knowledge replaces them; leave that row out"
        )
    test = images.run(session, config.split, need_labels=False)
    seed_masks = knowledge.run(session)
    gentle = _gentle(session, seed_masks) if GENTLE in config.compare.rows else seed_masks
    repeats = config.compare.random_seeds
    plan, count = lanes(session.plan, ray.cluster_resources()["CPU"], len(repeats))
    session.console.line(f"{len(repeats)} random seeds, {count} at a time")

    def one(seed: int) -> tuple[Scores, dict[str, Artifact]]:
        with session.child(replace(config, seed=seed), f"seed {seed}", plan) as repetition:
            return _one(repetition, seed_masks, gentle, test)

    def stop() -> None:
        session.stop_parts()
        session.console.line("stopping: the running stages still finish, and their artifacts are kept")

    each = _side_by_side(one, repeats, count, stop)
    result = Comparison(config.split, repeats, [scores for scores, _ in each])
    write_text(session.workspace / RESULT, json.dumps(summary(result), indent=1) + "\n")
    session.tracker.metrics(average(result.scores).flat())
    session.tracker.metrics({f"gain.{name}": statistics.fmean(gain.values) for name, gain in gains(result).items()})
    report.write_page(session, tables(result), "compare")
    scores, models = each[0]
    if "dynamic" in models:
        first = session.with_config(replace(config, seed=repeats[0]))
        log_model.run(first, models["dynamic"], seed_masks.images.classes, scores)
    return result


def _one(session: Session, seed_masks: Seeds, gentle: Seeds, test: Images) -> tuple[Scores, dict[str, Artifact]]:
    """The scores and the networks of one random seed; the first seed's networks are remembered for other jobs."""
    refined = static.run(session, seed_masks)
    scores = evaluate.score_refined(session, refined)
    train: dict[str, Callable[[], Artifact]] = {
        "baseline_knowledge": lambda: dynamic.run_fixed(session, refined, "knowledge"),
        "baseline": lambda: dynamic.run_fixed(session, refined, "advice"),
        GENTLE: lambda: dynamic.run_fixed(session, replace(refined, seeds=gentle), "advice", GENTLE),
        "baseline_refined": lambda: dynamic.run_fixed(session, refined, "refined"),
        "dynamic": lambda: dynamic.run(session, refined),
    }
    config = session.config
    models: dict[str, Artifact] = {name: train[name]() for name in ROWS if name in config.compare.rows}
    if config.seed == config.compare.random_seeds[0] and "dynamic" in models:
        checkpoints.remember(session.workspace, config, seed_masks.images.classes, models)
    scores |= training_images.run(session, refined, models)
    folders: dict[str, AnyPath] = {name: model.path for name, model in models.items()}
    classes = seed_masks.images.classes
    return scores | evaluate.score_models(session, test, folders, config.network, classes, config.split), models


def _gentle(session: Session, seed_masks: Seeds) -> Seeds:
    """The same knowledge with the gentle CRF's advice. Logs its mean IoU to MLflow as `train.gentle_advice`."""
    config = session.config
    other = seeds.run(session.with_config(replace(config, crf=config.gentle_crf)), seed_masks)
    scores = evaluate.score("train", [other.images.table, other.table], ("advice",), other.images.classes).scores
    for name, value in scores.mean.items():
        session.console.line(f"{name} with the gentle CRF: {value:.1f}")
        session.tracker.metrics({"train.gentle_advice": value})
    return other


def _side_by_side(function: Callable[[int], T], items: Iterable[int], count: int, stop: Callable[[], None]) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # after a failure or Ctrl-C, the other calls finish the stage that they are in, and then stop
            if not all(future.done() for future in futures):
                pool.shutdown(wait=False, cancel_futures=True)
                stop()
    failed = [f.exception() for f in futures if not f.cancelled() and f.exception() is not None]
    for error in sorted(failed, key=lambda e: isinstance(e, StoppedError)):  # the cause comes before StoppedError
        assert error is not None
        raise error
    return [future.result() for future in futures]


def average(scores: list[Scores]) -> Scores:
    """The scores' means over the random seeds.

    A class's IoU is averaged over the seeds where it is known. Other scores are left out unless each seed has them.
    """
    per_class: dict[str, dict[str, float | None]] = {}
    for name, classes in scores[0].per_class.items():
        values = {c: [s.per_class[name][c] for s in scores] for c in classes}
        per_class[name] = {c: mean_known(vs) for c, vs in values.items()}
    parts = ([getattr(s, part) for s in scores] for part in ("mean", "difference", "foreground"))
    mean, difference, foreground = (
        {name: statistics.fmean(p[name] for p in part) for name in part[0] if all(name in p for p in part)}
        for part in parts
    )
    return Scores(mean, per_class, difference, foreground)


def gains(result: Comparison) -> dict[str, Gain]:
    """SSDD's gain in each mean IoU: on `result.split` (without a CRF, after each CRF) and on training images."""
    out = {}
    for prefix, end in (*((result.split, end) for end in _ENDINGS), (GATED, "")):
        name, *rivals = (f"{prefix}.{row}{end}" for row in ("dynamic", *BASELINES))
        rivals = [rival for rival in rivals if all({name, rival} <= s.mean.keys() for s in result.scores)]
        if rivals:
            best = max(rivals, key=lambda rival: statistics.fmean(s.mean[rival] for s in result.scores))
            out[name] = Gain(best, [s.mean[name] - s.mean[best] for s in result.scores])
    return out


def summary(result: Comparison) -> dict[str, Any]:
    """The contents of `compare.json`."""
    mean = average(result.scores)
    return {
        "random_seeds": list(result.random_seeds),
        "scores": {name: _spread([s.mean[name] for s in result.scores]) for name in mean.mean},
        "gain": {name: {"over": gain.over} | _spread(gain.values) for name, gain in gains(result).items()},
        "per_class": mean.per_class,
        "difference": mean.difference,
        "foreground": mean.foreground,
    }


def tables(result: Comparison) -> list[Table]:
    """`summary` as tables: each score's mean, spread and values, SSDD's gains, and `page.score_tables` of the means."""
    record = summary(result)
    columns = ("mean", "standard deviation", *(f"seed {seed}" for seed in result.random_seeds))

    def cells(spread: dict[str, Any], form: str) -> list[Cell]:
        deviation = None if spread["std"] is None else Number(spread["std"])
        return [Number(spread["mean"], form), deviation, *(Number(value, form) for value in spread["values"])]

    scores = {name: cells(spread, ".1f") for name, spread in record["scores"].items()}
    gain_rows = {f"{name} over {gain['over']}": cells(gain, "+.1f") for name, gain in record["gain"].items()}
    over = f" over {len(result.scores)} random seeds" if len(result.scores) > 1 else ""
    out = [Table(f"Mean IoU (%){over}", columns, scores)] if scores else []
    if gain_rows:
        out.append(Table("SSDD minus the strongest baseline of the same score", columns, gain_rows))
    return out + [replace(table, title=f"{table.title}: means") for table in page.score_tables(average(result.scores))]


def lines(result: Comparison) -> list[str]:
    """The comparison for the terminal: each class's IoU as in Table 1, mean and spread of each score, and the gains."""
    split, scores = result.split, result.scores
    mean = average(scores)
    names = {
        f"{title}{end}": f"{split}.{name}{column}" for name, title in ROWS.items() for column, end in _ENDINGS.items()
    }
    names = {title: name for title, name in names.items() if name in mean.mean}
    out = per_class_lines({title: mean.per_class[name] for title, name in names.items()})
    if names:
        width = max(map(len, names))
        over = f" over {len(scores)} random seeds, and standard deviation" if len(scores) > 1 else ""
        out.append(f"mean IoU (%) on {split}{over}")
        out += [f"  {title:<{width}}  {_cells([s.mean[name] for s in scores])}" for title, name in names.items()]
    ssdd_gains = gains(result)
    if ssdd_gains:
        out.append("SSDD minus the strongest baseline of the same score")
        width = max(map(len, ssdd_gains))
        out += [f"  {name:<{width}}  {_cells(gain.values, '+.1f')}  {gain.over}" for name, gain in ssdd_gains.items()]
    rest = {name: value for name, value in mean.mean.items() if name not in names.values()}
    return out + (table_lines(replace(mean, mean=rest, per_class={})) if rest or not out else [])


def _cells(values: list[float], form: str = ".1f") -> str:
    each = "  ".join(format(v, form) for v in values)
    deviation = _std(values)
    mean = f"{format(statistics.fmean(values), form):>5}"
    return mean if deviation is None else f"{mean} +- {deviation:.1f}  ({each})"


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": _std(values), "values": values}


def _std(values: list[float]) -> float | None:
    """The standard deviation; None for a single value, which has none."""
    return statistics.stdev(values) if len(values) > 1 else None

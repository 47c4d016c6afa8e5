"""Stage 5: the paper's comparison (sec. 5.3). The same network, trained on several kinds of masks and with SSDD."""

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
"""Names of the models as in the scores of the other jobs, and what they learn from."""
RESULT = "compare.json"
GENTLE = "gentle_baseline"
BASELINES = ("baseline_knowledge", "baseline", GENTLE)
"""Rows that are not trained on SSDD's masks; the strongest one is what it must beat."""
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
    """SSDD's score minus that of one baseline, for each seed."""

    over: str
    """The baseline with the highest mean of this score."""
    values: list[float]


def run(session: Session) -> Comparison:
    """Train and score every row with every seed, side by side where the cluster has room.

    PSA's seeds are made once. Writes `compare.json`: for each score its mean, standard deviation and the values; and
    `report-compare.html`.
    """
    config = session.config
    if config.rounds > 1 or config.static.weights or config.dynamic.weights:
        raise ConfigError("compare trains every row anew, in one round: leave out --rounds and the stages' weights")
    if GENTLE in config.compare.rows and config.knowledge is not None:
        raise ConfigError(f"--compare.rows: {GENTLE} needs PSA's probabilities, not --knowledge; leave that row out")
    test = images.run(session, config.split, need_labels=False)
    made = knowledge.run(session)
    gentle = _gentle(session, made) if GENTLE in config.compare.rows else made
    repeats = config.compare.random_seeds
    plan, count = lanes(session.plan, ray.cluster_resources()["CPU"], len(repeats))
    session.console.line(f"{len(repeats)} random seeds, {count} at a time")

    def one(seed: int) -> Scores:
        with session.child(replace(config, seed=seed), f"seed {seed}", plan) as own:
            return _one(own, made, gentle, test)

    def stop() -> None:
        session.stop_parts()
        session.console.line("ends after the stages that are running; what they finish is kept")

    result = Comparison(config.split, repeats, _side_by_side(one, repeats, count, stop))
    write_text(session.workspace / RESULT, json.dumps(summary(result), indent=1) + "\n")
    session.tracker.metrics(average(result.scores).flat())
    session.tracker.metrics({f"gain.{name}": statistics.fmean(gain.values) for name, gain in gains(result).items()})
    report.write_page(session, tables(result), "compare")
    if "dynamic" in config.compare.rows:
        log_model.run(session, result.scores[0])  # of the first seed, whose networks the workspace remembers
    return result


def _one(session: Session, made: Seeds, gentle: Seeds, test: Images) -> Scores:
    refined = static.run(session, made)
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
        checkpoints.remember(session.workspace, images.located(config), made.images.classes, models)
    scores |= training_images.run(session, refined, models)
    folders: dict[str, AnyPath] = {name: model.path for name, model in models.items()}
    return scores | evaluate.score_models(session, test, folders, config.network, made.images.classes, config.split)


def _gentle(session: Session, made: Seeds) -> Seeds:
    """The same knowledge with the advice of the gentle CRF, whose score goes to MLflow as `train.advice` does."""
    config = session.config
    other = seeds.run(session.with_config(replace(config, crf=config.gentle_crf)), made)
    scores = evaluate.score("train", [other.images.table, other.table], ("advice",), other.images.classes).scores
    for name, value in scores.mean.items():
        session.console.line(f"{name} of the gentle CRF {value:.1f}")
        session.tracker.metrics({"train.gentle_advice": value})
    return other


def _side_by_side(function: Callable[[int], T], items: Iterable[int], count: int, stop: Callable[[], None]) -> list[T]:
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # one of them failed, or Ctrl-C: the others end with the stage that they are in, which is kept
            if not all(future.done() for future in futures):
                stop()
                pool.shutdown(wait=False, cancel_futures=True)
    failed = [f.exception() for f in futures if not f.cancelled() and f.exception() is not None]
    for error in sorted(failed, key=lambda e: isinstance(e, StoppedError)):  # the cause before what it stopped
        assert error is not None
        raise error
    return [future.result() for future in futures]


def average(scores: list[Scores]) -> Scores:
    """The mean over the seeds of everything that every seed has."""
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
    """SSDD's gains, by the names of its scores: on the split without and with each CRF, and on the training images."""
    out = {}
    for prefix, end in (*((result.split, end) for end in _ENDINGS), (GATED, "")):
        name, *rivals = (f"{prefix}.{row}{end}" for row in ("dynamic", *BASELINES))
        rivals = [rival for rival in rivals if all({name, rival} <= s.mean.keys() for s in result.scores)]
        if rivals:
            best = max(rivals, key=lambda rival: statistics.fmean(s.mean[rival] for s in result.scores))
            out[name] = Gain(best, [s.mean[name] - s.mean[best] for s in result.scores])
    return out


def summary(result: Comparison) -> dict[str, Any]:
    """What `compare.json` holds."""
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
    """`summary` as tables: mean, spread and each seed, SSDD's gains, and the means of what else there is."""
    record = summary(result)
    columns = ("mean", "standard deviation", *(f"seed {seed}" for seed in result.random_seeds))

    def cells(spread: dict[str, Any], form: str) -> list[Cell]:
        return [Number(value, form) for value in (spread["mean"], spread["std"], *spread["values"])]

    scores = {name: cells(spread, ".1f") for name, spread in record["scores"].items()}
    won = {f"{name} over {gain['over']}": cells(gain, "+.1f") for name, gain in record["gain"].items()}
    out = [Table(f"Mean IoU (%) over {len(result.scores)} random seeds", columns, scores)] if scores else []
    if won:
        out.append(Table("SSDD minus the baseline that is strongest in the same score", columns, won))
    return out + [replace(table, title=f"{table.title}: means") for table in page.score_tables(average(result.scores))]


def lines(result: Comparison) -> list[str]:
    """The comparison for the terminal: rows like Table 1's, then mean and spread."""
    split, scores = result.split, result.scores
    mean = average(scores)
    names = {
        f"{title}{end}": f"{split}.{name}{column}" for name, title in ROWS.items() for column, end in _ENDINGS.items()
    }
    names = {title: name for title, name in names.items() if name in mean.mean}
    out = per_class_lines({title: mean.per_class[name] for title, name in names.items()})
    if names:
        width = max(map(len, names))
        out.append(f"mean IoU (%) on {split} over {len(scores)} random seeds, and standard deviation")
        out += [f"  {title:<{width}}  {_cells([s.mean[name] for s in scores])}" for title, name in names.items()]
    won = gains(result)
    if won:
        out.append("SSDD minus the baseline that is strongest in the same score")
        width = max(map(len, won))
        out += [f"  {name:<{width}}  {_cells(gain.values, '+.1f')}  {gain.over}" for name, gain in won.items()]
    rest = {name: value for name, value in mean.mean.items() if name not in names.values()}
    return out + (table_lines(replace(mean, mean=rest, per_class={})) if rest or not out else [])


def _cells(values: list[float], form: str = ".1f") -> str:
    each = "  ".join(format(v, form) for v in values)
    return f"{format(statistics.fmean(values), form):>5} +- {_std(values):.1f}  ({each})"


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "std": _std(values), "values": values}


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

"""Stage 5: the paper's comparison (sec. 5.3). The same network with the same schedule on four kinds of masks."""

import json
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray

from ssdd.config import ConfigError
from ssdd.nets import checkpoints
from ssdd.reports.scores import Scores, mean_known, per_class_lines, table_lines
from ssdd.runtime.plan import lanes
from ssdd.runtime.session import Session, StoppedError
from ssdd.stages import dynamic, evaluate, images, knowledge, static
from ssdd.stages.images import Images
from ssdd.stages.seeds import Seeds
from ssdd.storage.artifacts import Artifact, write_text
from ssdd.storage.paths import AnyPath

ROWS = {
    "baseline_knowledge": "knowledge m^K0",
    "baseline": "advice m^A0 (PSA retrained)",
    "baseline_refined": "m^D0 (static only)",
    "dynamic": "SSDD",
}
"""Names of the models as in the scores of the other jobs, and what they learn from."""
RESULT = "compare.json"
_ENDINGS = {"": "", "_crf": " + CRF"}
T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """The scores of every repetition."""

    split: str
    random_seeds: tuple[int, ...]
    scores: list[Scores]


def run(session: Session) -> Comparison:
    """Train and score every row with every seed, side by side where the cluster has room.

    PSA's seeds are made once. Writes `compare.json`: for each score its mean, standard deviation and the values.
    """
    config = session.config
    if config.rounds > 1 or config.static.weights or config.dynamic.weights:
        raise ConfigError("compare trains every row anew, in one round: leave out --rounds and the stages' weights")
    test = images.run(session, config.split, need_labels=False)
    made = knowledge.run(session)
    repeats = config.compare.random_seeds
    plan, count = lanes(session.plan, ray.cluster_resources()["CPU"], len(repeats))
    session.console.line(f"{len(repeats)} random seeds, {count} at a time")

    def one(seed: int) -> Scores:
        with session.child(replace(config, seed=seed), f"seed {seed}", plan) as own:
            return _one(own, made, test)

    def stop() -> None:
        session.stop_parts()
        session.console.line("ends after the stages that are running; what they finish is kept")

    result = Comparison(config.split, repeats, _side_by_side(one, repeats, count, stop))
    write_text(session.workspace / RESULT, json.dumps(summary(result), indent=1) + "\n")
    session.tracker.metrics(average(result.scores).mean)
    return result


def _one(session: Session, made: Seeds, test: Images) -> Scores:
    refined = static.run(session, made)
    scores = evaluate.score_refined(session, refined)
    train: dict[str, Callable[[], Artifact]] = {
        "baseline_knowledge": lambda: dynamic.run_fixed(session, refined, "knowledge"),
        "baseline": lambda: dynamic.run_fixed(session, refined, "advice"),
        "baseline_refined": lambda: dynamic.run_fixed(session, refined, "refined"),
        "dynamic": lambda: dynamic.run(session, refined),
    }
    config = session.config
    models: dict[str, Artifact] = {name: train[name]() for name in ROWS if name in config.compare.rows}
    if config.seed == config.compare.random_seeds[0] and "dynamic" in models:
        checkpoints.remember(session.workspace, images.located(config), made.images.classes, models)
    folders: dict[str, AnyPath] = {name: model.path for name, model in models.items()}
    return scores | evaluate.score_models(session, test, folders, config.network, made.images.classes, config.split)


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
    mean = {name: statistics.fmean(s.mean[name] for s in scores) for name in scores[0].mean}
    shared = [name for name in scores[0].difference if all(name in s.difference for s in scores)]
    difference = {name: statistics.fmean(s.difference[name] for s in scores) for name in shared}
    return Scores(mean, per_class, difference)


def summary(result: Comparison) -> dict[str, Any]:
    """What `compare.json` holds."""
    mean = average(result.scores)
    values = {name: [s.mean[name] for s in result.scores] for name in mean.mean}
    return {
        "random_seeds": list(result.random_seeds),
        "scores": {name: {"mean": statistics.fmean(v), "std": _std(v), "values": v} for name, v in values.items()},
        "per_class": mean.per_class,
        "difference": mean.difference,
    }


def lines(result: Comparison) -> list[str]:
    """The comparison for the terminal: rows like Table 1's, then mean and spread."""
    split, scores = result.split, result.scores
    mean = average(scores)
    names = {
        f"{title}{end}": f"{split}.{name}{column}" for name, title in ROWS.items() for column, end in _ENDINGS.items()
    }
    names = {title: name for title, name in names.items() if name in mean.mean}
    if not names:
        return table_lines(mean)
    out = per_class_lines({title: mean.per_class[name] for title, name in names.items()})
    width = max(map(len, names))
    out.append(f"mean IoU (%) on {split} over {len(scores)} random seeds, and standard deviation")
    for title, name in names.items():
        values = [s.mean[name] for s in scores]
        each = "  ".join(f"{v:.1f}" for v in values)
        out.append(f"  {title:<{width}}  {statistics.fmean(values):5.1f} +- {_std(values):.1f}  ({each})")
    train = {name: value for name, value in mean.mean.items() if name.startswith("train.")}
    return out + (table_lines(Scores(train, {}, mean.difference)) if train else [])


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

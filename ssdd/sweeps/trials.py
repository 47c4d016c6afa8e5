"""Trials of a sweep: their results, which a resumed sweep reuses, and when Ray Tune stops a trial early."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from ssdd.config import Config
from ssdd.storage.artifacts import write_text
from ssdd.storage.paths import AnyPath, names_in
from ssdd.sweeps.space import Point

TRIALS = "trials"


@dataclass(frozen=True)
class Trial:
    """A point of the search space and its result."""

    point: Point
    metrics: dict[str, float]
    """Empty if the trial failed."""
    state: str = "finished"
    """finished, stopped (for a poor metric), or failed."""
    error: str = ""


def point_of(chosen: dict[str, Any]) -> Point:
    """The point in what Ray Tune chose: a whole point (grid, random) or a value for each field (optuna)."""
    return chosen.get("point", chosen)


def key_of(point: Point) -> str:
    """The name under which a trial is stored."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: AnyPath, point: Point) -> AnyPath:
    return folder / TRIALS / f"{key_of(point)}.json"


def keep(folder: AnyPath, trial: Trial) -> None:
    """Store a trial, which `sweep.resume` then does not run again."""
    write_text(_file(folder, trial.point), json.dumps(asdict(trial)))


def kept_in(folder: AnyPath) -> dict[str, Trial]:
    """The trials that a sweep's folder keeps, by `key_of` of their points."""
    names = [name for name in names_in(folder / TRIALS) if name.endswith(".json") and not name.startswith(".")]
    files = [folder / TRIALS / name for name in names]
    return {file.stem: Trial(**json.loads(file.read_text())) for file in files}


class KeepStopped(tune.Callback):
    """Stores a trial that was stopped for its poor metric. A finished trial is stored at its end, by `keep`."""

    def __init__(self, folder: AnyPath, config: Config):
        self.folder, self.metric, self.epochs = folder, config.sweep.metric or "", config.dynamic.train.epochs

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        point, last = point_of(trial.config), trial.last_result or {}
        if not _file(self.folder, point).exists() and last.get("epoch", self.epochs) < self.epochs:
            why = f"after epoch {last['epoch']}"
            keep(self.folder, Trial(point, {self.metric: last[self.metric]}, "stopped", why))


class StopEarly(ASHAScheduler):
    """Stops trials with a poor metric after an epoch, but never after the last one, when only their scores are missing.

    Without this class, a trial whose first report is from the last epoch could be stopped: one whose training was
    interrupted in that epoch, or had finished in an earlier sweep.
    """

    def __init__(self, epochs: int, **options: Any):
        super().__init__(**options)
        self.epochs = epochs

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("epoch", 0) >= self.epochs:
            return self.CONTINUE
        return super().on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("epoch", 0) >= self.epochs:  # its last score must not be compared with others' earlier ones
            self.on_trial_remove(controller, trial)
        else:
            super().on_trial_complete(controller, trial, result)

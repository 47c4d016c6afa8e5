"""Sweeps: Ray Tune runs a trial for each point of a search space, with an MLflow run below the sweep's run."""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import yaml
from ray import tune

from ssdd.config import Config, ConfigError, StepConfig
from ssdd.fields import to_dict
from ssdd.presets import changes
from ssdd.reports.figures import Figure
from ssdd.runtime import cluster
from ssdd.runtime.errors import message_of, original_error
from ssdd.runtime.plan import ResourceError, lanes
from ssdd.runtime.progress import Mailbox
from ssdd.runtime.session import Session
from ssdd.stages import images
from ssdd.stages.images import Images
from ssdd.storage.artifacts import whole, write_text
from ssdd.storage.paths import AnyPath, relative, remove
from ssdd.sweeps import space
from ssdd.sweeps.space import Point, Range, Space
from ssdd.sweeps.trials import TRIALS, KeepStopped, StopEarly, Trial, keep, kept_in, key_of, point_of

STATE = "sweep.json"
BEST = "best.yaml"
EPOCHS = "dynamic.train.epochs"


class SweepError(RuntimeError):
    """No trial of a sweep gave a result, or the sweep was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sweep. It can be pickled."""

    name: str
    """The job's name."""
    space: tuple[str, ...]
    """Default of `sweep.space`."""
    allowed: tuple[str, ...]
    """Fields that this sweep can vary, or prefixes of their names."""
    metrics: tuple[str, ...]
    """Names of the metrics that a trial returns; the first is maximised by default."""
    trial: Callable[[Session, Config], dict[str, float]] | None
    """Runs one trial and returns its metrics. Its arguments are the trial's session and the sweep's own configuration,
    with which a trial finds the artifacts that all trials share. None: no separate trials are run, see `bias.run`."""
    check: Callable[[Config], None]
    """Raises ConfigError for a configuration that cannot be swept."""
    prepare: Callable[[Session], None]
    """Makes the artifacts that all trials share. Raises ConfigError for data on which trials cannot be measured."""
    figure: Callable[["Outcome"], Figure]
    """Draws the result."""
    stops: bool = False
    """Whether a trial also reports its metric after every epoch, so that poor trials can be stopped."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a sweep. The best trial is the first of `trials`."""

    name: str
    metric: str
    trials: tuple[Trial, ...]
    best: Config
    folder: AnyPath

    def finished(self) -> list[Trial]:
        """The trials that have every metric."""
        return [trial for trial in self.trials if trial.state == "finished"]


def measured_on_train(config: Config) -> None:
    """Raise ConfigError if `sweep.split` names another list than the training list, or `split` is the training list."""
    if config.sweep.split not in (None, config.train_split):
        raise ConfigError(
            f"--sweep.split {config.sweep.split}: this sweep measures masks of the training list; leave the field out"
        )
    not_reported(config, config.train_split)


def not_reported(config: Config, split: str) -> None:
    """Raise ConfigError if trials would be compared on the list whose scores are reported."""
    if split == config.split:
        raise ConfigError(
            f"--split {split}: trials must not be compared on the list that is reported; name another --split"
        )


def measured(session: Session, split: str) -> Images:
    """The images on which trials are compared."""
    return images.run(session, split, need_labels=split == session.config.train_split)


def need_truth(session: Session, split: str) -> None:
    """Raise ConfigError for an image list on which trials cannot be measured."""
    if not images.has_truth(measured(session, split).table):
        raise ConfigError(
            f"no image of the list {split} has a true mask with a foreground class, so trials cannot be compared; "
            "put some masks into SegmentationClass/"
        )


def checked(kind: Kind, config: Config) -> Config:
    """Fill in `sweep.metric` if it is unset. Raises ConfigError, before anything runs, if the sweep cannot work."""
    config = replace(config, sweep=replace(config.sweep, metric=config.sweep.metric or kind.metrics[0]))
    if config.sweep.metric not in kind.metrics:
        raise ConfigError(
            f"--sweep.metric {config.sweep.metric}: no trial has this metric; choose from {', '.join(kind.metrics)}"
        )
    kind.check(config)
    if config.sweep.search == "optuna":
        _optuna()
    chosen = space_of(kind, config)
    if kind.stops and EPOCHS in chosen:
        raise ConfigError(
            f"--sweep.space {EPOCHS}: trials are compared epoch by epoch, so this field must not vary; leave it out"
        )
    for point in points(config, chosen) or []:
        space.checked(config, point)
    return config


def space_of(kind: Kind, config: Config) -> Space:
    """The fields that the sweep varies, with their values."""
    return space.read(config, config.sweep.space or kind.space, kind.allowed)


def points(config: Config, chosen: Space) -> list[Point] | None:
    """The points that a sweep tries; None for optuna, which chooses each point by the earlier results."""
    if config.sweep.search == "optuna":
        return None
    if config.sweep.search == "grid":
        return space.grid(chosen)
    return space.random(chosen, config.sweep.trials, config.seed)


@dataclass(frozen=True)
class _Shared:
    """The data that every trial's process gets."""

    session: Session
    kind: Kind
    folder: AnyPath


def run(session: Session, kind: Kind) -> Outcome:
    """Run all trials, as many at a time as the cluster has room for; then write the best one, a figure and a table.

    A failed trial is reported and does not end the others. Finished and stopped trials are kept in the sweep's folder,
    `sweeps/NAME-KEY`, so that `sweep.resume` need not run them again after an interruption.

    Raises:
        SweepError: no trial has finished, or the sweep was interrupted.
    """
    config = session.config
    chosen = space_of(kind, config)
    if config.sweep.resume:
        _check_resumable(session, kind.name)
    kind.prepare(session)
    folder = open_folder(session, kind.name)
    wanted = points(config, chosen)
    kept = kept_in(folder)
    if kept:
        session.console.line(f"{len(kept)} trials have ended already")
    rest = None if wanted is None else [p for p in wanted if key_of(p) not in kept]
    count = len(rest) if rest is not None else max(0, config.sweep.trials - len(kept))
    failed: list[Trial] = []
    if count:
        # The number of trials at a time decides how many workers a training gets, so a resume must not change it.
        total = len(kept) + count
        limit = min(total, config.sweep.parallel or total)
        plan, side_by_side = lanes(session.plan, ray.cluster_resources()["CPU"], limit, config.sweep.gpu)
        session.console.line(f"{count} trials, {side_by_side} at a time; {kind.name} maximises {config.sweep.metric}")
        mailbox = Mailbox()
        part = session.for_trial(plan, mailbox)
        with mailbox.listen(session.console.line):
            grid = _tuner(_Shared(part, kind, folder), rest, chosen, count, side_by_side, list(kept.values())).fit()
        session.tracker.end_children()
        results, kept = [grid[k] for k in range(len(grid))], kept_in(folder)
        for result in results:
            if result.error and isinstance(original_error(result.error), ResourceError):
                raise SweepError(f"{message_of(result.error)} (with --sweep.resume)")
        failed = [_failed(result, session) for result in results if result.error]
        if len(results) < count or any(key_of(point_of(r.config or {})) not in kept for r in results if not r.error):
            raise SweepError("the sweep was interrupted; to continue it, add --sweep.resume to the same command")
    return finish(session, kind.name, folder, [*kept.values(), *failed], kind.figure)


def _identify(session: Session, name: str) -> tuple[AnyPath, dict[str, Any], str]:
    """The folder of a sweep with this configuration, whether it exists or not; the sweep's recipe and its key."""
    config = session.config
    # Fields of speed and memory may change, because the remedy for a failed trial may be, say, --step.micro-batch.
    speed = dict(num_cpus=None, workers=None, gpus=None, inference_batch=1)
    step = StepConfig(crf="exact" if config.step.crf == "exact" else None)
    sweep = replace(config.sweep, resume=False, parallel=None, gpu=1)
    recipe = to_dict(replace(config, workspace=None, **speed, step=step, sweep=sweep))  # type: ignore[arg-type]
    key = hashlib.sha256(json.dumps([name, recipe], sort_keys=True).encode()).hexdigest()[:12]
    return session.workspace / "sweeps" / f"{name}-{key}", recipe, key


def _check_resumable(session: Session, name: str) -> None:
    """Raise ConfigError if the workspace has no sweep with this configuration."""
    if not (_identify(session, name)[0] / STATE).exists():
        raise ConfigError(
            f"--sweep.resume: {session.workspace} has no such sweep; leave the field out to start one, or give "
            "the same fields as in the interrupted command"
        )


def open_folder(session: Session, name: str) -> AnyPath:
    """The folder of a sweep with this configuration: a new one, or with `sweep.resume` the existing one."""
    folder, recipe, key = _identify(session, name)
    state = folder / STATE
    if session.config.sweep.resume:
        _check_resumable(session, name)
        if not session.tracker.resume(json.loads(state.read_text())["run_id"]):
            session.console.line("the sweep's MLflow run is gone; a new run takes its place")
    elif folder.exists():
        remove(folder)  # the artifacts of its trials are in another folder, and the new trials can reuse them
        if folder.exists():
            raise ConfigError(
                f"{folder}: this folder of an earlier sweep cannot be deleted; delete it, or give --sweep.resume"
            )
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    write_text(state, json.dumps({"run_id": session.tracker.run_id, "config": recipe}, indent=1))
    session.tracker.tag("sweep", key)
    return folder


def finish(
    session: Session, name: str, folder: AnyPath, trials: list[Trial], draw: Callable[[Outcome], Figure]
) -> Outcome:
    """Write `best.yaml`, `trials.json` and the figure of a sweep, and log all three to its MLflow run.

    Raises:
        SweepError: no trial has finished.
    """
    metric = session.config.sweep.metric or ""

    def rank(trial: Trial) -> tuple[bool, float]:
        value = trial.metrics.get(metric, math.nan)
        return trial.state == "finished", value if math.isfinite(value) else -1.0

    trials = sorted(trials, key=rank, reverse=True)
    finished = [t for t in trials if t.state == "finished"]
    if not finished:
        errors = [t.error for t in trials if t.state == "failed"]
        raise SweepError(f"none of {len(trials)} trials has finished; first error: {errors[0] if errors else 'none'}")
    best = finished[0]
    outcome = Outcome(
        name=name, metric=metric, trials=tuple(trials), best=space.checked(session.config, best.point), folder=folder
    )
    head = f"# Best of {len(trials)} trials of {name}: {metric} {best.metrics[metric]:.2f}\n"
    write_text(folder / BEST, head + yaml.safe_dump(changes(outcome.best), sort_keys=False))
    write_text(folder / "trials.json", json.dumps([asdict(trial) for trial in trials], indent=1))
    figure = draw(outcome)
    with whole(folder / f"{name}.png") as aside:
        figure.savefig(aside, dpi=110)
    session.tracker.figure(figure, name)
    for path in (folder / BEST, folder / "trials.json"):
        session.tracker.file(path)
    session.tracker.metrics(best.metrics)
    session.tracker.tag("best", space.label(best.point))
    session.tracker.tag("mlflow.note.content", _markdown(outcome))  # MLflow shows it as the run's description
    session.console.line(f"best configuration {relative(folder / BEST, session.workspace)}")
    return outcome


def _table(outcome: Outcome, shown: int) -> list[list[str]]:
    trials = outcome.trials
    columns = [m for m in trials[0].metrics if m == outcome.metric or not m.startswith(("difference.", "foreground."))]
    table = [[*space.short_names(trials[0].point).values(), *columns, ""]]
    for trial in trials[:shown]:
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.point.values()]
        scores = [f"{trial.metrics[c]:.2f}" if c in trial.metrics else "-" for c in columns]
        table.append([*values, *scores, "" if trial.state == "finished" else f"{trial.state} {trial.error}".strip()])
    return table


def _markdown(outcome: Outcome, shown: int = 20) -> str:
    head, *rows = ("| " + " | ".join(line) + " |" for line in _table(outcome, shown))
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([f"The trials with the best {outcome.metric} come first:", "", head, rule, *rows])


def lines(outcome: Outcome, shown: int = 20) -> list[str]:
    """The trials as a table for the terminal, the best ones first."""
    trials, table = outcome.trials, _table(outcome, shown)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    out = [
        "  ".join(
            cell.rjust(w) if i < len(line) - 1 else cell for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    if len(trials) > shown:
        out.append(f"... and {len(trials) - shown} more in {outcome.folder / 'trials.json'}")
    best = " ".join(space.flag(name, value) for name, value in trials[0].point.items())
    return [*out, f"best by {outcome.metric}: {best}", f"use it with --config {outcome.folder / BEST}"]


def _tuner(
    shared: _Shared, rest: list[Point] | None, chosen: Space, count: int, side_by_side: int, kept: list[Trial]
) -> tune.Tuner:
    config = shared.session.config
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `_failed` reports each error in one line
    options: dict[str, Any] = dict(max_concurrent_trials=side_by_side)
    if rest is None:
        options |= dict(num_samples=count, search_alg=_searcher(config, chosen, kept))
    epochs = config.dynamic.train.epochs
    if shared.kind.stops and epochs > 1:
        options["scheduler"] = StopEarly(
            epochs,
            time_attr="epoch",
            metric=config.sweep.metric,
            mode="max",
            max_t=epochs - 1,
            reduction_factor=2,
            stop_last_trials=False,
        )
    # A trial's own process only waits for its stages' processes, which may need every CPU. Tune requires that a trial
    # reserves something, so each trial reserves 1 byte of memory.
    trainable = tune.with_resources(tune.with_parameters(_trial, shared=shared), {"CPU": 0, "memory": 1})
    return tune.Tuner(
        trainable,
        param_space={} if rest is None else {"point": tune.grid_search(rest)},
        tune_config=tune.TuneConfig(**options),
        run_config=tune.RunConfig(
            name="tune", verbose=0, callbacks=[KeepStopped(shared.folder, config)], **cluster.storage(shared.folder)
        ),
    )


def _trial(chosen: dict[str, Any], shared: _Shared) -> None:
    """Run one trial, in its own process."""
    cluster.quiet()
    assert shared.kind.trial is not None
    point = point_of(chosen)
    session, base = shared.session, shared.session.config
    with session.child(space.checked(base, point), space.label(point), session.plan) as trial_session:
        metrics = shared.kind.trial(trial_session, base)
    keep(shared.folder, Trial(point, metrics))
    tune.report({**metrics, "epoch": base.dynamic.train.epochs})


def _failed(result: Any, session: Session) -> Trial:
    point = point_of(result.config or {})
    reason = message_of(result.error).splitlines()[-1]
    session.console.line(f"the trial {space.label(point)} failed: {reason}")
    return Trial(point, {}, "failed", reason)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("--sweep.search optuna: Optuna is not installed; run pip install 'ssdd[sweep]'") from error
    return optuna


def _searcher(config: Config, chosen: Space, kept: list[Trial]) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    distributions, metric = _optuna().distributions, config.sweep.metric or ""
    finite = [t for t in kept if math.isfinite(t.metrics[metric])]

    def distribution(values: tuple[Any, ...] | Range) -> Any:
        if not isinstance(values, Range):
            return distributions.CategoricalDistribution(values)
        kind = distributions.IntDistribution if values.whole else distributions.FloatDistribution
        return kind(values.low, values.high, log=values.log)

    return OptunaSearch(
        space={name: distribution(values) for name, values in chosen.items()},
        metric=config.sweep.metric,
        mode="max",
        seed=config.seed + len(kept),  # with the same seed, Optuna would propose the known points again
        points_to_evaluate=[t.point for t in finite] or None,
        evaluated_rewards=[t.metrics[metric] for t in finite] or None,
    )

"""Runs one training of any task with Ray Train; after an interruption it continues from its last checkpoint."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.data import ExecutionOptions
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from ssdd.config import ConfigError
from ssdd.nets import checkpoints
from ssdd.nets.checkpoints import MODEL
from ssdd.objectives.task import Task
from ssdd.runtime import cluster, ray_internals
from ssdd.runtime.crashes import CrashError
from ssdd.runtime.errors import GPUMemoryError, disk_is_full, message_of, original_error
from ssdd.runtime.plan import Plan, workers_for
from ssdd.runtime.progress import Event, Mailbox
from ssdd.runtime.session import Session
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import AnyPath, RemoteError, RemotePath, remove, stat
from ssdd.storage.tables import DamagedTableError, Table
from ssdd.training import entry, ingest, worker
from ssdd.training.ingest import Order
from ssdd.training.local_backend import LocalTorchConfig
from ssdd.training.worker import META, STATE, DivergedError, Loop, LostError, OrderError, Validate

PATIENCE = (5, 20, 80)
"""Seconds to wait after an object store has failed, before the first, second and third restart of a training."""
RESTARTS = len(PATIENCE)
"""The most restarts of a training without a finished epoch in between."""
# Errors that come from outside the training, so the training is restarted. When a worker dies, another worker may
# report it first, by torch's DistError or by gloo's "closed by peer".
_LOST = (
    RayActorError,
    GetTimeoutError,
    OutOfMemoryError,
    torch.distributed.DistError,
    RemoteError,
)


def run(
    session: Session,
    name: str,
    recipe: dict[str, Any],
    task: Task,
    joined: list[Table],
    validate: Validate | None = None,
    pool: int = 0,
) -> Artifact:
    """Train on the workers of the session's plan; return an artifact with `model.pt`, the network's state dict.

    Args:
        session: provides cluster, workspace, progress lines and tracking.
        name: the name of the stage, for progress lines and metrics.
        recipe: the configuration and the inputs that determine the result. A finished training with the same recipe is
            reused, and an interrupted one is continued.
        task: the network, the losses and the samples.
        joined: tables with the same parts, which together have the columns that the task needs.
        validate: scores the network after each epoch (metric `NAME.iou`); a sweep's trial reports it to Ray Tune.
        pool: the number of CRF actors that run beside the training.
    """
    runs = session.workspace / "runs" / session.store.identify(name, recipe).path.name
    training = _Training(session=session, name=name, runs=runs, task=task, joined=joined, validate=validate, pool=pool)
    try:
        artifact = session.build(name, recipe, training.fit)
    except Exception:
        # Another machine may have finished the same training, and removed the checkpoints of both.
        if not session.has(name, recipe):
            raise
        artifact = session.build(name, recipe, training.fit)
    remove(runs)
    return artifact


@dataclass(frozen=True, kw_only=True)
class _Training:
    """One training, in one or more attempts."""

    session: Session
    name: str
    runs: AnyPath
    """The folder of the attempts' checkpoints."""
    task: Task
    joined: list[Table]
    validate: Validate | None
    pool: int

    def fit(self, folder: AnyPath) -> dict[str, Any]:
        """Train to the last epoch, with restarts after interruptions, and write the network into a folder.

        Returns:
            `seconds`, the training time, and `history`, see `worker.History`. Both include earlier jobs, up to the
            checkpoint from which this job continues.
        """
        name, line, epochs_wanted = self.name, self.session.console.line, self.task.train.epochs
        restarts, epochs, done = 0, 0, -1
        begun, earlier = time.monotonic(), None
        while True:
            try:
                epochs, state = last_checkpoint(self.runs)
                restarts, done = (restarts, done) if epochs == done else (0, epochs)
                history = worker.read_history(state)
                if earlier is None:
                    earlier = history[-1]["seconds"] if history else 0
                if state is not None and epochs >= epochs_wanted:
                    checkpoints.save(checkpoints.read(state / STATE)["net"], folder / MODEL)
                    return {"seconds": earlier + time.monotonic() - begun, "history": history}
                if state is not None:
                    line(f"[{name}] goes on after epoch {epochs} of {epochs_wanted}")
                self._attempt(cluster.remaining(self.session.plan, self.pool), epochs, state)
                if last_checkpoint(self.runs)[0] < epochs_wanted:
                    raise LostError(
                        f"[{name}] the last checkpoint is missing in {self.runs}; give the same command again to go on"
                    )
            except (ray.train.TrainingFailedError, RayActorError, RemoteError) as error:
                reason = _lost(error)
                if reason is None:
                    raise
                if restarts == RESTARTS:
                    if isinstance(error, RemoteError):
                        raise
                    raise LostError(
                        f"[{name}] lost a process {restarts + 1} times in epoch {epochs + 1} ({reason}); if there is "
                        "too little memory, set a smaller --step.micro-batch or --workers. Give the same command again "
                        "to go on after the last finished epoch"
                    ) from error
                if isinstance(error, RemoteError):
                    time.sleep(PATIENCE[restarts])
                restarts += 1
                line(f"[{name}] interrupted ({reason}); starts again")

    def _attempt(self, plan: Plan, first_epoch: int, resume: AnyPath | None) -> None:
        """Train from a checkpoint, if there is one, to the last epoch, on the workers of a plan."""
        session, task, train, table = self.session, self.task, self.task.train, self.joined[0]
        if session.config.step.bf16 and not plan.use_gpu:
            raise ConfigError(
                "--step.bf16 True: on some CPUs torch computes wrong gradients in bfloat16; leave it out if you train "
                "without a GPU"
            )
        images = min(train.batch_size, table.rows)
        workers = workers_for(images, plan.workers)
        if images < train.batch_size:
            session.console.line(f"[{self.name}] {images} images a step: the list has fewer than {train.batch_size}")
        session.console.line(f"[{self.name}] {_workers_line(images, workers, plan.workers)}")
        steps = table.rows // images
        order = Order(table.rows, len(table.parts[0]), session.config.seed)
        stream = range(first_epoch * steps * images, train.epochs * steps * images, images // workers)
        mailbox, attempt = Mailbox(), f"from-epoch-{first_epoch}-{time.time_ns()}"
        loop = Loop(
            name=self.name,
            task=task,
            order=order,
            table=table.path,
            images=images,
            steps=steps,
            threads=plan.threads,
            step=session.config.step,
            first_epoch=first_epoch,
            checkpoints=self.runs / attempt,
            resume=resume,
            mailbox=mailbox,
            validate=self.validate,
        )
        trainer = TorchTrainer(
            # The loop is not a train_loop_config: Ray's controller would unpickle that, and so import torch and timm.
            partial(entry.begin, ray.cloudpickle.dumps(loop)),
            torch_config=LocalTorchConfig(plan.use_gpu) if cluster.on_loopback() else None,  # type: ignore[arg-type]
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=plan.use_gpu,
                resources_per_worker=plan.network_resources,
                placement_strategy="PACK" if plan.use_gpu else "SPREAD",  # CPU workers use all nodes' cores
            ),
            datasets={"train": ingest.samples(self.joined, task.sampling, order, stream, plan)},
            # The samples keep their order and go to the workers in turn, so that a step has the same samples, whatever
            # nodes the workers run on.
            dataset_config=DataConfig(
                execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
            ),
            run_config=RunConfig(
                name=attempt,
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                failure_config=_no_restarts(),
                worker_runtime_env=plan.network_environment,  # type: ignore[call-arg]
                callbacks=[TuneReportCallback()] if self.validate and session.in_trial else None,  # type: ignore[list-item]
                **cluster.storage(self.runs),
            ),
        )
        ingest.warm_up(plan)
        with mailbox.listen(_Progress(session, self.name)), _unwrapped(self.name, self.runs), _own_interrupt():
            trainer.fit()


def _no_restarts() -> FailureConfig:
    """Keep Ray Train from restarting a training: `_Training.fit` restarts it with the remaining samples.

    Ray Train may still try five times, a minute each, to start the workers; after that, `fit` continues with the rest
    of the cluster. Ray before 2.58 has no separate limit for preemptions.
    """
    options: dict[str, Any] = dict(max_failures=0, max_preemption_failures=0, controller_failure_limit=5)
    supported = {field.name for field in fields(FailureConfig)}
    return FailureConfig(**{name: value for name, value in options.items() if name in supported})


class _Progress:
    """Shows the workers' events on the terminal, and sends their metrics to the tracker."""

    def __init__(self, session: Session, name: str):
        self.show, self.tracker, self.name = session.console.stage(name), session.tracker, name

    def __call__(self, event: Event) -> None:
        shares = {k.removeprefix("share."): v for k, v in event.metrics.items() if k.startswith("share.")}
        text = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if not k.startswith("share."))
        text += "  " + " ".join(f"{k} {100 * v:.0f}%" for k, v in shares.items())
        self.show(event.step, event.steps, f"epoch {event.epoch}/{event.epochs}  {text}")
        self.tracker.metrics({f"{self.name}.{k}": v for k, v in event.metrics.items()}, step=event.step)


def _workers_line(images: int, workers: int, available: int) -> str:
    """The progress line about the workers of a step, and why not all available workers are used."""
    text = f"{images} images a step on {workers} worker{'s' if workers > 1 else ''}"
    return text + (f" of {available}: more would not divide the images evenly" if workers < available else "")


def _lost(error: Exception) -> str | None:
    """The reason why a training was interrupted from outside; None if the training itself failed."""
    for failure in _failures(error):
        cause = ray_internals.behind(failure)
        by_peer = isinstance(cause, RuntimeError) and "by peer" in str(cause)  # gloo's error
        if isinstance(cause, _LOST) or by_peer or ray_internals.is_interruption(cause):
            return message_of(cause).splitlines()[0]
    return None


def _failures(error: Exception) -> list[Exception]:
    """The errors in Ray's report of a failed training."""
    if isinstance(error, ray.train.WorkerGroupError):
        return list(error.worker_failures.values())
    return [getattr(error, "controller_failure", error)]


@contextlib.contextmanager
def _unwrapped(name: str, runs: AnyPath) -> Iterator[None]:
    """If the user can fix an error, raise the error itself instead of Ray's report that contains it."""
    try:
        yield
    except (ray.train.TrainingFailedError, OSError) as error:
        failures, by_worker = _failures(error), isinstance(error, ray.train.WorkerGroupError)
        diverged = [f for f in failures if isinstance(f, DivergedError)]
        if diverged:  # each worker's error names only its own images
            images = tuple(sorted({image for failure in diverged for image in failure.images}))
            raise DivergedError(f"[{name}] {diverged[0].what}", images) from None
        for failure in failures:
            for kind in (OrderError, GPUMemoryError):
                if isinstance(failure, kind):
                    raise kind(f"[{name}] {failure}") from None
            if disk_is_full(failure) or isinstance(failure, (RemoteError, DamagedTableError, CrashError)):
                raise failure from error
            without_errno = getattr(original_error(failure), "errno", 0) is None  # as with pyarrow's errors
            if isinstance(failure, OSError) and without_errno and isinstance(runs, RemotePath) and not by_worker:
                raise runs.error(failure) from error  # Ray could not read or write its own files in the object store
        raise


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Restore the handler of Ctrl-C after the block: Ray Train would keep its own one after the training has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def last_checkpoint(runs: AnyPath) -> tuple[int, AnyPath | None]:
    """The number of finished epochs and the folder of the latest complete checkpoint; 0 and None if there is none."""
    whole: list[tuple[int, AnyPath]] = []
    for path in runs.glob(f"*/*/{META}"):
        with contextlib.suppress(ValueError, OSError):  # skip damaged checkpoints
            meta = json.loads(path.read_text())
            if stat(path.parent / STATE).st_size == meta["bytes"]:
                whole.append((meta["epoch"], path.parent))
    return max(whole, default=(0, None))

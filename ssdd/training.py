"""Ray Train: one training loop for every network of the method.

A stage describes its training by a `Task`; the loop feeds it augmented samples from Ray Data shards, steps the
optimizer, and reports a checkpoint to Ray Train after every epoch. A training that was interrupted goes on from its
last whole checkpoint.
"""

import contextlib
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.data import ExecutionOptions
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import (  # no public names
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
)
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor, nn

from ssdd import cluster, data, published, voc
from ssdd.cluster import Plan
from ssdd.config import NetworkConfig, StepConfig, TrainConfig
from ssdd.data import Order, Sampling
from ssdd.local_trainer import LocalTrainer
from ssdd.metrics import ConfusionMatrix
from ssdd.paths import AnyPath, RemoteError, RemotePath, remove, stat
from ssdd.progress import Event, Mailbox
from ssdd.session import Session, resolve
from ssdd.step import Clock, Objective, Workers, gradients
from ssdd.store import Artifact
from ssdd.tables import DamagedTableError, Table, open_table
from ssdd.weight_files import WeightsError

MODEL = "model.pt"
STATE = "state.pt"
META = "meta.json"  # of a checkpoint, whose last file it is
LOG_EVERY = 2.0  # seconds
CHECK_EVERY = 20  # steps
PATIENCE = (5, 20, 80)
"""Seconds before a training goes on where an object store has failed, at the first interruption and the next ones."""
RESTARTS = len(PATIENCE)
"""How often a training goes on after an interruption, without a finished epoch in between."""
Net = TypeVar("Net", bound=nn.Module)


class DivergedError(RuntimeError):
    """A loss is no longer a number; the message names it, the step, that step's images and the remedy."""

    def __init__(self, what: str, images: tuple[str, ...]):
        super().__init__(what, images)  # both, for pickle
        self.what, self.images = what, images

    def __str__(self) -> str:
        return f"{self.what}: lower the learning rate, or look at the images of that step: {', '.join(self.images)}"


class LostError(RuntimeError):
    """The processes of a training die again and again, or what it made did not arrive; the message says how."""


class Task(Objective, Protocol):
    """A training: picklable, built anew in each worker. Its losses are those of a batch from `data.samples`."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def sampling(self) -> Sampling: ...

    def build(self) -> nn.Module:
        """The network at the start of training; its `backbone` has the base learning rate, the rest is new."""


def lr_factor(train: TrainConfig, done: float) -> float:
    """The learning rate as a share of the initial one, after the share `done` of the training."""
    if train.schedule == "poly":
        return (1 - done) ** 0.9
    return (1 + math.cos(math.pi * done / 1.2)) / 2


def in_bf16(step: StepConfig, where: torch.device) -> bool:
    """Whether networks are trained in bfloat16."""
    if step.bf16 is not None:
        return step.bf16
    return where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer_for(net: Any, train: TrainConfig) -> torch.optim.SGD:
    """SGD with the backbone at `lr` and everything else at `lr * new_layers_lr`."""
    backbone = {id(p) for p in net.backbone.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "scale": 1.0},
        {"params": [p for p in trained if id(p) not in backbone], "scale": train.new_layers_lr},
    ]
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


@dataclass(frozen=True)
class _Loop:
    """What a worker gets."""

    name: str
    task: Task
    seed: int
    table: AnyPath
    """With the images."""
    batch: int
    """Images of a worker in a step."""
    steps: int
    """Of an epoch."""
    threads: int
    step: StepConfig
    first_epoch: int
    checkpoints: AnyPath
    """Their folder: Ray Train's of this attempt."""
    resume: AnyPath | None
    mailbox: Mailbox
    validate: "Validate | None"


Validate = Callable[[nn.Module, int, int], np.ndarray]
"""Gives a worker's share of a network's confusion matrix, from its rank and the number of workers."""
IOU = "iou"  # in percent
# What befalls a training from outside. A worker that outlives another one may say so first: `by peer`, or DistError.
_LOST = (
    RayActorError,
    OutOfMemoryError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
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
) -> Artifact:
    """Train on the workers of the session's plan; an artifact with `model.pt`, the network's state dict.

    Args:
        session: cluster, workspace, progress, tracking.
        name: of the stage, for progress and metrics.
        recipe: what the result follows from. A training with the same recipe is not run again, and one that was
            interrupted is continued.
        task: what to train.
        joined: tables with the columns that the task samples.
        validate: scores the network after each epoch, as `NAME.iou`; the trial of a sweep reports that to Ray Tune.
    """
    runs = session.workspace / "runs" / session.store.identify(name, recipe).path.name
    artifact = session.build(name, recipe, lambda folder: _fit(session, name, runs, task, joined, folder, validate))
    remove(runs)
    return artifact


def _fit(
    session: Session,
    name: str,
    runs: AnyPath,
    task: Task,
    joined: list[Table],
    folder: AnyPath,
    validate: Validate | None,
) -> None:
    restarts, epochs, done, plan = 0, 0, -1, session.plan
    while True:
        try:
            epochs, state = _last_checkpoint(runs)
            restarts, done = (restarts, done) if epochs == done else (0, epochs)
            if state is not None and epochs >= task.train.epochs:
                save(read(state / STATE)["net"], folder / MODEL)
                return
            if state is not None:
                session.console.line(f"[{name}] goes on after epoch {epochs} of {task.train.epochs}")
            _attempt(session, plan, name, runs, task, joined, epochs, state, validate)
            if _last_checkpoint(runs)[0] < task.train.epochs:
                raise LostError(f"[{name}] its last checkpoint did not arrive in {runs}; the same command goes on")
        except (ray.train.TrainingFailedError, RayActorError, RemoteError) as error:
            reason = _lost(error)
            if reason is None:
                raise
            if restarts == RESTARTS:
                if isinstance(error, RemoteError):
                    raise
                raise LostError(
                    f"[{name}] lost a process {restarts + 1} times in epoch {epochs + 1} ({reason}): is there enough "
                    "memory (--step.micro-batch, --workers)? The same command goes on after the last finished epoch"
                ) from error
            if isinstance(error, RemoteError):
                time.sleep(PATIENCE[restarts])
            restarts += 1
            plan = cluster.remaining(session.plan)
            session.console.line(f"[{name}] interrupted ({reason}); starts again with {plan.workers} worker(s)")


def read(path: AnyPath, where: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote; nothing is unpickled but tensors and plain data."""
    with path.open("rb") as stream:
        return torch.load(stream, map_location=where, weights_only=True)


def save(value: Any, path: AnyPath) -> int:
    """`torch.save`, with an OSError where the disk is full; gives the file's size in bytes."""
    with path.open("wb") as stream:
        try:
            torch.save(value, stream)
            return stream.tell()
        except RuntimeError as error:  # it could not end the file either
            raise error.__context__ or error from None


def _lost(error: Exception) -> str | None:
    """What became of a training that something outside ended; None where it failed by itself."""
    if isinstance(error, ray.train.PreemptionError):
        return "its node is taken away"
    for failure in _failures(error):
        cause = getattr(failure, "health_check_failure", failure)
        if isinstance(cause, _LOST) or (isinstance(cause, RuntimeError) and "by peer" in str(cause)):
            return cluster.own_words(cause).splitlines()[0]
    return None


def _failures(error: Exception) -> list[Exception]:
    """What went wrong, out of Ray's report of a training."""
    if isinstance(error, ray.train.WorkerGroupError):
        return list(error.worker_failures.values())
    return [getattr(error, "controller_failure", error)]


def _attempt(
    session: Session,
    plan: Plan,
    name: str,
    runs: AnyPath,
    task: Task,
    joined: list[Table],
    first_epoch: int,
    resume: AnyPath | None,
    validate: Validate | None,
) -> None:
    """Train from the last checkpoint to the end, on the workers of a plan."""
    train, table = task.train, joined[0]
    show = session.console.stage(name)

    def handle(event: Event) -> None:
        shares = {k.removeprefix("share."): v for k, v in event.metrics.items() if k.startswith("share.")}
        text = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if not k.startswith("share."))
        text += "  " + " ".join(f"{k} {100 * v:.0f}%" for k, v in shares.items())
        show(event.step, event.steps, f"epoch {event.epoch}/{event.epochs}  {text}")
        session.tracker.metrics({f"{name}.{k}": v for k, v in event.metrics.items()}, step=event.step)

    batch = max(1, min(train.batch_size, table.rows) // plan.workers)
    steps = max(1, table.rows // (batch * plan.workers))
    epoch = steps * batch * plan.workers
    stream = range(first_epoch * epoch, train.epochs * epoch, batch)
    order = Order(table.rows, len(table.parts[0]), session.config.seed)
    mailbox, attempt = Mailbox(), f"from-epoch-{first_epoch}-{time.time_ns()}"
    loop = _Loop(
        name,
        task,
        session.config.seed,
        table.path,
        batch,
        steps,
        plan.threads,
        session.config.step,
        first_epoch,
        runs / attempt,
        resume,
        mailbox,
        validate,
    )
    trainer = (LocalTrainer if cluster.on_loopback() else TorchTrainer)(
        partial(_train, loop),  # Ray's controller unpacks a train_loop_config, and so would import torch and timm
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.use_gpu,
            resources_per_worker=plan.network_resources,
            placement_strategy="PACK" if plan.use_gpu else "SPREAD",  # each has its share of a node's threads
        ),
        datasets={"train": data.samples(joined, task.sampling, order, stream, plan)},
        # In order, and to the workers in turns, so that a step has the same samples wherever its workers are.
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
        run_config=RunConfig(
            name=attempt,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # `_fit` starts again, with the rest of the stream; after five minutes, with what is left of the cluster.
            failure_config=FailureConfig(max_preemption_failures=0, controller_failure_limit=5),  # type: ignore[call-arg]
            worker_runtime_env=plan.network_environment,  # type: ignore[call-arg]
            callbacks=[TuneReportCallback()] if validate and session.in_trial else None,  # type: ignore[list-item]
            **cluster.storage(runs),
        ),
    )
    data.warm_up(plan)
    with mailbox.listen(handle), _unwrapped(name, runs), _own_interrupt():
        trainer.fit()


def convert(
    session: Session,
    name: str,
    files: tuple[Path, ...],
    network: NetworkConfig,
    classes: tuple[str, ...],
    net: Callable[[], nn.Module],
) -> Artifact:
    """An artifact like `run`'s out of published weight files instead of a training.

    Raises:
        WeightsError: they do not fill the network, or the data has other classes than VOC's.
    """
    if classes[1:] != voc.VOC_CLASSES:
        raise WeightsError(
            f"{', '.join(map(str, files))}: the published weights know VOC's 20 classes in VOC's order, but the data "
            f"has {', '.join(classes[1:])}; train on it instead (leave the weights of [{name}] out)"
        )
    found = tuple(resolve(path, default="weights", flag=f"weights of [{name}]") for path in files)
    recipe = {"files": voc.stats(found), "network": network}

    def make(folder: AnyPath) -> None:
        filled = net()
        for line in published.fill(filled, found):
            session.console.line(f"[{name}] {line}")
        save(filled.state_dict(), folder / MODEL)

    return session.build(name, recipe, make)


def load(net: Net, path: AnyPath) -> Net:
    """`net` with the weights of `model.pt` in an artifact's folder, ready for inference."""
    net.load_state_dict(read(path / MODEL))
    return ready(net)


def ready(net: Net) -> Net:
    """`net` for inference on this process's device."""
    return net.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_parts(net: nn.Module, path: AnyPath, parts: dict[str, str]) -> None:
    """Start parts of `net` from parts of another stage's `model.pt`: {name in `net`: name there, "" being all}."""
    state = read(path / MODEL)
    for own, other in parts.items():
        prefix = f"{other}." if other else ""
        net.get_submodule(own).load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def device() -> torch.device:
    """The device of an inference process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _unwrapped(name: str, runs: AnyPath) -> Iterator[None]:
    """What the user can mend as itself, instead of inside Ray's report of the failure."""
    try:
        yield
    except (ray.train.TrainingFailedError, OSError) as error:
        failures, by_worker = _failures(error), isinstance(error, ray.train.WorkerGroupError)
        diverged = [f for f in failures if isinstance(f, DivergedError)]
        if diverged:  # each worker knows its own images
            images = tuple(sorted({image for failure in diverged for image in failure.images}))
            raise DivergedError(f"[{name}] {diverged[0].what}", images) from None
        for failure in failures:
            if cluster.disk_is_full(failure) or isinstance(failure, (RemoteError, DamagedTableError)):
                raise failure from error
            unnumbered = getattr(cluster.own_error(failure), "errno", 0) is None  # as pyarrow's are
            if isinstance(failure, OSError) and unnumbered and isinstance(runs, RemotePath) and not by_worker:
                raise runs.error(failure) from error  # of Ray's own files there
        raise


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Give Ctrl-C back afterwards: Ray Train would keep it for a training that has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _last_checkpoint(runs: AnyPath) -> tuple[int, AnyPath | None]:
    """Epochs done and folder of the furthest whole checkpoint; 0 and None where there is none."""
    found: list[tuple[int, AnyPath]] = []
    for path in runs.glob(f"*/*/{META}"):
        with contextlib.suppress(ValueError, OSError):  # damaged ones are left out
            meta = json.loads(path.read_text())
            if stat(path.parent / STATE).st_size == meta["bytes"]:
                found.append((meta["epoch"], path.parent))
    return max(found, default=(0, None))


def _train(loop: _Loop) -> None:
    """The training loop, in each worker."""
    task, train = loop.task, loop.task.train
    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    where = ray.train.torch.get_device()
    if where.type == "cpu":
        torch.set_num_threads(loop.threads)
    torch.manual_seed(loop.seed)
    net = task.build().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(net, train)
    if loop.resume is not None:
        state = read(loop.resume / STATE, where)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        del state
    net.train()
    if loop.step.compile:
        net.backbone.compile()
    together = Workers(net)
    clock = Clock(where if rank == 0 else torch.device("cpu"))  # the others' times, and their events, nobody reads
    bf16 = in_bf16(loop.step, where)

    total = loop.steps * train.epochs
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(
        batch_size=loop.batch, prefetch_batches=2, drop_last=True, pin_memory=where.type == "cuda"
    )
    size, ahead = loop.step.parts_of(loop.batch, task.elsewhere, where.type == "cuda")
    log = _Log(loop, total, clock, rank)
    finite = _Finite(loop)
    step = loop.first_epoch * loop.steps
    for batch in clock.each("data_wait", batches):
        if step % loop.steps == 0:  # dropout, the same whether the training was interrupted or not
            epoch_seed = np.random.default_rng([loop.seed, step // loop.steps, rank]).integers(2**31)
            torch.manual_seed(int(epoch_seed))
        for group in optimizer.param_groups:
            group["lr"] = train.lr * group["scale"] * lr_factor(train, step / total)
        losses = gradients(task, net, batch, together, clock, size, ahead, bf16)
        with clock("update"):
            optimizer.step()
        step += 1
        finite.add(step, losses, batch["row"])
        ended = step % loop.steps == 0
        if ended or step % CHECK_EVERY == 0:
            finite.check()
        log.step(step, losses, optimizer.param_groups[0]["lr"], loop.batch * workers)
        if ended:
            epoch = step // loop.steps
            folder = loop.checkpoints / f"epoch-{epoch}"
            _report(folder, epoch, net, optimizer, rank, log.validated(step, net, workers))


def _report(
    folder: AnyPath, epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, metrics: dict[str, float]
) -> None:
    """An epoch's end to Ray Train; the first worker writes a checkpoint into a new folder."""
    checkpoint = None
    if rank == 0:
        folder.mkdir()  # in Ray's, so that a disk that is not shared is an error
        # Where it stays: Ray's own upload does not say when it fails at its end.
        size = save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE)
        (folder / META).write_text(json.dumps({"epoch": epoch, "bytes": size}))
        system = ray.train.get_context().get_storage().storage_filesystem
        checkpoint = Checkpoint(cluster.storage(folder)["storage_path"], system)
    ray.train.report({"epoch": epoch, **metrics}, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


class _Finite:
    """Ends a training whose losses are no numbers, before its state becomes a checkpoint.

    All workers look at the same steps, each for its own images, and rarely: it makes the CPU wait for the GPU.
    """

    def __init__(self, loop: _Loop):
        self.loop = loop
        self.steps: list[tuple[int, dict[str, Tensor], Tensor]] = []

    def add(self, step: int, losses: dict[str, Tensor], rows: Tensor) -> None:
        """Losses of all workers' samples, and this worker's samples as rows of the images' table."""
        self.steps.append((step, losses, rows))

    def check(self) -> None:
        values = torch.stack([torch.stack(list(losses.values())) for _, losses, _ in self.steps]).cpu()
        for (step, losses, rows), found in zip(self.steps, values, strict=True):
            for name, value in zip(losses, found.tolist(), strict=True):
                if not math.isfinite(value):
                    ids = list(itertools.chain(*open_table(self.loop.table).parts))
                    images = tuple(ids[row] for row in rows.tolist())
                    raise DivergedError(f"loss.{name} is {value} at step {step}", images)
        self.steps.clear()


class _Log:
    """Means over the last seconds, sent to the driver by the first worker."""

    def __init__(self, loop: _Loop, total: int, clock: Clock, rank: int):
        self.loop, self.total, self.clock, self.rank = loop, total, clock, rank
        self._reset()

    def _reset(self) -> None:
        self.begun, self.count = time.perf_counter(), 0
        self.sums: dict[str, Tensor] = {}

    def step(self, step: int, losses: dict[str, Tensor], lr: float, images: int) -> None:
        if self.rank != 0:
            return
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        elapsed = time.perf_counter() - self.begun
        if elapsed < LOG_EVERY and step < self.total:
            return
        metrics = {f"loss.{name}": float(value) / self.count for name, value in self.sums.items()}
        metrics |= {
            "lr": lr,
            "images_per_s": images * self.count / elapsed,
        }
        metrics |= {f"share.{name}": seconds / elapsed for name, seconds in self.clock.read().items()}
        self._send(step, metrics)
        self._reset()

    def validated(self, step: int, net: nn.Module, workers: int) -> dict[str, float]:
        """`NAME.iou` of the network, where it is to be scored after an epoch; all workers take part."""
        if self.loop.validate is None:
            return {}
        net.eval()
        with self.clock("validation", on_device=False):
            counts = torch.from_numpy(self.loop.validate(net, self.rank, workers)).to(next(net.parameters()).device)
            if workers > 1:
                torch.distributed.all_reduce(counts)
        net.train()
        iou = 100 * ConfusionMatrix.of(counts.cpu().numpy()).mean_iou()
        if self.rank == 0:
            self._send(step, {IOU: iou})
        return {f"{self.loop.name}.{IOU}": iou}

    def _send(self, step: int, metrics: dict[str, float]) -> None:
        epoch = (step - 1) // self.loop.steps + 1
        self.loop.mailbox.send(Event(step, self.total, epoch, self.loop.task.train.epochs, metrics))

"""Ray Train: one training loop for every network of the method.

A stage describes its training by a `Task`; the loop feeds it augmented samples from Ray Data shards, steps the
optimizer, and reports a checkpoint to Ray Train after every epoch. A training that was interrupted goes on from its
last whole checkpoint.
"""

import contextlib
import json
import math
import shutil
import signal
import tempfile
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
from ray.train import Checkpoint, CheckpointConfig, DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor, nn

from ssdd import data, published, voc
from ssdd.config import NetworkConfig, StepConfig, TrainConfig
from ssdd.data import Sampling
from ssdd.metrics import ConfusionMatrix
from ssdd.progress import Event, Mailbox
from ssdd.session import Session, resolve
from ssdd.step import Clock, Objective, Workers, gradients
from ssdd.store import Artifact
from ssdd.tables import Table
from ssdd.weight_files import WeightsError

MODEL = "model.pt"
STATE = "state.pt"
LOG_EVERY = 2.0  # seconds
Net = TypeVar("Net", bound=nn.Module)


class DivergedError(RuntimeError):
    """A loss is no longer a number; the message names it, the step and the remedy."""


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
    images: int
    threads: int
    step: StepConfig
    first_epoch: int
    resume: Path | None
    mailbox: Mailbox
    validate: "Validate | None"


Validate = Callable[[nn.Module, int, int], np.ndarray]
"""Gives a worker's share of a network's confusion matrix, from its rank and the number of workers."""
IOU = "iou"  # in percent


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
    shutil.rmtree(runs, ignore_errors=True)
    return artifact


def _fit(
    session: Session,
    name: str,
    runs: Path,
    task: Task,
    joined: list[Table],
    folder: Path,
    validate: Validate | None,
) -> None:
    plan, train = session.plan, task.train
    first_epoch, resume = _last_checkpoint(runs)
    if resume is not None:
        session.console.line(f"[{name}] goes on after epoch {first_epoch} of {train.epochs}")
    show = session.console.stage(name)

    def handle(event: Event) -> None:
        shares = {k.removeprefix("share."): v for k, v in event.metrics.items() if k.startswith("share.")}
        text = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if not k.startswith("share."))
        text += "  " + " ".join(f"{k} {100 * v:.0f}%" for k, v in shares.items())
        show(event.step, event.steps, f"epoch {event.epoch}/{event.epochs}  {text}")
        session.tracker.metrics({f"{name}.{k}": v for k, v in event.metrics.items()}, step=event.step)

    if first_epoch < train.epochs:
        epochs = range(first_epoch, train.epochs)
        mailbox = Mailbox()
        loop = _Loop(
            name,
            task,
            session.config.seed,
            joined[0].rows,
            plan.threads,
            session.config.step,
            first_epoch,
            resume,
            mailbox,
            validate,
        )
        trainer = TorchTrainer(
            partial(_train, loop),  # Ray's controller unpacks a train_loop_config, and so would import torch and timm
            scaling_config=ScalingConfig(
                num_workers=plan.workers, use_gpu=plan.use_gpu, resources_per_worker=plan.network_resources
            ),
            datasets={"train": data.samples(joined, task.sampling, epochs, session.config.seed, plan)},
            dataset_config=DataConfig(execution_options=_ordered()),
            run_config=RunConfig(
                name=f"from-epoch-{first_epoch}-{time.time_ns()}",
                storage_path=str(runs),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                worker_runtime_env=plan.network_environment,  # type: ignore[call-arg]
                callbacks=[TuneReportCallback()] if validate and session.in_trial else None,  # type: ignore[list-item]
            ),
        )
        data.warm_up(plan)
        with mailbox.listen(handle), _unwrapped(name), _own_interrupt():
            trainer.fit()
    _, final = _last_checkpoint(runs)
    assert final is not None, f"{name}: the training ended without a checkpoint"
    state = torch.load(final / STATE, map_location="cpu", weights_only=True)
    torch.save(state["net"], folder / MODEL)


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
    files = tuple(resolve(path, default="weights", flag=f"weights of [{name}]") for path in files)
    recipe = {"files": voc.stats(files), "network": network}

    def make(folder: Path) -> None:
        filled = net()
        for line in published.fill(filled, files):
            session.console.line(f"[{name}] {line}")
        torch.save(filled.state_dict(), folder / MODEL)

    return session.build(name, recipe, make)


def load(net: Net, path: Path) -> Net:
    """`net` with the weights of `model.pt` in an artifact's folder, ready for inference."""
    net.load_state_dict(torch.load(path / MODEL, map_location="cpu", weights_only=True))
    return ready(net)


def ready(net: Net) -> Net:
    """`net` for inference on this process's device."""
    return net.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_parts(net: nn.Module, path: Path, parts: dict[str, str]) -> None:
    """Start parts of `net` from parts of another stage's `model.pt`: {name in `net`: name there, "" being all}."""
    state = torch.load(path / MODEL, map_location="cpu", weights_only=True)
    for own, other in parts.items():
        prefix = f"{other}." if other else ""
        net.get_submodule(own).load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def device() -> torch.device:
    """The device of an inference process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def _unwrapped(name: str) -> Iterator[None]:
    """A worker's DivergedError as itself, instead of inside Ray's report of the failure."""
    try:
        yield
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, DivergedError):
                raise DivergedError(f"[{name}] {failure}") from None
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


def _ordered() -> ExecutionOptions:
    return ExecutionOptions(preserve_order=True)  # so that a seed gives the same batches again


def _last_checkpoint(runs: Path) -> tuple[int, Path | None]:
    """Epochs done and folder of the furthest whole checkpoint; 0 and None where there is none."""
    found: list[tuple[int, Path]] = []
    for path in runs.glob("*/*/meta.json"):
        # Ray copies a checkpoint's files in any order, so that a cut-off copy may have this one already.
        with contextlib.suppress(ValueError, OSError):
            meta = json.loads(path.read_text())
            if (path.parent / STATE).stat().st_size == meta["bytes"]:
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
        state = torch.load(loop.resume / STATE, map_location=where, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        del state
    torch.manual_seed(int(np.random.default_rng([loop.seed, loop.first_epoch, rank]).integers(2**31)))  # dropout's
    net.train()
    if loop.step.compile:
        net.backbone.compile()
    together = Workers(net)
    clock = Clock(where if rank == 0 else torch.device("cpu"))  # the others' times, and their events, nobody reads
    bf16 = in_bf16(loop.step, where)

    local_batch = max(1, min(train.batch_size, loop.images) // workers)
    steps_per_epoch = max(1, loop.images // (local_batch * workers))
    total = steps_per_epoch * train.epochs
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(
        batch_size=local_batch,
        prefetch_batches=2,
        drop_last=True,
        local_shuffle_buffer_size=4 * local_batch,
        local_shuffle_seed=loop.seed,
        pin_memory=where.type == "cuda",
    )
    size, ahead = loop.step.parts_of(local_batch, task.elsewhere, where.type == "cuda")
    log = _Log(loop, total, train.epochs, steps_per_epoch, clock, rank)
    step = loop.first_epoch * steps_per_epoch
    for batch in clock.each("data_wait", batches):
        for group in optimizer.param_groups:
            group["lr"] = train.lr * group["scale"] * lr_factor(train, step / total)
        losses = gradients(task, net, batch, together, clock, size, ahead, bf16)
        with clock("update"):
            optimizer.step()
        step += 1
        log.step(step, losses, optimizer.param_groups[0]["lr"], local_batch * workers)
        if step % steps_per_epoch == 0 and step < total:
            _report(step // steps_per_epoch, net, optimizer, rank, log.validated(step, net, workers))
        if step == total:
            break
    _report(train.epochs, net, optimizer, rank, log.validated(step, net, workers))


def _report(epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer, rank: int, metrics: dict[str, float]) -> None:
    """A checkpoint to Ray Train."""
    if rank != 0:
        ray.train.report({"epoch": epoch})
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder) / STATE)
        meta = {"epoch": epoch, "bytes": (Path(folder) / STATE).stat().st_size}
        (Path(folder) / "meta.json").write_text(json.dumps(meta))
        ray.train.report({"epoch": epoch, **metrics}, checkpoint=Checkpoint.from_directory(folder))


class _Log:
    """Means over the last seconds, sent to the driver by the first worker."""

    def __init__(self, loop: _Loop, total: int, epochs: int, steps_per_epoch: int, clock: Clock, rank: int):
        self.loop, self.total, self.epochs, self.clock, self.rank = loop, total, epochs, clock, rank
        self.steps_per_epoch = steps_per_epoch
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
        for name, mean in metrics.items():
            if not math.isfinite(mean):
                raise DivergedError(f"{name} is {mean} at step {step}: lower the learning rate")
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
        epoch = min(self.epochs, (step - 1) // self.steps_per_epoch + 1)
        self.loop.mailbox.send(Event(step, self.total, epoch, self.epochs, metrics))

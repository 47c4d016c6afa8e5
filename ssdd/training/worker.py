"""The training loop, as each worker runs it: steps, learning rate, logging, checkpoints."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor, nn

from ssdd.config import StepConfig
from ssdd.data.problems import first_line
from ssdd.metrics import ConfusionMatrix
from ssdd.nets import checkpoints
from ssdd.objectives.optimizer import in_bf16, lr_factor, optimizer_for
from ssdd.objectives.step import Clock, Workers, gradients
from ssdd.objectives.task import Task
from ssdd.runtime import cluster
from ssdd.runtime.crashes import CrashError
from ssdd.runtime.errors import GPUMemoryError
from ssdd.runtime.progress import Event, Mailbox
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import open_table
from ssdd.training.ingest import Order

STATE = "state.pt"
META = "meta.json"  # written last in a checkpoint: `epoch`, `bytes` (the size of STATE), `history`
LOG_EVERY = 2.0  # seconds
CHECK_EVERY = 20  # steps


class DivergedError(RuntimeError):
    """A loss is NaN or infinite; the message names the loss, the step, that step's images and the remedy."""

    def __init__(self, what: str, images: tuple[str, ...]):
        super().__init__(what, images)  # both, for pickle
        self.what, self.images = what, images

    def __str__(self) -> str:
        return f"{self.what}: lower the learning rate, or look at the images of that step: {', '.join(self.images)}"


class LostError(RuntimeError):
    """The processes of a training died again and again, or its last checkpoint is missing; the message says which."""


class OrderError(RuntimeError):
    """Ray Data gave a worker other samples than expected; the message names their images."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The arguments of a training worker."""

    name: str
    task: Task
    order: Order
    """The order of the images; it also has the random seed of the training."""
    table: AnyPath
    """The table with the images."""
    images: int
    """The number of images in a step, over all workers together. It is a multiple of the number of workers."""
    steps: int
    """The steps of an epoch."""
    threads: int
    step: StepConfig
    first_epoch: int
    checkpoints: AnyPath
    """The folder for checkpoints: Ray Train's folder of this attempt."""
    resume: AnyPath | None
    """The checkpoint from which to continue, if any."""
    mailbox: Mailbox
    validate: "Validate | None"


Validate = Callable[[nn.Module, int, int], np.ndarray]
"""Returns a worker's share of a network's confusion matrix, given the network, the rank and the number of workers."""
IOU = "iou"  # in percent
History = list[dict[str, float]]
"""The logged values of a training, in time order. Each entry has `step`, `epoch` (a fraction), `seconds` since the
start, and either the losses, the learning rate and `images_per_s`, or the mean IoU."""


def train(loop: Loop) -> None:
    """The training loop, in each worker."""
    task, train = loop.task, loop.task.train
    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(loop.threads)
    torch.manual_seed(loop.order.seed)
    net = task.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(net, train)
    if loop.resume is not None:
        state = checkpoints.read(loop.resume / STATE, device)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        del state
    net.train()
    if loop.step.compile:
        net.backbone.compile()
    all_workers = Workers(net)
    clock = Clock(device if rank == 0 else torch.device("cpu"))  # only the first worker's GPU times are reported
    bf16 = in_bf16(loop.step, device)

    total, size = loop.steps * train.epochs, loop.images // workers
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(
        batch_size=size, prefetch_batches=2, drop_last=True, pin_memory=device.type == "cuda"
    )
    part, ahead = loop.step.parts_of(size, task.runs_on_actors, device.type == "cuda")
    log = _Log(loop, total, clock, rank)
    checks = _Checks(loop, rank, workers)
    step = loop.first_epoch * loop.steps
    for batch in clock.each("data_wait", batches):
        if step % loop.steps == 0:  # seed dropout, so that a training that was interrupted gets the same values
            epoch_seed = np.random.default_rng([loop.order.seed, step // loop.steps, rank]).integers(2**31)
            torch.manual_seed(int(epoch_seed))
        for group in optimizer.param_groups:
            group["lr"] = train.lr * group["scale"] * lr_factor(train, step / total)
        try:
            losses = gradients(task, net, batch, all_workers, clock, part, ahead, bf16)
            with clock("update"):
                optimizer.step()
        except CrashError as error:  # from a CRF actor, which does not know the image ids
            raise CrashError(checks.names(batch["row"].tolist())) from error
        except torch.cuda.OutOfMemoryError as error:
            raise GPUMemoryError(too_large(size, part, ahead, task.runs_on_actors, error)) from error
        step += 1
        checks.add(step, losses, batch["row"])
        ended = step % loop.steps == 0
        if ended or step % CHECK_EVERY == 0:
            checks.run()
        log.step(step, losses, optimizer.param_groups[0]["lr"], loop.images)
        if ended:
            epoch = step // loop.steps
            folder = loop.checkpoints / f"epoch-{epoch}"
            metrics = {"epoch": epoch, **log.validated(step, net, workers)}
            checkpoint = _checkpoint(folder, epoch, net, optimizer, log.history) if rank == 0 else None
            ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def too_large(images: int, part: int, ahead: int, runs_on_actors: bool, error: Exception) -> str:
    """The error message for a GPU whose memory is too small for a step.

    Args:
        images: the images of the worker's batch.
        part, ahead: see `gradients`.
        runs_on_actors: whether CRF actors compute masks during the step; then a smaller part has one more part ahead.
        error: torch's error.
    """
    held, at_once = min(images, part * (ahead + 1)), 1 + runs_on_actors
    smaller = max(1, held // 2 // at_once)
    helps = smaller * at_once < held
    remedy = f"--step.micro-batch {smaller}" if helps else "a smaller augment.crop, or a GPU with more memory"
    return f"the GPU has too little memory for {held} images at once: try {remedy} ({first_line(error)})"


def _checkpoint(
    folder: AnyPath, epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer, history: History
) -> Checkpoint:
    """Write a checkpoint into a new folder at the end of an epoch; only the first worker does so."""
    folder.mkdir()  # without `parents`: if the disk is not shared, Ray's folder is missing here, which is an error
    # Written directly to its final place, because Ray's own upload does not report an error at the end of the upload.
    size = checkpoints.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE)
    (folder / META).write_text(json.dumps({"epoch": epoch, "bytes": size, "history": history}))
    system = ray.train.get_context().get_storage().storage_filesystem
    return Checkpoint(cluster.storage(folder)["storage_path"], system)


def read_history(checkpoint: AnyPath | None) -> History:
    """A training's history up to a checkpoint; empty if there is no checkpoint or an earlier version wrote it."""
    return [] if checkpoint is None else json.loads((checkpoint / META).read_text()).get("history", [])


class _Checks:
    """Ends a training with unexpected samples or invalid losses, before its state becomes a checkpoint.

    All workers check after the same steps, each its own images. They check rarely, because the CPU has to wait for the
    GPU.
    """

    def __init__(self, loop: Loop, rank: int, workers: int):
        self.loop, self.rank = loop, rank
        self.ids: list[str] = []  # image ids, read when they are needed
        self.steps: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self.expected = _expected_rows(loop, rank, workers)

    def add(self, step: int, losses: dict[str, Tensor], rows: Tensor) -> None:
        """Keep a step's losses over all workers, and this worker's samples as row numbers, for the next check."""
        self.steps.append((step, losses, rows))

    def run(self) -> None:
        """Check the steps since the last call.

        Raises:
            OrderError: a step has other samples than the `Order` gives.
            DivergedError: a loss is NaN or infinite.
        """
        values = torch.stack([torch.stack(list(losses.values())) for _, losses, _ in self.steps]).cpu()
        for (step, losses, rows), of_step in zip(self.steps, values, strict=True):
            expected, seen = next(self.expected), rows.tolist()
            if seen != expected:
                raise OrderError(
                    f"at step {step} worker {self.rank} got the images {', '.join(self.names(seen))} instead of "
                    f"{', '.join(self.names(expected))}: Ray {ray.__version__} split the samples in an unexpected way, "
                    "and this epoch is lost. Train with --workers 1, which needs no split, and report this error"
                )
            for name, value in zip(losses, of_step.tolist(), strict=True):
                if not math.isfinite(value):
                    raise DivergedError(f"loss.{name} is {value} at step {step}", self.names(seen))
        self.steps.clear()

    def names(self, rows: list[int]) -> tuple[str, ...]:
        """The image ids of some rows of the table."""
        self.ids = self.ids or list(itertools.chain(*open_table(self.loop.table).parts))
        return tuple(self.ids[row] for row in rows)


def _expected_rows(loop: Loop, rank: int, workers: int) -> Iterator[list[int]]:
    """The row numbers of a worker's samples in each step: a worker gets one consecutive piece of the step's images."""
    first, last = (epochs * loop.steps * loop.images for epochs in (loop.first_epoch, loop.task.train.epochs))
    stream, size = loop.order.rows(first, last), loop.images // workers
    while step := [row for _, row in itertools.islice(stream, loop.images)]:
        yield step[rank * size : (rank + 1) * size]


class _Log:
    """Averages values over a few seconds; the first worker sends them to the driver and adds them to the history."""

    def __init__(self, loop: Loop, total: int, clock: Clock, rank: int):
        self.loop, self.total, self.clock, self.rank = loop, total, clock, rank
        self.history = read_history(loop.resume) if rank == 0 else []
        self.started = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0)
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
        """The network's score `NAME.iou` after an epoch; empty without `loop.validate`. All workers must call this."""
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
        seconds = round(time.perf_counter() - self.started, 1)
        kept = {name: float(f"{value:.6g}") for name, value in metrics.items() if not name.startswith("share.")}
        self.history.append({"step": step, "epoch": step / self.loop.steps, "seconds": seconds, **kept})
        epoch = (step - 1) // self.loop.steps + 1
        self.loop.mailbox.send(
            Event(step=step, steps=self.total, epoch=epoch, epochs=self.loop.task.train.epochs, metrics=metrics)
        )

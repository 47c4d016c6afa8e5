"""The gradients of a training step, in parts (micro-batches): a part's CRF runs while the network works on others.

Neither the number of parts nor the number of workers changes the result: each mean in a loss is taken over the whole
batch, of all parts and all workers, and batch norms are frozen. The workers' gradients are summed once per step.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssdd.losses import Means
from ssdd.objectives.task import Batch, Halfway, Losses, Objective

T = TypeVar("T")


class Workers:
    """A network's gradients in one buffer, which all training workers sum with a single all-reduce."""

    SPARE = 16  # room for other values (the losses), which are summed together with the gradients

    def __init__(self, net: nn.Module):
        self.count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        trained = [p for p in net.parameters() if p.requires_grad]
        total = sum(p.numel() for p in trained)
        self.buffer = torch.zeros(total + self.SPARE, device=trained[0].device)
        first = 0
        for p in trained:
            p.grad = self.buffer[first : first + p.numel()].as_strided(p.shape, p.stride(), first)
            first += p.numel()
        self.values = self.buffer[total:]
        self.counts_checked = False
        if self.count > 1:  # all take the first worker's weights, because machines may initialise differently
            values = [in_memory_order(p.detach()) for p in net.parameters()]
            common = torch.cat(values)
            dist.broadcast(common, 0)
            for mine, value in zip(values, common.split([len(p) for p in values]), strict=True):
                mine.copy_(value)

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to sum `values` over the workers, in place; the returned function waits for the sum and returns it."""
        work = dist.all_reduce(values, async_op=True) if self.count > 1 else None

        def result() -> Tensor:
            if work is not None:
                work.wait()
            return values

        return result


class Clock:
    """Measures the seconds of a step's sections. On a GPU, CUDA events time the sections that launch work."""

    def __init__(self, where: torch.device):
        self.cuda = where.type == "cuda"
        self.seconds: dict[str, float] = {}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, name: str, on_device: bool = True) -> Iterator[None]:
        if self.cuda and on_device:
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            yield
            ended.record()
            self.events.append((name, begun, ended))
        else:
            start = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - start)

    def each(self, name: str, values: Iterable[T]) -> Iterator[T]:
        """Yield the same values; the time that `values` takes to give them counts as section `name`."""
        iterator = iter(values)
        while True:
            with self(name, on_device=False):
                value = next(iterator, None)
            if value is None:
                return
            yield value

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds of each section since the last call."""
        if self.events:
            self.events[-1][2].synchronize()
        for name, begun, ended in self.events:
            self._add(name, begun.elapsed_time(ended) / 1000)
        seconds, self.seconds, self.events = self.seconds, {}, []
        return seconds


def gradients(
    objective: Objective,
    net: nn.Module,
    batch: Batch,
    workers: Workers,
    clock: Clock,
    size: int,
    ahead: int,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """Compute the gradients of a batch's losses; they are in the `grad` of `net`'s parameters afterwards.

    Args:
        objective: computes the losses.
        net: the network from which `workers` was made.
        batch: this worker's samples, columns (N, ...).
        workers: holds the gradients. All workers must call this function, each with its own batch.
        clock: gets the seconds of `forward`, `crf_wait`, `backward` and `exchange`.
        size: images per part.
        ahead: how many forward passes of other parts may run between a part's forward and backward pass. A larger
            number hides more of the CRF's time; a smaller number needs less memory.
        bf16: run the networks in bfloat16 where torch's autocast considers it safe.

    Returns:
        the losses over the batches of all workers, detached scalars by name.

    Raises:
        ValueError: `objective.counts` gives other counts than the losses have (`Means.counts`).
    """
    images = len(batch["image"])
    device = batch["image"].device.type
    counts = objective.counts(batch)
    early_counts, late_counts = _summed(workers, counts), _summed(workers, {})
    unfinished = -(-images // size)
    workers.buffer.zero_()
    values: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    late: dict[str, Means] = {}
    begun: deque[Losses | Halfway] = deque()

    def forward(part: Batch) -> None:
        with clock("forward"), torch.autocast(device, torch.bfloat16, enabled=bf16):
            begun.append(objective.losses(net, part))

    def finish() -> None:
        nonlocal late_counts, unfinished
        losses = begun.popleft()
        unfinished -= 1
        if isinstance(losses, Halfway):
            with clock("crf_wait"):  # on a GPU, this measures how long the GPU is idle
                losses.pending.wait()
            with clock("forward"), torch.autocast(device, torch.bfloat16, enabled=bf16):
                losses = losses.finish()
        _check_names(counts, losses)
        for name, loss in losses.items():
            if name in counts and not workers.counts_checked:
                seen[name] = seen[name] + loss.counts if name in seen else loss.counts
            elif name not in counts:
                late[name] = _joined(late[name], loss) if name in late else loss
        if not unfinished:  # start the sum here, so that it runs during the backward pass
            late_counts = _summed(workers, {name: loss.counts for name, loss in late.items()})
        with clock("exchange"):
            summed_counts = early_counts()
        early = {name: loss.value(summed_counts[name]) for name, loss in losses.items() if name in summed_counts}
        for name, value in early.items():
            values[name] = values.get(name, 0) + value.detach()
        if early:
            with clock("backward"):
                torch.stack(list(early.values())).sum().backward()

    for first in range(0, images, size):
        forward({name: column[first : first + size] for name, column in batch.items()})
        if len(begun) > ahead:
            finish()
    while begun:
        finish()
    if not workers.counts_checked:  # only in the first step, because on a GPU this check waits for the forward pass
        _check_values(counts, seen)
        workers.counts_checked = True
    if late:
        with clock("exchange"):
            summed = late_counts()
        with clock("backward"):
            last_values = {name: loss.value(summed[name]) for name, loss in late.items()}
            torch.stack(list(last_values.values())).sum().backward()
        values |= {name: value.detach() for name, value in last_values.items()}
    with clock("exchange"):
        workers.values[: len(values)] = torch.stack(list(values.values()))
        workers.sum(workers.buffer)()
    return dict(zip(values, workers.values[: len(values)].clone(), strict=True))


def in_memory_order(dense: Tensor) -> Tensor:
    """A dense tensor's values, in their order in memory, as a vector that shares the tensor's memory."""
    return dense.as_strided((dense.numel(),), (1,))


def _check_names(counts: dict[str, Tensor], losses: Losses) -> None:
    """Raise ValueError if a loss is missing or has counts of another shape, which torch would silently broadcast."""
    if missing := counts.keys() - losses.keys():
        raise ValueError(f"counts() has {', '.join(sorted(missing))}, which losses() does not give")
    for name in counts:
        if counts[name].shape != losses[name].counts.shape:
            raise ValueError(
                f"counts() of the loss {name} has the shape {tuple(counts[name].shape)}, but the loss has "
                f"{tuple(losses[name].counts.shape)}"
            )


def _check_values(counts: dict[str, Tensor], seen: dict[str, Tensor]) -> None:
    """Raise ValueError if `counts` differ from the losses' counts summed over all parts: the means would be wrong."""
    for name, count in counts.items():
        if not torch.equal(count, seen[name].to(count.dtype)):
            raise ValueError(f"counts() of the loss {name} is {count.tolist()}, but the loss has {seen[name].tolist()}")


def _joined(one: Means, other: Means) -> Means:
    """A loss over the images of two parts."""
    return Means(one.totals + other.totals, one.counts + other.counts, one.weights)


def _summed(workers: Workers, counts: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Start to sum each loss's counts over the workers in one all-reduce; the returned function waits for the sums."""
    if not counts:
        return dict
    total = workers.sum(torch.cat(list(counts.values())))
    return lambda: dict(zip(counts, total().split([len(c) for c in counts.values()]), strict=True))

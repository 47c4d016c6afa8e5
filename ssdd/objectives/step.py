"""The gradients of one training step, computed part by part, so that a part's CRF runs beside the others' network.

Neither the parts nor the number of workers change the result: losses are normalised by the counts of the whole batch,
over all parts and all workers, and batch norm is frozen. The workers' gradients are summed once in a step.
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
    """The gradients of a network in one buffer, which the training workers sum in one exchange."""

    SPARE = 16  # values that travel with the gradients

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
        if self.count > 1:  # the same initial weights to the last bit, whatever machines drew them
            own = [in_memory_order(p.detach()) for p in net.parameters()]
            common = torch.cat(own)
            dist.broadcast(common, 0)
            for mine, value in zip(own, common.split([len(p) for p in own]), strict=True):
                mine.copy_(value)

    def sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to sum the workers' values, in place; the function returned waits for the result."""
        work = dist.all_reduce(values, async_op=True) if self.count > 1 else None

        def result() -> Tensor:
            if work is not None:
                work.wait()
            return values

        return result


class Clock:
    """Where a worker's time goes. On a GPU, sections that only launch work are timed by events."""

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
        """The same values; what it takes to get them counts as `name`."""
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
    """Put the gradients of a batch's losses into `net`'s parameters.

    Args:
        objective: gives the losses.
        net: whose gradients are in the buffer of `workers`.
        batch: this worker's samples, columns (N, ...).
        workers: which all call this with a batch of their own.
        clock: gets the seconds of `forward`, `crf_wait`, `backward` and `exchange`.
        size: images in a part.
        ahead: parts whose forward pass may come between another part's forward and backward pass. More hide more of
            the CRF's time; fewer need less memory.
        bf16: run the networks in bfloat16 where torch's autocast deems it safe.

    Returns:
        the losses of all workers' batches together, detached scalars.

    Raises:
        ValueError: the objective's `counts` are not those of its losses.
    """
    images = len(batch["image"])
    device = batch["image"].device.type
    counts = objective.counts(batch)
    known_counts, late_counts = _summed(workers, counts), _summed(workers, {})
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
            with clock("crf_wait"):  # on a GPU, the time in which it has nothing to do
                losses.pending.wait()
            with clock("forward"), torch.autocast(device, torch.bfloat16, enabled=bf16):
                losses = losses.finish()
        _check_names(counts, losses)
        for name, loss in losses.items():
            if name in counts and not workers.counts_checked:
                seen[name] = seen[name] + loss.counts if name in seen else loss.counts
            elif name not in counts:
                late[name] = _joined(late[name], loss) if name in late else loss
        if not unfinished:  # before the backward pass, so that no worker waits for it
            late_counts = _summed(workers, {name: loss.counts for name, loss in late.items()})
        with clock("exchange"):
            known = known_counts()
        now = {name: loss.value(known[name]) for name, loss in losses.items() if name in known}
        for name, value in now.items():
            values[name] = values.get(name, 0) + value.detach()
        if now:
            with clock("backward"):
                torch.stack(list(now.values())).sum().backward()

    for first in range(0, images, size):
        forward({name: column[first : first + size] for name, column in batch.items()})
        if len(begun) > ahead:
            finish()
    while begun:
        finish()
    if not workers.counts_checked:  # once, because on a GPU it waits for the forward pass
        _check_values(counts, seen)
        workers.counts_checked = True
    if late:
        with clock("exchange"):
            summed = late_counts()
        with clock("backward"):
            at_last = {name: loss.value(summed[name]) for name, loss in late.items()}
            torch.stack(list(at_last.values())).sum().backward()
        values |= {name: value.detach() for name, value in at_last.items()}
    with clock("exchange"):
        workers.values[: len(values)] = torch.stack(list(values.values()))
        workers.sum(workers.buffer)()
    return dict(zip(values, workers.values[: len(values)].clone(), strict=True))


def in_memory_order(dense: Tensor) -> Tensor:
    """The values of a tensor without gaps, as a vector that shares its memory."""
    return dense.as_strided((dense.numel(),), (1,))


def _check_names(counts: dict[str, Tensor], losses: Losses) -> None:
    """Refuse losses whose number of totals is not that of their counts: it would be stretched without a word."""
    if missing := counts.keys() - losses.keys():
        raise ValueError(f"counts() has {', '.join(sorted(missing))}, which losses() does not give")
    for name in counts:
        if counts[name].shape != losses[name].counts.shape:
            raise ValueError(
                f"counts() of the loss {name} has the shape {tuple(counts[name].shape)}, but the loss has "
                f"{tuple(losses[name].counts.shape)}"
            )


def _check_values(counts: dict[str, Tensor], seen: dict[str, Tensor]) -> None:
    """Refuse counts that are not those of the losses, summed over the parts: the means would be wrong."""
    for name, count in counts.items():
        if not torch.equal(count, seen[name].to(count.dtype)):
            raise ValueError(f"counts() of the loss {name} is {count.tolist()}, but the loss has {seen[name].tolist()}")


def _joined(one: Means, other: Means) -> Means:
    """The same loss over the images of both."""
    return Means(one.totals + other.totals, one.counts + other.counts, one.weights)


def _summed(workers: Workers, counts: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begin to sum the counts of each loss over all workers, in one exchange; the function returned waits for it."""
    if not counts:
        return dict
    total = workers.sum(torch.cat(list(counts.values())))
    return lambda: dict(zip(counts, total().split([len(c) for c in counts.values()]), strict=True))

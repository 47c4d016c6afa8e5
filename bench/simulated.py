"""What the benchmarks share: a clock that takes turns, a simulated accelerator, smooth pictures."""

import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ssdd.losses import segmentation_loss


@dataclass(frozen=True)
class Row:
    """A figure of the table: the median of ratios measured in turns, and their extremes."""

    name: str
    value: float
    low: float
    high: float
    goal: float | None
    better: str


def row(name, ratios, goal, better="lower"):
    return Row(name, statistics.median(ratios), min(ratios), max(ratios), goal, better)


def seconds(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def in_turns(repetitions, *functions):
    """Seconds of each function, measured one after the other, again and again: a list for each repetition."""
    for function in functions:
        function()  # warm
    return [[seconds(function) for function in functions] for _ in range(repetitions)]


def pictures(images, side, where="cpu"):
    """Smooth noise as images, and probability maps of background and one class that are as smooth."""
    generator = torch.Generator().manual_seed(0)
    noise = F.interpolate(torch.rand(images, 3, 12, 12, generator=generator), (side, side), mode="bicubic")
    logits = F.interpolate(torch.randn(images, 21, 6, 6, generator=generator), (side, side), mode="bilinear")
    presence = torch.zeros(images, 21, dtype=torch.bool)
    presence[:, [0, 8]] = True
    return (noise * 255).clamp(0, 255).byte().to(where), (2 * logits).to(where), presence.to(where)


class _Taken(torch.autograd.Function):
    """Takes time in forward and backward, and no core."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.backward_seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.backward_seconds)
        return gradient, None, None


class SimulatedNet(nn.Module):
    """Stands for a network on an accelerator: logits that it has learned by heart, after a set time."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())


@dataclass(frozen=True)
class SimulatedTask:
    """A step of `network` seconds for `images` images, a third of it forward, with the CRF of each."""

    crf: object
    network: float
    images: int

    def counts(self, batch):
        return {"main": torch.tensor([batch["index"].numel() * 112 * 112])}

    def losses(self, net, batch):
        share = self.network * len(batch["index"]) / self.images
        logits = _Taken.apply(net.logits[batch["index"]], share / 3, share * 2 / 3)
        crf = self.crf.request(batch["image"], logits.detach(), batch["presence"])
        yield crf
        return {"main": segmentation_loss(logits, crf.masks())}

"""What the benchmarks share: the timing of functions in turns, a simulated accelerator, smooth pictures."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssdd.losses import Means
from ssdd.objectives.task import Halfway

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """A row of the printed table: the median of repeated measurements, their extremes, and the goal, if there is one.

    `better` is `lower` or `higher`.
    """

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
    """Call all functions in turn, several times; for each repetition, the list of the functions' seconds."""
    for function in functions:
        function()  # warm
    return [[seconds(function) for function in functions] for _ in range(repetitions)]


def pictures(images, side, where="cpu"):
    """Smooth noise: images uint8 (N, 3, side, side), logits (N, 21, side, side), presence bool (N, 21).

    The present classes of each image are background and class 8.
    """
    generator = torch.Generator().manual_seed(0)
    noise = F.interpolate(torch.rand(images, 3, 12, 12, generator=generator), (side, side), mode="bicubic")
    logits = F.interpolate(torch.randn(images, 21, 6, 6, generator=generator), (side, side), mode="bilinear")
    presence = torch.zeros(images, 21, dtype=torch.bool)
    presence[:, [0, 8]] = True
    return (noise * 255).clamp(0, 255).byte().to(where), (2 * logits).to(where), presence.to(where)


class Taken(torch.autograd.Function):
    """Sleeps in the forward and in the backward pass: it takes time, but no core."""

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
    """Takes the place of a network on an accelerator."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


@dataclass(frozen=True)
class SimulatedTask:
    """A training task with a simulated network and real CRFs.

    For a batch of all images of `inputs` the network takes `network` seconds, a third of them in the forward pass. For
    a smaller batch it takes proportionally less.

    The seconds include all that an accelerator would compute, softmax and losses too. The CRF uses no output of the
    simulated network: `inputs`, the first three arguments of `crf_masks`, are computed before the step.
    """

    crf: Any  # ActorCRF or InlineCRF
    network: float
    inputs: tuple

    def counts(self, batch):
        return {"main": torch.tensor([len(batch["image"])])}

    def losses(self, net, batch):
        chosen = batch["image"].tolist()
        share = self.network * len(chosen) / len(self.inputs[0])
        output = Taken.apply(net.weight, share / 3, share * 2 / 3)
        images, probs, labels = ([column[i] for i in chosen] for column in self.inputs)
        crf = self.crf.send(lambda: (images, probs, labels), CPU)
        return Halfway(crf, lambda: {"main": Means(output * crf.masks().sum(), self.counts(batch)["main"])})

"""The protocols of this room: what a step minimises, and what a training is to the loop that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ssdd.config import TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.losses import Means

Batch = dict[str, Tensor]
"""Columns of some samples, (N, ...) each; see `training.ingest.samples`."""
Losses = dict[str, Means]


class Pending(Protocol):
    """A result that is not there yet, CRF masks say."""

    def wait(self) -> None: ...


@dataclass(frozen=True)
class Halfway:
    """The losses of some images, computed up to where they need CRF masks."""

    pending: Pending
    """What must be there before the second half."""
    finish: Callable[[], Losses]
    """The second half; gives the losses."""


class Objective(Protocol):
    """What a step minimises: the sum of named losses."""

    @property
    def runs_on_actors(self) -> bool:
        """Whether `losses` asks other processes for something. Then it pays to compute a batch in parts."""

    def losses(self, net: Any, batch: Batch) -> Losses | Halfway:
        """The losses of some images; half of the work, where the rest needs CRF masks."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`Means.counts` of those losses whose counts follow from the samples alone.

        They are known before the forward pass, so that a part's gradients need not wait for the other parts. The
        other losses' gradients come at the end of the step: they should need few activations. Counts that are not
        those of the losses are an error of `step.gradients`.
        """


class Task(Objective, Protocol):
    """A training: picklable, built anew in each worker. Its losses are those of a batch of `sampling`'s samples."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def sampling(self) -> Sampling: ...

    def build(self) -> nn.Module:
        """The network at the start of training; its `backbone` has the base learning rate, the rest is new."""

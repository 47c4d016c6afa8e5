"""The protocols of a training: `Objective`, which a step minimises, and `Task`, which the training loop runs."""

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
    """A result that may not be ready yet, such as CRF masks."""

    def wait(self) -> None: ...


@dataclass(frozen=True)
class Halfway:
    """Losses of some images that are computed up to the point at which they need CRF masks."""

    pending: Pending
    """The result that `finish` needs."""
    finish: Callable[[], Losses]
    """Computes the rest and returns the losses."""


class Objective(Protocol):
    """What a step minimises: the sum of named losses."""

    @property
    def runs_on_actors(self) -> bool:
        """Whether `losses` sends work to other processes. Then a batch is computed faster in parts (micro-batches)."""

    def losses(self, net: Any, batch: Batch) -> Losses | Halfway:
        """Compute the losses of some images; if they need CRF masks, only their first half (`Halfway`)."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The `Means.counts` of those losses whose counts depend only on the samples, by the loss's name.

        These counts are known before the forward pass, so that the gradients of one part need not wait for the other
        parts. Gradients of all other losses are computed at the end of the step, so such losses should keep few
        activations in memory. `step.gradients` raises ValueError if these counts differ from those in the losses.
        """


class Task(Objective, Protocol):
    """A training; it is picklable, and each worker calls `build`. `losses` takes samples that `sampling` describes."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def sampling(self) -> Sampling: ...

    def build(self) -> nn.Module:
        """The network before the training. Its `backbone` gets the learning rate `lr`, the rest a multiple of it."""

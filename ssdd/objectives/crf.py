"""The CRF of a training step (sec. 4.2) behind one interface; here those that need no Ray: inline and exact."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssdd import exact_crf, refine
from ssdd.crf import CRFParams, crf_masks
from ssdd.objectives.task import Pending

Inputs = tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]


class Masks(Pending, Protocol):
    """The CRF masks of some images, once they are there."""

    def masks(self) -> Tensor:
        """int64 (N, h, w), on the device of the request."""


class BatchCRF(Protocol):
    """CRFs of a few images at the resolution of their masks; picklable."""

    @property
    def runs_on_actors(self) -> bool:
        """Whether other processes compute them, while this one goes on."""

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        """Ask for the CRF masks of the present classes' softmax.

        Args:
            images: uint8 (N, 3, h, w), without colour jitter.
            logits: (N, C, h, w).
            presence: bool (N, C), background included.
        """


@dataclass(frozen=True)
class InlineCRF:
    """pydensecrf in this process, image by image, as in the published loop; computed where it is waited for."""

    params: CRFParams
    runs_on_actors = False

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        return self.send(copied(images, logits, presence), logits.device)

    def send(self, inputs: Callable[[], Inputs], device: torch.device) -> Masks:
        """Ask for the masks of what `copied` returned."""
        return Later(device, lambda: crf_masks(*inputs(), self.params))


@dataclass(frozen=True)
class ExactCRF:
    """Mean field without approximation, on the device of the training."""

    params: CRFParams
    runs_on_actors = False

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            probs = refine.presence_softmax(logits.float(), presence)
            return _Now(exact_crf.mean_field(images, probs, self.params).argmax(1))


@dataclass(frozen=True)
class _Now:
    result: Tensor

    def wait(self) -> None: ...

    def masks(self) -> Tensor:
        return self.result


@dataclass
class Later:
    """Masks that are computed, or waited for, when they are asked for; then they go to a device."""

    device: torch.device
    compute: Callable[[], np.ndarray]
    result: np.ndarray | None = None

    def wait(self) -> None:
        if self.result is None:
            self.result = self.compute()

    def masks(self) -> Tensor:
        self.wait()
        assert self.result is not None
        masks = torch.from_numpy(self.result)
        if self.device.type == "cuda":
            masks = masks.pin_memory()
        return masks.to(self.device, non_blocking=True).long()


def copied(images: Tensor, logits: Tensor, presence: Tensor) -> Callable[[], Inputs]:
    """Start copies to the CPU; the function returned waits for them and gives `crf_masks`'s first three arguments."""
    with torch.no_grad():
        probs = refine.presence_softmax(logits.float(), presence).half()
        pixels_last = images.permute(0, 2, 3, 1).contiguous()
    # To pinned memory, so that the copies wait for the GPU while this process does not.
    there = [x.to("cpu", non_blocking=True) for x in (pixels_last, probs, presence)]
    ready = torch.cuda.Event(blocking=True) if logits.is_cuda else None  # else waiting for it would take a core
    if ready is not None:
        ready.record()

    def inputs() -> Inputs:
        if ready is not None:
            ready.synchronize()
        pixels, scores, present = (x.numpy() for x in there)
        labels = [np.flatnonzero(p).astype(np.uint8) for p in present]
        return pixels, [score[label] for score, label in zip(scores, labels, strict=True)], labels

    return inputs

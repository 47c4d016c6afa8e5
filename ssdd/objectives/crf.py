"""The interface of a training step's CRF (sec. 4.2), and the two CRFs that need no Ray: inline and exact."""

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
"""The first three arguments of `crf_masks`: images, probabilities and labels."""


class Masks(Pending, Protocol):
    """The CRF masks of some images; they may not be computed yet."""

    def masks(self) -> Tensor:
        """Wait for the masks: int64 (N, h, w), on the device of the request's logits."""


class BatchCRF(Protocol):
    """A CRF for a few images at the resolution of their masks; picklable."""

    @property
    def runs_on_actors(self) -> bool:
        """Whether other processes compute the masks while this process continues."""

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        """Request CRF masks for the softmax over each image's present classes.

        Args:
            images: uint8 (N, 3, h, w), without colour jitter.
            logits: (N, C, h, w).
            presence: bool (N, C), background included.
        """


@dataclass(frozen=True)
class InlineCRF:
    """pydensecrf in this process, image by image, as in the published loop; it runs when the masks are first needed."""

    params: CRFParams
    runs_on_actors = False

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        return self.send(copied(images, logits, presence), logits.device)

    def send(self, inputs: Callable[[], Inputs], device: torch.device) -> Masks:
        """Request masks, as `request` does; `inputs` is the function that `copied` returned."""
        return Later(device, lambda: crf_masks(*inputs(), self.params))


@dataclass(frozen=True)
class ExactCRF:
    """The CRF with exact kernels, see `exact_crf`, on the device of the training."""

    params: CRFParams
    runs_on_actors = False

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            probs = refine.presence_softmax(logits.float(), presence)
            return _Now(exact_crf.mean_field(images, probs, self.params).argmax(1))


@dataclass(frozen=True)
class _Now:
    """Masks that are computed already."""

    result: Tensor

    def wait(self) -> None: ...

    def masks(self) -> Tensor:
        return self.result


@dataclass
class Later:
    """Masks that `compute` returns. It is called when they are first waited for; `masks` moves them to `device`."""

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
    """Start to copy a CRF's inputs to the CPU; the returned function waits for the copies and returns `Inputs`."""
    with torch.no_grad():
        probs = refine.presence_softmax(logits.float(), presence).half()
        pixels_last = images.permute(0, 2, 3, 1).contiguous()
    # From a GPU, this copies to pinned memory without waiting: the copies run when the GPU has the values.
    on_cpu = [x.to("cpu", non_blocking=True) for x in (pixels_last, probs, presence)]
    ready = torch.cuda.Event(blocking=True) if logits.is_cuda else None  # blocking: waiting takes no CPU core
    if ready is not None:
        ready.record()

    def inputs() -> Inputs:
        if ready is not None:
            ready.synchronize()
        pixels, scores, present = (x.numpy() for x in on_cpu)
        labels = [np.flatnonzero(p).astype(np.uint8) for p in present]
        return pixels, [score[label] for score, label in zip(scores, labels, strict=True)], labels

    return inputs

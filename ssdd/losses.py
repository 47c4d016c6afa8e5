"""The losses of the paper (eqs. 2, 8) and of PSA. All are finite, even if no pixel has a label.

Each loss is a `Means`: totals, and the number of values in each total. So a batch can be computed in parts and by
several workers, and its loss is the same as if it were computed at once.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdd import refine


@dataclass(frozen=True)
class Means:
    """A weighted sum of means."""

    totals: Tensor
    """float (T,)"""
    counts: Tensor
    """(T,): the number of values in each total."""
    weights: tuple[float, ...] = (1.0,)

    def value(self, counts: Tensor | None = None) -> Tensor:
        """The loss, a scalar. With the `counts` (T,) of a whole batch: this part's contribution to the batch's loss."""
        means = self.totals / (self.counts if counts is None else counts).clamp(min=1)
        return torch.stack([weight * mean for weight, mean in zip(self.weights, means, strict=True)]).sum()

    def __add__(self, other: "Means") -> "Means":
        return Means(
            torch.cat([self.totals, other.totals]),
            torch.cat([self.counts, other.counts]),
            self.weights + other.weights,
        )

    def __rmul__(self, factor: float) -> "Means":
        return Means(self.totals, self.counts, tuple(factor * weight for weight in self.weights))


def segmentation_loss(logits: Tensor, mask: Tensor) -> Means:
    """Eq. 8: cross entropy averaged over the labelled pixels.

    Args:
        logits: (N, C, H, W).
        mask: integer (N, H, W); 255 marks pixels without a label.
    """
    total = F.cross_entropy(logits.float(), mask.long(), ignore_index=255, reduction="sum")
    return Means(total[None], segmentation_counts(mask))


def segmentation_counts(mask: Tensor) -> Tensor:
    """The counts of `segmentation_loss`."""
    return (mask != 255).sum()[None]


def difference_loss(logits: Tensor, difference: Tensor, keep: Tensor) -> Means:
    """One term of eq. 2: binary cross entropy, balanced between differing and agreeing pixels.

    The mean over the differing pixels and the mean over the agreeing pixels have the weight 1/2 each. A mean over no
    pixels is 0.

    Args:
        logits: DD-Net's output (N, H, W), before the sigmoid.
        difference: bool (N, H, W), see `refine.difference`.
        keep: bool (N,), False for the bad training samples.
    """
    logits = torch.where(keep.view(-1, 1, 1), logits, 0)  # a gradient of NaN times 0 would be NaN
    loss = F.binary_cross_entropy_with_logits(logits.float(), difference.float(), reduction="none")
    return _means(loss, _sides(difference, keep), (0.5, 0.5))


def difference_losses(d_knowledge: Tensor, d_advice: Tensor, difference: Tensor, vanished: Tensor) -> Means:
    """L_diff of one module (eqs. 2, 6, 12): DD-Net predicts the difference from each of the two masks.

    Args:
        d_knowledge, d_advice: DD-Net's logits (N, h, w).
        difference: bool (N, h, w).
        vanished: bool (N, C), classes that advice has nearly lost (`refine.vanished`); their images are left out.
    """
    keep = ~refine.bad_samples(vanished)
    return difference_loss(d_knowledge, difference, keep) + difference_loss(d_advice, difference, keep)


def difference_counts(difference: Tensor, keep: Tensor) -> Tensor:
    """The counts of `difference_loss`."""
    return _counts(_sides(difference, keep))


def _sides(difference: Tensor, keep: Tensor) -> list[Tensor]:
    keep = keep.view(-1, 1, 1)
    return [difference & keep, ~difference & keep]


def classification_loss(logits: Tensor, presence: Tensor) -> Means:
    """PSA's multi-label soft margin loss: logits (N, K) over the foreground classes, presence bool (N, K)."""
    total = F.binary_cross_entropy_with_logits(logits.float(), presence.float(), reduction="sum")
    return Means(total[None], classification_counts(presence))


def classification_counts(presence: Tensor) -> Tensor:
    """The counts of `classification_loss`."""
    return torch.full((1,), presence.numel(), device=presence.device)


def affinity_loss(affinity: Tensor, label: Tensor, neighbour: Tensor) -> Means:
    """PSA's affinity loss: 1/4 background pairs + 1/4 foreground pairs + 1/2 pairs of different classes.

    Args:
        affinity: (N, P, h, w) in (0, 1], between each pixel and its P neighbours.
        label: integer (N, 1, h, w), 255 where unsure.
        neighbour: integer (N, P, h, w), the neighbours' labels, 255 where unsure or outside the image.
    """
    background, foreground, different = _pairs(label, neighbour)
    together, apart = -torch.log(affinity + 1e-5), -torch.log(1 - affinity + 1e-5)
    return _means(together, [background, foreground], (0.25, 0.25)) + _means(apart, [different], (0.5,))


def affinity_counts(label: Tensor, neighbour: Tensor) -> Tensor:
    """The counts of `affinity_loss`."""
    return _counts(_pairs(label, neighbour))


def _pairs(label: Tensor, neighbour: Tensor) -> list[Tensor]:
    sure = (label != 255) & (neighbour != 255)
    same = sure & (label == neighbour)
    return [same & (label == 0), same & (label != 0), sure & ~same]


def _means(values: Tensor, masks: list[Tensor], weights: tuple[float, ...]) -> Means:
    # `where` rather than a product: an excluded NaN or infinity stays excluded.
    totals = [torch.where(mask, values, 0).sum() for mask in masks]
    return Means(torch.stack(totals), _counts(masks), weights)


def _counts(masks: list[Tensor]) -> Tensor:
    return torch.stack([mask.sum() for mask in masks])

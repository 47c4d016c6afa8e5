"""The losses of the paper (eqs. 2, 8) and of PSA. Every one is finite, also where nothing is labelled."""

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits: Tensor, mask: Tensor, ignore_index: int = 255) -> Tensor:
    """Eq. 8: cross entropy averaged over the labelled pixels.

    Args:
        logits: (N, C, H, W).
        mask: integer (N, H, W); `ignore_index` marks pixels without a label.
    """
    loss = F.cross_entropy(logits.float(), mask.long(), ignore_index=ignore_index, reduction="sum")
    return loss / (mask != ignore_index).sum().clamp(min=1)


def difference_loss(logits: Tensor, difference: Tensor, keep: Tensor) -> Tensor:
    """One term of eq. 2: binary cross entropy, balanced between differing and agreeing pixels.

    The mean over the differing pixels and the mean over the agreeing ones count one half each; a side without
    pixels adds nothing.

    Args:
        logits: DD-Net's output (N, H, W), before the sigmoid.
        difference: bool (N, H, W), see `refine.difference`.
        keep: bool (N,), False for the bad training samples.
    """
    difference = difference.bool()
    keep = keep.bool().view(-1, 1, 1).expand_as(difference)
    logits = torch.where(keep, logits, 0)  # here rather than in the mean: 0 times the gradient of a NaN is a NaN
    loss = F.binary_cross_entropy_with_logits(logits.float(), difference.float(), reduction="none")
    return (_masked_mean(loss, difference & keep) + _masked_mean(loss, ~difference & keep)) / 2


def classification_loss(logits: Tensor, presence: Tensor) -> Tensor:
    """PSA's multi-label soft margin loss: logits (N, K) over the foreground classes, presence bool (N, K)."""
    return F.multilabel_soft_margin_loss(logits.float(), presence.float())


def affinity_loss(affinity: Tensor, label: Tensor, neighbour: Tensor) -> Tensor:
    """PSA's affinity loss: 1/4 background pairs + 1/4 foreground pairs + 1/2 pairs of different classes.

    Args:
        affinity: (N, P, h, w) in (0, 1], between each pixel and its P neighbours.
        label: integer (N, 1, h, w), 255 where unsure.
        neighbour: integer (N, P, h, w), the neighbours' labels, 255 where unsure or outside the image.
    """
    sure = (label != 255) & (neighbour != 255)
    same = label == neighbour
    together, apart = -torch.log(affinity + 1e-5), -torch.log(1 - affinity + 1e-5)
    background = _masked_mean(together, sure & same & (label == 0))
    foreground = _masked_mean(together, sure & same & (label != 0))
    return background / 4 + foreground / 4 + _masked_mean(apart, sure & ~same) / 2


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # `where` rather than a product: an excluded NaN or infinity stays excluded.
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)

"""The SSDD module (sec. 3): the difference of two masks, the confidence in one of them, and their integration.

*Knowledge* is a mask, and *advice* is the mask that a mapping such as a CRF makes from it. DD-Net predicts the
probability that they differ, d^K from knowledge and d^A from advice. The module takes advice at pixels where
d^K - d^A + bias >= 0.

All masks are integer class maps (N, H, W) with 0 for background. A pixel whose value is not a class (255: no label)
counts for no class, but differs from every pixel that has a class.
Arguments may be tensors or anything `torch.as_tensor` takes; results are tensors on the arguments' device.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ssdd.config import BiasConfig


def difference(knowledge: Tensor, advice: Tensor) -> Tensor:
    """Eq. 1 with the polarity that eqs. 3-4 need: True where the two masks differ. bool (N, H, W)."""
    return torch.as_tensor(knowledge) != torch.as_tensor(advice)


def class_pixels(mask: Tensor, num_classes: int) -> Tensor:
    """The number of pixels of each class: int64 (N, num_classes) from masks (N, H, W)."""
    flat = torch.as_tensor(mask).flatten(1).long()
    is_class = flat < num_classes
    counts = torch.zeros(flat.shape[0], num_classes, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(1, flat.where(is_class, 0), is_class.long())


def vanished(knowledge: Tensor, advice: Tensor, presence: Tensor, ratio: float = 0.5) -> Tensor:
    """Which present foreground classes the mapping from knowledge to advice has nearly removed.

    Args:
        knowledge, advice: masks (N, H, W).
        presence: bool (N, C), the image's classes, background (index 0) included.
        ratio: a class has vanished if (its pixels in advice) / max(its pixels in knowledge, 1) is below this.

    Returns:
        bool (N, C); background never vanishes.
    """
    presence = torch.as_tensor(presence).bool()
    before = class_pixels(knowledge, presence.shape[1])
    after = class_pixels(advice, presence.shape[1])
    gone = (after / before.clamp(min=1) < ratio) & presence
    gone[:, 0] = False
    return gone


def bad_samples(vanished: Tensor) -> Tensor:
    """Images that the difference losses leave out because a class vanished (secs. 4.1, 4.2). bool (N,)."""
    return vanished.any(1)


def confidence(
    d_knowledge: Tensor,
    d_advice: Tensor,
    knowledge: Tensor,
    advice: Tensor,
    vanished: Tensor,
    bias: float,
    background_bias: float,
) -> Tensor:
    """Eq. 3: the confidence in advice, w = d^K - d^A + bias.

    The bias is a scalar, plus a background part (-background_bias where knowledge is background,
    +background_bias where advice is background), plus a presence part (-1 where knowledge has a vanished class,
    +1 where advice has one).

    Args:
        d_knowledge, d_advice: d^K and d^A, DD-Net's probabilities of a difference from either mask, (N, H, W).
        knowledge, advice: the masks (N, H, W).
        vanished: bool (N, C), see `vanished`; all False switches the presence part off.
        bias: the scalar part.
        background_bias: the background part.

    Returns:
        float (N, H, W).
    """
    knowledge, advice = torch.as_tensor(knowledge), torch.as_tensor(advice)
    vanished = torch.as_tensor(vanished).bool()
    background = (advice == 0).float() - (knowledge == 0).float()
    presence = _at_pixels(vanished, advice) - _at_pixels(vanished, knowledge)
    return torch.as_tensor(d_knowledge) - torch.as_tensor(d_advice) + bias + background_bias * background + presence


def integrate(knowledge: Tensor, advice: Tensor, confidence: Tensor) -> Tensor:
    """Eq. 4: the refined mask m^D, advice where confidence >= 0 and knowledge elsewhere. (N, H, W)."""
    return torch.where(torch.as_tensor(confidence) >= 0, torch.as_tensor(advice), torch.as_tensor(knowledge))


def module(
    d_knowledge: Tensor,
    d_advice: Tensor,
    knowledge: Tensor,
    advice: Tensor,
    presence: Tensor,
    bias: "BiasConfig",
) -> Tensor:
    """Eqs. 3-5: the SSDD module's mask m^D from DD-Net's probabilities.

    Args:
        d_knowledge, d_advice: (N, H, W) in 0..1.
        knowledge, advice: masks (N, H, W).
        presence: bool (N, C), background included.
        bias: the parameters of eq. 3's bias.

    Returns:
        the refined masks (N, H, W).
    """
    gone = vanished(knowledge, advice, presence, bias.vanish_ratio)
    if not bias.presence:
        gone = torch.zeros_like(gone)
    w = confidence(d_knowledge, d_advice, knowledge, advice, gone, bias.bias, bias.background)
    return integrate(knowledge, advice, w)


def presence_argmax(scores: Tensor, presence: Tensor) -> Tensor:
    """The mask of the best *present* class: int64 (N, H, W) from scores (N, C, H, W), presence bool (N, C)."""
    return scores.masked_fill(~presence[:, :, None, None], -torch.inf).argmax(1)


def presence_softmax(logits: Tensor, presence: Tensor) -> Tensor:
    """Softmax over present classes only, zero elsewhere: (N, C, H, W), presence bool (N, C)."""
    return logits.masked_fill(~presence[:, :, None, None], -torch.inf).softmax(1)


def _at_pixels(table: Tensor, mask: Tensor) -> Tensor:
    """Look up each pixel's class in table (N, C): float (N, H, W), 0 where the mask's value is not a class."""
    flat = mask.flatten(1).long()
    is_class = flat < table.shape[1]
    values = table.float().gather(1, flat.where(is_class, 0)) * is_class
    return values.view(mask.shape)

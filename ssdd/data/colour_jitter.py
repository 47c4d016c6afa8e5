"""Random changes of brightness, contrast, saturation and hue, as one affine map of an image's colours.

Each of the four changes is an affine function of red, green and blue, so that one matrix and one pass over the pixels
do all of them. torchvision's ColorJitter makes one pass for each change. There are two other differences: here values
are clipped to 0..255 only once, at the end; and the hue changes by a rotation of the I-Q plane of YIQ, which keeps the
luma, while torchvision changes it in HSV.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ssdd.config import AugmentConfig

Change = tuple[Literal["brightness", "contrast", "saturation", "hue"], float]
"""The property that changes, and the factor; for the hue, a share of a full rotation instead of a factor."""

LUMA = np.array([0.2989, 0.587, 0.114])  # torchvision's weights of red, green and blue
_RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_AT_ONCE = 32768  # pixels whose floats fit the processor's cache: three times faster at 448 x 448


def draw(random: np.random.Generator, jitter: tuple[float, float, float, float]) -> list[Change]:
    """Draw the changes in random order, each uniformly from a range around "no change", as ColorJitter does.

    Args:
        random: the random generator.
        jitter: how far the factors of brightness, contrast and saturation may lie from 1, and the hue's rotation from
            0. Changes with the value 0 are left out.
    """
    *factors, hue = jitter
    changes: list[Change] = []
    for name, width in zip(("brightness", "contrast", "saturation"), factors, strict=True):
        changes.append((name, random.uniform(max(0.0, 1 - width), 1 + width)))  # type: ignore[arg-type]
    changes.append(("hue", random.uniform(-hue, hue)))
    order = random.permutation(len(changes))
    return [changes[k] for k in order if jitter[k] > 0]


def matrix(changes: list[Change], mean: np.ndarray) -> np.ndarray:
    """The affine map of (red, green, blue) that makes the changes one after the other.

    Args:
        changes: from `draw`.
        mean: the image's mean colour before the changes, float (3,). Contrast scales each colour's distance from the
            luma that this mean colour has after the changes made before contrast.

    Returns:
        float64 (3, 4); the last column is the offset.
    """
    total = np.eye(3, 4)
    for name, factor in changes:
        added = np.zeros(3)
        if name == "brightness":
            change = factor * np.eye(3)
        elif name == "contrast":
            change = factor * np.eye(3)
            added += (1 - factor) * (LUMA @ (total @ [*mean, 1]))
        elif name == "saturation":
            change = factor * np.eye(3) + (1 - factor) * LUMA
        else:
            change = _YIQ_TO_RGB @ _turn(factor) @ _RGB_TO_YIQ
        total = change @ total
        total[:, 3] += added
    return total


def _turn(share: float) -> np.ndarray:
    """The matrix that rotates the I-Q plane of YIQ by a share of a full rotation, from red towards green."""
    cos, sin = math.cos(2 * math.pi * share), math.sin(2 * math.pi * share)
    return np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])


def by_matrix(image: Tensor, changes: list[Change]) -> Tensor:
    """Make the changes to an image, uint8 (3, H, W), in one pass with their matrix."""
    if not changes:
        return image
    pixels = image.reshape(3, -1)
    mean = image.sum(2, dtype=torch.int32).sum(1).numpy() / pixels.shape[1]
    total = torch.from_numpy(matrix(changes, mean)).float()
    factors, added = total[:, :3], total[:, 3:] + 0.5  # + 0.5, so that the conversion to integers rounds
    changed = torch.empty_like(pixels)
    for old, new in zip(pixels.split(_AT_ONCE, 1), changed.split(_AT_ONCE, 1), strict=True):
        # The conversion goes through int16, because torch's direct conversion to uint8 is four times slower.
        new.copy_(torch.addmm(added, factors, old.float()).clamp_(0, 255).to(torch.int16))
    return changed.view(image.shape)


def by_torchvision(image: Tensor, changes: list[Change]) -> Tensor:
    """Make the changes to an image, uint8 (3, H, W), one after the other with torchvision's functions."""
    from torchvision.transforms.v2 import functional as F  # slow to import, and `by_matrix` does not need it

    functions = {
        "brightness": F.adjust_brightness,
        "contrast": F.adjust_contrast,
        "saturation": F.adjust_saturation,
        "hue": F.adjust_hue,
    }
    for name, factor in changes:
        image = functions[name](image, factor)
    return image


def jittered(image: Tensor, config: AugmentConfig, random: np.random.Generator) -> Tensor:
    """Change an image's colours, uint8 (3, H, W), at random as `augment.jitter` and `augment.jitter_kind` specify."""
    changes = draw(random, config.jitter)
    return by_matrix(image, changes) if config.jitter_kind == "matrix" else by_torchvision(image, changes)

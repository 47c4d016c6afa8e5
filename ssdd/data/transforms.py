"""Augmentation of an image together with its masks, and the fixed square input of inference."""

from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ssdd.config import AugmentConfig

IGNORE = 255


class RandomSquareResize(v2.Transform):
    """Resize to a square whose side is drawn uniformly from `sides` (inclusive)."""

    def __init__(self, sides: tuple[int, int]):
        super().__init__()
        self.sides = sides

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"side": int(torch.randint(self.sides[0], self.sides[1] + 1, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, [params["side"]] * 2, antialias=True)


def augmentation(config: AugmentConfig) -> v2.Compose:
    """The training transform of a (tv_tensors.Image, [tv_tensors.Mask, ...]) pair; random through torch's generator."""
    brightness, contrast, saturation, hue = config.jitter
    return v2.Compose(
        [
            RandomSquareResize(config.resize),
            # A side smaller than the crop is padded: mid-grey, and "no label" in the masks.
            v2.RandomCrop(config.crop, pad_if_needed=True, fill={tv_tensors.Image: 127, tv_tensors.Mask: IGNORE}),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness, contrast, saturation, hue),
        ]
    )


def augment(
    transform: v2.Compose, image: np.ndarray, masks: list[np.ndarray], seed: int, mask_size: int | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One augmented training sample, a function of its arguments alone.

    Args:
        transform: from `augmentation`.
        image: uint8 (H, W, 3).
        masks: uint8 (H, W) each, transformed with the image (nearest neighbour).
        seed: of this sample.
        mask_size: side that the masks are sampled down to, or None to leave them at the crop's.

    Returns:
        image uint8 (3, crop, crop) and the masks, uint8 (mask_size, mask_size).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sample = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        out, out_masks = transform(sample, [tv_tensors.Mask(torch.from_numpy(np.array(m))) for m in masks])
    if mask_size is not None:
        size = [mask_size, mask_size]
        out_masks = [F.resize(m[None], size, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0] for m in out_masks]
    return out.contiguous().numpy(), [m.contiguous().numpy() for m in out_masks]


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The inference input: uint8 (H, W, 3) resized to uint8 (3, side, side)."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return F.resize(tensor, [side, side], antialias=True).contiguous().numpy()

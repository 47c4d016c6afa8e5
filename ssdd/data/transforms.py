"""Augmentation of an image together with its masks, and the fixed square input of inference."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ssdd.config import AugmentConfig
from ssdd.data.class_names import IGNORE


class RandomSquareResize(v2.Transform):
    """Resize to a square whose side is drawn uniformly from `sides` (inclusive)."""

    def __init__(self, sides: tuple[int, int]):
        super().__init__()
        self.sides = sides

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"side": int(torch.randint(self.sides[0], self.sides[1] + 1, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, [params["side"]] * 2, antialias=True)


class Augmentation(NamedTuple):
    """The training transform in two steps, both random through torch's generator."""

    geometry: v2.Compose
    """Of a (tv_tensors.Image, [tv_tensors.Mask, ...]) pair: resize, crop, flip."""
    colours: v2.ColorJitter
    """Of the image alone."""


class Augmented(NamedTuple):
    """A training sample."""

    image: np.ndarray
    """uint8 (3, crop, crop)."""
    masks: list[np.ndarray]
    """uint8 (mask_size, mask_size) each, or (crop, crop) without a mask_size."""
    plain: np.ndarray | None
    """The image before the colour jitter at the masks' size, uint8 (3, s, s), where it was asked for."""


def augmentation(config: AugmentConfig) -> Augmentation:
    """The training transform of a configuration."""
    geometry = v2.Compose(
        [
            RandomSquareResize(config.resize),
            # A side smaller than the crop is padded: mid-grey, and "no label" in the masks.
            v2.RandomCrop(config.crop, pad_if_needed=True, fill={tv_tensors.Image: 127, tv_tensors.Mask: IGNORE}),
            v2.RandomHorizontalFlip(),
        ]
    )
    return Augmentation(geometry, v2.ColorJitter(*config.jitter))


def augment(
    transform: Augmentation,
    image: np.ndarray,
    masks: list[np.ndarray],
    seed: int,
    mask_size: int | None,
    plain: bool = False,
) -> Augmented:
    """One augmented training sample, a function of its arguments alone.

    Args:
        transform: from `augmentation`.
        image: uint8 (H, W, 3).
        masks: uint8 (H, W) each, transformed with the image (nearest neighbour).
        seed: of this sample.
        mask_size: side that the masks are sampled down to, or None to leave them at the crop's.
        plain: also give the image without colour jitter.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sample = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        crop, out_masks = transform.geometry(sample, [tv_tensors.Mask(torch.from_numpy(np.array(m))) for m in masks])
        out = transform.colours(crop)
    if mask_size is not None:
        size = [mask_size, mask_size]
        out_masks = [F.resize(m[None], size, interpolation=v2.InterpolationMode.NEAREST_EXACT)[0] for m in out_masks]
        crop = F.resize(crop, size, antialias=True) if plain else crop
    arrays = [m.contiguous().numpy() for m in out_masks]
    return Augmented(out.contiguous().numpy(), arrays, crop.contiguous().numpy() if plain else None)


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The inference input: uint8 (H, W, 3) resized to uint8 (3, side, side)."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return F.resize(tensor, [side, side], antialias=True).contiguous().numpy()


def square_tensor(image: Tensor, side: int) -> Tensor:
    """`square` in operations that other programs have, too, with the same values.

    Args:
        image: uint8 (N, 3, H, W).
        side: of the result.

    Returns:
        float32 (N, 3, side, side), of whole numbers.
    """
    across, one = _whole_weights(image.shape[-1], side)
    rows = torch.floor(image.float() @ across.T / one + 0.5)
    down, one = _whole_weights(image.shape[-2], side)
    return torch.floor(down @ rows / one + 0.5)


def _whole_weights(inner: int, outer: int) -> tuple[Tensor, Tensor]:
    """The weights with which torch's kernel for uint8 resizes bilinearly and antialiased, of 16 bits.

    Returns:
        Whole numbers, float32 (outer, inner), and the number that stands for 1.
    """
    places = torch.arange(inner, dtype=torch.float64)
    scale = (places[-1:] + 1) / outer
    centres = (torch.arange(outer, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = (1 - (places + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    one = torch.exp2(torch.ceil(torch.log2((2**15 - 0.5) / weights.max())) - 1).clamp(max=2**22)
    return torch.floor(weights * one + 0.5).float(), one.float()


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Float maps (N, C, h, w) to (N, C, *size): `maps.resize` in torch."""
    # First the height: torch 2.14 on CPUs is wrong where it changes the height of maps that are one pixel wide.
    for step in ((size[0], values.shape[-1]), size):
        values = interpolate(values, step, mode="bilinear", align_corners=False, antialias=True)
    return values


def square_masks(masks: list[np.ndarray], side: int) -> Tensor:
    """Masks, uint8 (H, W) of any size, sampled to one square: int64 (N, side, side)."""
    size, nearest = [side, side], v2.InterpolationMode.NEAREST_EXACT
    return torch.cat([F.resize(torch.from_numpy(np.array(m))[None], size, interpolation=nearest) for m in masks]).long()

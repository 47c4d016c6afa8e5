"""Augmentation of an image together with its masks, and the fixed square input of inference."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ssdd.config import AugmentConfig
from ssdd.data import codec
from ssdd.data.class_names import IGNORE
from ssdd.data.colour_jitter import jittered


class Augmented(NamedTuple):
    """A training sample."""

    image: np.ndarray
    """uint8 (3, crop, crop)."""
    masks: list[np.ndarray]
    """uint8 (mask_size, mask_size) each, or (crop, crop) without a mask_size."""
    plain: np.ndarray | None
    """The image without colour jitter at the masks' size, uint8 (3, s, s); None if it was not requested."""


class Geometry(NamedTuple):
    """The part of an image that a training sample shows, and whether it is mirrored."""

    side: int
    """Side of the square that the whole image is resized to."""
    top: int
    left: int
    """`top` and `left` are where the crop begins in that square; if negative, the crop begins with padding."""
    mirrored: bool


def draw_geometry(random: np.random.Generator, config: AugmentConfig) -> Geometry:
    """Draw the square's side (from `config.resize`), the crop's place, and whether the image is mirrored.

    A crop that is larger than the square contains the whole square, at a random place.
    """
    low, high = config.resize
    side = int(random.integers(low, high, endpoint=True))
    gap = side - config.crop
    top, left = random.integers(min(gap, 0), max(gap, 0), 2, endpoint=True)
    return Geometry(side, int(top), int(left), bool(random.integers(2)))


def augment(
    config: AugmentConfig,
    source: bytes,
    masks: list[np.ndarray],
    seed: int,
    mask_size: int | None,
    plain: bool = False,
) -> Augmented:
    """One augmented training sample, which depends only on the arguments.

    Args:
        config: the settings of the resize, the crop and the changes of colours.
        source: the bytes of the image, a JPEG or PNG.
        masks: uint8 (H, W) of any sizes, cropped like the image.
        seed: the random seed of this sample.
        mask_size: the side of the sampled masks; None: the side of the crop.
        plain: whether to return the image without colour jitter, too.

    Raises:
        problems.DataError: the image is damaged.
    """
    random = np.random.default_rng(seed)
    geometry = draw_geometry(random, config)
    crop = _cropped(codec.read_image_reduced(source, geometry.side), geometry, config.crop)
    size = mask_size or config.crop
    small = [sampled(mask, geometry, config.crop, size) for mask in masks]
    uncoloured = _bilinear(crop[None], size)[0].numpy() if plain else None
    return Augmented(jittered(crop, config, random).numpy(), small, uncoloured)


def _cropped(image: np.ndarray, geometry: Geometry, crop: int) -> Tensor:
    """The part of an image, uint8 (H, W, 3), that a sample shows: uint8 (3, crop, crop), with mid-grey padding."""
    side, top, left, mirrored = geometry
    resized = _bilinear(_as_batch(image), side)[0]
    part = resized[:, max(top, 0) : top + crop, max(left, 0) : left + crop]
    if side < crop:
        padded = torch.full((3, crop, crop), 127, dtype=torch.uint8)
        padded[:, -top : side - top, -left : side - left] = part
        part = padded
    return (part.flip(-1) if mirrored else part).contiguous()


def sampled(mask: np.ndarray, geometry: Geometry, crop: int, size: int) -> np.ndarray:
    """A mask, uint8 (H, W), cropped like the image and sampled to uint8 (size, size) in one step.

    Each new pixel takes the value of the mask's pixel in which its centre lies. The padding is 255 (no label).
    """
    side, top, left, mirrored = geometry
    centres = (np.arange(size) + 0.5) * (crop / size)  # in pixels of the crop
    rows = np.floor((top + centres) * (mask.shape[0] / side)).astype(int)
    columns = np.floor((left + centres) * (mask.shape[1] / side)).astype(int)
    columns = columns[::-1] if mirrored else columns
    inside = [(places >= 0) & (places < n) for places, n in zip((rows, columns), mask.shape, strict=True)]
    out = np.full((size, size), IGNORE, np.uint8)
    out[np.ix_(*inside)] = mask[np.ix_(rows[inside[0]], columns[inside[1]])]
    return out


def _as_batch(image: np.ndarray) -> Tensor:
    """One image, uint8 (H, W, 3), as (1, 3, H, W) in channels-last memory: the resize is then several times faster."""
    return torch.from_numpy(np.require(image, requirements="W"))[None].permute(0, 3, 1, 2)


def _bilinear(images: Tensor, side: int) -> Tensor:
    """Resize images, uint8 (N, 3, H, W), to uint8 (N, 3, side, side)."""
    return interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The inference input: uint8 (H, W, 3) resized to uint8 (3, side, side)."""
    return _bilinear(_as_batch(image), side)[0].contiguous().numpy()


def square_tensor(image: Tensor, side: int) -> Tensor:
    """`square` for several images: the same values, but from operations that can be exported to other programs.

    Args:
        image: uint8 (N, 3, H, W).
        side: the side of the result.

    Returns:
        float32 (N, 3, side, side), whole numbers.
    """
    across, one = _whole_weights(image.shape[-1], side)
    rows = torch.floor(image.float() @ across.T / one + 0.5)
    down, one = _whole_weights(image.shape[-2], side)
    return torch.floor(down @ rows / one + 0.5)


def _whole_weights(old_side: int, new_side: int) -> tuple[Tensor, Tensor]:
    """The 16-bit weights of torch's kernel for uint8 when it resizes one side, bilinearly and antialiased.

    Returns:
        The weights as whole numbers, float32 (new_side, old_side), and the whole number that stands for a weight of 1.
    """
    places = torch.arange(old_side, dtype=torch.float64)
    scale = (places[-1:] + 1) / new_side
    centres = (torch.arange(new_side, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = (1 - (places + 0.5 - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    one = torch.exp2(torch.ceil(torch.log2((2**15 - 0.5) / weights.max())) - 1).clamp(max=2**22)
    return torch.floor(weights * one + 0.5).float(), one.float()


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float maps (N, C, h, w) to (N, C, *size): `storage.maps.resize` in torch."""
    # The height changes before the width. A single call would change the width first. A map whose new width is 1 would
    # then be one pixel wide when its height changes, and torch 2.14 on CPUs gives wrong values for such maps.
    for step in ((size[0], values.shape[-1]), size):
        values = interpolate(values, step, mode="bilinear", align_corners=False, antialias=True)
    return values


def square_masks(masks: list[np.ndarray], side: int) -> Tensor:
    """Sample masks, uint8 (H, W) of any sizes, to squares of one size: int64 (N, side, side)."""
    batches = [torch.from_numpy(np.array(mask))[None, None] for mask in masks]
    return torch.cat([interpolate(batch, (side, side), mode="nearest-exact")[0] for batch in batches]).long()

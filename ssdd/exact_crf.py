"""Mean-field inference in the dense CRF with exact kernels: blocked matrix products on the device of the inputs.

pydensecrf filters on a permutohedral lattice, which approximates the appearance kernel. Here the kernel
acts between all pairs of pixels, like attention without learned parameters. The smoothness kernel is separable and acts
on rows and columns.
"""

import torch
from torch import Tensor

from ssdd.crf import CRFParams

BLOCK = 2**27  # kernel values in memory at once: 512 MB in single precision


def mean_field(images: Tensor, probs: Tensor, params: CRFParams) -> Tensor:
    """Marginals of fully connected CRFs whose unary terms are -log(probs); kernels are normalised symmetrically.

    Args:
        images: uint8 (N, 3, H, W).
        probs: float (N, C, H, W); zero for labels that an image cannot have.
        params: kernel weights, widths and iterations.

    Returns:
        (N, C, H, W) of the dtype of `probs`; zero for labels whose `probs` are zero in the whole image.
    """
    n, classes, height, width = probs.shape
    possible = probs.amax((2, 3), keepdim=True) > 0
    # The same floor as in `dense_crf`. Labels that an image cannot have are excluded.
    unary = probs.clamp(min=1e-5).log().masked_fill(~possible, -torch.inf)
    rows, columns = (_gaussian(side, params.gaussian_sxy, probs) for side in (height, width))
    features = _features(images.to(probs.dtype), params)
    weight = params.bilateral_weight
    scale = _bilateral(features, probs.new_ones(n, height * width, 1)).add(1e-20).rsqrt()
    q = unary.softmax(1)
    for _ in range(params.iterations):
        smooth = rows @ q @ columns
        flat = q.flatten(2).transpose(1, 2)  # (N, HW, C)
        alike = (scale * _bilateral(features, scale * flat)).transpose(1, 2).view(n, classes, height, width)
        q = (unary + params.gaussian_weight * smooth + weight * alike).softmax(1)
    return q


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """The smoothness kernel along one axis, normalised symmetrically: (side, side)."""
    place = torch.arange(side, dtype=like.dtype, device=like.device) / sigma
    kernel = torch.exp(-((place[:, None] - place) ** 2) / 2)
    scale = kernel.sum(1).rsqrt()
    return scale[:, None] * kernel * scale


def _features(images: Tensor, params: CRFParams) -> Tensor:
    """Positions and colours divided by the appearance kernel's widths: (N, HW, 5), centred for better precision."""
    n, _, height, width = images.shape
    y = torch.arange(height, dtype=images.dtype, device=images.device).view(1, 1, -1, 1) / params.bilateral_sxy
    x = torch.arange(width, dtype=images.dtype, device=images.device).view(1, 1, 1, -1) / params.bilateral_sxy
    places = torch.cat([y.expand(n, 1, height, width), x.expand(n, 1, height, width)], 1)
    features = torch.cat([places, images / params.bilateral_srgb], 1).flatten(2).transpose(1, 2)
    return features - features.mean(1, keepdim=True)


def _bilateral(features: Tensor, values: Tensor) -> Tensor:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j for every pixel i: (N, HW, V) from features (N, HW, F), values (N, HW, V)."""
    n, pixels, _ = features.shape
    half = -(features**2).sum(2, keepdim=True) / 2
    transposed = features.transpose(1, 2)
    out = []
    size = max(1, BLOCK // (n * pixels))
    for first in range(0, pixels, size):
        block = slice(first, first + size)
        # The exact exponent is at most 0; rounding can make it positive.
        exponent = torch.baddbmm(half.transpose(1, 2), features[:, block], transposed).add_(half[:, block])
        out.append(exponent.clamp_(max=0).exp_() @ values)
    return torch.cat(out, 1)

"""PSA's pixel affinities: neighbouring pairs, their affinity, and the random walk over them."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def neighbour_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """Offsets (dy, dx) of half of the neighbours closer than `radius`, so that each pair of pixels occurs once."""
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(-radius + 1, radius) if dy**2 + dx**2 < radius**2]
    return tuple(right + below)


def _shifted(x: Tensor, radius: int, fill: float) -> list[Tensor]:
    """For each offset, a map with the values of x (N, C, h, w) at the neighbours; `fill` outside the image."""
    height, width = x.shape[-2:]
    pad = radius - 1
    padded = F.pad(x, (pad, pad, 0, pad), value=fill)
    return [padded[..., dy : dy + height, pad + dx : pad + dx + width] for dy, dx in neighbour_offsets(radius)]


def pair_affinity(features: Tensor, radius: int) -> Tensor:
    """exp(-mean |f_i - f_j|) between each pixel and its P neighbours: (N, P, h, w) from features (N, C, h, w).

    Pairs with a neighbour outside the image have a meaningless value; `neighbour_labels` is 255 for them.
    """
    return torch.stack([torch.exp(-(features - n).abs().mean(1)) for n in _shifted(features, radius, 0)], 1)


def neighbour_labels(label: Tensor, radius: int) -> Tensor:
    """Labels (N, h, w) of each pixel's P neighbours, (N, P, h, w); 255 outside the image."""
    return torch.cat(_shifted(label[:, None], radius, 255), 1)


def transition_matrix(features: Tensor, radius: int, beta: float) -> Tensor:
    """The random walk's matrix T (N, hw, hw): affinities to the power beta, each row summing to one.

    PSA normalises columns and multiplies from the right; T is the transpose of that. Here every pixel has neighbours;
    in PSA, pixels near three edges of the image are no sources.
    """
    batch, _, height, width = features.shape
    affinity = pair_affinity(features, radius) ** beta
    index = torch.arange(height * width, device=features.device).view(1, height, width)
    inside = neighbour_labels(torch.zeros_like(index), radius)[0].flatten(1) == 0
    target = torch.cat(_shifted(index[:, None], radius, 0), 1)[0].flatten(1)
    source = index.view(1, -1).expand_as(target)
    matrix = torch.eye(height * width, device=features.device, dtype=features.dtype).repeat(batch, 1, 1)
    values = affinity.flatten(2)[:, inside]
    matrix[:, source[inside], target[inside]] = values
    matrix[:, target[inside], source[inside]] = values
    matrix /= matrix.sum(2, keepdim=True)
    return matrix


def random_walk(transition: Tensor, scores: Tensor, steps: int) -> Tensor:
    """Scores (N, C, h, w) after `steps` steps of the walk.

    Multiplying the few score vectors in each step costs far less than PSA's repeated squaring of the matrix. The result
    is the same.
    """
    walked = scores.flatten(2).transpose(1, 2)
    for _ in range(steps):
        walked = torch.bmm(transition, walked)
    return walked.transpose(1, 2).reshape(scores.shape)

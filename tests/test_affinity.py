"""Pixel pairs, affinities and the random walk against loops over all pairs."""

import math

import numpy as np
import pytest
import torch

from ssdd.affinity import neighbour_labels, neighbour_offsets, pair_affinity, random_walk, transition_matrix

HEIGHT, WIDTH, RADIUS, BETA = 6, 5, 3, 8.0
PIXELS = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.rand(2, 7, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def affinity_of(features: torch.Tensor, n: int, one: tuple[int, int], other: tuple[int, int]) -> float:
    return math.exp(-(features[n, :, *one] - features[n, :, *other]).abs().mean())


def test_radius_5_has_psas_34_offsets():
    assert len(neighbour_offsets(5)) == 34


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 7])
def test_offsets_are_each_unordered_pair_once(radius):
    offsets = neighbour_offsets(radius)
    near = {
        (dy, dx)
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
        if 0 < dy**2 + dx**2 < radius**2
    }
    mirrored = [(-dy, -dx) for dy, dx in offsets]
    assert sorted([*offsets, *mirrored]) == sorted(near)


@pytest.mark.parametrize("radius", [RADIUS, 5, 8])
def test_pair_affinity_equals_brute_force_inside_the_image(features, radius):
    got = pair_affinity(features, radius)
    assert got.shape == (2, len(neighbour_offsets(radius)), HEIGHT, WIDTH)
    for p, (dy, dx) in enumerate(neighbour_offsets(radius)):
        for y, x in PIXELS:
            if (y + dy, x + dx) in PIXELS:
                for n in range(2):
                    expected = affinity_of(features, n, (y, x), (y + dy, x + dx))
                    assert got[n, p, y, x].item() == pytest.approx(expected)


@pytest.mark.parametrize("radius", [RADIUS, 5, 8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_neighbour_labels_equal_brute_force(radius, dtype):
    label = torch.randint(0, 4, (2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)).to(dtype)
    got = neighbour_labels(label, radius)
    expected = torch.full_like(got, 255)
    for p, (dy, dx) in enumerate(neighbour_offsets(radius)):
        for y, x in PIXELS:
            if (y + dy, x + dx) in PIXELS:
                expected[:, p, y, x] = label[:, y + dy, x + dx]
    assert torch.equal(got, expected)


def test_transition_matrix_equals_brute_force(features):
    expected = np.zeros((2, len(PIXELS), len(PIXELS)))
    for n in range(2):
        for i, one in enumerate(PIXELS):
            for j, other in enumerate(PIXELS):
                if (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 < RADIUS**2:
                    expected[n, i, j] = affinity_of(features, n, one, other) ** BETA
    expected /= expected.sum(2, keepdims=True)
    got = transition_matrix(features, RADIUS, BETA)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert np.array_equal(got == 0, expected == 0)  # beyond the radius, and nowhere else


def test_transition_rows_sum_to_one_where_affinities_differ_a_lot(features):
    rows = transition_matrix((features * 100).float(), 5, BETA).sum(2)
    torch.testing.assert_close(rows, torch.ones(2, len(PIXELS)))


@pytest.mark.parametrize("steps", [0, 1, 7, 64])
def test_random_walk_equals_a_matrix_power(features, steps):
    transition = transition_matrix(features, RADIUS, BETA)
    scores = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    power = torch.linalg.matrix_power(transition, steps)
    expected = torch.einsum("nij,ncj->nci", power, scores.flatten(2)).view_as(scores)
    torch.testing.assert_close(random_walk(transition, scores, steps), expected)


def test_constant_scores_stay_constant(features):
    scores = torch.tensor([0.2, 0.7], dtype=torch.float64).view(1, 2, 1, 1).expand(2, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(random_walk(transition_matrix(features, 5, BETA), scores, 256), scores.contiguous())


def test_a_walk_spreads_within_a_region_and_not_into_another():
    features = torch.zeros(1, 1, HEIGHT, 6)
    features[..., 3:] = 10
    scores = torch.zeros(1, 1, HEIGHT, 6)
    scores[0, 0, 0, 0] = 1
    walked = random_walk(transition_matrix(features, 2, BETA), scores, 256)[0, 0]
    assert walked[:, :3].min() > 0.01
    assert walked[:, 3:].max() < 1e-6

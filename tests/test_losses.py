"""The losses: against NumPy, by hand, and finite in the corners."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssdd import losses


def value_of(loss):
    return lambda *args: loss(*args).value()


affinity_loss = value_of(losses.affinity_loss)
classification_loss = value_of(losses.classification_loss)
difference_loss = value_of(losses.difference_loss)
segmentation_loss = value_of(losses.segmentation_loss)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_difference_loss(logits, difference, keep) -> float:
    differing, agreeing = [], []
    for at in np.ndindex(logits.shape):
        if keep[at[0]]:
            d = 1 / (1 + math.exp(-logits[at]))
            (differing if difference[at] else agreeing).append(-math.log(d if difference[at] else 1 - d))
    return sum(sum(side) / len(side) for side in (differing, agreeing) if side) / 2


def assert_finite_with_gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> None:
    loss.backward()
    assert torch.isfinite(loss)
    for x in inputs:
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


@settings(max_examples=60)
@given(st.data())
def test_difference_loss_equals_numpy(data):
    shape = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    logits = data.draw(arrays(np.float64, shape, elements=st.floats(-6, 6)))
    difference = data.draw(arrays(bool, shape))
    keep = data.draw(arrays(bool, shape[:1]))
    got = difference_loss(*map(torch.from_numpy, (logits, difference, keep)))
    assert got.item() == pytest.approx(numpy_difference_loss(logits, difference, keep), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("keep", [[True, True], [True, False], [False, False]])
def test_difference_loss_is_finite_where_one_side_is_empty(value, keep):
    logits = (random(2, 3, 4) * 50).requires_grad_()
    loss = difference_loss(logits, torch.full((2, 3, 4), value), torch.tensor(keep))
    assert_finite_with_gradients(loss, logits)
    assert (loss > 0) == any(keep)


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_difference_loss_of_an_excluded_image_with_infinite_logits(bad):
    logits = torch.cat([torch.full((1, 3, 4), bad), random(1, 3, 4)]).requires_grad_()
    difference = random(2, 3, 4, seed=1) > 0
    loss = difference_loss(logits, difference, torch.tensor([False, True]))
    assert loss.item() == difference_loss(logits[1:].detach(), difference[1:], torch.tensor([True])).item()
    assert_finite_with_gradients(loss, logits)
    assert not logits.grad[0].any()


def test_difference_loss_of_an_excluded_image_with_nan_logits_is_finite():
    logits = torch.cat([torch.full((1, 3, 4), math.nan), random(1, 3, 4)])
    assert torch.isfinite(difference_loss(logits, random(2, 3, 4, seed=1) > 0, torch.tensor([False, True])))


def test_difference_loss_of_an_excluded_image_with_nan_logits_has_finite_gradients():
    logits = torch.cat([torch.full((1, 3, 4), math.nan), random(1, 3, 4)]).requires_grad_()
    assert_finite_with_gradients(
        difference_loss(logits, random(2, 3, 4, seed=1) > 0, torch.tensor([False, True])), logits
    )


def test_difference_loss_does_not_depend_on_how_many_pixels_agree():
    def loss(agreeing: int) -> float:
        difference = torch.zeros(1, 1, agreeing + 1, dtype=torch.bool)
        difference[..., 0] = True
        logits = torch.where(difference, 0.7, -1.3)
        return difference_loss(logits, difference, torch.tensor([True])).item()

    assert loss(1) == pytest.approx(loss(1000), rel=1e-5)
    assert loss(1) == pytest.approx((math.log1p(math.exp(-0.7)) + math.log1p(math.exp(-1.3))) / 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_segmentation_loss_equals_cross_entropy(dtype):
    logits = random(2, 4, 5, 6)
    mask = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    mask[0, :2] = 255
    expected = F.cross_entropy(logits, mask, ignore_index=255)
    torch.testing.assert_close(segmentation_loss(logits, mask.to(dtype)), expected)


def test_segmentation_loss_is_zero_where_all_is_ignored():
    logits = random(1, 4, 2, 2).requires_grad_()
    loss = segmentation_loss(logits, torch.full((1, 2, 2), 255))
    assert_finite_with_gradients(loss, logits)
    assert loss == 0


def test_segmentation_loss_weighs_pixels_not_images():
    logits = random(2, 3, 2, 2)
    mask = torch.tensor([[[0, 255], [255, 255]], [[1, 2], [0, 1]]])
    pixels = F.cross_entropy(logits, mask, ignore_index=255, reduction="none")[mask != 255]
    torch.testing.assert_close(segmentation_loss(logits, mask), pixels.mean())


def test_affinity_loss_by_hand():
    #        background      foreground different
    affinity = torch.tensor([0.9, 0.5, 0.8, 0.25, 0.3, 0.3]).view(1, 6, 1, 1)
    neighbour = torch.tensor([0, 0, 255, 1, 255, 255]).view(1, 6, 1, 1)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, 1, dtype=torch.long)
    background = -(math.log(0.9) + math.log(0.5)) / 2
    assert affinity_loss(affinity, zero, neighbour).item() == pytest.approx(
        background / 4 - math.log(1 - 0.25) / 2, abs=1e-4
    )
    different = -(math.log(1 - 0.9) + math.log(1 - 0.5)) / 2
    assert affinity_loss(affinity, one, neighbour).item() == pytest.approx(
        -math.log(0.25) / 4 + different / 2, abs=1e-4
    )


@pytest.mark.parametrize(("label", "neighbour"), [(255, 0), (255, 3), (0, 255), (3, 255), (255, 255)])
def test_affinity_loss_leaves_unsure_pairs_out(label, neighbour):
    affinity = random(1, 3, 4, 4).sigmoid().requires_grad_()
    loss = affinity_loss(affinity, torch.full((1, 1, 4, 4), label), torch.full((1, 3, 4, 4), neighbour))
    assert loss == 0
    assert_finite_with_gradients(loss, affinity)


def test_affinity_loss_is_finite_at_zero_and_one():
    affinity = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).requires_grad_()
    label, neighbour = torch.ones(1, 1, 1, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    loss = affinity_loss(affinity, label, neighbour)
    assert_finite_with_gradients(loss, affinity)
    assert loss.item() == pytest.approx(-math.log(1e-5) * 3 / 4, rel=1e-3)


def test_classification_loss_is_the_mean_binary_cross_entropy():
    logits, presence = random(3, 5), random(3, 5, seed=1) > 0
    expected = F.binary_cross_entropy_with_logits(logits, presence.float())
    torch.testing.assert_close(classification_loss(logits, presence), expected)
    assert classification_loss(logits, presence) > classification_loss(torch.where(presence, 9.0, -9.0), presence)


def _samples(images):
    """Arguments of every loss and of its counts."""
    mask = torch.randint(0, 4, (images, 6, 5), generator=torch.Generator().manual_seed(1))
    mask[mask == 3] = 255
    difference, keep = random(images, 6, 5, seed=2) > 0.5, torch.arange(images) % 3 != 1
    presence = random(images, 4, seed=3) > 0
    label = mask[:, None]
    neighbour = torch.cat([label.roll(k, 2) for k in (1, 2)], 1)
    return {
        "segmentation": ((random(images, 3, 6, 5), mask), (mask,)),
        "difference": ((random(images, 6, 5), difference, keep), (difference, keep)),
        "classification": ((random(images, 4), presence), (presence,)),
        "affinity": ((random(images, 2, 6, 5).sigmoid(), label, neighbour), (label, neighbour)),
    }


@pytest.mark.parametrize("name", list(_samples(1)))
def test_shares_of_parts_add_up_to_the_loss_of_the_whole(name):
    args, counted = _samples(5)[name]
    loss, counts = getattr(losses, f"{name}_loss"), getattr(losses, f"{name}_counts")
    whole = loss(*args)
    torch.testing.assert_close(counts(*counted), whole.counts)
    parts = [loss(*(x[k : k + 2] for x in args)) for k in range(0, 5, 2)]
    torch.testing.assert_close(sum(part.value(whole.counts) for part in parts), whole.value())


def test_sums_and_multiples_of_losses():
    one, other = (losses.segmentation_loss(random(1, 3, 2, 2, seed=k), torch.zeros(1, 2, 2)) for k in (0, 1))
    both = 0.25 * one + 0.75 * other
    torch.testing.assert_close(both.value(), one.value() / 4 + other.value() * 3 / 4)

"""Colours changed by one matrix are those that torchvision changes one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssdd.config import AugmentConfig
from ssdd.data.colour_jitter import LUMA, by_matrix, by_torchvision, draw, jittered, matrix
from ssdd.data.drawn_scenes import render

JITTER = (0.3, 0.3, 0.3, 0.1)


def noise(seed: int = 0, low: int = 90, high: int = 166) -> torch.Tensor:
    """Random colours around mid-grey, far enough from the ends of the range that nothing is clipped."""
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, (3, 20, 24), np.uint8))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_each_change_but_the_hue_is_torchvision_s(name, factor):
    one, other = (f(noise(), [(name, factor)]).int() for f in (by_matrix, by_torchvision))
    assert (one - other).abs().max() <= 1


def test_changes_follow_one_another_as_torchvision_s_do():
    random = np.random.default_rng(0)
    for _ in range(20):
        changes = draw(random, (0.2, 0.2, 0.3, 0))
        one, other = (f(noise(), changes).int() for f in (by_matrix, by_torchvision))
        assert (one - other).abs().max() <= 4  # torchvision cuts the fractions off after each change


@given(share=st.floats(-0.5, 0.5))
def test_the_hue_keeps_luma_and_grey(share):
    total = matrix([("hue", share)], np.zeros(3))
    np.testing.assert_allclose(LUMA @ total[:, :3], LUMA, atol=1e-12)
    np.testing.assert_allclose(total[:, :3] @ np.ones(3), 1, atol=2e-4)  # LUMA sums to 0.9999
    np.testing.assert_allclose(total[:, :3] @ matrix([("hue", -share)], np.zeros(3))[:, :3], np.eye(3), atol=1e-9)


def test_the_hue_turns_from_red_to_green():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    for function in (by_matrix, by_torchvision):
        assert function(red, [("hue", 1 / 3)]).flatten().argmax() == 1


def test_what_has_no_width_is_left_out():
    random = np.random.default_rng(0)
    assert draw(random, (0, 0, 0, 0)) == []
    assert {name for name, _ in draw(random, (0.3, 0, 0, 0.1))} == {"brightness", "hue"}
    assert torch.equal(by_matrix(noise(), []), noise())


def test_values_are_clipped_once():
    bright = by_matrix(torch.full((3, 2, 2), 200, dtype=torch.uint8), [("brightness", 1.5)])
    assert bright.tolist() == [[[255, 255]] * 2] * 3
    back = by_matrix(torch.full((3, 2, 2), 200, dtype=torch.uint8), [("brightness", 1.5), ("brightness", 1 / 1.5)])
    assert back.tolist() == [[[200, 200]] * 2] * 3


def test_both_kinds_draw_the_same_changes():
    ways = [
        jittered(
            noise(), AugmentConfig(20, jitter=(0.2, 0.2, 0.3, 0), jitter_kind=kind), np.random.default_rng(3)
        ).int()
        for kind in ("matrix", "torchvision")
    ]
    assert (ways[0] - ways[1]).abs().max() <= 4


def measured(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Brightness, contrast and saturation of an image, and the direction of each pixel's hue times its strength."""
    grey = np.tensordot(LUMA, image.numpy(), 1)
    hue, saturation, value = np.moveaxis(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("HSV")), 2, 0)
    strength = saturation.astype(float) * value
    return np.array([grey.mean(), grey.std(), saturation.mean()]), strength * np.exp(2j * np.pi * hue / 255)


def test_a_thousand_draws_change_images_as_much_as_torchvision_s():
    images = [torch.from_numpy(render(0, "train", k, (32, 32))[0]).permute(2, 0, 1).contiguous() for k in range(20)]
    random, changes = np.random.default_rng(0), {"matrix": [], "torchvision": []}
    for k in range(1000):
        image, drawn = images[k % 20], draw(random, JITTER)
        before, hues = measured(image)
        for name, function in (("matrix", by_matrix), ("torchvision", by_torchvision)):
            after, turned = measured(function(image, drawn))
            angle = np.angle((turned * hues.conj()).sum())
            changes[name].append([*np.log(after / before), angle])
    ours, theirs = np.array(changes["matrix"]), np.array(changes["torchvision"])
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.1)
    np.testing.assert_array_less(abs(ours.mean(0) - theirs.mean(0)), 0.1 * theirs.std(0))

"""Augmentation: a function of its seed that keeps image and masks together."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from ssdd.config import AugmentConfig
from ssdd.data import codec
from ssdd.data.codec import encode_photograph
from ssdd.data.transforms import IGNORE, Geometry, augment, draw_geometry, sampled, square, square_masks

JITTER = (0.3, 0.3, 0.3, 0.1)
NONE = (0.0, 0.0, 0.0, 0.0)
GREY = 60
"""Grey value per class of `blocks`."""


def blocks(seed: int = 0, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image whose grey value is 60 times its class, in blocks of 16 pixels, and its mask."""
    mask = np.random.default_rng(seed).integers(0, 4, (side // 16, side // 16)).astype(np.uint8).repeat(16, 0)
    mask = mask.repeat(16, 1)
    return np.repeat(mask[..., None] * np.uint8(GREY), 3, axis=2), mask


def inner(mask: np.ndarray, reach: int) -> np.ndarray:
    """Whether all pixels within `reach` of a pixel have its value."""
    windows = sliding_window_view(np.pad(mask.astype(int), reach, constant_values=-1), [2 * reach + 1] * 2)
    return windows.min((2, 3)) == windows.max((2, 3))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("resize", [(64, 64), (64, 112), (48, 48)])
def test_image_and_masks_stay_aligned(seed, resize):
    image, mask = blocks(seed)
    config = AugmentConfig(48, resize, NONE)
    out, (out_mask, twin), _ = augment(config, encode_photograph(image), [mask, mask], seed, None)
    safe = inner(out_mask, 3)
    assert safe.mean() > 0.1
    np.testing.assert_array_equal(np.rint(out[0][safe] / GREY), out_mask[safe])
    np.testing.assert_array_equal(twin, out_mask)


@pytest.mark.parametrize("seed", range(3))
def test_small_masks_stay_aligned(seed):
    image, mask = blocks(seed)
    config = AugmentConfig(48, (96, 112), NONE)
    out, (small,), plain = augment(config, encode_photograph(image), [mask], seed, 12, plain=True)
    pooled = out[0].reshape(12, 4, 12, 4).mean((1, 3))
    safe = inner(small, 1)
    assert safe.mean() > 0.1
    np.testing.assert_array_equal(np.rint(pooled[safe] / GREY), small[safe])
    np.testing.assert_array_equal(np.rint(plain[0][safe] / GREY), small[safe])


def test_shapes_and_dtypes():
    image, mask = blocks()
    config = AugmentConfig(48, (48, 80), JITTER)
    for mask_size, side in ((None, 48), (12, 12)):
        out, masks, plain = augment(config, encode_photograph(image[:40]), [mask[:40]] * 2, 0, mask_size, plain=True)
        assert (out.shape, out.dtype) == ((3, 48, 48), np.uint8)
        assert (plain.shape, plain.dtype) == ((3, side, side), np.uint8)
        assert [(m.shape, m.dtype) for m in masks] == [((side, side), np.uint8)] * 2
    without = augment(config, encode_photograph(image), [], 0, None)
    assert (without.masks, without.plain) == ([], None)


def test_the_seed_alone_decides():
    image, mask = blocks()
    config = AugmentConfig(48, (48, 80), JITTER)

    def drawn(seed: int) -> bytes:
        out, masks, plain = augment(config, encode_photograph(image), [mask], seed, 12, plain=True)
        return out.tobytes() + masks[0].tobytes() + plain.tobytes()

    torch.manual_seed(1)
    first = drawn(5)
    torch.manual_seed(2)
    assert drawn(5) == first
    assert len({drawn(seed) for seed in range(5)}) == 5


def test_the_random_state_and_the_masks_of_the_caller_are_left_alone():
    image, mask = blocks()
    mask.setflags(write=False)
    before = torch.get_rng_state()
    augment(AugmentConfig(48, (48, 80), JITTER), encode_photograph(image), [mask], 5, 12)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(mask, blocks()[1])


def test_jitter_changes_the_image_and_not_the_masks():
    image, mask = blocks()
    without, jittered = (
        augment(AugmentConfig(48, (48, 80), j), encode_photograph(image), [mask], 3, None, True) for j in (NONE, JITTER)
    )
    assert (without.image != jittered.image).any()
    np.testing.assert_array_equal(without.masks[0], jittered.masks[0])
    np.testing.assert_array_equal(jittered.plain, without.image)


def test_masks_get_no_new_values():
    image, mask = blocks()
    mask = np.where(mask == 1, 200, mask)
    for seed in range(5):
        (out,) = augment(AugmentConfig(48, (50, 90), JITTER), encode_photograph(image), [mask], seed, 12).masks
        assert set(np.unique(out)) <= set(np.unique(mask))


def test_padding_is_unlabelled():
    image, mask = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), np.uint8)
    out, (out_mask,), _ = augment(AugmentConfig(80, (64, 64), NONE), encode_photograph(image), [mask], 0, None)
    assert out.shape == (3, 80, 80)
    assert (out_mask == IGNORE).sum() == 80 * 80 - 64 * 64
    np.testing.assert_array_equal(out, np.where(out_mask == IGNORE, 127, 255)[None].repeat(3, 0))


def test_masks_are_sampled_at_the_centres_of_the_new_pixels():
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    whole = Geometry(side=8, top=0, left=0, mirrored=False)
    np.testing.assert_array_equal(sampled(mask, whole, 8, 4), mask)
    np.testing.assert_array_equal(sampled(mask, whole, 8, 8), mask.repeat(2, 0).repeat(2, 1))
    # Of 8 x 8 pixels the crop has rows 2 to 5 and columns 4 to 7: the mask's rows 1 and 2, columns 2 and 3.
    part = Geometry(side=8, top=2, left=4, mirrored=False)
    np.testing.assert_array_equal(sampled(mask, part, 4, 2), [[6, 7], [10, 11]])
    np.testing.assert_array_equal(sampled(mask, part._replace(mirrored=True), 4, 2), [[7, 6], [11, 10]])
    # A square of 4 in a crop of 6, one row and two columns from its corner.
    padded = Geometry(side=4, top=-1, left=-2, mirrored=False)
    expected = np.full((6, 6), IGNORE)
    expected[1:5, 2:6] = mask
    np.testing.assert_array_equal(sampled(mask, padded, 6, 6), expected)


def test_a_crop_may_lie_anywhere_in_the_square_and_a_smaller_square_anywhere_in_the_crop():
    random = np.random.default_rng(0)
    for resize, places in (((50, 50), {0, 1, 2}), ((46, 46), {0, -1, -2})):
        drawn = [draw_geometry(random, AugmentConfig(48, resize, NONE)) for _ in range(100)]
        assert {d.top for d in drawn} == {d.left for d in drawn} == places
        assert {d.mirrored for d in drawn} == {True, False}
    assert {draw_geometry(random, AugmentConfig(48, (48, 50), NONE)).side for _ in range(50)} == {48, 49, 50}


def test_a_large_jpeg_is_decoded_at_a_reduced_scale():
    rng = np.random.default_rng(0)
    image = square(rng.integers(0, 256, (12, 16, 3), np.uint8), 800).transpose(1, 2, 0)  # smooth colours
    source = encode_photograph(image[:600], "JPEG")
    whole = codec.read_image(source)
    for side, shape in ((80, (300, 400, 3)), (160, (600, 800, 3)), (20, (75, 100, 3))):
        reduced = codec.read_image_reduced(source, side)
        assert reduced.shape == shape
        difference = square(reduced, side).astype(int) - square(whole, side)
        assert abs(difference).mean() < 1
    png = encode_photograph(image[:600])
    np.testing.assert_array_equal(codec.read_image_reduced(png, 20), image[:600])


def test_both_mirror_images_occur():
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, :24] = 200
    config = AugmentConfig(48, (48, 48), NONE)
    assert {int(augment(config, encode_photograph(image), [], seed, None).image[0, 0, 0]) for seed in range(12)} == {
        0,
        200,
    }


def test_square_resizes_both_sides():
    image = np.zeros((30, 50, 3), np.uint8)
    image[:, 25:] = (10, 20, 30)
    out = square(image, 40)
    assert (out.shape, out.dtype) == ((3, 40, 40), np.uint8)
    assert out[:, 20, 5].tolist() == [0, 0, 0]
    assert out[:, 20, 35].tolist() == [10, 20, 30]


def test_masks_of_any_size_become_one_batch():
    mask = np.array([[0, 0, 7, 7]] * 2, np.uint8)
    out = square_masks([mask, mask.repeat(3, 0)], 4)
    assert (out.shape, out.dtype) == ((2, 4, 4), torch.int64)
    assert out.tolist() == [[[0, 0, 7, 7]] * 4] * 2

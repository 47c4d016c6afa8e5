"""The dense CRF and the function of its pool."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdd.crf import CRFParams, crf_masks, dense_crf
from ssdd.data import codec
from ssdd.stages import crf_rows
from ssdd.storage import maps

HEIGHT, WIDTH = 20, 30
RNG = np.random.default_rng


def random_input(classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    image = RNG(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    probs = RNG(1).uniform(0.05, 1, (classes, HEIGHT, WIDTH)).astype(np.float32)
    return image, probs


def encoded(image: np.ndarray) -> bytes:
    """The file of an image (H, W, 3)."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return png.getvalue()


def two_colours(edge: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), (200, 40, 40), np.uint8)
    image[:, edge:] = (40, 40, 200)
    return image


def two_regions(edge: int, sure: float) -> np.ndarray:
    """Class 0 left of the edge and class 1 right of it, each with probability `sure`."""
    right = np.where(np.arange(WIDTH) < edge, 1 - sure, sure)
    return np.broadcast_to(np.stack([1 - right, right])[:, None], (2, HEIGHT, WIDTH)).astype(np.float32)


def changes(mask: np.ndarray) -> int:
    """Number of neighbouring pixels of different classes."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_defaults_are_the_published_ones():
    assert CRFParams() == CRFParams(
        gaussian_weight=3, gaussian_sxy=3, bilateral_weight=10, bilateral_sxy=80, bilateral_srgb=13, iterations=10
    )


@pytest.mark.parametrize("classes", [1, 2, 3, 21])
def test_marginals_have_shape_and_sum_to_one(classes):
    out = dense_crf(*random_input(classes), CRFParams(iterations=3))
    assert out.shape == (classes, HEIGHT, WIDTH)
    assert out.dtype == np.float32
    assert out.min() >= 0
    np.testing.assert_allclose(out.sum(0), 1, atol=1e-4)


def test_a_single_class_is_certain():
    image, probs = random_input(1)
    assert (dense_crf(image, probs * 0, CRFParams()) == 1).all()


def test_without_pairwise_weights_the_marginals_are_the_probabilities():
    image, probs = random_input()
    out = dense_crf(image, probs, CRFParams(gaussian_weight=0, bilateral_weight=0))
    np.testing.assert_allclose(out, probs / probs.sum(0), atol=1e-4)


def test_inputs_may_be_read_only_and_are_not_modified():
    inputs = random_input()
    copies = [array.copy() for array in inputs]
    for array in inputs:
        array.setflags(write=False)
    dense_crf(*inputs, CRFParams(iterations=2))
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_inputs_need_not_be_contiguous():
    image, probs = random_input()
    flipped = dense_crf(image[:, ::-1], probs[..., ::-1], CRFParams(iterations=2))
    copied = dense_crf(image[:, ::-1].copy(), probs[..., ::-1].copy(), CRFParams(iterations=2))
    np.testing.assert_array_equal(flipped, copied)


def test_zero_and_one_are_finite():
    out = dense_crf(two_colours(15), two_regions(15, sure=1), CRFParams())
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("image", "probs", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), np.ones((2, 4, 5), np.float32), r"image must be uint8 .* got float32"),
        (np.zeros((4, 5), np.uint8), np.ones((2, 4, 5), np.float32), r"image must be .* got uint8 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), np.ones((2, 4, 5), np.float32), r"image must be .* got uint8 \(3, 4, 5\)"),
        (np.zeros((4, 5, 3), np.uint8), np.ones((2, 5, 4), np.float32), r"probs must be \(C, 4, 5\), got \(2, 5, 4\)"),
        (np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), np.float32), r"probs must be \(C, 4, 5\), got \(4, 5\)"),
    ],
)
def test_wrong_inputs_are_refused(image, probs, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, probs, CRFParams())


def test_a_noisy_mask_on_a_uniform_image_becomes_smoother():
    noisy = RNG(0).random((HEIGHT, WIDTH)) < 0.15
    probs = np.where(noisy, [[[0.3]], [[0.7]]], [[[0.7]], [[0.3]]]).astype(np.float32)
    smooth = dense_crf(np.full((HEIGHT, WIDTH, 3), 128, np.uint8), probs, CRFParams()).argmax(0)
    assert changes(smooth) < changes(probs.argmax(0)) / 4


def test_the_gaussian_kernel_smooths_whatever_the_colours():
    image, _ = random_input()
    noisy = RNG(0).random((HEIGHT, WIDTH)) < 0.15
    probs = np.where(noisy, [[[0.3]], [[0.7]]], [[[0.7]], [[0.3]]]).astype(np.float32)
    smooth = dense_crf(image, probs, CRFParams(bilateral_weight=0)).argmax(0)
    assert changes(smooth) < changes(probs.argmax(0)) / 4


def test_a_factor_per_pixel_cancels():
    image, probs = random_input()
    factor = RNG(2).uniform(0.1, 10, (HEIGHT, WIDTH)).astype(np.float32)
    plain, scaled = (dense_crf(image, p, CRFParams(iterations=3)) for p in (probs, probs * factor))
    np.testing.assert_allclose(scaled, plain, atol=1e-4)
    np.testing.assert_array_equal(scaled.argmax(0), plain.argmax(0))


def test_labels_follow_a_colour_edge_through_the_bilateral_kernel():
    image, probs = two_colours(edge=15), two_regions(edge=18, sure=0.6)
    colour_edge = two_regions(15, 1).argmax(0)
    followed = dense_crf(image, probs, CRFParams()).argmax(0)
    without = dense_crf(image, probs, CRFParams(bilateral_weight=0)).argmax(0)
    np.testing.assert_array_equal(followed, colour_edge)
    assert (without != colour_edge).any()


def test_pool_function_gives_each_image_its_own_classes():
    images = np.stack([two_colours(15), two_colours(10), two_colours(20)])
    probs = [two_regions(15, 0.9), two_regions(10, 0.9)[::-1], np.ones((1, HEIGHT, WIDTH))]
    labels = [np.array(c, np.uint8) for c in ([0, 7], [0, 20], [0])]
    masks = crf_masks(images, probs, labels, CRFParams(iterations=3))
    assert masks.dtype == np.uint8
    assert [np.unique(mask).tolist() for mask in masks] == [[0, 7], [0, 20], [0]]
    np.testing.assert_array_equal(masks[0], np.where(two_regions(15, 1).argmax(0) == 1, 7, 0))
    np.testing.assert_array_equal(masks[1], np.where(two_regions(10, 1).argmax(0) == 1, 0, 20))


def test_pool_function_accepts_half_precision():
    (mask,) = crf_masks(
        two_colours(15)[None], [two_regions(15, 0.9).astype(np.float16)], [np.array([0, 3], np.uint8)], CRFParams()
    )
    assert set(np.unique(mask)) == {0, 3}


def test_crf_processes_import_no_torch():
    modules = "ssdd.crf, ssdd.runtime.crf_pool, ssdd.runtime.pipelines, ssdd.stages.crf_rows, ssdd.stages.predict_rows"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sharper_unary_term_leaves_the_crf_less_to_say():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), (20, 24)).transpose(2, 0, 1).astype(np.float32)
    row = {
        "image_id": "a",
        "image": encoded(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)),
        "dynamic": maps.pack(probs),
    }

    def changed(sharpen):
        (out,) = crf_rows.segment(("dynamic",), {"crf": CRFParams()}, 0.0, sharpen, [row])
        return (codec.read_mask(out["dynamic"]) != codec.read_mask(out["dynamic_crf"])).mean()

    plain, published, sure = changed(0), changed(10), changed(1000)
    assert plain > published > 0.05 > sure


def test_each_crf_has_a_mask_of_its_own():
    rng = np.random.default_rng(0)
    row = {
        "image_id": "a",
        "image": encoded(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)),
        "dynamic": maps.pack(rng.dirichlet(np.ones(3), (10, 12)).transpose(2, 0, 1)),
    }
    crfs = {"crf": CRFParams(), "gentle": CRFParams(gaussian_weight=0.1, bilateral_weight=0.1, iterations=1)}
    (out,) = crf_rows.segment(("dynamic",), crfs, 0.0, 0.0, [row])
    (alone,) = crf_rows.segment(("dynamic",), {"gentle": crfs["gentle"]}, 0.0, 0.0, [row])
    assert out.keys() == {"image_id", "dynamic", "dynamic_crf", "dynamic_gentle"}
    assert out["dynamic_gentle"] == alone["dynamic_gentle"] != out["dynamic_crf"]


def test_present_masks_take_the_best_of_the_image_s_classes():
    probs = np.zeros((3, 2, 2), np.float32)
    probs[[0, 1, 2, 2], [0, 0, 1, 1], [0, 1, 0, 1]] = 1
    row = {
        "image_id": "a",
        "image": encoded(np.zeros((2, 2, 3), np.uint8)),
        "presence": [4, 7],
        "net": maps.pack(probs),
    }
    (out,) = crf_rows.present_masks(("net",), [row])
    np.testing.assert_array_equal(codec.read_mask(out["net"]), [[0, 4], [7, 7]])


def test_the_background_score_has_a_factor():
    cam = np.array([[[0.5, 1.0, 0.0]]], np.float32)
    np.testing.assert_allclose(crf_rows.with_background(cam, 2)[0], [[0.25, 0, 1]])
    np.testing.assert_allclose(crf_rows.with_background(cam, 2, 1.5)[0], [[0.375, 0, 1.5]])
    np.testing.assert_array_equal(crf_rows.with_background(cam, 2, 1.5)[1:], cam)

"""The CRF of a training step: what each backend is given, and the exact one against a double loop and pydensecrf."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssdd import exact_crf, refine
from ssdd.crf import CRFParams, crf_masks, dense_crf
from ssdd.objectives.crf import ExactCRF, InlineCRF
from ssdd.runtime import crf_pool
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.runtime.crf_pool import Loads, Request, pack, unpack

SMALL = CRFParams(
    gaussian_weight=2, gaussian_sxy=1.5, bilateral_weight=5, bilateral_sxy=4, bilateral_srgb=20, iterations=3
)


def example(images=2, classes=4, side=12):
    """Smooth images of 12 x 12, logits of masks of the same size, and which classes are there."""
    torch.manual_seed(0)
    pictures = F.interpolate(torch.rand(images, 3, 6, 6) * 255, (side, side), mode="bilinear").byte()
    logits = F.interpolate(torch.randn(images, classes, 4, 4) * 2, (side, side), mode="bilinear")
    presence = torch.ones(images, classes, dtype=torch.bool)
    presence[0, 2] = False
    presence[1, 1:3] = False
    return pictures, logits, presence


def double_loop(image, probs, params):
    """Mean field in plain Python: image (H, W, 3), probs (C, H, W)."""
    classes, height, width = probs.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    kernels = []
    for weight, far in (
        (params.gaussian_weight, lambda p, q: math.dist(p, q) ** 2 / params.gaussian_sxy**2),
        (
            params.bilateral_weight,
            lambda p, q: (
                math.dist(p, q) ** 2 / params.bilateral_sxy**2
                + math.dist(image[p].tolist(), image[q].tolist()) ** 2 / params.bilateral_srgb**2
            ),
        ),
    ):
        kernel = np.array([[math.exp(-far(p, q) / 2) for q in pixels] for p in pixels])
        scale = 1 / np.sqrt(kernel.sum(1))
        kernels.append((weight, scale[:, None] * kernel * scale))
    unary = np.log(np.maximum(probs, 1e-5)).reshape(classes, -1)

    def softmax(x):
        x = np.exp(x - x.max(0))
        return x / x.sum(0)

    q = softmax(unary)
    for _ in range(params.iterations):
        q = softmax(unary + sum(weight * q @ kernel for weight, kernel in kernels))
    return q.reshape(probs.shape)


@pytest.mark.parametrize("block", [2**27, 100])
def test_the_exact_crf_equals_a_double_loop(block, monkeypatch):
    monkeypatch.setattr(exact_crf, "BLOCK", block)
    pictures, logits, presence = example(side=7)
    pictures = pictures[:, :, :5]
    probs = refine.presence_softmax(logits[:, :, :5].double(), presence)
    found = exact_crf.mean_field(pictures, probs, SMALL)
    for i in range(2):
        labels = presence[i].nonzero()[:, 0]
        expected = double_loop(pictures[i].permute(1, 2, 0).numpy(), probs[i, labels].numpy(), SMALL)
        np.testing.assert_allclose(found[i, labels], expected, rtol=1e-8, atol=1e-10)
        assert not found[i, ~presence[i]].any(), "labels that an image cannot have"


def test_the_exact_crf_and_pydensecrf_agree_on_nearly_all_pixels():
    torch.manual_seed(1)
    picture = F.interpolate(torch.rand(1, 3, 8, 8) * 255, (64, 64), mode="bicubic").clamp(0, 255).byte()
    probs = F.interpolate(torch.randn(1, 3, 5, 5) * 2, (64, 64), mode="bicubic").softmax(1)
    params = CRFParams(iterations=3)
    exact = exact_crf.mean_field(picture, probs, params)[0].argmax(0).numpy()
    lattice = dense_crf(picture[0].permute(1, 2, 0).contiguous().numpy(), probs[0].numpy(), params).argmax(0)
    before = probs[0].argmax(0).numpy()
    assert (before != lattice).mean() > 0.03, "the CRF does something here"
    assert (exact == lattice).mean() > 0.95


def test_inline_is_pydensecrf_on_the_present_labels():
    pictures, logits, presence = example()
    asked = InlineCRF(SMALL).request(pictures, logits, presence)
    asked.wait()
    masks = asked.masks()
    assert masks.dtype == torch.int64
    for i in range(2):
        labels = presence[i].nonzero()[:, 0].numpy()
        probs = logits[i, labels].softmax(0).half().float().numpy()
        image = pictures[i].permute(1, 2, 0).contiguous().numpy()
        np.testing.assert_array_equal(masks[i], labels[dense_crf(image, probs, SMALL).argmax(0)])


def test_the_exact_backend_takes_present_labels_only():
    pictures, logits, presence = example()
    masks = ExactCRF(SMALL).request(pictures, logits, presence).masks()
    inline = InlineCRF(SMALL).request(pictures, logits, presence).masks()
    assert masks.shape == inline.shape == (2, 12, 12)
    for mask, present in zip(masks, presence, strict=True):
        assert present[mask.unique()].all()
    assert (masks == inline).float().mean() > 0.9


def test_actors_get_the_present_classes_alone_and_the_caller_does_not_wait():
    seen = {}

    class Pool:
        def request(self, images, probs, labels, params):
            seen.update(images=images, probs=probs, labels=labels, params=params)
            return self

        def masks(self):
            return crf_masks(**seen)

    pictures, logits, presence = example()
    asked = ActorCRF(SMALL, Pool()).request(pictures, logits, presence)
    torch.testing.assert_close(asked.masks(), InlineCRF(SMALL).request(pictures, logits, presence).masks())
    assert seen["images"].dtype == np.uint8
    assert seen["images"].shape == (2, 12, 12, 3)
    assert [label.tolist() for label in seen["labels"]] == [[0, 1, 3], [0, 3]]
    assert [(prob.shape, prob.dtype) for prob in seen["probs"]] == [
        ((3, 12, 12), np.float16),
        ((2, 12, 12), np.float16),
    ]


def test_a_requests_masks_come_in_the_order_of_the_images(monkeypatch):
    monkeypatch.setattr(crf_pool.ray, "get", lambda refs, timeout: refs)
    masks = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
    found = Request([masks[:3].tobytes(), masks[3:].tobytes()], 2, 3).masks()
    np.testing.assert_array_equal(found, masks)
    torch.from_numpy(found)[0] = 0  # can be written to


def test_what_is_packed_is_unpacked():
    rng = np.random.default_rng(0)
    image, probs = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), rng.random((3, 4, 5)).astype(np.float16)
    labels = np.array([0, 7, 20], np.uint8)
    for packed, found in zip((image, probs, labels), unpack(pack(image, probs, labels), 4, 5), strict=True):
        assert packed.dtype == found.dtype
        np.testing.assert_array_equal(packed, found)


def test_each_image_goes_to_the_actor_with_the_fewest_and_near_ones_come_first():
    loads = Loads(near=[3, 1], far=[0])
    assert loads.take(2) == {3: 1, 1: 1}
    assert loads.take(5) == {0: 2, 3: 2, 1: 1}
    loads.done(1, 2)
    assert loads.take(3) == {1: 3}
    assert loads.take(7, together=3) == {0: 3, 3: 3, 1: 1}

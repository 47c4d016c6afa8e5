"""A trained network as a function of photographs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import untrained
from PIL import Image
from untrained import CLASSES, CONFIG, photograph

import ssdd
from ssdd.config import ConfigError
from ssdd.data.problems import DataError
from ssdd.nets.weight_files import WeightsError
from ssdd.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(untrained.network(), CONFIG, CLASSES)


def test_masks_and_probabilities_have_the_images_size(segmenter):
    images = [photograph(40, 60), photograph(33, 21, seed=1), photograph(50, 50, seed=2)]
    masks, probs = segmenter.predict(images, batch=2), segmenter.probabilities(images, batch=2)
    for image, mask, prob in zip(images, masks, probs, strict=True):
        assert (mask.shape, mask.dtype) == (image.shape[:2], np.uint8)
        assert (prob.shape, prob.dtype) == ((4, *image.shape[:2]), np.float32)
        np.testing.assert_allclose(prob.sum(0), 1, atol=5e-3)
        np.testing.assert_array_equal(mask, prob.argmax(0))
        np.testing.assert_array_equal(segmenter.predict(image), mask)
    assert len({int(value) for mask in masks for value in np.unique(mask)}) > 1


def test_a_photograph_comes_as_a_path_an_image_or_an_array(segmenter, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photograph()).save(path)
    expected = segmenter.predict(photograph())
    with Image.open(path) as image:
        for source in (path, str(path), image, Image.fromarray(photograph())):
            np.testing.assert_array_equal(segmenter.predict(source), expected)
    assert segmenter.predict([]) == []
    with pytest.raises(DataError, match=r"absent\.png"):
        segmenter.predict(tmp_path / "absent.png")
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got float64 \(4, 4, 3\)"):
        segmenter.predict(np.zeros((4, 4, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_an_image_of_32_bits_is_refused(segmenter, dtype):
    with pytest.raises(ValueError, match="its pixels have 32 bits"):
        segmenter.predict(Image.fromarray(np.ones((4, 6), dtype)))


@pytest.mark.parametrize("crf", [False, True])
def test_only_the_present_classes_and_background_compete(segmenter, crf):
    images = [photograph(seed=seed) for seed in range(3)]
    everywhere = {int(value) for mask in segmenter.predict(images) for value in np.unique(mask)}
    assert len(everywhere - {0}) >= 2
    one, none, two = segmenter.predict(images, presence=[["dog"], [], ["cat", "cow"]], crf=crf)
    assert set(np.unique(one)) <= {0, 2}
    assert set(np.unique(none)) == {0}
    assert set(np.unique(two)) <= {0, 1, 3}
    prob = segmenter.probabilities(images[0], presence=["dog"])
    assert prob[[1, 3]].max() == 0
    np.testing.assert_allclose(prob.sum(0), 1, atol=1e-3)
    with pytest.raises(ValueError, match="presence: 'bird'"):
        segmenter.predict(images[0], presence=["bird"])
    with pytest.raises(ValueError, match="presence: 'dog': give a list of names"):
        segmenter.predict(images[0], presence="dog")
    for names in ([["dog"]], []):
        with pytest.raises(ValueError, match=f"presence: {len(names)} lists of names for 3 images"):
            segmenter.predict(images, presence=names)


def test_photographs_are_turned_as_in_the_training(segmenter, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph(40, 60)).save(tmp_path / "photo.jpg", exif=exif)
    turning = Segmenter(segmenter.net, replace(CONFIG, apply_exif=True), CLASSES)
    with Image.open(tmp_path / "photo.jpg") as image:
        for source in (tmp_path / "photo.jpg", image):
            assert segmenter.predict(source).shape == (40, 60)
            assert turning.predict(source).shape == (60, 40)


def test_an_overlay_and_the_palette(segmenter):
    image = photograph()
    picture = segmenter.overlay(image, np.zeros(image.shape[:2], np.uint8))
    np.testing.assert_array_equal(picture, image)
    assert segmenter.palette[1].tolist() == [128, 0, 0]


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing was trained there, or not to the end: trained\.json is missing"):
        ssdd.load(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "seg.pth")
    with pytest.raises(WeightsError, match=r"seg\.pth: is none of the published files"):
        ssdd.load(tmp_path / "seg.pth", preset="paper")
    with pytest.raises(ConfigError, match="preset papr: there is none of this name; choose from mini, photographs"):
        ssdd.load(tmp_path / "seg.pth", preset="papr")
    for name in ("seg.pth", "seg.onnx", "seg.safetensors"):
        with pytest.raises(ConfigError, match=f"network baseline: only a workspace has several .* {tmp_path}/{name}"):
            ssdd.load(tmp_path / name, network="baseline")

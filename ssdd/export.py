"""Export a trained network to one file, checked before it appears; `ssdd.load` and other programs read the file."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ssdd.config import Config, ConfigError
from ssdd.data import drawn_scenes
from ssdd.data.problems import first_line
from ssdd.nets import exported
from ssdd.nets.networks import SegmentationNet
from ssdd.segmenter import Segmenter
from ssdd.storage.artifacts import whole
from ssdd.storage.paths import AnyPath

SIZES = ((375, 500), (331, 222), (97, 211), (64, 643), (41, 37))
"""Height and width of each photograph of the check."""
ENOUGH = 0.999
"""An export is accepted if at least this share of pixels gets the same class as from the network."""


class ExportError(RuntimeError):
    """A network cannot be exported in a format; the message says what to do."""


class Check(NamedTuple):
    """The comparison of an exported file with its network."""

    equal: float
    """Share of pixels with the same class."""
    difference: float
    """The largest difference of a probability."""


def save(segmenter: Segmenter, path: AnyPath, all_scales: bool = False) -> Check:
    """Write a network into one file, which appears only if `compare` finds at least `ENOUGH` equal pixels.

    Args:
        segmenter: from a workspace, published weights or a `.safetensors` file.
        path: its suffix names the format: `.onnx`, `.pt2` or `.safetensors`.
        all_scales: whether an `.onnx` or `.pt2` file uses all test-time scales and mirror images of the configuration,
            or only scale 1 without a mirror image. A `.safetensors` file always has the whole configuration.

    Raises:
        ConfigError: the suffix is none of these, a library is missing, or the segmenter is from an `.onnx` or `.pt2`
            file.
        ExportError: torch cannot export the network, or the file gives other classes.
        OSError: the file cannot be written.
    """
    kind = next((name for name, suffix in exported.SUFFIXES.items() if suffix == path.suffix), None)
    if kind is None:
        raise ConfigError(f"{path}: the suffix must be one of {', '.join(exported.SUFFIXES.values())}")
    net, config, classes = segmenter.net, segmenter.config, segmenter.classes
    if not isinstance(net, SegmentationNet):
        raise ConfigError(
            "a file of ONNX or torch.export cannot be exported again: give the workspace, a .safetensors file or the "
            "published weights"
        )
    if kind != "safetensors" and not all_scales:
        config = one_scale(config)
    described = exported.Description(config, classes)
    with whole(path) as aside:
        try:
            exported.WRITERS[kind](net, described, aside)
        except (ConfigError, OSError):
            raise
        except Exception as error:  # torch raises errors of many types
            raise ExportError(
                f"{path}: torch cannot export the backbone {config.network.backbone.name} as {kind} "
                f"({first_line(error)}); "
                "choose a .safetensors file, which works for every network"
            ) from error
        written, described = exported.read(aside)
        check = compare(Segmenter(written, *described), Segmenter(net, config, classes))
        if check.equal < ENOUGH:
            raise ExportError(
                f"{path}: only {check.equal:.2%} of pixels have the network's class, and probabilities differ by "
                f"up to {check.difference:.2g}; nothing was written. Choose a .safetensors file, which works for every "
                "network"
            )
    return check


def one_scale(config: Config) -> Config:
    """The configuration with a single scale and no mirror images at test time."""
    return replace(config, evaluate=replace(config.evaluate, scales=(1.0,), mirror=False))


def compare(one: Segmenter, other: Segmenter) -> Check:
    """Compare two segmenters on `photographs`."""
    equal = pixels = 0
    difference = 0.0
    for image in photographs():
        ours, theirs = (np.asarray(segmenter.probabilities(image)) for segmenter in (one, other))
        equal += int((ours.argmax(0) == theirs.argmax(0)).sum())
        pixels += image.shape[0] * image.shape[1]
        difference = max(difference, float(np.abs(ours - theirs).max()))
    return Check(equal / pixels, difference)


@functools.cache
def photographs() -> tuple[np.ndarray, ...]:
    """Synthetic test images, one for each of `SIZES`: uint8 (H, W, 3)."""
    drawn = []
    for index, (height, width) in enumerate(SIZES):
        image, _ = drawn_scenes.render(0, "val", index, (max(width, 64), max(height, 64)))
        drawn.append(image[:height, :width])
    return tuple(drawn)

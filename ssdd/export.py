"""A trained network as one file, checked before it appears; `ssdd.load` and other programs read it."""

import functools
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ssdd.config import Config, ConfigError
from ssdd.data import drawn_scenes
from ssdd.nets import exported
from ssdd.nets.networks import SegmentationNet
from ssdd.segmenter import Segmenter
from ssdd.storage.artifacts import whole
from ssdd.storage.paths import AnyPath

SIZES = ((375, 500), (331, 222), (97, 211), (64, 643), (41, 37))
"""Heights and widths of the photographs of the check."""
ENOUGH = 0.999
"""The share of pixels that must have the same class."""


class ExportError(RuntimeError):
    """A network that cannot be exported in a format; the message says what to do."""


class Check(NamedTuple):
    """How a file compares with the network that it was made from."""

    equal: float
    """Share of pixels with the same class."""
    difference: float
    """The largest one of a probability."""


def save(segmenter: Segmenter, path: AnyPath, all_scales: bool = False) -> Check:
    """Write a network into one file, which appears only if it computes what the network does.

    Args:
        segmenter: from a workspace, published weights or a `.safetensors` file.
        path: its suffix names the format: `.onnx`, `.pt2` or `.safetensors`.
        all_scales: all test-time scales and mirror images of the configuration; `.onnx` and `.pt2` else have one image
            of its size. A `.safetensors` file has the weights and the whole configuration anyway.

    Raises:
        ConfigError: another suffix, a segmenter of another source, or a missing library.
        ExportError: torch cannot export the network, or the file computes something else.
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
        except Exception as error:  # torch refuses in many ways
            raise ExportError(
                f"{path}: torch cannot export the backbone {config.network.backbone.name} as {kind} "
                f"({exported.first_line(error)}); "
                "a .safetensors file can hold every network"
            ) from error
        written, described = exported.read(aside)
        check = compare(Segmenter(written, *described), Segmenter(net, config, classes))
        if check.equal < ENOUGH:
            raise ExportError(
                f"{path}: only {check.equal:.2%} of pixels have the network's class, probabilities differ by up to "
                f"{check.difference:.2g}; nothing was written. A .safetensors file can hold every network"
            )
    return check


def one_scale(config: Config) -> Config:
    """A configuration whose test-time inference looks at each photograph once."""
    return replace(config, evaluate=replace(config.evaluate, scales=(1.0,), mirror=False))


def compare(one: Segmenter, other: Segmenter) -> Check:
    """How two segmenters differ on `photographs`."""
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
    """Drawn photographs of `SIZES`: uint8 (H, W, 3) each."""
    drawn = []
    for index, (height, width) in enumerate(SIZES):
        image, _ = drawn_scenes.render(0, "val", index, (max(width, 64), max(height, 64)))
        drawn.append(image[:height, :width])
    return tuple(drawn)

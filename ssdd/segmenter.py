"""A trained network as a function from photographs to masks, without Ray, MLflow or a data set."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ssdd.config import Config, ConfigError
from ssdd.crf import segment_present, without_absent
from ssdd.data import codec
from ssdd.data.class_names import BACKGROUND, VOC_CLASSES
from ssdd.fields import from_dict, to_dict
from ssdd.nets import checkpoints, exported, published
from ssdd.nets.inference import full_size, load_segmentation, map_size, predict
from ssdd.nets.networks import SegmentationNet
from ssdd.nets.weight_files import WeightsError
from ssdd.presets import PRESETS
from ssdd.reports import figures
from ssdd.storage import maps
from ssdd.storage.paths import ABSENT, AnyPath, on_disk, stat, to_path

Picture = str | AnyPath | Image.Image | np.ndarray
"""A photograph: the path of a JPEG, PNG, WebP, BMP or TIFF file, an open PIL image, or an array, uint8 (H, W, 3)."""
Presence = Sequence[str]
"""The names of the foreground classes that an image can have."""
Result = TypeVar("Result")


class Segmenter:
    """A trained segmentation network with its classes; `load` makes one.

    Args:
        net: a network, ready for inference, or the function of an exported file.
        config: the configuration of its training: test-time scales, the CRF, whether EXIF rotations are applied.
        classes: class names, background first.
        identity: an artifact's folder name or a hash of weight files, by which different weights can be told apart.
    """

    def __init__(
        self, net: SegmentationNet | exported.Apply, config: Config, classes: tuple[str, ...], identity: str = ""
    ):
        self.net, self.config, self.classes, self.identity = net, config, classes, identity
        self._apply: exported.Apply = (
            partial(full_size, net, config=config) if isinstance(net, SegmentationNet) else net
        )
        self.palette = codec.voc_palette()
        """The colour of each mask value, uint8 (256, 3)."""

    def predict(
        self,
        images: Picture | Sequence[Picture],
        presence: Presence | Sequence[Presence] | None = None,
        crf: bool = False,
        batch: int = 8,
    ) -> np.ndarray | list[np.ndarray]:
        """The class of each pixel: uint8 (H, W) of the image's size, or a list of masks for a list of images.

        Args:
            images: one image or several.
            presence: for each image the names of the foreground classes that it can have; None: all of them.
            crf: refine the masks with the configuration's CRF, which takes most of the time.
            batch: number of images that the network gets at once.

        Raises:
            problems.DataError: a file is not a photograph.
            ValueError: an array has another shape or type, an image has 32 bits a pixel, a name is not a class, or
                `presence` is not given for every image.
        """
        evaluate = self.config.evaluate
        params = self.config.crf if crf else None

        def mask(image: np.ndarray, probs: np.ndarray) -> np.ndarray:
            return segment_present(image, probs, params, evaluate.min_probability, evaluate.sharpen)

        return self._each(images, presence, batch, mask)

    def probabilities(
        self,
        images: Picture | Sequence[Picture],
        presence: Presence | Sequence[Presence] | None = None,
        batch: int = 8,
    ) -> np.ndarray | list[np.ndarray]:
        """The probability of each class at each pixel: float32 (C, H, W), or a list of such arrays. See `predict`."""
        return self._each(images, presence, batch, lambda image, probs: probs)

    def overlay(self, image: Picture, mask: np.ndarray) -> np.ndarray:
        """A photograph with its mask over it: uint8 (H, W, 3)."""
        return figures.overlay(self._pixels(image), mask)

    def _each(self, images, presence, batch: int, make):
        """The result of `make(image, probabilities)` for one image, or a list of results for several images."""
        single = isinstance(images, (str, AnyPath, Image.Image, np.ndarray))
        pictures = [images] if single else list(images)
        wanted = [presence] if single else [None] * len(pictures) if presence is None else list(presence)
        if len(wanted) != len(pictures):
            raise ValueError(
                f"presence: {len(wanted)} lists of names for {len(pictures)} images; give one list per image"
            )
        absent_classes = [self._absent(names) for names in wanted]
        results = []
        for first in range(0, len(pictures), batch):
            decoded = [self._pixels(picture) for picture in pictures[first : first + batch]]
            for image, probs, absent in zip(decoded, self._apply(decoded), absent_classes[first:], strict=False):
                results.append(make(image, without_absent(probs, absent)))
        return results[0] if single else results

    def packed(self, images: list[np.ndarray]) -> list[bytes]:
        """Class probabilities as tables store them; the maps of a `SegmentationNet` are not yet resized to the image.

        Args:
            images: uint8 (H, W, 3) each.

        Returns:
            for each image an array in half precision, packed by `maps.pack`. Its shape is (C, s, s) with the s of
            `map_size`, or (C, H, W) for an exported file, because the file's function resizes its maps to the image.
        """
        if not isinstance(self.net, SegmentationNet):
            return [maps.pack(probs) for probs in self._apply(images)]
        size = map_size(self.config.network, self.config.evaluate)
        return [maps.pack(probs.numpy()) for probs in predict(self.net, images, self.config.evaluate, size)]

    def _absent(self, names: Presence | None) -> list[int]:
        """Indices of the foreground classes that an image cannot have."""
        if names is None:
            return []
        if isinstance(names, str):
            raise ValueError(f"presence: {names!r}: give a list of names, one for each class of the image")
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(
                f"presence: {', '.join(map(repr, unknown))}: no such class; use {', '.join(self.classes[1:])}"
            )
        return [index for index, name in enumerate(self.classes) if index and name not in names]

    def _pixels(self, picture: Picture) -> np.ndarray:
        """A photograph as uint8 (H, W, 3), turned by its EXIF orientation if `config.apply_exif` is set."""
        apply_exif = self.config.apply_exif
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"an image must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
            return picture
        if isinstance(picture, Image.Image):
            codec.refuse_32_bits(picture)
            return codec.to_rgb(codec.turned(picture) if apply_exif else picture)
        return codec.read_photograph(to_path(picture), apply_exif)


def load(
    source: str | AnyPath | Sequence[str | AnyPath], network: str | None = None, preset: str = "paper"
) -> Segmenter:
    """A trained network, ready to segment photographs.

    Args:
        source: a workspace in which a job has trained networks; a file of ray_jobs/export.py; or the `.pth` file or
            files of SSDD's published segmentation network.
        network: name of the workspace's network: `baseline`, `dynamic` or another one that its job has trained.
            Default: the last one.
        preset: for published weights, the preset whose network they fill.

    Raises:
        ConfigError: no training has finished in the workspace, or it has no such network; `network` is given for a
            file; there is no such preset.
        weight_files.WeightsError: a file cannot be read, or the published weights do not fill the network.
    """
    several = not isinstance(source, (str, AnyPath))
    files = [to_path(one) for one in source] if several else [to_path(source)]  # type: ignore[union-attr, arg-type]
    files = [file.expanduser() if isinstance(file, Path) else file for file in files]
    of_files = several or files[0].suffix in (".pth", *exported.SUFFIXES.values())
    if of_files and network is not None:
        raise ConfigError(f"network {network}: only a workspace has several networks; leave it out for {files[0]}")
    if several or files[0].suffix == ".pth":
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset}: there is none of this name; choose from {', '.join(PRESETS)}")
        config, classes = PRESETS[preset](), (BACKGROUND, *VOC_CLASSES)
        net = SegmentationNet(config.network, len(classes))
        published.fill(net, files)
        return Segmenter(checkpoints.ready(net), config, classes, _digest(files))
    path = files[0].absolute() if isinstance(files[0], Path) else files[0]
    if path.suffix in exported.SUFFIXES.values():
        stored, described = exported.read(path)
        return Segmenter(stored, *described, _digest(files))
    if stat(path) != ABSENT:
        raise WeightsError(
            f"{path}: not a file with a network; give a workspace, a file of `ssdd export` "
            f"({', '.join(exported.SUFFIXES.values())}), or SSDD's published weights (.pth)"
        )
    trained = checkpoints.recall(path)
    if trained is None:
        raise ConfigError(
            f"{path}: nothing was trained there, or not to the end: {checkpoints.TRAINED} is missing; check the path"
        )
    chosen = network or list(trained.models)[-1]
    if chosen not in trained.models:
        raise ConfigError(f"{path}: has no network {chosen!r}; it has {', '.join(trained.models)}")
    return of_artifact(path / trained.models[chosen], from_dict(trained.config), trained.classes)


def of_artifact(folder: AnyPath, config: Config, classes: tuple[str, ...]) -> Segmenter:
    """The network in the artifact's folder of a training with this configuration and these classes."""
    return Segmenter(load_segmentation(config.network, len(classes), folder), config, classes, folder.name)


def test_time(config: Config) -> dict[str, Any]:
    """The fields on which the masks of a trained network depend, as JSON data."""
    evaluate = to_dict(config.evaluate)
    names = ("size", "scales", "mirror", "min_probability", "sharpen", "full_size")
    return {
        **{name: evaluate[name] for name in names},
        "apply_exif": config.apply_exif,
        "max_pixels": config.max_pixels,
        "crf": to_dict(config.crf),
    }


def _digest(files: Sequence[AnyPath]) -> str:
    """A hash (hex SHA-256) of the files' contents."""
    digest = hashlib.sha256()
    for file in files:
        with on_disk(file) as path, path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

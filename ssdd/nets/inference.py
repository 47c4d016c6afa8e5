"""Trained networks applied to images: several scales and mirror images, class probabilities, rows of a table."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdd.config import Config, EvaluateConfig, NetworkConfig
from ssdd.data import codec, transforms
from ssdd.nets import checkpoints
from ssdd.nets.networks import SegmentationNet
from ssdd.storage import maps
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import Row

Squares = Callable[[int], Tensor]
"""Images as squares of a side: uint8 or float (N, 3, side, side)."""


def squares_of(decoded: list[np.ndarray]) -> Squares:
    """N images, uint8 (H, W, 3) of any size, for `multi_scale`, on this process's device."""

    def squares(side: int) -> Tensor:
        batch = np.stack([transforms.square(image, side) for image in decoded])
        return torch.from_numpy(batch).to(checkpoints.device())

    return squares


def multi_scale(
    function: Callable[[Tensor], Tensor], squares: Squares, sides: list[int], mirror: bool, size: int
) -> Tensor:
    """Sum of a fully convolutional function over square input sizes, and their mirror images.

    Args:
        function: (N, 3, s, s) -> maps (N, C, h, w).
        squares: of N images.
        sides: the input sizes.
        mirror: add the mirror images' maps, mirrored back.
        size: side of the result.

    Returns:
        (N, C, size, size)
    """
    total: Tensor | float = 0.0
    for side in sides:
        batch = squares(side)
        outputs = [function(batch)] + ([function(batch.flip(-1)).flip(-1)] if mirror else [])
        for output in outputs:
            total = total + F.interpolate(output, (size, size), mode="bilinear", align_corners=False)
    assert isinstance(total, Tensor)
    return total


def load_segmentation(network: NetworkConfig, classes: int, path: AnyPath) -> SegmentationNet:
    """The part that is used at test time of any trained network, ready for inference on this process's device."""
    net = SegmentationNet(network, classes)
    checkpoints.load_parts(net, path, {"backbone": "backbone", "main": "main"})
    return checkpoints.ready(net)


def map_size(network: NetworkConfig, evaluate: EvaluateConfig) -> int:
    """Side of the square maps of test-time inference, before they are resized to the image."""
    return evaluate.size if evaluate.full_size else network.mask_size(evaluate.size)


def predict(net: SegmentationNet, decoded: list[np.ndarray], config: EvaluateConfig, size: int) -> Tensor:
    """Test-time class probabilities (sec. 5.1): the mean softmax over scales and mirror images.

    Args:
        net: ready for inference.
        decoded: N images, uint8 (H, W, 3) of any size.
        config: scales and size.
        size: side of the result.

    Returns:
        (N, classes, size, size), on the CPU.
    """
    with torch.inference_mode():
        return _mean_softmax(net, squares_of(decoded), config, size).cpu()


def _mean_softmax(net: SegmentationNet, squares: Squares, config: EvaluateConfig, size: int) -> Tensor:
    """`predict` in torch alone."""
    sides = [round(config.size * scale) for scale in config.scales]
    total = multi_scale(lambda batch: net(batch, config.full_size).softmax(1), squares, sides, config.mirror, size)
    return total / total.sum(1, keepdim=True)


def full_size(net: SegmentationNet, decoded: list[np.ndarray], config: Config) -> Iterator[np.ndarray]:
    """Test-time class probabilities of images at their sizes; their best classes are the masks that `evaluate` scores.

    Args:
        net: ready for inference.
        decoded: N images, uint8 (H, W, 3) of any size.
        config: of the network's training.

    Yields:
        for each image, float32 (classes, H, W).
    """
    squares = predict(net, decoded, config.evaluate, map_size(config.network, config.evaluate))
    for probs, image in zip(squares, decoded, strict=True):
        yield _at_size(probs[None], image.shape[:2])[0].numpy()


def _at_size(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Square maps (N, C, s, s), in the half precision of tables, resized to an image: (N, C, *size)."""
    return transforms.resized(probs.half().float(), size)


class PhotographNet(nn.Module):
    """A network with all that comes before and behind it, in torch alone: `full_size` of one photograph, for export.

    Args:
        net: ready for inference.
        config: of its training.
    """

    def __init__(self, net: SegmentationNet, config: Config):
        super().__init__()
        self.net, self.evaluate = net, config.evaluate
        self.size = map_size(config.network, config.evaluate)

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 (H, W, 3) of any size -> the probabilities of the classes, float32 (C, H, W)."""
        images = image.permute(2, 0, 1)[None]
        probs = _mean_softmax(self.net, partial(transforms.square_tensor, images), self.evaluate, self.size)
        return _at_size(probs, (image.shape[0], image.shape[1]))[0]


class PredictStage:
    """Network actor: probabilities of every model, packed under the model's name.

    They are (C, s, s) of all classes, or with `present_only` (1 + n, s, s) of background and the image's own classes.
    """

    def __init__(
        self,
        *,
        network: NetworkConfig,
        evaluate: EvaluateConfig,
        classes: int,
        models: dict[str, AnyPath],
        present_only: bool = False,
    ):
        self.evaluate, self.present_only = evaluate, present_only
        self.size = map_size(network, evaluate)
        self.nets = {name: load_segmentation(network, classes, path) for name, path in models.items()}

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = [codec.read_image(row["image"]) for row in rows]
        for name, net in self.nets.items():
            for row, probs in zip(rows, predict(net, decoded, self.evaluate, self.size), strict=True):
                if self.present_only:
                    probs = probs[[0, *row["presence"]]]
                    probs = probs / probs.sum(0).clamp(min=1e-5)
                row[name] = maps.pack(probs.numpy())
        return rows

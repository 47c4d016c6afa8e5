"""Apply trained networks to images: several scales and mirror images, class probabilities, rows of a table."""

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
"""A function from a side to N images resized to squares of that side: uint8 or float (N, 3, side, side)."""


def squares_of(decoded: list[np.ndarray]) -> Squares:
    """The `squares` argument of `multi_scale` for N images, uint8 (H, W, 3) of any size, on this process's device."""

    def squares(side: int) -> Tensor:
        batch = np.stack([transforms.square(image, side) for image in decoded])
        return torch.from_numpy(batch).to(checkpoints.device())

    return squares


def multi_scale(
    function: Callable[[Tensor], Tensor], squares: Squares, sides: list[int], mirror: bool, size: int
) -> Tensor:
    """The sum of a fully convolutional function's maps over several input sizes, and over mirror images.

    Args:
        function: (N, 3, s, s) -> maps (N, C, h, w).
        squares: gives the N images at an input size.
        sides: the input sizes.
        mirror: add the mirror images' maps, mirrored back.
        size: side of the resulting maps.

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
    """Load a trained network's test-time part, backbone and main head, ready for inference on this process's device."""
    net = SegmentationNet(network, classes)
    checkpoints.load_parts(net, path, {"backbone": "backbone", "main": "main"})
    return checkpoints.ready(net)


def map_size(network: NetworkConfig, evaluate: EvaluateConfig) -> int:
    """Side of the square maps of test-time inference, before they are resized to the image."""
    return evaluate.size if evaluate.full_size else network.mask_size(evaluate.size)


def predict(net: SegmentationNet, decoded: list[np.ndarray], config: EvaluateConfig, size: int) -> Tensor:
    """Test-time class probabilities (sec. 5.1): the mean softmax over scales and mirror images.

    Args:
        net: the network, ready for inference.
        decoded: N images, uint8 (H, W, 3) of any size.
        config: the scales and the input size.
        size: side of the resulting maps.

    Returns:
        (N, classes, size, size), on the CPU.
    """
    with torch.inference_mode():
        return _mean_softmax(net, squares_of(decoded), config, size).cpu()


def _mean_softmax(net: SegmentationNet, squares: Squares, config: EvaluateConfig, size: int) -> Tensor:
    """`predict` with torch functions only, so that it can be exported."""
    total = multi_scale(
        lambda batch: net(batch, config.full_size).softmax(1), squares, config.sides, config.mirror, size
    )
    return total / total.sum(1, keepdim=True)


def full_size(net: SegmentationNet, decoded: list[np.ndarray], config: Config) -> Iterator[np.ndarray]:
    """Test-time class probabilities at each image's own size; `evaluate` scores each pixel's most probable class.

    Args:
        net: the network, ready for inference.
        decoded: N images, uint8 (H, W, 3) of any size.
        config: the configuration of the network's training.

    Yields:
        for each image, float32 (classes, H, W).
    """
    squares = predict(net, decoded, config.evaluate, map_size(config.network, config.evaluate))
    for probs, image in zip(squares, decoded, strict=True):
        yield _at_size(probs[None], image.shape[:2])[0].numpy()


def _at_size(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Round square maps (N, C, s, s) to half precision, as tables store them, and resize them: (N, C, *size)."""
    return transforms.resized(probs.half().float(), size)


class PhotographNet(nn.Module):
    """All steps of `full_size` for one photograph as one torch module, for export.

    Args:
        net: the network, ready for inference.
        config: the configuration of its training.
    """

    def __init__(self, net: SegmentationNet, config: Config):
        super().__init__()
        self.net, self.evaluate = net, config.evaluate
        self.size = map_size(config.network, config.evaluate)

    def forward(self, image: Tensor) -> Tensor:
        """A photograph, uint8 (H, W, 3) of any size -> its class probabilities, float32 (C, H, W)."""
        images = image.permute(2, 0, 1)[None]
        probs = _mean_softmax(self.net, partial(transforms.square_tensor, images), self.evaluate, self.size)
        return _at_size(probs, (image.shape[0], image.shape[1]))[0]


class PredictStage:
    """Network actor: packs each model's class probabilities into the column with the model's name.

    The probabilities are (C, s, s), for all classes. With `present_only` they are (1 + n, s, s), for background and the
    n classes of the image, and those of each pixel sum to one.
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

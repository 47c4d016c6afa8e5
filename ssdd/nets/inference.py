"""Trained networks applied to images: several scales and mirror images, class probabilities, rows of a table."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdd.config import EvaluateConfig, NetworkConfig
from ssdd.data import codec, transforms
from ssdd.nets import checkpoints
from ssdd.nets.networks import SegmentationNet
from ssdd.storage import maps
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import Row


def multi_scale(
    function: Callable[[Tensor], Tensor], decoded: list[np.ndarray], sides: list[int], mirror: bool, size: int
) -> Tensor:
    """Sum of a fully convolutional function over square input sizes, and their mirror images.

    Args:
        function: uint8 (N, 3, s, s) -> maps (N, C, h, w).
        decoded: N images, uint8 (H, W, 3) of any size.
        sides: the input sizes.
        mirror: add the mirror images' maps, mirrored back.
        size: side of the result.

    Returns:
        (N, C, size, size)
    """
    total: Tensor | float = 0.0
    for side in sides:
        batch = torch.from_numpy(np.stack([transforms.square(image, side) for image in decoded])).to(
            checkpoints.device()
        )
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
    sides = [round(config.size * scale) for scale in config.scales]
    with torch.inference_mode():
        total = multi_scale(lambda batch: net(batch, config.full_size).softmax(1), decoded, sides, config.mirror, size)
    return (total / total.sum(1, keepdim=True)).cpu()


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

"""A small network that nobody has trained but that is sure of something, and photographs for it."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from small import NETWORK

from ssdd.nets.networks import SegmentationNet
from ssdd.presets import mini

CLASSES = ("background", "cat", "dog", "cow")
_START = mini()
CONFIG = replace(_START, network=NETWORK, evaluate=replace(_START.evaluate, size=64, scales=(1.0,), mirror=False))


def network():
    """The same network each time, for `CLASSES` and `CONFIG`."""
    torch.manual_seed(0)
    net = SegmentationNet(NETWORK, len(CLASSES)).eval()
    torch.nn.init.normal_(net.main.conv2.weight, std=2.0)
    return net


def photograph(height=40, width=60, seed=0):
    """uint8 (height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))

"""Networks on top of a backbone: the segmentation head, the CAM classifier, AffinityNet, and DD-Net (Fig. 2)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdd.config import NetworkConfig
from ssdd.nets.backbones import Backbone, build_backbone, freeze_batchnorm


class _FrozenNorm(nn.Module):
    """A network whose batch norms all stay frozen, as in the published code."""

    def train(self, mode: bool = True):
        super().train(mode)
        freeze_batchnorm(self)
        return self


class SegmentationHead(_FrozenNorm):
    """Two dilated 3x3 convolutions with reflection padding, then bilinear upsampling of logits and hidden layer."""

    def __init__(self, inner: int, classes: int, config: NetworkConfig):
        super().__init__()
        self.upsample = config.upsample
        self.dilation = config.head_dilation
        self.conv1 = nn.Conv2d(inner, config.head_channels, 3, dilation=self.dilation)
        self.norm: nn.Module = nn.BatchNorm2d(config.head_channels, eps=1e-3)
        if config.head_norm == "group":
            self.norm = nn.GroupNorm(math.gcd(32, config.head_channels), config.head_channels)
        self.conv2 = nn.Conv2d(config.head_channels, classes, 3, dilation=self.dilation)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, h, w) -> logits (N, classes, u*h, u*w) and the hidden layer (N, head_channels, u*h, u*w).

        u is `network.upsample`.
        """
        hidden, logits = self._maps(x)
        return _upsampled(logits, self.upsample), _upsampled(hidden, self.upsample)

    def scores(self, x: Tensor, upsample: int) -> Tensor:
        """Features (N, C, h, w) -> only the logits, for any factor: (N, classes, upsample * h, upsample * w)."""
        return _upsampled(self._maps(x)[1], upsample)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.norm(self.conv1(_reflect(x, self.dilation))))
        return hidden, self.conv2(_reflect(hidden, self.dilation))


class Classifier(nn.Module):
    """PSA's classifier: a 1x1 convolution without bias on the high-level features, averaged over the image."""

    def __init__(self, config: NetworkConfig, foreground_classes: int):
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        self.dropout = nn.Dropout2d(0.5)
        self.fc = nn.Conv2d(self.backbone.level_channels[-1], foreground_classes, 1, bias=False)
        nn.init.normal_(self.fc.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) -> logits (N, K)."""
        return self.fc(self.dropout(self.backbone(images).high)).mean((2, 3))

    def cam(self, images: Tensor) -> Tensor:
        """Class activation maps after ReLU, (N, K, h, w)."""
        return F.relu(self.fc(self.backbone(images).high))


def seed_size(side: int) -> int:
    """Side of CAMs, affinities and knowledge maps for a square input: stride 8, as in PSA, for every backbone."""
    return -(-side // 8)


class AffinityNet(nn.Module):
    """PSA's AffinityNet: three feature levels, reduced to 64, 128 and 256 channels and fused to 448, at stride 8."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        widths = (64, 128, 256)
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, w, 1, bias=False) for c, w in zip(self.backbone.level_channels, widths, strict=True)
        )
        self.fuse = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for conv in [*self.reduce, self.fuse]:
            nn.init.xavier_uniform_(conv.weight, gain=4 if conv is self.fuse else 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) -> features (N, 448, H/8, W/8), see `affinity.pair_affinity`."""
        size = [seed_size(side) for side in images.shape[-2:]]
        levels = self.backbone(images).levels
        reduced = [F.elu(conv(x)) for conv, x in zip(self.reduce, levels, strict=True)]
        return F.elu(self.fuse(torch.cat([_resized(x, size) for x in reduced], 1)))


class DDNet(_FrozenNorm):
    """The difference detection network of Fig. 2: three convolutions and one residual block.

    DD-Net predicts where the two masks of an SSDD module, knowledge and advice, differ. `features` is computed once
    for both masks. Then each mask gives a map of logits; their sigmoid d is the probability of a difference (d^K, d^A).
    """

    def __init__(self, channels: int, classes: int, config: NetworkConfig):
        """`channels` is the number of low-level and high-level feature channels together."""
        super().__init__()
        width, self.classes = config.ddnet_channels, classes
        self.conv_features = nn.Conv2d(channels, width, 3, bias=False)
        self.norm_features = nn.BatchNorm2d(width, eps=1e-3)
        self.conv_mask = nn.Conv2d(classes, width, 1, bias=False)
        self.norm_mask = nn.BatchNorm2d(width, eps=1e-3)
        self.block = _ResidualBlock(2 * width, width)
        self.predict = nn.Conv2d(width, 1, 1, bias=False)
        for conv in (self.conv_features, self.conv_mask):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def features(self, low: Tensor, high: Tensor) -> Tensor:
        """Features (N, width, h, w) for both masks, from `low` e^l (N, C, H, W) and `high` e^h (N, C', h, w).

        `low` is averaged down to the size of `high`. Both are detached, so DD-Net's loss does not train the backbone
        (sec. 3.1).
        """
        low = F.adaptive_avg_pool2d(low.detach(), (high.shape[-2], high.shape[-1]))
        together = torch.cat([high.detach(), low], 1)
        return F.relu(_normed(self.conv_features, self.norm_features, _reflect(together, 1)))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features (N, width, h, w), integer mask (N, h, w) -> logits of d, (N, h, w)."""
        # A mask value that is not a class (255: no label or padding) becomes an all-zero vector.
        one_hot = F.one_hot(mask.long().clamp(max=self.classes), self.classes + 1)[..., :-1]
        hidden = F.relu(_normed(self.conv_mask, self.norm_mask, one_hot.movedim(-1, 1).to(features.dtype)))
        return self.predict(self.block(torch.cat([features, hidden], 1)))[:, 0]


class _ResidualBlock(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions with a projection shortcut."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer, eps=1e-3)
        self.conv2 = nn.Conv2d(outer, outer, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(outer, eps=1e-3)
        self.conv3 = nn.Conv2d(outer, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer, eps=1e-3)
        self.downsample = nn.Conv2d(inner, outer, 1, bias=False)
        self.bnd = nn.BatchNorm2d(outer, eps=1e-3)
        for conv in (self.conv1, self.conv2, self.conv3, self.downsample):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(_normed(self.conv1, self.bn1, x))
        out = F.relu(_normed(self.conv2, self.bn2, _reflect(out, 1)))
        return F.relu(_normed(self.conv3, self.bn3, out) + _normed(self.downsample, self.bnd, x))


def _normed(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Compute a convolution and its frozen batch norm as one convolution, which saves a pass over the maps."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return F.conv2d(x, conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale)


class HeadFeatures(NamedTuple):
    """Those features of the backbone that heads and DD-Nets get as input."""

    low: Tensor
    """Low-level features e^l, (N, C, H/2, W/2)."""
    high: Tensor
    """The last `network.levels` levels, concatenated at `network.feature_stride`: (N, C', h, w)."""


class SegmentationNet(nn.Module):
    """A backbone with one segmentation head: a baseline's network, and what is used of SSDD's network at test time."""

    def __init__(self, config: NetworkConfig, classes: int):
        super().__init__()
        self.backbone: Backbone = build_backbone(config.backbone)
        self.levels, self.stride = config.levels, config.feature_stride
        self.high_channels = sum(self.backbone.level_channels[-config.levels :])
        self.main = SegmentationHead(self.high_channels, classes, config)

    def features(self, images: Tensor) -> HeadFeatures:
        """uint8 images (N, 3, H, W) -> low (N, C, H/2, W/2) and high (N, high_channels, H/stride, W/stride)."""
        features = self.backbone(images)
        size = [-(-side // self.stride) for side in images.shape[-2:]]
        levels = [_resized(level, size) for level in features.levels[-self.levels :]]
        return HeadFeatures(features.low, torch.cat(levels, 1) if len(levels) > 1 else levels[0])

    def forward(self, images: Tensor, full_size: bool = False) -> Tensor:
        """uint8 images (N, 3, H, W) -> logits (N, classes, u*h, u*w), or (N, classes, H, W) with `full_size`.

        u is `network.upsample`. With `full_size`, H and W must be multiples of `network.feature_stride`.
        """
        return self.main.scores(self.features(images).high, self.stride if full_size else self.main.upsample)


class DifferenceNet(SegmentationNet):
    """A segmentation network with DD-Nets; `network.ddnet_features` selects their high-level input."""

    def __init__(self, config: NetworkConfig, classes: int):
        super().__init__(config, classes)
        self.on_head = config.ddnet_features == "head"

    def new_ddnet(self, config: NetworkConfig, classes: int) -> DDNet:
        """A DD-Net for this network's features."""
        high = config.head_channels if self.on_head else self.high_channels
        return DDNet(self.backbone.low_channels + high, classes, config)

    def difference_features(self, ddnet: DDNet, features: HeadFeatures, hidden: Tensor) -> Tensor:
        """The features of `ddnet` for both masks of an SSDD module, (N, width, u*h, u*w), see `DDNet.features`.

        Args:
            ddnet: one of this network's DD-Nets.
            features: the images' features.
            hidden: the hidden layer of a segmentation head, (N, head_channels, u*h, u*w).
        """
        high = hidden if self.on_head else _resized(features.high.detach(), list(hidden.shape[-2:]))
        return ddnet.features(features.low, high)


class StaticNet(DifferenceNet):
    """Static refinement (sec. 4.1): segmentation and one DD-Net (theta_d0)."""

    def __init__(self, config: NetworkConfig, classes: int):
        super().__init__(config, classes)
        self.ddnet = self.new_ddnet(config, classes)


class DynamicNet(DifferenceNet):
    """Dynamic refinement (sec. 4.2): main and sub segmentation branches and two DD-Nets (theta_d1, theta_d2)."""

    def __init__(self, config: NetworkConfig, classes: int):
        super().__init__(config, classes)
        self.sub = SegmentationHead(self.high_channels, classes, config)
        self.ddnet1 = self.new_ddnet(config, classes)
        self.ddnet2 = self.new_ddnet(config, classes)


def _resized(x: Tensor, size: list[int]) -> Tensor:
    if list(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _upsampled(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _reflect(x: Tensor, pixels: int) -> Tensor:
    return F.pad(x, [pixels] * 4, mode="reflect")

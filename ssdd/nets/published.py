"""Weights that the authors of PSA and SSDD published, under the names of our networks.

Their ResNet-38 has our names. Whatever else a file holds is named in the tables below, a kind of file each.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssdd.nets.backbones import ResNet38
from ssdd.nets.imagenet import resnet38_name
from ssdd.nets.networks import AffinityNet, Classifier, DynamicNet, SegmentationHead, SegmentationNet, StaticNet
from ssdd.nets.weight_files import WeightsError, read
from ssdd.storage.paths import AnyPath

__all__ = ["Converted", "WeightsError", "convert", "fill", "read"]
# The tensors that tell a kind of file. PSA's VGG-16 files have fc8 and f9 too, but no conv1a.
_MARKS = {
    "imagenet": {"res2a_branch2a_weight", "bn7_gamma"},
    "psa-classifier": {"conv1a.weight", "fc8.weight"},
    "psa-affinity": {"conv1a.weight", "f9.weight"},
    "ssdd-segmentation": {"encoder.conv1a.weight"},
    "ssdd-difference": {"dd_head0.conv1ab.conv1.weight"},
}
_HEAD = {"seg1.conv1": "conv1", "seg1.bn1": "norm", "seg2": "conv2"}
_DDNET = {
    "dd_head{}.conv1ab.conv1": "conv_features",
    "dd_head{}.conv1ab.bn1": "norm_features",
    "dd{}.conv1c.conv1": "conv_mask",
    "dd{}.conv1c.bn1": "norm_mask",
    **{f"dd{{}}.conv1abc.{layer}": f"block.{layer}" for layer in ("conv1", "conv2", "conv3", "bn1", "bn2", "bn3")},
    "dd{}.conv1abc.downsample": "block.downsample",
    "dd{}.conv1abc.bnd": "block.bnd",
    "dd{}.pred_abc": "predict",
}
_FILES = {
    Classifier: "PSA's res38_cls.pth",
    AffinityNet: "PSA's res38_aff.pth",
    SegmentationNet: "a segmentation checkpoint of SSDD",
    StaticNet: "two files of SSDD's static stage, the segmentation checkpoint and the DD-Net checkpoint beside it",
    DynamicNet: "two files of SSDD's dynamic stage, the segmentation checkpoint and the DD-Net checkpoint beside it",
}
_LEAVES = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"


class Converted(NamedTuple):
    """What a published file holds.

    kind: imagenet, psa-classifier, psa-affinity, ssdd-segmentation or ssdd-difference; state: its tensors under our
    names; left: the file's names that have no place in our networks.
    """

    kind: str
    state: dict[str, Tensor]
    left: tuple[str, ...]


def convert(state: Mapping[str, Tensor], source: str) -> Converted:
    """Tensors of a published file, as `read` returns them, under our names; `source` is what errors call the file.

    Names tell the kind. A file with one DD-Net is the static stage's (`ddnet`), one with two is the dynamic stage's
    (`ddnet1`, `ddnet2`).

    Raises:
        WeightsError: it is none of the published kinds, or two of its tensors have the same place.
    """
    plain = {name: name.removeprefix("module.").removeprefix("arg:").removeprefix("aux:") for name in state}
    names = set(plain.values())
    kind = next((kind for kind, marks in _MARKS.items() if marks <= names), None)
    if kind is None:
        raise WeightsError(
            f"{source}: none of the published files that are known, which are the ImageNet, classifier and AffinityNet "
            "files of PSA with a ResNet-38, and the segmentation and DD-Net checkpoints of SSDD"
        )
    modules = _modules(kind, dynamic=any(name.startswith("dd1.") for name in names))
    ours: dict[str, Tensor] = {}
    left = []
    for name, value in state.items():
        place = _place(plain[name], kind, modules)
        if place is None:
            left.append(name)
        elif place in ours:
            raise WeightsError(f"{source}: {name} and another tensor are both {place}; leave one of them out")
        else:
            ours[place] = value
    return Converted(kind, ours, tuple(left))


def fill(net: nn.Module, files: Sequence[AnyPath]) -> list[str]:
    """Fill a network from published files that together have every tensor of it; return a line a file to print.

    `net` is a Classifier, AffinityNet, SegmentationNet, StaticNet or DynamicNet on a ResNet-38. It stays as it was
    if an error is raised.

    Raises:
        WeightsError: a file cannot be read or is of no known kind, a tensor is missing, has another shape or is in two
            files, or the network computes something else than the published one; the message says what to do.
    """
    _check(net)
    wanted = {name: value.shape for name, value in net.state_dict().items() if not name.endswith(_COUNTER)}
    found: dict[str, Tensor] = {}
    kinds, lines = set(), []
    for path in files:
        kind, state, left = convert(read(path), str(path))
        used = {name: value for name, value in state.items() if name in wanted}
        if twice := sorted(used.keys() & found.keys()):
            raise WeightsError(f"{path}: {_short(twice)} also came with a file before it; give one of the two")
        found |= used
        kinds.add(kind)
        lines.append(f"{path.name}: {kind}, {len(used)} tensors mapped; {_rest(left, state.keys() - used.keys())}")
    missing = [name for name in wanted if name not in found]
    wrong = [name for name, value in found.items() if value.shape != wanted[name]]
    if missing or wrong:
        remedies = [f"a {type(net).__name__} needs {_FILES[type(net)]}"] if missing else []
        if "imagenet" in kinds:
            remedies.append("the ImageNet file fills a backbone alone: give it to --network.backbone.weights")
        if wrong:
            remedies.append(
                "shapes follow the number of classes, --network.head-channels, --network.ddnet-channels, "
                "--network.levels and --network.ddnet-features"
            )
        raise WeightsError(
            f"{', '.join(map(str, files)) or 'no file'}: {len(missing)} tensors are missing and {len(wrong)} have "
            f"another shape ({_short([*missing, *wrong])}); {'; '.join(remedies)}"
        )
    net.load_state_dict(found, strict=False)  # strict would ask for the counters
    return lines


def _check(net: nn.Module) -> None:
    """Refuse a network that equal shapes would not keep from computing something else."""
    if not isinstance(getattr(net, "backbone", None), ResNet38):
        raise WeightsError("the published weights are a ResNet-38's: set --network.backbone.name resnet38")
    if isinstance(net, SegmentationNet) and net.stride != net.backbone.output_stride:
        raise WeightsError("the published heads see the backbone's own stride: leave --network.stride out")
    for head in net.modules():
        if isinstance(head, SegmentationHead) and (
            head.dilation != 12 or head.upsample != 2 or not isinstance(head.norm, nn.BatchNorm2d)
        ):
            raise WeightsError(
                "the published heads are others: set --network.head-norm frozen, --network.head-dilation 12 and "
                "--network.upsample 2"
            )


def _modules(kind: str, dynamic: bool) -> dict[str, str]:
    """Published names of a kind's modules, and ours. MXNet's go by a rule, see `resnet38_name`."""
    if kind == "psa-classifier":
        return {**_trunk(""), "fc8": "fc"}
    if kind == "psa-affinity":
        return {**_trunk(""), "f8_3": "reduce.0", "f8_4": "reduce.1", "f8_5": "reduce.2", "f9": "fuse"}
    if kind == "ssdd-segmentation":
        # The one head of SSDD's validation is called seg.
        heads = {"seg": "main", "seg_main": "main", "seg_sub": "sub"}
        return _trunk("encoder.") | {
            f"{head}.{layer}": f"{our_head}.{our_layer}"
            for head, our_head in heads.items()
            for layer, our_layer in _HEAD.items()
        }
    if kind == "ssdd-difference":
        ddnets = ("ddnet1", "ddnet2") if dynamic else ("ddnet",)
        return {
            layer.format(i): f"{ddnet}.{our_layer}"
            for i, ddnet in enumerate(ddnets)
            for layer, our_layer in _DDNET.items()
        }
    return {}


def _trunk(prefix: str) -> dict[str, str]:
    return {prefix + module: f"backbone.{module}" for module in _resnet38_modules()}


@functools.cache
def _resnet38_modules() -> tuple[str, ...]:
    with torch.device("meta"):  # names need no memory
        return tuple(name for name, module in ResNet38().named_modules() if not list(module.children()))


def _place(name: str, kind: str, modules: dict[str, str]) -> str | None:
    if kind == "imagenet":
        ours = resnet38_name(name)
        return f"backbone.{ours}" if ours else None
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}" if module in modules and leaf in _LEAVES else None


def _rest(left: Iterable[str], unused: Iterable[str]) -> str:
    """What a file had and the network did not get. Batch counters, of which there are many, come last."""
    parts = {"left": sorted(left, key=lambda name: name.endswith(_COUNTER)), "not used here": sorted(unused)}
    return "; ".join(f"{what}: {_short(names)}" for what, names in parts.items() if names) or "nothing left"


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

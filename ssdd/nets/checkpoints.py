"""Trained networks on disk: saving, loading them whole or in parts, and which ones a workspace has trained last."""

import json
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ssdd.config import Config, ConfigError
from ssdd.fields import from_dict, to_dict
from ssdd.nets.networks import SegmentationNet
from ssdd.storage.artifacts import Artifact, write_text
from ssdd.storage.paths import AnyPath, on_disk, relative

MODEL = "model.pt"
Net = TypeVar("Net", bound=nn.Module)


def read(path: AnyPath, where: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote; nothing is unpickled but tensors and plain data."""
    with on_disk(path) as file:  # torch's reader would hide the error of an object store
        return torch.load(file, map_location=where, weights_only=True)


def save(value: Any, path: AnyPath) -> int:
    """`torch.save`, with an OSError where the disk is full; gives the file's size in bytes."""
    with path.open("wb") as stream:
        try:
            torch.save(value, stream)
            return stream.tell()
        except RuntimeError as error:  # it could not end the file either
            raise error.__context__ or error from None


def load(net: Net, path: AnyPath) -> Net:
    """`net` with the weights of `model.pt` in an artifact's folder, ready for inference."""
    net.load_state_dict(read(path / MODEL))
    return ready(net)


def ready(net: Net) -> Net:
    """`net` for inference on this process's device."""
    return net.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_parts(net: nn.Module, path: AnyPath, parts: dict[str, str]) -> None:
    """Start parts of `net` from parts of another stage's `model.pt`: {name in `net`: name there, "" being all}."""
    state = read(path / MODEL)
    for own, other in parts.items():
        prefix = f"{other}." if other else ""
        net.get_submodule(own).load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def device() -> torch.device:
    """The device of an inference process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone_in(start: Artifact) -> str:
    """The prefix of the backbone in the `model.pt` of `stages.seeds.start_of`."""
    return "" if start.name == "backbone" else "backbone"


def load_start(net: SegmentationNet, start: Artifact, heads: dict[str, str]) -> None:
    """Fill `net`'s backbone and, from the static stage, its heads: {name in `net`: name in `StaticNet`}."""
    parts = {"backbone": backbone_in(start)} | (heads if start.name == "static" else {})
    load_parts(net, start.path, parts)


TRAINED = "trained.json"


@dataclass(frozen=True)
class Trained:
    """What a workspace remembers of its last finished training: enough to score its models anywhere."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    models: dict[str, str]
    """Folders of the models, `dynamic` among them, relative to the workspace."""


def remember(workspace: AnyPath, config: Config, classes: tuple[str, ...], models: dict[str, Artifact]) -> None:
    """Write the workspace's `trained.json`, from which `recall` knows the models.

    Args:
        workspace: that has the models.
        config: of their training, with its data by an absolute path.
        classes: names, background first.
        models: by name.
    """
    folders = {name: relative(model.path, workspace) for name, model in models.items()}
    record = Trained(to_dict(config), classes, folders)
    write_text(workspace / TRAINED, json.dumps(to_dict(record), indent=1))


def recall(workspace: AnyPath) -> Trained | None:
    """The workspace's `trained.json`, or None where nothing was trained to the end.

    Its configuration is without what belonged to the machine of the training.
    """
    path = workspace / TRAINED
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    try:
        config = portable(from_dict(record["config"]))
        return Trained(to_dict(config), tuple(record["classes"]), record["models"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} was written by another version ({error}); run ray_jobs/dynamic.py again") from error


def portable(config: Config) -> Config:
    """The configuration of a training without what belonged to its machine, and without the published files it read.

    What was trained has what those files gave; they need not be there any more.
    """
    return replace(
        config,
        num_cpus=None,
        workers=None,
        gpus=None,
        seeds=replace(config.seeds, classifier_weights=None, affinity_weights=None),
        static=replace(config.static, weights=()),
        dynamic=replace(config.dynamic, weights=()),
    )

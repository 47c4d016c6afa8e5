"""Save trained networks, load them whole or in parts, and record which networks a workspace trained last."""

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
    """Read a file that `save` wrote. Only tensors and plain data are unpickled."""
    with on_disk(path) as file:  # torch's reader would hide an object store's error
        return torch.load(file, map_location=where, weights_only=True)


def save(value: Any, path: AnyPath) -> int:
    """Write a file with `torch.save` and return its size in bytes. Raises OSError if the disk is full."""
    with path.open("wb") as stream:
        try:
            torch.save(value, stream)
            return stream.tell()
        except RuntimeError as error:  # torch failed to close the file; the context is the earlier error of the write
            raise error.__context__ or error from None


def load(net: Net, path: AnyPath) -> Net:
    """Load the `model.pt` in an artifact's folder `path` into `net`, and prepare `net` for inference (`ready`)."""
    net.load_state_dict(read(path / MODEL))
    return ready(net)


def ready(net: Net) -> Net:
    """Prepare `net` for inference: evaluation mode, no gradients, on this process's device."""
    return net.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_parts(net: nn.Module, path: AnyPath, parts: dict[str, str]) -> None:
    """Load submodules of `net` from the `model.pt` in another stage's folder.

    `parts` maps the name of each submodule to its name in the file; "" stands for the whole file.
    """
    state = read(path / MODEL)
    for part, other in parts.items():
        prefix = f"{other}." if other else ""
        net.get_submodule(part).load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def device() -> torch.device:
    """The device of an inference process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backbone_in(start: Artifact) -> str:
    """The prefix of the backbone's weights in the `model.pt` of `start`; "" if the file holds only a backbone."""
    return "" if start.name == "backbone" else "backbone"


def load_start(net: SegmentationNet, start: Artifact, heads: dict[str, str]) -> None:
    """Load the backbone of `net` from `start` and, if `start` is the static stage's network, the `heads` as well.

    `heads` maps the name of each submodule of `net` to its name in `StaticNet`.
    """
    parts = {"backbone": backbone_in(start)} | (heads if start.name == "static" else {})
    load_parts(net, start.path, parts)


TRAINED = "trained.json"


@dataclass(frozen=True)
class Trained:
    """A workspace's record of its last finished training: all that is needed to score its models on any machine."""

    config: dict[str, Any]
    classes: tuple[str, ...]
    models: dict[str, str]
    """By the model's name: its folder, relative to the workspace. One of the models is always `dynamic`."""


def remember(workspace: AnyPath, config: Config, classes: tuple[str, ...], models: dict[str, Artifact]) -> None:
    """Write the workspace's `trained.json`, which `recall` reads.

    Args:
        workspace: the workspace that contains the models.
        config: the configuration of the training; its path to the data must be absolute.
        classes: class names, background first.
        models: the models' artifacts by name.
    """
    folders = {name: relative(model.path, workspace) for name, model in models.items()}
    record = Trained(to_dict(config), classes, folders)
    write_text(workspace / TRAINED, json.dumps(to_dict(record), indent=1))


def recall(workspace: AnyPath) -> Trained | None:
    """Read the workspace's `trained.json`; None if no training has finished in the workspace.

    The file has the whole configuration. In the returned record, `portable` has reset some of its fields.

    Raises:
        ConfigError: another version of the program wrote the file.
    """
    path = workspace / TRAINED
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    try:
        config = portable(from_dict(record["config"]))
        return Trained(to_dict(config), tuple(record["classes"]), record["models"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} was written by another version ({error}); run `ssdd dynamic` again") from error


def portable(config: Config) -> Config:
    """A training's configuration without the settings for a machine's size and the paths of published checkpoints.

    The trained networks contain the weights of those checkpoints, so the files may be deleted.
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

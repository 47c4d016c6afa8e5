"""Make artifacts of weights that were trained elsewhere: ImageNet's backbone, PSA's and SSDD's published files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssdd.checks import weight_files
from ssdd.config import BackboneConfig, NetworkConfig
from ssdd.data import class_names, voc
from ssdd.nets import checkpoints, imagenet, published
from ssdd.nets.backbones import build_backbone
from ssdd.nets.checkpoints import MODEL
from ssdd.nets.networks import AffinityNet, Classifier, DynamicNet, SegmentationNet, StaticNet
from ssdd.nets.weight_files import WeightsError
from ssdd.runtime.session import Session
from ssdd.stages import images
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import AnyPath


def backbone(session: Session) -> Artifact:
    """The backbone's ImageNet (or random) weights as an artifact, so that only the driver fetches them, and once."""
    config = session.config.network.backbone
    recipe: dict[str, Any] = {"backbone": config.architecture}
    if config.weights == "random":
        recipe["seed"] = session.config.seed
    elif Path(config.weights).is_file():
        recipe["file"] = voc.stats((Path(config.weights),))

    def make(folder: AnyPath) -> None:
        torch.manual_seed(session.config.seed)
        net = build_backbone(config)
        source = imagenet.load(net, config)
        checkpoints.save(net.state_dict(), folder / MODEL)
        (folder / "source.txt").write_text(source + "\n")

    return session.build("backbone", recipe, make)


def convert(
    session: Session,
    name: str,
    files: tuple[Path, ...],
    network: NetworkConfig | BackboneConfig,
    classes: tuple[str, ...],
    net: Callable[[], nn.Module],
) -> Artifact:
    """Make an artifact like `trainer.run`'s from published weight files, without a training.

    Args:
        session: cluster, workspace.
        name: the artifact's name.
        files: absolute paths.
        network: the part of the configuration on which the network depends.
        classes: class names, background first.
        net: makes the network that is filled.

    Raises:
        WeightsError: the files lack tensors of the network or do not fit it, or the data's classes are not VOC's.
    """
    if classes[1:] != class_names.VOC_CLASSES:
        raise WeightsError(
            f"{', '.join(map(str, files))}: the published weights are for VOC's 20 classes in VOC's order, but the "
            f"data has {', '.join(classes[1:])}; leave the weights of [{name}] out to train that network"
        )
    recipe = {"files": voc.stats(files), "network": network.architecture}

    def make(folder: AnyPath) -> None:
        filled = net()
        for line in published.fill(filled, files):
            session.console.line(f"[{name}] {line}")
        checkpoints.save(filled.state_dict(), folder / MODEL)

    return session.build(name, recipe, make)


def psa(session: Session, classes: tuple[str, ...]) -> tuple[Artifact | None, Artifact | None]:
    """`Classifier` and `AffinityNet` from PSA's files; each is None if the configuration names no file for it."""
    config = session.config
    makes: dict[str, tuple[Path | None, Callable[[], nn.Module]]] = {
        "classifier": (config.seeds.classifier_weights, partial(Classifier, config.network, len(classes) - 1)),
        "affinity": (config.seeds.affinity_weights, partial(AffinityNet, config.network)),
    }
    classifier, affinity_net = (
        convert(session, name, (path,), config.network.backbone, classes, make) if path else None
        for name, (path, make) in makes.items()
    )
    return classifier, affinity_net


def static(session: Session, classes: tuple[str, ...]) -> Artifact:
    """The static stage's network from the published checkpoints that `static.weights` names."""
    config = session.config
    make = partial(StaticNet, config.network, len(classes))
    return convert(session, "static", config.static.weights, config.network, classes, make)


def dynamic(session: Session, classes: tuple[str, ...]) -> Artifact:
    """The dynamic stage's network from the files in `dynamic.weights`; a single file gives a `SegmentationNet`."""
    config = session.config
    kind = DynamicNet if len(config.dynamic.weights) > 1 else SegmentationNet
    make = partial(kind, config.network, len(classes))
    return convert(session, "dynamic", config.dynamic.weights, config.network, classes, make)


def convert_all(session: Session) -> None:
    """Convert every published file that the configuration names, so that a wrong file ends the job at once."""
    config = session.config
    if weight_files(config):
        classes = images.run(session, config.train_split).classes
        psa(session, classes)
        if config.static.weights:
            static(session, classes)
        if config.dynamic.weights:
            dynamic(session, classes)

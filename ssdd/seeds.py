"""Stage 1: PSA's seeds. Classifier -> CAM -> AffinityNet -> random walk: knowledge p^K0; its CRF: advice p^A0."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdd import affinity, crf_rows, data, images, losses, maps, training, transforms, voc
from ssdd.backbones import build_backbone, load_weights
from ssdd.config import ConfigError, NetworkConfig, SeedsConfig, TrainConfig
from ssdd.data import Sampling
from ssdd.images import Images
from ssdd.losses import Means
from ssdd.networks import AffinityNet, Classifier, seed_size
from ssdd.paths import AnyPath
from ssdd.session import Session
from ssdd.step import Batch
from ssdd.store import Artifact
from ssdd.tables import Row, Table

CAM_SCHEMA = pa.schema([("image_id", pa.string()), ("cam", pa.binary()), ("affinity", pa.binary())])
SEED_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("probs", pa.binary()), ("knowledge", pa.binary()), ("advice", pa.binary())]
)


@dataclass(frozen=True)
class Seeds:
    """Knowledge and advice of every training image."""

    images: Images
    table: Table
    """`probs` (presence labels, half precision, stride 8), `knowledge` and `advice` (masks at the image's size)."""
    artifact: Artifact
    classifier: Artifact | None
    """Initialises the backbones of the later stages (sec. 5.1); None for masks that were given, see `start_of`."""


def run(session: Session, known: Seeds | None = None) -> Seeds:
    """All of PSA, on the training list.

    Args:
        session: cluster, workspace, tracking.
        known: seeds of a configuration that differs in `crf` alone: from their probabilities only the CRF is computed.
    """
    config = session.config
    if config.knowledge is not None:
        raise ConfigError("--knowledge: this job makes PSA's seeds; refine given masks with ray_jobs/static.py")
    train = images.run(session, config.train_split)
    classes = len(train.classes)
    classifier, affinity_net = published(session, train.classes)
    classifier = classifier or run_classifier(session, train)

    recipe = {
        "images": train.artifact,
        "classifier": classifier,
        "size": config.seeds.cam_size,
        "scales": config.seeds.cam_scales,
        "alpha": (config.seeds.alpha_low, config.seeds.alpha_high),
        "crf": config.seeds.crf,
    }
    infer = partial(
        data.infer,
        [train.table],
        ["image", "presence"],
        partial(CamStage, config.network, config.seeds, classes, classifier.path),
        partial(crf_rows.affinity_labels, config.seeds.alpha_low, config.seeds.alpha_high, config.seeds.crf),
        config.inference_batch,
        session.plan,
    )
    cams, cam_artifact = session.build_table("cams", recipe, train.table.parts, CAM_SCHEMA, infer)

    affinity_net = affinity_net or run_affinity(session, train, cams, cam_artifact)

    walk = (config.seeds.alpha_walk, config.seeds.radius, config.seeds.beta, config.seeds.walk_steps)
    recipe = {"cams": cam_artifact, "affinity": affinity_net, "walk": walk, "crf": config.crf}
    infer = partial(
        data.infer,
        [train.table, known.table if known else cams],
        ["image", "presence", "probs" if known else "cam"],
        None if known else partial(WalkStage, config.network, config.seeds, affinity_net.path),
        partial(crf_rows.advise, config.crf),
        config.inference_batch,
        session.plan,
    )
    table, artifact = session.build_table("seeds", recipe, train.table.parts, SEED_SCHEMA, infer)
    return Seeds(train, table, artifact, classifier)


def published(session: Session, classes: tuple[str, ...]) -> tuple[Artifact | None, Artifact | None]:
    """`Classifier` and `AffinityNet` out of PSA's files, where the configuration names them."""
    config = session.config
    makes: dict[str, tuple[Path | None, Callable[[], nn.Module]]] = {
        "classifier": (config.seeds.classifier_weights, partial(Classifier, config.network, len(classes) - 1)),
        "affinity": (config.seeds.affinity_weights, partial(AffinityNet, config.network)),
    }
    classifier, affinity_net = (
        training.convert(session, name, (path,), config.network, classes, make) if path else None
        for name, (path, make) in makes.items()
    )
    return classifier, affinity_net


def run_classifier(session: Session, train: Images) -> Artifact:
    """Train a `Classifier`."""
    config, classes = session.config, len(train.classes)
    pretrained = run_backbone(session)
    task = ClassifierTask(config.network, config.seeds.classifier, classes, pretrained.path)
    recipe = {
        "images": train.artifact,
        "pretrained": pretrained,
        "network": config.network.backbone,
        "train": config.seeds.classifier,
        "seed": config.seed,
    }
    return training.run(session, "classifier", recipe, task, [train.table])


def run_affinity(session: Session, train: Images, cams: Table, cam_artifact: Artifact) -> Artifact:
    """Train an `AffinityNet` on the CAMs' labels."""
    config = session.config
    pretrained = run_backbone(session)
    task = AffinityTask(config.network, config.seeds, len(train.classes), pretrained.path)
    recipe = {
        "cams": cam_artifact,
        "pretrained": pretrained,
        "network": config.network.backbone,
        "train": config.seeds.affinity,
        "radius": config.seeds.radius,
        "seed": config.seed,
    }
    return training.run(session, "affinity", recipe, task, [train.table, cams])


def start_of(session: Session, made: Seeds) -> Artifact:
    """What the backbones of the later stages start from: the classifier, else ImageNet's weights."""
    return made.classifier or run_backbone(session)


def backbone_in(start: Artifact) -> str:
    """The prefix of the backbone in the `model.pt` of `start_of`."""
    return "" if start.name == "backbone" else "backbone"


def run_backbone(session: Session) -> Artifact:
    """ImageNet weights as an artifact, fetched once, on the driver."""
    config = session.config.network.backbone
    recipe: dict[str, Any] = {"backbone": config}
    if config.weights == "random":
        recipe["seed"] = session.config.seed
    if Path(config.weights).is_file():
        recipe["file"] = (Path(config.weights).stat().st_size, Path(config.weights).stat().st_mtime_ns)

    def make(folder: AnyPath) -> None:
        torch.manual_seed(session.config.seed)
        backbone = build_backbone(config)
        source = load_weights(backbone, config)
        training.save(backbone.state_dict(), folder / training.MODEL)
        (folder / "source.txt").write_text(source + "\n")

    return session.build("backbone", recipe, make)


@dataclass(frozen=True)
class ClassifierTask:
    """Multi-label classification with image-level labels."""

    network: NetworkConfig
    train: TrainConfig
    classes: int
    pretrained: AnyPath

    @property
    def sampling(self) -> Sampling:
        return Sampling((), None, self.train.augment, self.classes)

    def build(self) -> Classifier:
        net = Classifier(self.network, self.classes - 1)
        net.backbone.load_state_dict(training.read(self.pretrained / training.MODEL))
        return net

    elsewhere = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"class": losses.classification_counts(batch["presence"][:, 1:])}

    def losses(self, net: Classifier, batch: Batch) -> dict[str, Means]:
        return {"class": losses.classification_loss(net(batch["image"]), batch["presence"][:, 1:])}


@dataclass(frozen=True)
class AffinityTask:
    """Affinity of pixel pairs, from the labels on which both CRFs agree."""

    network: NetworkConfig
    seeds: SeedsConfig
    classes: int
    pretrained: AnyPath

    @property
    def train(self) -> TrainConfig:
        return self.seeds.affinity

    @property
    def sampling(self) -> Sampling:
        return Sampling(("affinity",), seed_size(self.train.augment.crop), self.train.augment, self.classes)

    def build(self) -> AffinityNet:
        net = AffinityNet(self.network)
        net.backbone.load_state_dict(training.read(self.pretrained / training.MODEL))
        return net

    elsewhere = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"affinity": losses.affinity_counts(*self._labels(batch))}

    def losses(self, net: AffinityNet, batch: Batch) -> dict[str, Means]:
        pairs = affinity.pair_affinity(net(batch["image"]).float(), self.seeds.radius)
        return {"affinity": losses.affinity_loss(pairs, *self._labels(batch))}

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        label = batch["affinity"].long()
        return label[:, None], affinity.neighbour_labels(label, self.seeds.radius)


class CamStage:
    """Network actor: multi-scale CAMs of the present classes, divided by their maximum; (n, s, s) at stride 8."""

    def __init__(self, network: NetworkConfig, seeds: SeedsConfig, classes: int, classifier: AnyPath):
        self.seeds = seeds
        self.net = training.load(Classifier(network, classes - 1), classifier)

    def __call__(self, rows: list[Row]) -> list[Row]:
        size = self.seeds.cam_size
        sides = [round(size * scale) for scale in self.seeds.cam_scales]
        decoded = [voc.read_image(row["image"]) for row in rows]
        with torch.inference_mode():
            cam = multi_scale(self.net.cam, decoded, sides, mirror=True, size=seed_size(size))  # type: ignore[operator]
        for row, maps_of_image in zip(rows, cam.cpu(), strict=True):
            present = maps_of_image[[c - 1 for c in row["presence"]]]
            row["cam"] = maps.pack((present / present.amax((1, 2), keepdim=True).clamp(min=1e-5)).numpy())
        return rows


def multi_scale(
    function: Callable[[Tensor], Tensor], decoded: list[np.ndarray], sides: list[int], mirror: bool, size: int
) -> Tensor:
    """Sum of a fully convolutional function over square input sizes, and their mirror images.

    Args:
        function: uint8 (N, 3, s, s) -> maps (N, C, h, w).
        decoded: N images, uint8 (H, W, 3) of any size.
        sides: the input sizes.
        mirror: add the mirror images' maps, mirrored back.
        size: side of the result.

    Returns:
        (N, C, size, size)
    """
    total: Tensor | float = 0.0
    for side in sides:
        batch = torch.from_numpy(np.stack([transforms.square(image, side) for image in decoded])).to(training.device())
        outputs = [function(batch)] + ([function(batch.flip(-1)).flip(-1)] if mirror else [])
        for output in outputs:
            total = total + F.interpolate(output, (size, size), mode="bilinear", align_corners=False)
    assert isinstance(total, Tensor)
    return total


class WalkStage:
    """Network actor: the random walk on the CAMs; `probs` of the presence labels, (1 + n, s, s) at stride 8."""

    def __init__(self, network: NetworkConfig, seeds: SeedsConfig, affinity_net: AnyPath):
        self.seeds = seeds
        self.net = training.load(AffinityNet(network), affinity_net)

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = [transforms.square(voc.read_image(row["image"]), self.seeds.cam_size) for row in rows]
        with torch.inference_mode():
            features = self.net(torch.from_numpy(np.stack(decoded)).to(training.device()))
            transition = affinity.transition_matrix(features, self.seeds.radius, self.seeds.beta)
            for row, matrix in zip(rows, transition, strict=True):
                scores = crf_rows.with_background(maps.unpack(row.pop("cam")), self.seeds.alpha_walk)
                start = torch.from_numpy(scores)[None].to(matrix.device)
                walked = affinity.random_walk(matrix[None], start, self.seeds.walk_steps)[0]
                row["probs"] = maps.pack((walked / walked.sum(0).clamp(min=1e-5)).cpu().numpy())
        return rows

"""Stage 1: classifier, CAMs, AffinityNet and random walk make knowledge p^K0 as in PSA, and a CRF makes advice p^A0."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from ssdd import affinity
from ssdd.config import ConfigError, NetworkConfig, SeedsConfig
from ssdd.data import codec, transforms
from ssdd.nets import checkpoints
from ssdd.nets.inference import multi_scale, squares_of
from ssdd.nets.networks import AffinityNet, Classifier, seed_size
from ssdd.objectives.affinity import AffinityTask
from ssdd.objectives.classifier import ClassifierTask
from ssdd.runtime import pipelines
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, images, weight_import
from ssdd.stages.images import Images
from ssdd.storage import maps
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import Row, Table
from ssdd.training import trainer

CAM_SCHEMA = pa.schema([("image_id", pa.string()), ("cam", pa.binary()), ("affinity", pa.binary())])
SEED_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("probs", pa.binary()), ("knowledge", pa.binary()), ("advice", pa.binary())]
)


@dataclass(frozen=True)
class Seeds:
    """Knowledge and advice of every training image."""

    images: Images
    table: Table
    """Masks `knowledge` and `advice` at the image's size. Unless the masks were given by the user, also `probs`: the
    probabilities of background and the image's classes, in half precision. They come from PSA, at stride 8, or from the
    dynamic network of the previous round, see `dynamic.relabel`."""
    artifact: Artifact
    classifier: Artifact | None
    """Initialises the backbones of the later stages (sec. 5.1); None for masks from `Config.knowledge` and
    `Config.advice`, see `start_of`."""


def run(session: Session, previous: Seeds | None = None) -> Seeds:
    """Run PSA on the training list.

    Args:
        session: cluster, workspace, tracking.
        previous: seed masks of a configuration that differs only in `crf`. Their probabilities are used again, and only
            the CRF is run.
    """
    config = session.config
    if config.knowledge is not None:
        raise ConfigError("--knowledge: this job makes PSA's seed masks; to refine given masks, run `ssdd static`")
    train = images.run(session, config.train_split)
    classes = len(train.classes)
    classifier, affinity_net = weight_import.psa(session, train.classes)
    classifier = classifier or run_classifier(session, train)
    if affinity_net is None:
        weight_import.backbone(session)  # so that missing weights end the job before the CAMs

    recipe = {
        "images": train.artifact,
        "classifier": classifier,
        "size": config.seeds.cam_size,
        "scales": config.seeds.cam_scales,
        "alpha": (config.seeds.alpha_low, config.seeds.alpha_high),
        "crf": config.seeds.crf,
    }
    infer = partial(
        pipelines.infer,
        [train.table],
        ["image", "presence"],
        partial(CamStage, config.network, config.seeds, classes, classifier.path),
        partial(crf_rows.affinity_labels, config.seeds.alpha_low, config.seeds.alpha_high, config.seeds.crf),
        config.inference_batch,
        session.plan,
    )
    cams, cam_artifact = session.build_table("cams", recipe, train.table.parts, CAM_SCHEMA, infer)

    affinity_net = affinity_net or run_affinity(session, train, cams, cam_artifact)

    chosen = config.seeds
    walk = (chosen.alpha_walk, chosen.background_factor, chosen.radius, chosen.beta, chosen.walk_steps)
    recipe = {"cams": cam_artifact, "affinity": affinity_net, "walk": walk, "crf": config.crf}
    infer = partial(
        pipelines.infer,
        [train.table, previous.table if previous else cams],
        ["image", "presence", "probs" if previous else "cam"],
        None if previous else partial(WalkStage, config.network, config.seeds, affinity_net.path),
        partial(crf_rows.advise, config.crf),
        config.inference_batch,
        session.plan,
    )
    table, artifact = session.build_table("seeds", recipe, train.table.parts, SEED_SCHEMA, infer)
    return Seeds(train, table, artifact, classifier)


def run_classifier(session: Session, train: Images) -> Artifact:
    """Train a `Classifier`."""
    config, classes = session.config, len(train.classes)
    pretrained = weight_import.backbone(session)
    task = ClassifierTask(config.network, config.seeds.classifier, classes, pretrained.path)
    recipe = {
        "images": train.artifact,
        "pretrained": pretrained,
        "network": config.network.backbone.architecture,
        "train": config.seeds.classifier,
        "seed": config.seed,
    }
    return trainer.run(session, "classifier", recipe, task, [train.table])


def run_affinity(session: Session, train: Images, cams: Table, cam_artifact: Artifact) -> Artifact:
    """Train an `AffinityNet` on the labels that were made from the CAMs."""
    config = session.config
    pretrained = weight_import.backbone(session)
    task = AffinityTask(config.network, config.seeds, len(train.classes), pretrained.path)
    recipe = {
        "cams": cam_artifact,
        "pretrained": pretrained,
        "network": config.network.backbone.architecture,
        "train": config.seeds.affinity,
        "radius": config.seeds.radius,
        "seed": config.seed,
    }
    return trainer.run(session, "affinity", recipe, task, [train.table, cams])


def start_of(session: Session, seed_masks: Seeds) -> Artifact:
    """The weights that the later stages' backbones start from: the classifier's, or else ImageNet's."""
    return seed_masks.classifier or weight_import.backbone(session)


class CamStage:
    """Network actor: multi-scale CAMs of the image's classes, each divided by its maximum; (n, s, s) at stride 8."""

    def __init__(self, network: NetworkConfig, seeds: SeedsConfig, classes: int, classifier: AnyPath):
        self.seeds = seeds
        self.net = checkpoints.load(Classifier(network, classes - 1), classifier)

    def __call__(self, rows: list[Row]) -> list[Row]:
        size = self.seeds.cam_size
        sides = [round(size * scale) for scale in self.seeds.cam_scales]
        decoded = [codec.read_image(row["image"]) for row in rows]
        with torch.inference_mode():
            cam = multi_scale(self.net.cam, squares_of(decoded), sides, mirror=True, size=seed_size(size))  # type: ignore[operator]
        for row, maps_of_image in zip(rows, cam.cpu(), strict=True):
            present = maps_of_image[[c - 1 for c in row["presence"]]]
            row["cam"] = maps.pack((present / present.amax((1, 2), keepdim=True).clamp(min=1e-5)).numpy())
        return rows


class WalkStage:
    """Network actor: random walk on the CAMs -> `probs` of background and the classes, (1 + n, s, s), stride 8."""

    def __init__(self, network: NetworkConfig, seeds: SeedsConfig, affinity_net: AnyPath):
        self.seeds = seeds
        self.net = checkpoints.load(AffinityNet(network), affinity_net)

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = [transforms.square(codec.read_image(row["image"]), self.seeds.cam_size) for row in rows]
        with torch.inference_mode():
            features = self.net(torch.from_numpy(np.stack(decoded)).to(checkpoints.device()))
            for i, row in enumerate(rows):
                # One image at a time: at 768 pixels, a matrix takes 340 MB.
                transition = affinity.transition_matrix(features[i : i + 1], self.seeds.radius, self.seeds.beta)
                cam = maps.unpack(row.pop("cam"))
                scores = crf_rows.with_background(cam, self.seeds.alpha_walk, self.seeds.background_factor)
                start = torch.from_numpy(scores)[None].to(features.device)
                walked = affinity.random_walk(transition, start, self.seeds.walk_steps)[0]
                row["probs"] = maps.pack((walked / walked.sum(0).clamp(min=1e-5)).cpu().numpy())
        return rows

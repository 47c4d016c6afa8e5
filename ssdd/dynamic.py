"""Stage 3: dynamic region refinement (sec. 4.2), and the baseline that it must beat."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdd import cluster, crf_rows, data, losses, maps, refine, seeds, training, voc
from ssdd.batch_crf import ActorCRF, BatchCRF, ExactCRF, InlineCRF
from ssdd.config import Config, DynamicConfig, EvaluateConfig, NetworkConfig, TrainConfig
from ssdd.data import Sampling
from ssdd.images import Images
from ssdd.losses import Means
from ssdd.metrics import ConfusionMatrix
from ssdd.networks import DynamicNet, SegmentationNet
from ssdd.paths import AnyPath
from ssdd.pool import CRFPool
from ssdd.seeds import SEED_SCHEMA, Seeds, backbone_in
from ssdd.session import Session
from ssdd.static import Refined, difference_losses, module
from ssdd.step import Batch, Waiting
from ssdd.store import Artifact
from ssdd.tables import Row, Table


def start_of(session: Session, refined: Refined) -> Artifact:
    """Where the trainings start, as `dynamic.init` says: the classifier's backbone or the static stage's network."""
    return refined.net if session.config.dynamic.init == "static" else seeds.start_of(session, refined.seeds)


def load_start(net: SegmentationNet, start: Artifact, heads: dict[str, str]) -> None:
    """Fill `net`'s backbone and, from the static stage, its heads: {name in `net`: name in `StaticNet`}."""
    parts = {"backbone": backbone_in(start)} | (heads if start.name == "static" else {})
    training.load_parts(net, start.path, parts)


@dataclass(frozen=True)
class Models:
    """The trained segmentation networks, `SegmentationNet` state dicts (the dynamic one has more beside it)."""

    refined: Refined
    dynamic: Artifact
    baseline: Artifact


@dataclass(frozen=True)
class Validation:
    """A network's confusion matrix on some images with true masks: one scale, no CRF, at the masks' resolution."""

    table: Table
    images: int
    """At most; the first ones that have a true mask."""
    classes: int
    evaluate: EvaluateConfig
    size: int

    def __call__(self, net: SegmentationNet, rank: int = 0, workers: int = 1) -> np.ndarray:
        """int64 (classes, classes), over every `workers`-th image."""
        matrix = ConfusionMatrix(self.classes)
        for rows in self._batches(rank, workers):
            decoded = [voc.read_image(row["image"]) for row in rows]
            for row, probs in zip(rows, predict(net, decoded, self.evaluate, self.size), strict=True):
                truth = torch.from_numpy(voc.read_mask(row["truth"]))[None, None]
                small = F.interpolate(truth, (self.size, self.size), mode="nearest-exact")
                matrix.update(probs.argmax(0).numpy(), small[0, 0].numpy())
        return matrix.counts

    def mean_iou(self, net: SegmentationNet) -> float:
        """In percent, over all of the images."""
        return 100 * ConfusionMatrix.of(self(net)).mean_iou()

    def _batches(self, rank: int, workers: int) -> Iterator[list[Row]]:
        seen = 0
        for part in range(len(self.table.parts)):
            known = [row for row in self.table.read(part) if row["truth"] is not None][: self.images - seen]
            seen += len(known)
            own = known[rank::workers]
            yield from (own[k : k + 8] for k in range(0, len(own), 8))
            if seen == self.images:
                return


def validation(config: Config, scored: Images) -> Validation:
    """Of networks that a configuration trains, on a list of images."""
    evaluate = replace(config.evaluate, scales=(1.0,), mirror=False, full_size=False)
    size = config.network.mask_size(evaluate.size)
    return Validation(scored.table, config.sweep.images, len(scored.classes), evaluate, size)


def run(session: Session, refined: Refined, validate: Validation | None = None) -> Artifact:
    """Train SSDD's segmentation network, with a CRF in every iteration, as `step.crf` says where.

    Args:
        session: cluster, workspace, tracking.
        refined: m^D0.
        validate: scores the network after every epoch.
    """
    config, made = session.config, refined.seeds
    if config.dynamic.weights:
        return published(session, made.images.classes)
    start = start_of(session, refined)
    recipe = {
        "refined": refined.artifact,
        "start": start,
        "network": config.network,
        "dynamic": config.dynamic,
        "seed": config.seed,
    }
    crf = config.step.crf_of(session.plan.threads, session.plan.use_gpu)
    if crf == "exact":
        recipe["crf"] = "exact"
    needed = 0
    if crf == "actors" and not session.has("dynamic", recipe):
        needed = min(session.plan.crf_actors, config.dynamic.train.batch_size)
    unit = session.plan.unit
    pool = CRFPool(cluster.places(cluster.nodes(), needed, unit), unit, session.plan.crf_environment)
    params = config.dynamic.crf
    backends: dict[str, BatchCRF] = {
        "actors": ActorCRF(params, pool),
        "inline": InlineCRF(params),
        "exact": ExactCRF(params),
    }
    try:
        task = DynamicTask(config.network, config.dynamic, len(made.images.classes), start, backends[crf])
        tables = [made.images.table, refined.table]
        return training.run(session, "dynamic", recipe, task, tables, validate)  # type: ignore[arg-type]
    finally:
        pool.close()


def published(session: Session, classes: tuple[str, ...]) -> Artifact:
    """The network of the published checkpoints that `dynamic.weights` names; the segmentation one alone will do."""
    config = session.config
    kind = DynamicNet if len(config.dynamic.weights) > 1 else SegmentationNet
    make = partial(kind, config.network, len(classes))
    return training.convert(session, "dynamic", config.dynamic.weights, config.network, classes, make)


def run_fixed(session: Session, refined: Refined, column: str) -> Artifact:
    """The same network and schedule, trained on fixed masks: `knowledge`, `advice` (PSA retrained) or `refined`."""
    config, made = session.config, refined.seeds
    start = start_of(session, refined)
    task = FixedTask(config.network, config.dynamic.train, len(made.images.classes), start, column)
    table, masks = (refined.table, refined.artifact) if column == "refined" else (made.table, made.artifact)
    recipe = {
        "masks": masks,
        "column": column,
        "start": start,
        "network": config.network,
        "train": config.dynamic.train,
        "seed": config.seed,
    }
    name = "baseline" if column == "advice" else f"baseline_{column}"
    return training.run(session, name, recipe, task, [made.images.table, table])


@dataclass(frozen=True)
class FixedTask:
    """A segmentation network on fixed masks (eq. 8)."""

    network: NetworkConfig
    train: TrainConfig
    classes: int
    start: Artifact
    column: str

    @property
    def sampling(self) -> Sampling:
        size = self.network.mask_size(self.train.augment.crop)
        return Sampling((self.column,), size, self.train.augment, self.classes)

    def build(self) -> SegmentationNet:
        net = SegmentationNet(self.network, self.classes)
        load_start(net, self.start, {"main": "main"})
        return net

    elsewhere = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"main": losses.segmentation_counts(batch[self.column])}

    def losses(self, net: SegmentationNet, batch: Batch) -> dict[str, Means]:
        return {"main": losses.segmentation_loss(net(batch["image"]), batch[self.column])}


@dataclass(frozen=True)
class DynamicTask:
    """L_dynamic = L_main + L_sub + L_diff1 + L_diff2 (eq. 15)."""

    network: NetworkConfig
    dynamic: DynamicConfig
    classes: int
    start: Artifact
    crf: BatchCRF

    @property
    def train(self) -> TrainConfig:
        return self.dynamic.train

    @property
    def sampling(self) -> Sampling:
        size = self.network.mask_size(self.train.augment.crop)
        return Sampling(("refined",), size, self.train.augment, self.classes)

    def build(self) -> DynamicNet:
        net = DynamicNet(self.network, self.classes)
        load_start(net, self.start, {"main": "main", "sub": "main", "ddnet1": "ddnet", "ddnet2": "ddnet"})
        return net

    @property
    def elsewhere(self) -> bool:
        return self.crf.elsewhere

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        labelled = losses.segmentation_counts(batch["refined"])
        return {"main": labelled, "sub": labelled.repeat(2)}

    def losses(self, net: DynamicNet, batch: Batch) -> Waiting:
        config = self.dynamic
        presence, seed = batch["presence"], batch["refined"].long()  # m^D0
        features = net.backbone(batch["image"])
        logits, high = net.main(features.high)

        # First step: the network's own mask, its CRF, and the module that integrates them.
        crf = self.crf.request(batch["image"], logits.detach(), presence)
        knowledge = refine.presence_argmax(logits.detach(), presence)  # m^K1
        shared1 = net.ddnet1.features(features.low, high)
        d_knowledge = net.ddnet1(shared1, knowledge)
        sub_logits, sub_high = net.sub(features.high)
        shared2 = net.ddnet2.features(features.low, sub_high)  # as published; the paper does not say whose
        d_seed = net.ddnet2(shared2, seed)
        yield crf
        advice = crf.masks()  # m^A1
        d_advice = net.ddnet1(shared1, advice)
        vanished = refine.vanished(knowledge, advice, presence, config.bad_ratio)
        refined1 = module(
            d_knowledge.detach().sigmoid(),
            d_advice.detach().sigmoid(),
            knowledge,
            advice,
            presence,
            config.bias1,
        )  # m^D1

        # Second step: the seeds against the first step's mask.
        d_refined = net.ddnet2(shared2, refined1)
        refined2 = module(
            d_seed.detach().sigmoid(), d_refined.detach().sigmoid(), seed, refined1, presence, config.bias2
        )  # m^D2

        # DD-Net 2 learns from a mask half-way between the two, so that it does not follow the main branch into a
        # constant answer (sec. 4.2).
        target, d_target = (refined1, d_refined)
        if config.target == "d2":
            target, d_target = refined2, net.ddnet2(shared2, refined2)
        halfway = refine.presence_argmax(sub_logits.detach(), presence)  # m^sub
        everything = torch.ones(len(seed), dtype=torch.bool, device=seed.device)
        unlabelled = seed == 255  # stays so
        return {
            "main": losses.segmentation_loss(logits, refined2.masked_fill(unlabelled, 255)),  # eq. 11
            "sub": config.alpha * losses.segmentation_loss(sub_logits, seed)
            + (1 - config.alpha) * losses.segmentation_loss(sub_logits, target.masked_fill(unlabelled, 255)),  # eq. 14
            "diff1": difference_losses(d_knowledge, d_advice, refine.difference(knowledge, advice), vanished),  # eq. 12
            "diff2": losses.difference_loss(d_seed, refine.difference(seed, halfway), everything)
            + losses.difference_loss(d_target, refine.difference(halfway, target), everything),  # eq. 13
        }


def load_segmentation(network: NetworkConfig, classes: int, path: AnyPath) -> SegmentationNet:
    """The part that is used at test time of any trained network, ready for inference on this process's device."""
    net = SegmentationNet(network, classes)
    training.load_parts(net, path, {"backbone": "backbone", "main": "main"})
    return training.ready(net)


def predict(net: SegmentationNet, decoded: list[np.ndarray], config: EvaluateConfig, size: int) -> Tensor:
    """Test-time class probabilities (sec. 5.1): the mean softmax over scales and mirror images.

    Args:
        net: ready for inference.
        decoded: N images, uint8 (H, W, 3) of any size.
        config: scales and size.
        size: side of the result.

    Returns:
        (N, classes, size, size), on the CPU.
    """
    sides = [round(config.size * scale) for scale in config.scales]
    with torch.inference_mode():
        total = seeds.multi_scale(
            lambda batch: net(batch, config.full_size).softmax(1), decoded, sides, config.mirror, size
        )
    return (total / total.sum(1, keepdim=True)).cpu()


def relabel(session: Session, models: Models) -> Seeds:
    """Another round's knowledge and advice: the dynamic network's masks of the training images, and their CRF."""
    config, made = session.config, models.refined.seeds
    recipe = {
        "images": made.images.artifact,
        "model": models.dynamic,
        "evaluate": (config.evaluate.size, config.evaluate.scales, config.evaluate.mirror, config.evaluate.full_size),
        "crf": config.crf,
    }
    model = {"probs": models.dynamic.path}
    infer = partial(
        data.infer,
        [made.images.table],
        ["image", "presence"],
        partial(PredictStage, config.network, config.evaluate, len(made.images.classes), model, present_only=True),
        partial(crf_rows.advise, config.crf),
        config.inference_batch,
        session.plan,
    )
    table, artifact = session.build_table("relabelled", recipe, made.images.table.parts, SEED_SCHEMA, infer)
    return Seeds(made.images, table, artifact, made.classifier)


class PredictStage:
    """Network actor: probabilities of every model, packed under the model's name.

    They are (C, s, s) of all classes, or with `present_only` (1 + n, s, s) of background and the image's own classes.
    """

    def __init__(
        self,
        network: NetworkConfig,
        evaluate: EvaluateConfig,
        classes: int,
        models: dict[str, AnyPath],
        present_only: bool = False,
    ):
        self.evaluate, self.present_only = evaluate, present_only
        self.size = evaluate.size if evaluate.full_size else network.mask_size(evaluate.size)
        self.nets = {name: load_segmentation(network, classes, path) for name, path in models.items()}

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = [voc.read_image(row["image"]) for row in rows]
        for name, net in self.nets.items():
            for row, probs in zip(rows, predict(net, decoded, self.evaluate, self.size), strict=True):
                if self.present_only:
                    probs = probs[[0, *row["presence"]]]
                    probs = probs / probs.sum(0).clamp(min=1e-5)
                row[name] = maps.pack(probs.numpy())
        return rows

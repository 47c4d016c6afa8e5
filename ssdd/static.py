"""Stage 2: static region refinement (sec. 4.1). DD-Net learns the difference of PSA's masks and their CRF; eq. 10
integrates them into m^D0.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdd import data, losses, maps, refine, seeds, training, transforms, voc
from ssdd.config import BiasConfig, NetworkConfig, StaticConfig, TrainConfig
from ssdd.data import Sampling
from ssdd.losses import Means
from ssdd.networks import StaticNet
from ssdd.paths import AnyPath
from ssdd.seeds import Seeds
from ssdd.session import Session
from ssdd.step import Batch
from ssdd.store import Artifact
from ssdd.tables import Row, Table

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("refined", pa.binary()),
        ("d_knowledge", pa.binary()),
        ("d_advice", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Refined:
    """The refined seeds m^D0 of every training image."""

    seeds: Seeds
    net: Artifact
    """The trained `StaticNet`."""
    table: Table
    """`refined` (mask at the image's size), `d_knowledge` and `d_advice` (DD-Net's probabilities, 8 bits)."""
    artifact: Artifact


def run(session: Session, made: Seeds) -> Refined:
    """Train segmentation and DD-Net on knowledge and advice, then refine every training image."""
    config = session.config
    classes = len(made.images.classes)
    net = _train(session, made, classes)
    infer = partial(
        data.infer,
        [made.images.table, made.table],
        ["image", "presence", "knowledge", "advice"],
        partial(RefineStage, config.network, config.static, classes, net.path),
        None,
        config.inference_batch,
        session.plan,
    )
    recipe = {"seeds": made.artifact, "net": net, "bias": config.static.bias, "size": config.static.size}
    table, artifact = session.build_table("refined", recipe, made.table.parts, SCHEMA, infer)
    return Refined(made, net, table, artifact)


def _train(session: Session, made: Seeds, classes: int) -> Artifact:
    config = session.config
    if config.static.weights:
        return published(session, made.images.classes)
    start = seeds.start_of(session, made)
    task = StaticTask(config.network, config.static, classes, start)
    recipe = {
        "seeds": made.artifact,
        "start": start,
        "network": config.network,
        "train": config.static.train,
        "bad_ratio": config.static.bad_ratio,
        "seed": config.seed,
    }
    return training.run(session, "static", recipe, task, [made.images.table, made.table])


def published(session: Session, classes: tuple[str, ...]) -> Artifact:
    """The network of the published checkpoints that `static.weights` names."""
    config = session.config
    make = partial(StaticNet, config.network, len(classes))
    return training.convert(session, "static", config.static.weights, config.network, classes, make)


@dataclass(frozen=True)
class StaticTask:
    """L_static = L_base + L_diff0 (eq. 9)."""

    network: NetworkConfig
    static: StaticConfig
    classes: int
    start: Artifact

    @property
    def train(self) -> TrainConfig:
        return self.static.train

    @property
    def sampling(self) -> Sampling:
        crop = self.train.augment.crop
        return Sampling(("knowledge", "advice"), self.network.mask_size(crop), self.train.augment, self.classes)

    def build(self) -> StaticNet:
        net = StaticNet(self.network, self.classes)
        training.load_parts(net, self.start.path, {"backbone": seeds.backbone_in(self.start)})
        return net

    elsewhere = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        vanished = refine.vanished(batch["knowledge"], batch["advice"], batch["presence"], self.static.bad_ratio)
        difference = refine.difference(batch["knowledge"], batch["advice"])
        of_one_mask = losses.difference_counts(difference, ~refine.bad_samples(vanished))
        return {"base": losses.segmentation_counts(batch["knowledge"]), "diff0": of_one_mask.repeat(2)}

    def losses(self, net: StaticNet, batch: Batch) -> dict[str, Means]:
        knowledge, advice = batch["knowledge"].long(), batch["advice"].long()
        features = net.backbone(batch["image"])
        logits, high = net.main(features.high)
        shared = net.ddnet.features(features.low, high)
        vanished = refine.vanished(knowledge, advice, batch["presence"], self.static.bad_ratio)
        return {
            "base": losses.segmentation_loss(logits, knowledge),  # eq. 7
            "diff0": difference_losses(
                net.ddnet(shared, knowledge), net.ddnet(shared, advice), refine.difference(knowledge, advice), vanished
            ),
        }


def difference_losses(d_knowledge: Tensor, d_advice: Tensor, difference: Tensor, vanished: Tensor) -> Means:
    """L_diff of one module (eqs. 2, 6, 12): both masks of the pair predict their difference.

    Args:
        d_knowledge, d_advice: DD-Net's logits (N, h, w).
        difference: bool (N, h, w).
        vanished: bool (N, C); images with a vanished class are left out.
    """
    keep = ~refine.bad_samples(vanished)
    return losses.difference_loss(d_knowledge, difference, keep) + losses.difference_loss(d_advice, difference, keep)


def module(
    d_knowledge: Tensor,
    d_advice: Tensor,
    knowledge: Tensor,
    advice: Tensor,
    presence: Tensor,
    bias: BiasConfig,
) -> Tensor:
    """Eqs. 3-5: the SSDD module's mask m^D from DD-Net's probabilities.

    Args:
        d_knowledge, d_advice: (N, H, W) in 0..1.
        knowledge, advice: masks (N, H, W).
        presence: bool (N, C), background included.
        bias: eq. 3's.

    Returns:
        the refined masks (N, H, W).
    """
    vanished = refine.vanished(knowledge, advice, presence, bias.vanish_ratio)
    if not bias.presence:
        vanished = torch.zeros_like(vanished)
    w = refine.confidence(d_knowledge, d_advice, knowledge, advice, vanished, bias.bias, bias.background)
    return refine.integrate(knowledge, advice, w)


class RefineStage:
    """Network actor: difference maps of both masks, and m^D0 at the image's size."""

    def __init__(self, network: NetworkConfig, static: StaticConfig, classes: int, net: AnyPath):
        self.static, self.classes = static, classes
        self.net = training.load(StaticNet(network, classes), net)
        self.mask_size = network.mask_size(static.size)

    def __call__(self, rows: list[Row]) -> list[Row]:
        where = training.device()
        batch = np.stack([transforms.square(voc.read_image(row["image"]), self.static.size) for row in rows])
        masks = {name: [voc.read_mask(row[name]) for row in rows] for name in ("knowledge", "advice")}
        with torch.inference_mode():
            features = self.net.backbone(torch.from_numpy(batch).to(where))
            _, high = self.net.main(features.high)
            shared = self.net.ddnet.features(features.low, high)
            d = {
                name: self.net.ddnet(shared, self._small(full).to(where)).sigmoid().cpu()
                for name, full in masks.items()
            }
        out = []
        for i, row in enumerate(rows):
            knowledge, advice = (torch.from_numpy(masks[name][i])[None].long() for name in masks)
            size = knowledge.shape[1:]
            d_k, d_a = (F.interpolate(d[name][i][None, None], size, mode="bilinear")[0] for name in masks)
            presence = torch.from_numpy(data.presence_vector(row["presence"], self.classes))[None]
            refined = module(d_k, d_a, knowledge, advice, presence, self.static.bias)
            out.append(
                {
                    "image_id": row["image_id"],
                    "refined": voc.encode_mask(refined[0].numpy().astype(np.uint8)),
                    "d_knowledge": maps.pack_unit(d["knowledge"][i].numpy()),
                    "d_advice": maps.pack_unit(d["advice"][i].numpy()),
                }
            )
        return out

    def _small(self, masks: list[np.ndarray]) -> Tensor:
        size = (self.mask_size, self.mask_size)
        small = [F.interpolate(torch.from_numpy(m)[None, None], size, mode="nearest-exact")[0, 0] for m in masks]
        return torch.stack(small).long()

"""Stage 2: static region refinement (sec. 4.1) of knowledge and advice into the refined masks m^D0 (eq. 10).

DD-Net, the difference detection network, learns where the two masks differ. Its difference maps decide which mask each
pixel takes its class from.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from ssdd import refine
from ssdd.config import NetworkConfig, StaticConfig
from ssdd.data import codec, transforms
from ssdd.nets import checkpoints
from ssdd.nets.networks import StaticNet
from ssdd.objectives.static import StaticTask
from ssdd.runtime import pipelines
from ssdd.runtime.session import Session
from ssdd.stages import seeds, weight_import
from ssdd.stages.seeds import Seeds
from ssdd.storage import maps
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import Row, Table
from ssdd.training import trainer

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
    """The refined masks m^D0 of every training image."""

    seeds: Seeds
    net: Artifact
    """The trained `StaticNet`."""
    table: Table
    """`refined` (mask at the image's size), `d_knowledge` and `d_advice` (DD-Net's probabilities, 8 bits)."""
    artifact: Artifact


def run(session: Session, seed_masks: Seeds) -> Refined:
    """Train the segmentation network and DD-Net on knowledge and advice, then refine every training image's masks."""
    config = session.config
    classes = len(seed_masks.images.classes)
    net = _train(session, seed_masks, classes)
    infer = partial(
        pipelines.infer,
        [seed_masks.images.table, seed_masks.table],
        ["image", "presence", "knowledge", "advice"],
        partial(RefineStage, config.network, config.static, classes, net.path),
        None,
        config.inference_batch,
        session.plan,
    )
    recipe = {"seeds": seed_masks.artifact, "net": net, "bias": config.static.bias, "size": config.static.size}
    table, artifact = session.build_table("refined", recipe, seed_masks.table.parts, SCHEMA, infer)
    return Refined(seed_masks, net, table, artifact)


def _train(session: Session, seed_masks: Seeds, classes: int) -> Artifact:
    config = session.config
    if config.static.weights:
        return weight_import.static(session, seed_masks.images.classes)
    start = seeds.start_of(session, seed_masks)
    task = StaticTask(config.network, config.static, classes, start)
    recipe = {
        "seeds": seed_masks.artifact,
        "start": start,
        "network": config.network.architecture,
        "train": config.static.train,
        "bad_ratio": config.static.bad_ratio,
        "seed": config.seed,
    }
    return trainer.run(session, "static", recipe, task, [seed_masks.images.table, seed_masks.table])


class RefineStage:
    """Network actor: difference maps from knowledge and from advice, and m^D0 at the image's size."""

    def __init__(self, network: NetworkConfig, static: StaticConfig, classes: int, net: AnyPath):
        self.static, self.classes = static, classes
        self.net = checkpoints.load(StaticNet(network, classes), net)
        self.mask_size = network.mask_size(static.size)

    def __call__(self, rows: list[Row]) -> list[Row]:
        device = checkpoints.device()
        batch = np.stack([transforms.square(codec.read_image(row["image"]), self.static.size) for row in rows])
        masks = {name: [codec.read_mask(row[name]) for row in rows] for name in ("knowledge", "advice")}
        with torch.inference_mode():
            features = self.net.features(torch.from_numpy(batch).to(device))
            _, hidden = self.net.main(features.high)
            shared = self.net.difference_features(self.net.ddnet, features, hidden)
            d = {
                name: self.net.ddnet(shared, transforms.square_masks(full, self.mask_size).to(device)).sigmoid().cpu()
                for name, full in masks.items()
            }
        out = []
        for i, row in enumerate(rows):
            knowledge, advice = (torch.from_numpy(masks[name][i])[None].long() for name in masks)
            size = knowledge.shape[1:]
            d_k, d_a = (F.interpolate(d[name][i][None, None], size, mode="bilinear")[0] for name in masks)
            presence = torch.from_numpy(codec.presence_vector(row["presence"], self.classes))[None]
            refined = refine.module(d_k, d_a, knowledge, advice, presence, self.static.bias)
            out.append(
                {
                    "image_id": row["image_id"],
                    "refined": codec.encode_mask(refined[0].numpy().astype(np.uint8)),
                    "d_knowledge": maps.pack_unit(d["knowledge"][i].numpy()),
                    "d_advice": maps.pack_unit(d["advice"][i].numpy()),
                }
            )
        return out

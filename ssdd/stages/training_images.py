"""Score the dynamic stage on training images that have true masks, and draw its masks as `training-masks.png`.

The networks' masks, limited to each image's labels (`gated`), show how far training has improved the seed masks. The
two SSDD modules' masks and difference maps show whether DD-Net improves the masks that the network learns from.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssdd import refine
from ssdd.config import BiasConfig, Config
from ssdd.crf import crf_masks
from ssdd.data import codec, transforms
from ssdd.metrics import ConfusionMatrix
from ssdd.nets import checkpoints
from ssdd.nets.inference import PredictStage
from ssdd.nets.networks import DDNet, DynamicNet
from ssdd.objectives import crf
from ssdd.reports.diagnostics import DifferenceReport
from ssdd.reports.scores import GATED, Scores
from ssdd.runtime import pipelines
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, images
from ssdd.stages.evaluate import draw_predictions, rows_of, score, scores_of
from ssdd.stages.static import Refined
from ssdd.storage import maps
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import AnyPath
from ssdd.storage.tables import Row, Table

MODULES = ("dynamic1", "dynamic2")
"""The two SSDD modules: the first compares the network's masks without and with CRF, the second m^D0 with m^D1."""
MASKS = ("knowledge", "advice", "refined")
MAPS = ("d_knowledge", "d_advice")
DECISIONS = pa.schema(
    [
        ("image_id", pa.string()),
        *((f"{module}_{name}", pa.binary()) for module in MODULES for name in (*MASKS, *MAPS)),
    ]
)


def run(session: Session, refined: Refined, models: dict[str, Artifact]) -> Scores:
    """Score every model as `gated.MODEL`, and the modules of the model `dynamic` as `dynamic1.*` and `dynamic2.*`.

    The scores are empty if no true mask has a foreground class, or if `evaluate.train_images` is 0.
    """
    config, train = session.config, refined.seeds.images
    table, count = _first(train.table, config.evaluate.train_images)
    if not images.has_truth(table):
        return Scores({}, {})
    session.console.line(f"scores of the networks on training images ({GATED}): {count} images with true masks")
    scores = _score_networks(session, refined, table, models)
    if "dynamic" in models and not config.dynamic.weights:
        scores |= _score_decisions(session, refined, table, models["dynamic"])
    session.tracker.metrics(scores.flat())
    return scores


def _first(table: Table, wanted: int) -> tuple[Table, int]:
    """The first parts of a table, until they have `wanted` true masks, and the number of their true masks.

    Parts end after 4 * `wanted` images: networks predict all images of a part, also those without true masks. These are
    random images, because `images.run` shuffles lists.
    """
    parts, rows, count = 0, 0, 0
    while count < wanted and rows < 4 * wanted and parts < len(table.parts):
        count += sum(row["truth"] is not None for row in table.read(parts, ["truth"]))
        rows += len(table.parts[parts])
        parts += 1
    return Table(table.path, table.parts[:parts]), count


def _score_networks(session: Session, refined: Refined, table: Table, models: dict[str, Artifact]) -> Scores:
    """Score and draw the networks' masks, limited to each image's classes: one scale with its mirror image, no CRF."""
    config, train = session.config, refined.seeds.images
    evaluate = replace(config.evaluate, scales=(1.0,), mirror=True)
    recipe = {
        "images": train.artifact,
        "count": table.rows,
        "models": {name: model.path.name for name, model in models.items()},
        "size": evaluate.size,
        "full_size": evaluate.full_size,
    }
    infer = partial(
        pipelines.infer,
        [table],
        ["image", "presence"],
        partial(
            PredictStage,
            network=config.network,
            evaluate=evaluate,
            classes=len(train.classes),
            models={name: model.path for name, model in models.items()},
            present_only=True,
        ),
        partial(crf_rows.present_masks, tuple(models)),
        config.inference_batch,
        session.plan,
    )
    schema = pa.schema([("image_id", pa.string()), *((name, pa.binary()) for name in models)])
    masks, _ = session.build_table("training-masks", recipe, table.parts, schema, infer)
    scored = score(GATED, [table, masks], models, train.classes)
    joined = [table, refined.seeds.table, refined.table, masks]
    last = list(models.values())[-1]  # evaluate.py's report on this network shows the picture, too
    draw_predictions(session, joined, scored, models, train.classes, "training-masks", last)
    return scored.scores


def _score_decisions(session: Session, refined: Refined, table: Table, dynamic: Artifact) -> Scores:
    """Score both modules' masks and difference maps on whole images.

    The CRF here is pydensecrf, even if the training used the exact CRF (`step.crf`).
    """
    config, classes = session.config, refined.seeds.images.classes
    recipe = {
        "refined": refined.artifact,
        "count": table.rows,
        "model": dynamic,
        "size": config.evaluate.size,
        "biases": (config.dynamic.bias1, config.dynamic.bias2),
        "crf": config.dynamic.crf,
    }
    infer = partial(
        pipelines.infer,
        [table, refined.table],
        ["image", "presence", "refined"],
        partial(DecisionStage, config, len(classes), dynamic.path),
        None,
        config.inference_batch,
        session.plan,
    )
    decisions, _ = session.build_table("decisions", recipe, table.parts, DECISIONS, infer)
    size = config.network.mask_size(config.evaluate.size)
    columns = [name for name in DECISIONS.names if name != "image_id"]
    reports = {module: DifferenceReport(len(classes)) for module in MODULES}
    totals = {module: {name: ConfusionMatrix(len(classes)) for name in MASKS} for module in MODULES}
    for row in rows_of([table, decisions], ["truth", *columns]):
        if row["truth"] is None:
            continue
        truth = transforms.square_masks([codec.read_mask(row["truth"])], size)[0].numpy()
        for module in MODULES:
            masks = {name: codec.read_mask(row[f"{module}_{name}"]) for name in MASKS}
            for name, mask in masks.items():
                totals[module][name].update(mask, truth)
            d = (maps.unpack_unit(row[f"{module}_{name}"]) for name in MAPS)
            reports[module].update(masks["knowledge"], masks["advice"], truth, *d)
    scores = Scores({}, {})
    for module in MODULES:
        scores |= scores_of(module, totals[module], classes, reports[module])
    return scores


class DecisionStage:
    """Network actor: the two modules of the dynamic stage (eqs. 3-5) on whole images, at the masks' resolution."""

    def __init__(self, config: Config, classes: int, net: AnyPath):
        self.dynamic, self.side, self.classes = config.dynamic, config.evaluate.size, classes
        self.mask_size = config.network.mask_size(self.side)
        self.net = checkpoints.load(DynamicNet(config.network, classes), net)

    def __call__(self, rows: list[Row]) -> list[Row]:
        device = checkpoints.device()
        decoded = [codec.read_image(row["image"]) for row in rows]
        squares, small = (
            np.stack([transforms.square(i, side) for i in decoded]) for side in (self.side, self.mask_size)
        )
        presence = torch.from_numpy(np.stack([codec.presence_vector(row["presence"], self.classes) for row in rows]))
        presence = presence.to(device)
        m_d0 = transforms.square_masks([codec.read_mask(row["refined"]) for row in rows], self.mask_size).to(device)
        with torch.inference_mode():
            features = self.net.features(torch.from_numpy(squares).to(device))
            logits, hidden = self.net.main(features.high)
            knowledge = refine.presence_argmax(logits, presence)
            inputs = crf.copied(torch.from_numpy(small), logits, presence)
            advice = torch.from_numpy(crf_masks(*inputs(), self.dynamic.crf)).to(device).long()
            shared = self.net.difference_features(self.net.ddnet1, features, hidden)
            first = _decide(self.net.ddnet1, shared, knowledge, advice, presence, self.dynamic.bias1)
            _, sub_hidden = self.net.sub(features.high)
            shared = self.net.difference_features(self.net.ddnet2, features, sub_hidden)
            second = _decide(self.net.ddnet2, shared, m_d0, first["refined"], presence, self.dynamic.bias2)
        out: list[Row] = []
        for i, row in enumerate(rows):
            out.append({"image_id": row["image_id"]})
            for module, values in zip(MODULES, (first, second), strict=True):
                out[-1] |= {f"{module}_{name}": _encoded(values[name][i]) for name in MASKS}
                out[-1] |= {f"{module}_{name}": maps.pack_unit(values[name][i].cpu().numpy()) for name in MAPS}
        return out


def _encoded(mask: Tensor) -> bytes:
    return codec.encode_mask(mask.byte().cpu().numpy())


def _decide(
    ddnet: DDNet, shared: Tensor, knowledge: Tensor, advice: Tensor, presence: Tensor, bias: BiasConfig
) -> dict[str, Tensor]:
    """A module's masks and difference maps from its two masks (N, h, w) and the features that DD-Net uses for both."""
    d_knowledge, d_advice = (ddnet(shared, mask).sigmoid() for mask in (knowledge, advice))
    refined = refine.module(d_knowledge, d_advice, knowledge, advice, presence, bias)
    return dict(zip((*MASKS, *MAPS), (knowledge, advice, refined, d_knowledge, d_advice), strict=True))

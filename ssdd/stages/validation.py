"""Scores of a network while it is trained: mean IoU on a few images, one scale, no CRF."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ssdd.config import Config, EvaluateConfig
from ssdd.data import codec, transforms
from ssdd.metrics import ConfusionMatrix
from ssdd.nets.inference import predict
from ssdd.nets.networks import SegmentationNet
from ssdd.stages.images import Images
from ssdd.storage.tables import Row, Table


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A network's confusion matrix on some images with true masks: one scale, no CRF, squares of side `size`."""

    table: Table
    images: int
    """The largest number of images; the first ones that have a true mask are used."""
    classes: int
    evaluate: EvaluateConfig
    size: int

    def __call__(self, net: SegmentationNet, rank: int = 0, workers: int = 1) -> np.ndarray:
        """The confusion matrix over this worker's images (every `workers`-th): int64 (classes, classes)."""
        matrix = ConfusionMatrix(self.classes)
        for rows in self._batches(rank, workers):
            decoded = [codec.read_image(row["image"]) for row in rows]
            for row, probs in zip(rows, predict(net, decoded, self.evaluate, self.size), strict=True):
                truth = transforms.square_masks([codec.read_mask(row["truth"])], self.size)
                matrix.update(probs.argmax(0).numpy(), truth[0].numpy())
        return matrix.counts

    def mean_iou(self, net: SegmentationNet) -> float:
        """Mean IoU in percent, over all images."""
        return 100 * ConfusionMatrix.of(self(net)).mean_iou()

    def _batches(self, rank: int, workers: int) -> Iterator[list[Row]]:
        seen = 0
        for part in range(len(self.table.parts)):
            labelled = [row for row in self.table.read(part) if row["truth"] is not None][: self.images - seen]
            seen += len(labelled)
            share = labelled[rank::workers]
            yield from (share[k : k + 8] for k in range(0, len(share), 8))
            if seen == self.images:
                return


def validation(config: Config, scored: Images) -> Validation:
    """The `Validation` that scores a configuration's networks on the images `scored`."""
    evaluate = replace(config.evaluate, scales=(1.0,), mirror=False, full_size=False)
    size = config.network.mask_size(evaluate.size)
    return Validation(
        table=scored.table, images=config.sweep.images, classes=len(scored.classes), evaluate=evaluate, size=size
    )

"""The training of a segmentation network on fixed masks (eq. 8): the baselines, such as PSA retrained."""

from dataclasses import dataclass

from torch import Tensor

from ssdd import losses
from ssdd.config import NetworkConfig, TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.losses import Means
from ssdd.nets import checkpoints
from ssdd.nets.networks import SegmentationNet
from ssdd.objectives.task import Batch
from ssdd.storage.artifacts import Artifact


@dataclass(frozen=True, kw_only=True)
class FixedTask:
    """Trains a segmentation network on fixed masks (eq. 8): the masks in the table's column `column`."""

    network: NetworkConfig
    train: TrainConfig
    classes: int
    start: Artifact
    column: str

    @property
    def sampling(self) -> Sampling:
        size = self.network.mask_size(self.train.augment.crop)
        return Sampling(masks=(self.column,), mask_size=size, augment=self.train.augment, num_classes=self.classes)

    def build(self) -> SegmentationNet:
        net = SegmentationNet(self.network, self.classes)
        checkpoints.load_start(net, self.start, {"main": "main"})
        return net

    runs_on_actors = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"main": losses.segmentation_counts(batch[self.column])}

    def losses(self, net: SegmentationNet, batch: Batch) -> dict[str, Means]:
        return {"main": losses.segmentation_loss(net(batch["image"]), batch[self.column])}

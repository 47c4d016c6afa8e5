"""The training of PSA's AffinityNet: it learns which pairs of pixels have the same class."""

from dataclasses import dataclass

from torch import Tensor

from ssdd import affinity, losses
from ssdd.config import NetworkConfig, SeedsConfig, TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.losses import Means
from ssdd.nets import checkpoints
from ssdd.nets.networks import AffinityNet, seed_size
from ssdd.objectives.task import Batch
from ssdd.storage.paths import AnyPath


@dataclass(frozen=True)
class AffinityTask:
    """Trains AffinityNet on the labels on which two CRFs (`seeds.alpha_low` and `seeds.alpha_high`) agree."""

    network: NetworkConfig
    seeds: SeedsConfig
    classes: int
    pretrained: AnyPath

    @property
    def train(self) -> TrainConfig:
        return self.seeds.affinity

    @property
    def sampling(self) -> Sampling:
        size = seed_size(self.train.augment.crop)
        return Sampling(masks=("affinity",), mask_size=size, augment=self.train.augment, num_classes=self.classes)

    def build(self) -> AffinityNet:
        net = AffinityNet(self.network)
        net.backbone.load_state_dict(checkpoints.read(self.pretrained / checkpoints.MODEL))
        return net

    runs_on_actors = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"affinity": losses.affinity_counts(*self._labels(batch))}

    def losses(self, net: AffinityNet, batch: Batch) -> dict[str, Means]:
        pairs = affinity.pair_affinity(net(batch["image"]).float(), self.seeds.radius)
        return {"affinity": losses.affinity_loss(pairs, *self._labels(batch))}

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        label = batch["affinity"].long()
        return label[:, None], affinity.neighbour_labels(label, self.seeds.radius)

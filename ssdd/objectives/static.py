"""Static region refinement (sec. 4.1): L_static = L_base + L_diff0 (eqs. 6-9)."""

from dataclasses import dataclass

from torch import Tensor

from ssdd import losses, refine
from ssdd.config import NetworkConfig, StaticConfig, TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.losses import Means
from ssdd.nets import checkpoints
from ssdd.nets.networks import StaticNet
from ssdd.objectives.task import Batch
from ssdd.storage.artifacts import Artifact


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
        size, masks = self.network.mask_size(self.train.augment.crop), ("knowledge", "advice")
        return Sampling(masks=masks, mask_size=size, augment=self.train.augment, num_classes=self.classes)

    def build(self) -> StaticNet:
        net = StaticNet(self.network, self.classes)
        checkpoints.load_parts(net, self.start.path, {"backbone": checkpoints.backbone_in(self.start)})
        return net

    runs_on_actors = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        vanished = refine.vanished(batch["knowledge"], batch["advice"], batch["presence"], self.static.bad_ratio)
        difference = refine.difference(batch["knowledge"], batch["advice"])
        of_one_mask = losses.difference_counts(difference, ~refine.bad_samples(vanished))
        return {"base": losses.segmentation_counts(batch["knowledge"]), "diff0": of_one_mask.repeat(2)}

    def losses(self, net: StaticNet, batch: Batch) -> dict[str, Means]:
        knowledge, advice = batch["knowledge"].long(), batch["advice"].long()
        features = net.features(batch["image"])
        logits, hidden = net.main(features.high)
        shared = net.difference_features(net.ddnet, features, hidden)
        vanished = refine.vanished(knowledge, advice, batch["presence"], self.static.bad_ratio)
        return {
            "base": losses.segmentation_loss(logits, knowledge),  # eq. 7
            "diff0": losses.difference_losses(
                net.ddnet(shared, knowledge), net.ddnet(shared, advice), refine.difference(knowledge, advice), vanished
            ),
        }

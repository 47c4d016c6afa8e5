"""The training of PSA's classifier: multi-label classification with image-level labels."""

from dataclasses import dataclass

from torch import Tensor

from ssdd import losses
from ssdd.config import NetworkConfig, TrainConfig
from ssdd.data.sampling import Sampling
from ssdd.losses import Means
from ssdd.nets import checkpoints
from ssdd.nets.networks import Classifier
from ssdd.objectives.task import Batch
from ssdd.storage.paths import AnyPath


@dataclass(frozen=True)
class ClassifierTask:
    """Multi-label classification with image-level labels."""

    network: NetworkConfig
    train: TrainConfig
    classes: int
    pretrained: AnyPath

    @property
    def sampling(self) -> Sampling:
        return Sampling(masks=(), mask_size=None, augment=self.train.augment, num_classes=self.classes)

    def build(self) -> Classifier:
        net = Classifier(self.network, self.classes - 1)
        net.backbone.load_state_dict(checkpoints.read(self.pretrained / checkpoints.MODEL))
        return net

    runs_on_actors = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"class": losses.classification_counts(batch["presence"][:, 1:])}

    def losses(self, net: Classifier, batch: Batch) -> dict[str, Means]:
        return {"class": losses.classification_loss(net(batch["image"]), batch["presence"][:, 1:])}

"""What a training sample consists of."""

from dataclasses import dataclass

from ssdd.config import AugmentConfig


@dataclass(frozen=True)
class Sampling:
    """What a training sample is: the image and some mask columns, augmented together."""

    masks: tuple[str, ...]
    mask_size: int | None
    augment: AugmentConfig
    num_classes: int
    """Background included."""

    @property
    def bytes_of_sample(self) -> int:
        """Of the columns that `training.ingest.samples` gives."""
        mask = (self.mask_size or self.augment.crop) ** 2
        return 3 * self.augment.crop**2 + len(self.masks) * mask + self.num_classes + 8

"""What a training sample consists of."""

from dataclasses import dataclass

from ssdd.config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a training sample is: the image and some mask columns, augmented together."""

    masks: tuple[str, ...]
    mask_size: int | None
    augment: AugmentConfig
    num_classes: int
    """Background included."""
    plain: bool = False
    """Also the image without colour jitter, at the masks' size: what the CRF of a training step sees."""

    @property
    def bytes_of_sample(self) -> int:
        """Of the columns that `training.ingest.samples` gives."""
        mask = (self.mask_size or self.augment.crop) ** 2
        masks = len(self.masks) + 3 * self.plain
        return 3 * self.augment.crop**2 + masks * mask + self.num_classes + 8

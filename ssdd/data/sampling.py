"""What a training sample consists of."""

from dataclasses import dataclass

from ssdd.config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The parts of a training sample: the image and the masks of some columns, augmented together."""

    masks: tuple[str, ...]
    """The mask columns."""
    mask_size: int | None
    """Side of the masks; None: the side of the crop."""
    augment: AugmentConfig
    num_classes: int
    """The number of classes, background included."""
    plain: bool = False
    """Whether the sample also has the image at the masks' size without colour jitter, for a training step's CRF."""

    @property
    def bytes_of_sample(self) -> int:
        """The size of one sample in bytes, summed over all columns that `training.ingest.samples` returns."""
        mask = (self.mask_size or self.augment.crop) ** 2
        masks = len(self.masks) + 3 * self.plain
        return 3 * self.augment.crop**2 + masks * mask + self.num_classes + 8

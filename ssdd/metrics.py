"""Mean intersection over union as PASCAL VOC defines it."""

import numpy as np


class ConfusionMatrix:
    """Counts pixels by their class in the target (the true mask) and in the prediction, and computes IoU.

    Args:
        num_classes: number of classes, background included.
        ignore_index: value of target pixels that are not counted.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    @classmethod
    def of(cls, counts: np.ndarray) -> "ConfusionMatrix":
        """A matrix of given counts (C, C), for example summed over workers."""
        matrix = cls(len(counts))
        matrix.counts = counts
        return matrix

    def update(self, prediction, target) -> None:
        """Count the pixels of integer masks of equal shape.

        Raises:
            ValueError: the shapes differ, or a value at a counted pixel is not a class.
        """
        prediction, target = np.asarray(prediction), np.asarray(target)
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
        valid = target != self.ignore_index
        prediction, target = prediction[valid].astype(np.int64), target[valid].astype(np.int64)
        for name, values in (("prediction", prediction), ("target", target)):
            if values.size and not (values.min() >= 0 and values.max() < self.num_classes):
                raise ValueError(f"{name} has values outside 0..{self.num_classes - 1}")
        flat = np.bincount(target * self.num_classes + prediction, minlength=self.num_classes**2)
        self.counts += flat.reshape(self.counts.shape)

    def iou(self) -> np.ndarray:
        """IoU of each class, float64 (C,) in 0..1; NaN for a class that neither target nor prediction has."""
        hit = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return np.divide(hit, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    @property
    def has_foreground(self) -> bool:
        """Whether the target has any foreground pixel."""
        return bool(self.counts[1:].any())

    def foreground_ratio(self) -> float:
        """Foreground pixels of the prediction over those of the target; NaN if the target has none."""
        target, prediction = self.counts[1:].sum(), self.counts[:, 1:].sum()
        return float(prediction / target) if target else float("nan")

    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur; NaN if no pixel was counted."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

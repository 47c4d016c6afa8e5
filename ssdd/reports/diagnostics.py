"""How much difference detection can gain, measured on images that have true masks (secs. 3.2 and 5.2)."""

import math

import numpy as np

from ssdd.metrics import ConfusionMatrix

_LEVELS = 255  # difference maps are stored in 8 bits


class DifferenceReport:
    """Counts over the pixels where knowledge and advice differ, added image by image.

    The AUCs leave out pixels where the true mask has no label, or where neither mask is correct: such pixels do not
    show which of the two masks should be chosen.

    Args:
        num_classes: the number of classes, background included.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.pixels = self.differing = self.advice_true = self.knowledge_true = 0
        self.oracle = ConfusionMatrix(num_classes)
        # Histograms of d^K and of d^K - d^A over the pixels where knowledge is correct (row 0) or advice is (row 1).
        self.by_knowledge = np.zeros((2, _LEVELS + 1), np.int64)
        self.by_gap = np.zeros((2, 2 * _LEVELS + 1), np.int64)
        # Histogram of d^K - d^A over all differing pixels.
        self.gaps = np.zeros(2 * _LEVELS + 1, np.int64)
        # Histograms of d^K (row 0) and d^A (row 1) over all labelled pixels [:, 0] and over the differing ones [:, 1].
        self.reliability = np.zeros((2, 2, _LEVELS + 1), np.int64)

    def update(
        self,
        knowledge: np.ndarray,
        advice: np.ndarray,
        truth: np.ndarray,
        *d: np.ndarray,
    ) -> None:
        """Add an image: masks (H, W), and DD-Net's probabilities d^K and d^A (H, W) in 0..1 if they exist."""
        labelled = truth < self.num_classes
        differ = (knowledge != advice) & labelled
        advice_true, knowledge_true = differ & (advice == truth), differ & (knowledge == truth)
        self.pixels += int(labelled.sum())
        self.differing += int(differ.sum())
        self.advice_true += int(advice_true.sum())
        self.knowledge_true += int(knowledge_true.sum())
        self.oracle.update(np.where(advice_true, advice, knowledge), truth)
        if not d:
            return
        d_levels = [np.rint(np.clip(values, 0, 1) * _LEVELS).astype(np.int64) for values in d]
        gap = d_levels[0] - d_levels[1] + _LEVELS
        self.gaps += np.bincount(gap[differ], minlength=2 * _LEVELS + 1)
        for row, correct in enumerate((knowledge_true, advice_true)):
            self.by_knowledge[row] += np.bincount(d_levels[0][correct], minlength=_LEVELS + 1)
            self.by_gap[row] += np.bincount(gap[correct], minlength=2 * _LEVELS + 1)
        for row in (0, 1):
            self.reliability[row, 0] += np.bincount(d_levels[row][labelled], minlength=_LEVELS + 1)
            self.reliability[row, 1] += np.bincount(d_levels[row][differ], minlength=_LEVELS + 1)

    def metrics(self) -> dict[str, float]:
        """Shares of pixels in percent, AUCs in 0..1, and the oracle's mean IoU in percent, each only if it is defined.

        - `differing`: the share of the labelled pixels where the masks differ.
        - `advice_true`, `advice_false`: the shares of these pixels where advice is correct, |S^{A,T}|, and where it is
          not, |S^{A,F}|. Sec. 3.2 assumes that the first is larger.
        - `knowledge_true`: the share of these pixels where knowledge is correct.
        - `auc_knowledge`, `auc_gap`: how well d^K, and d^K - d^A (eq. 3), separate the pixels where advice is correct
          from the pixels where knowledge is correct.
        - `gap_low`, `gap_high`: the 5th and the 95th percentile of d^K - d^A where the masks differ. The bias (eq. 3)
          is added to this value, so they show which biases matter.
        - `oracle`: mean IoU of the mask that takes advice where it is correct, and knowledge elsewhere.
        """
        differing = max(self.differing, 1)
        values = {
            "differing": 100 * self.differing / max(self.pixels, 1),
            "advice_true": 100 * self.advice_true / differing,
            "advice_false": 100 * (self.differing - self.advice_true) / differing,
            "knowledge_true": 100 * self.knowledge_true / differing,
            "auc_knowledge": auc(self.by_knowledge[0], self.by_knowledge[1]),
            "auc_gap": auc(self.by_gap[0], self.by_gap[1]),
            "gap_low": self._gap(0.05),
            "gap_high": self._gap(0.95),
            "oracle": 100 * self.oracle.mean_iou(),
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _gap(self, share: float) -> float:
        """The quantile of d^K - d^A over the differing pixels; NaN without any."""
        total = self.gaps.sum()
        if not total:
            return math.nan
        return float(np.searchsorted(np.cumsum(self.gaps), share * total) - _LEVELS) / _LEVELS

    def calibration(self, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reliability of d^K (row 0) and d^A (row 1).

        Returns:
            for each bin of d, (2, bins) each: the mean of d, the share of its pixels where the masks differ (both NaN
            in an empty bin), and the number of its pixels.
        """
        edges = np.linspace(0, _LEVELS + 1, bins + 1).round().astype(int)[:-1]
        total, differing = (np.add.reduceat(self.reliability[:, k], edges, axis=1) for k in (0, 1))
        weighted = np.add.reduceat(self.reliability[:, 0] * (np.arange(_LEVELS + 1) / _LEVELS), edges, axis=1)
        with np.errstate(invalid="ignore"):
            return weighted / total, differing / total, total


def auc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Area under the ROC curve, from counts by ascending score; ties count one half. NaN if either array is all 0."""
    pairs = float(negatives.sum()) * float(positives.sum())
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else float("nan")

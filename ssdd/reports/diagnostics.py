"""What decides whether a difference detection can gain anything, wherever the truth is at hand (secs. 3.2 and 5.2)."""

import math

import numpy as np

from ssdd.metrics import ConfusionMatrix

_LEVELS = 255  # difference maps are stored in 8 bits


class DifferenceReport:
    """Counts over the pixels where knowledge and advice differ, image by image.

    Where the truth has no label, or knowledge is the truth nor advice, a pixel says nothing about the decision and is
    left out of the AUCs.

    Args:
        num_classes: background included.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.pixels = self.differing = self.advice_true = self.knowledge_true = 0
        self.oracle = ConfusionMatrix(num_classes)
        # Of the pixels where either mask is true: how many have each d^K, and each d^K - d^A, by who is true.
        self.by_knowledge = np.zeros((2, _LEVELS + 1), np.int64)
        self.by_gap = np.zeros((2, 2 * _LEVELS + 1), np.int64)
        # Of all differing pixels: how many have each d^K - d^A.
        self.gaps = np.zeros(2 * _LEVELS + 1, np.int64)
        # Of all pixels: how many have each d, and how many of those differ, for either mask.
        self.reliability = np.zeros((2, 2, _LEVELS + 1), np.int64)

    def update(
        self,
        knowledge: np.ndarray,
        advice: np.ndarray,
        truth: np.ndarray,
        *d: np.ndarray,
    ) -> None:
        """Add an image: masks (H, W), and DD-Net's probabilities d^K and d^A (H, W) in 0..1 if there are any yet."""
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
        for who, where in enumerate((knowledge_true, advice_true)):
            self.by_knowledge[who] += np.bincount(d_levels[0][where], minlength=_LEVELS + 1)
            self.by_gap[who] += np.bincount(gap[where], minlength=2 * _LEVELS + 1)
        for mask in (0, 1):
            self.reliability[mask, 0] += np.bincount(d_levels[mask][labelled], minlength=_LEVELS + 1)
            self.reliability[mask, 1] += np.bincount(d_levels[mask][differ], minlength=_LEVELS + 1)

    def metrics(self) -> dict[str, float]:
        """Shares of pixels in percent, AUCs in 0..1, and the mean IoU in percent that choosing by the truth gives.

        `differing`: share of the labelled pixels where the masks differ; `advice_true`, `advice_false`: of those, the
        shares |S^{A,T}| and |S^{A,F}| (sec. 3.2 supposes that the first is the larger); `knowledge_true`: the part of
        the latter where knowledge is the truth; `auc_knowledge` and `auc_gap`: how well d^K, and d^K - d^A (eq. 3),
        tell true advice from true knowledge; `gap_low` and `gap_high`: the 5th and the 95th percentile of d^K - d^A
        where the masks differ, whose scale a bias (eq. 3) belongs to; `oracle`: see above. What cannot be said is left
        out.
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
            mean d, share of pixels that differ, and number of pixels, (2, bins) each; NaN where a bin is empty.
        """
        edges = np.linspace(0, _LEVELS + 1, bins + 1).round().astype(int)[:-1]
        total, differing = (np.add.reduceat(self.reliability[:, k], edges, axis=1) for k in (0, 1))
        weighted = np.add.reduceat(self.reliability[:, 0] * (np.arange(_LEVELS + 1) / _LEVELS), edges, axis=1)
        with np.errstate(invalid="ignore"):
            return weighted / total, differing / total, total


def auc(negatives: np.ndarray, positives: np.ndarray) -> float:
    """Area under the ROC curve from counts at ascending scores, ties counting one half; NaN without either kind."""
    pairs = float(negatives.sum()) * float(positives.sum())
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else float("nan")

"""SSDD: Self-Supervised Difference Detection for weakly-supervised semantic segmentation, on Ray.

`ssdd.load(SOURCE)` returns a trained network as a `segmenter.Segmenter`.
"""

from typing import Any


def load(source: Any, network: str | None = None, preset: str = "paper") -> Any:
    """Load a trained network, see `segmenter.load`.

    The import is in the function so that parts of this package can be imported without torch.
    """
    from ssdd import segmenter

    return segmenter.load(source, network, preset)

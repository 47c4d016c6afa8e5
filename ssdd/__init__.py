"""SSDD: Self-Supervised Difference Detection for weakly-supervised semantic segmentation, on Ray.

`ssdd.load(SOURCE)` gives a trained network as a `segmenter.Segmenter`.
"""

from typing import Any


def load(source: Any, network: str | None = None, preset: str = "paper") -> Any:
    """`segmenter.load`. It is imported here because parts of this package are to be imported without torch."""
    from ssdd import segmenter

    return segmenter.load(source, network, preset)

"""What a training refuses; the loop itself runs in test_jobs.py, its step in test_step.py."""

from pathlib import Path

import pytest

from ssdd import training
from ssdd.config import mini
from ssdd.weight_files import WeightsError


def test_published_weights_are_refused_for_other_classes():
    with pytest.raises(WeightsError, match=r"seg\.pth: the published weights know VOC's 20 classes.*cat, dog"):
        training.convert(None, "dynamic", (Path("seg.pth"),), mini().network, ("background", "cat", "dog"), None)

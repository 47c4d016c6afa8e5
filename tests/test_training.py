"""Gradient accumulation; the loop itself runs in test_jobs.py."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ssdd import training
from ssdd.config import mini
from ssdd.training import accumulate
from ssdd.weight_files import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.synchronised: list[bool] = []
        self.silent = False

    def forward(self, batch):
        self.synchronised.append(not self.silent)
        out = self.layer(batch["image"])
        return {"a": out[:, 0].square().mean(), "b": out[:, 1].abs().mean()}

    def no_sync(self):
        return _Silent(self)


class _Silent:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.model.silent = True

    def __exit__(self, *_):
        self.model.silent = False


def test_published_weights_are_refused_for_other_classes():
    with pytest.raises(WeightsError, match=r"seg\.pth: the published weights know VOC's 20 classes.*cat, dog"):
        training.convert(None, "dynamic", (Path("seg.pth"),), mini().network, ("background", "cat", "dog"), None)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 8])
def test_parts_give_the_losses_and_gradients_of_the_whole(micro_batch):
    batch = {"image": torch.randn(5, 3)}
    whole, parts = Mean(), Mean()
    expected = accumulate(whole, batch, 5)
    losses = accumulate(parts, batch, micro_batch)
    assert whole.synchronised == [True]
    assert parts.synchronised == [False] * (-(-5 // micro_batch) - 1) + [True]  # the workers exchange them once
    torch.testing.assert_close(losses, expected)
    assert not any(value.requires_grad for value in losses.values())
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)

"""SGD with the paper's learning rates and schedules, and whether a training runs in bfloat16."""

import math
from typing import Any

import torch

from ssdd.config import StepConfig, TrainConfig


def lr_factor(train: TrainConfig, done: float) -> float:
    """The learning rate as a share of the initial one, after the share `done` of the training."""
    if train.schedule == "poly":
        return (1 - done) ** 0.9
    return (1 + math.cos(math.pi * done / 1.2)) / 2


def in_bf16(step: StepConfig, where: torch.device) -> bool:
    """Whether networks are trained in bfloat16."""
    if step.bf16 is not None:
        return step.bf16
    return where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer_for(net: Any, train: TrainConfig) -> torch.optim.SGD:
    """SGD with the backbone at `lr` and everything else at `lr * new_layers_lr`."""
    backbone = {id(p) for p in net.backbone.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "scale": 1.0},
        {"params": [p for p in trained if id(p) not in backbone], "scale": train.new_layers_lr},
    ]
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)

"""SGD with the paper's learning rates and schedules, and whether a training runs in bfloat16."""

import math
from typing import Any

import torch

from ssdd.config import StepConfig, TrainConfig


def lr_factor(train: TrainConfig, done: float) -> float:
    """The learning rate divided by the initial one; `done` is the finished share of the training, 0 to 1."""
    if train.schedule == "poly":
        return (1 - done) ** 0.9
    return (1 + math.cos(math.pi * done / 1.2)) / 2


def in_bf16(step: StepConfig, where: torch.device) -> bool:
    """Whether networks are trained in bfloat16: `step.bf16` or, if that is None, whether the GPU supports it."""
    if step.bf16 is not None:
        return step.bf16
    return where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer_for(net: Any, train: TrainConfig) -> torch.optim.SGD:
    """SGD with two parameter groups: the backbone and the rest. The caller multiplies a group's rate by its `scale`."""
    backbone = {id(p) for p in net.backbone.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in backbone], "scale": 1.0},
        {"params": [p for p in trained if id(p) not in backbone], "scale": train.new_layers_lr},
    ]
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)

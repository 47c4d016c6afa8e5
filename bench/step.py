"""Prints time and peak memory of a preset's training steps, and the hours of a training on VOC's 10,582 images.

    python bench/step.py [--preset paper] [--stage static|dynamic] [--batch 1] [--micro-batch N] [--steps 2]
                         [--crf inline|exact|none]

Weights are random and images are smooth noise: neither changes what a step costs. `--crf` chooses the CRF of a dynamic
step: `inline` runs in this process, image by image, as in the published code, and its time is shown separately; `exact`
runs on the device of the training, as a part of the forward pass; `none` costs nothing. The script needs neither Ray
nor MLflow, and needs pydensecrf only for `inline`.
"""

import argparse
import importlib.util
import resource
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from simulated import pictures

from ssdd.nets import checkpoints
from ssdd.nets.networks import DynamicNet, StaticNet
from ssdd.objectives.crf import ExactCRF, InlineCRF
from ssdd.objectives.dynamic import DynamicTask
from ssdd.objectives.optimizer import in_bf16, optimizer_for
from ssdd.objectives.static import StaticTask
from ssdd.objectives.step import Clock, Workers, gradients
from ssdd.presets import PRESETS

IMAGES = 10_582  # VOC's train_aug
CLASSES = 21


def crf_of(name, params):
    if name == "none":
        return FreeCRF(runs_on_actors=True)
    return InlineCRF(params) if name == "inline" else ExactCRF(params)


class FreeCRF:
    """Returns constant masks, so that a step consists of the network only.

    With `runs_on_actors`, the step has the same parts, and needs the same memory, as one with CRF actors.
    """

    def __init__(self, runs_on_actors):
        self.runs_on_actors = runs_on_actors

    def request(self, images, logits, presence):
        return FreeMasks(logits.argmax(1) * 0 + 8)


class FreeMasks:
    def __init__(self, mask):
        self.mask = mask

    def wait(self): ...

    def masks(self):
        return self.mask


def build(chosen, stage, crf):
    if stage == "static":
        return StaticTask(chosen.network, chosen.static, CLASSES, None), StaticNet
    return DynamicTask(network=chosen.network, dynamic=chosen.dynamic, classes=CLASSES, start=None, crf=crf), DynamicNet


def batch_of(task, images, where):
    image, _, presence = pictures(images, task.train.augment.crop, where)
    size = task.sampling.mask_size
    # The masks have both present classes, background and class 8. If advice had too few pixels of class 8, the
    # difference losses would leave the image out.
    coarse = torch.rand(images, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    mask = ((F.interpolate(coarse, (size, size), mode="bilinear")[:, 0] > 0.5) * 8).byte().to(where)
    masks = {name: mask.roll(3 * k, -1) for k, name in enumerate(task.sampling.masks)}
    plain = F.interpolate(image.float(), (size, size), mode="bilinear", antialias=True).byte()
    return {"image": image, "plain": plain, "presence": presence, **masks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--stage", choices=("static", "dynamic"), default="dynamic")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--steps", type=int, default=2)
    default = "inline" if importlib.util.find_spec("pydensecrf") else "exact"
    parser.add_argument("--crf", choices=("inline", "exact", "none"), default=default)
    args = parser.parse_args()
    chosen = PRESETS[args.preset]()
    where = checkpoints.device()
    task, kind = build(chosen, args.stage, crf_of(args.crf, chosen.dynamic.crf))
    train = replace(task.train, batch_size=args.batch)
    net = kind(chosen.network, CLASSES).to(where, memory_format=torch.channels_last)
    optimizer = optimizer_for(net, train)
    workers, clock, bf16 = Workers(net.train()), Clock(where), in_bf16(chosen.step, where)
    batch = batch_of(task, args.batch, where)
    size, ahead = replace(chosen.step, micro_batch=args.micro_batch).parts_of(
        args.batch, task.runs_on_actors, where.type == "cuda"
    )

    def step():
        losses = gradients(task, net, batch, workers, clock, size, ahead, bf16)
        optimizer.step()
        return {name: round(float(value), 3) for name, value in losses.items()}

    print(f"{args.preset} {args.stage}, {where}, batch {args.batch} in parts of {size}")
    print("first step:", step())
    clock.read()
    begun = time.perf_counter()
    for _ in range(args.steps):
        losses = step()
    seconds = (time.perf_counter() - begun) / args.steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if where.type == "cuda" else 0.0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    hours = IMAGES * task.train.epochs * seconds / args.batch / 3600
    print("last step:", losses)
    crf = clock.read().get("crf_wait", 0) / args.steps
    print(f"{seconds:.2f} s a step, {args.batch / seconds:.2f} images/s, CRF {args.crf} {crf:.2f} s")
    print(f"peak memory {peak:.1f} GiB; {task.train.epochs} epochs of {IMAGES} images: {hours:.0f} h")


if __name__ == "__main__":
    main()

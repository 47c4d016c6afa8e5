"""A step in parts and over workers: the same gradients as of the whole batch by plain autograd."""

import os
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small import NETWORK
from torch import nn

from ssdd import refine
from ssdd.config import BackboneConfig, StepConfig
from ssdd.nets.networks import AffinityNet, DynamicNet, StaticNet
from ssdd.objectives.affinity import AffinityTask
from ssdd.objectives.dynamic import DynamicTask
from ssdd.objectives.fixed import FixedTask
from ssdd.objectives.static import StaticTask
from ssdd.objectives.step import Clock, Workers, gradients, in_memory_order
from ssdd.objectives.task import Halfway
from ssdd.presets import mini
from ssdd.training.worker import too_large

CLASSES = 4
SIZE = NETWORK.mask_size(48)
IMAGES = 8


class ShiftingCRF:
    """Moves the network's mask of every second image, and counts what waits for it."""

    runs_on_actors = False

    def __init__(self):
        self.open = self.most = 0

    def request(self, images, logits, presence):
        self.open += 1
        self.most = max(self.most, self.open)
        mask = refine.presence_argmax(logits, presence)
        odd = (images[:, 0, 0, 0] % 2 == 1)[:, None, None]
        return Shifted(self, torch.where(odd, mask.roll(3, 2), mask))


class Shifted:
    def __init__(self, crf, mask):
        self.crf, self.mask = crf, mask

    def wait(self):
        self.crf.open -= 1

    def masks(self):
        return self.mask


def task_and_net(name, crf=None):
    torch.manual_seed(0)
    if name == "dynamic":
        config = replace(mini().dynamic, bad_ratio=0.9, alpha=0.3)
        task, net = (
            DynamicTask(network=NETWORK, dynamic=config, classes=CLASSES, start=None, crf=crf or ShiftingCRF()),
            DynamicNet(NETWORK, CLASSES),
        )
    elif name == "static":
        task, net = StaticTask(NETWORK, mini().static, CLASSES, None), StaticNet(NETWORK, CLASSES)
    elif name == "affinity":
        seeds = replace(mini().seeds, radius=3)
        task, net = AffinityTask(NETWORK, seeds, CLASSES, None), AffinityNet(NETWORK)
    else:
        task, net = (
            FixedTask(network=NETWORK, train=mini().dynamic.train, classes=CLASSES, start=None, column="refined"),
            DynamicNet(NETWORK, CLASSES),
        )
    for layer in net.modules():  # so that d, and with it m^D, differs from pixel to pixel
        if isinstance(layer, nn.Conv2d) and layer.out_channels == 1:
            nn.init.normal_(layer.weight, std=0.5)
    return task, net.train().to(memory_format=torch.channels_last)


def make_batch():
    """Images whose numbers of differing, unlabelled and bad pixels are far from equal."""
    rng = np.random.default_rng(0)
    presence = torch.from_numpy(rng.random((IMAGES, CLASSES)) < 0.5)
    presence[:, :2] = True
    masks = {}
    for name in ("refined", "knowledge", "advice"):
        mask = torch.from_numpy(rng.integers(0, 2, (IMAGES, SIZE, SIZE), dtype=np.uint8))
        mask[0, : SIZE // 2] = 255
        masks[name] = mask
    for i in range(IMAGES // 2):  # the first half agrees almost everywhere
        masks["advice"][i] = masks["knowledge"][i]
        masks["advice"][i, 5, 5] ^= 1
    affinity = torch.from_numpy(rng.integers(0, 3, (IMAGES, 6, 6), dtype=np.uint8))
    affinity[2:5] = 255
    images = torch.from_numpy(rng.integers(0, 255, (IMAGES, 3, 48, 48), dtype=np.uint8))
    return {
        "image": images,
        "plain": images[:, :, :SIZE, :SIZE],
        "presence": presence,
        "affinity": affinity,
        **masks,
    }


def step(name, batch, parts=1, ahead=None):
    task, net = task_and_net(name)
    workers = Workers(net)
    size = -(-len(batch["image"]) // parts)
    values = gradients(task, net, batch, workers, Clock(torch.device("cpu")), size, parts if ahead is None else ahead)
    return values, workers.buffer[: -Workers.SPARE]


def by_autograd(name, batch):
    task, net = task_and_net(name)
    found = task.losses(net, batch)
    if isinstance(found, Halfway):
        found = found.finish()
    values = {name: loss.value() for name, loss in found.items()}
    trained = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(sum(values.values()), trained, allow_unused=True)
    # In the order of memory, as in the buffer.
    laid_out = [
        torch.zeros_like(p) if g is None else torch.empty_like(p).copy_(g) for p, g in zip(trained, found, strict=True)
    ]
    flat = [in_memory_order(g) for g in laid_out]
    return {name: value.detach() for name, value in values.items()}, torch.cat(flat)


TASKS = ("dynamic", "static", "affinity", "fixed")


def assert_same(found, expected):
    values, buffer = found
    torch.testing.assert_close(values, {name: expected[0][name] for name in values}, rtol=1e-4, atol=1e-6)
    assert values.keys() == expected[0].keys()
    assert expected[1].any()
    torch.testing.assert_close(buffer, expected[1], rtol=1e-3, atol=1e-5 * float(expected[1].abs().max()))


@pytest.mark.parametrize("name", TASKS)
def test_parts_give_the_gradients_of_the_whole(name):
    batch = make_batch()
    expected = by_autograd(name, batch)
    for parts, ahead in ((1, 1), (2, 2), (4, 4), (4, 1), (3, 0)):
        assert_same(step(name, batch, parts, ahead), expected)


def test_the_gradients_do_not_add_up_over_steps():
    task, net = task_and_net("dynamic")
    workers, clock = Workers(net), Clock(torch.device("cpu"))
    batch = make_batch()
    results = []
    for _ in range(2):
        gradients(task, net, batch, workers, clock, 4, 2)
        results.append(workers.buffer.clone())
    torch.testing.assert_close(*results)
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_the_averages_are_not_those_of_parts():
    """The test above would pass with averaged parts if all parts were alike."""
    batch = make_batch()
    whole = by_autograd("static", batch)[0]["diff0"]
    halves = [by_autograd("static", {k: v[i : i + 4] for k, v in batch.items()})[0]["diff0"] for i in (0, 4)]
    assert abs(sum(halves) / 2 - whole) > 1e-3


@pytest.mark.parametrize(("ahead", "most"), [(4, 4), (1, 2), (0, 1)])
def test_parts_wait_for_the_crf_together(ahead, most):
    crf = ShiftingCRF()
    task, net = task_and_net("dynamic", crf)
    gradients(task, net, make_batch(), Workers(net), Clock(torch.device("cpu")), 2, ahead)
    assert (crf.open, crf.most) == (0, most)


def _worker(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    whole = make_batch()
    share = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    batch = {name: column[share] for name, column in whole.items()}
    found = {(name, parts): step(name, batch, parts) for name in TASKS for parts in (1, 2)}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def test_two_workers_give_the_gradients_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (port, tmp_path), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    batch = make_batch()
    for name in TASKS:
        expected = by_autograd(name, batch)
        for parts in (1, 2):
            assert_same(found[name, parts], expected)


def test_the_clock_tells_waiting_from_work():
    clock = Clock(torch.device("cpu"))
    for _ in clock.each("data_wait", range(2)):
        with clock("forward"):
            time.sleep(0.02)
    seconds = clock.read()
    assert seconds["forward"] >= 0.04
    assert 0 <= seconds["data_wait"] < seconds["forward"]
    assert clock.read() == {}


def test_sizes_of_parts():
    assert StepConfig().parts_of(8, runs_on_actors=True, on_gpu=True) == (2, 4)
    assert StepConfig().parts_of(8, runs_on_actors=True, on_gpu=False) == (8, 1)
    assert StepConfig(parts=4).parts_of(3, runs_on_actors=True, on_gpu=False) == (1, 4)
    assert StepConfig(parts=4).parts_of(8, runs_on_actors=False, on_gpu=True) == (8, 1)
    assert StepConfig(micro_batch=3).parts_of(8, runs_on_actors=True, on_gpu=True) == (3, 1)
    assert StepConfig(micro_batch=3).parts_of(8, runs_on_actors=False, on_gpu=True) == (3, 0)


def test_actors_compute_the_crf_where_something_would_be_idle_meanwhile():
    assert StepConfig().crf_of(threads=1, on_gpu=False) == "inline"
    assert StepConfig().crf_of(threads=2, on_gpu=False) == "actors"
    assert StepConfig().crf_of(threads=1, on_gpu=True) == "actors"
    assert StepConfig(crf="exact").crf_of(threads=1, on_gpu=False) == "exact"


def agreement(one, other):
    """The largest relative difference of two steps' losses, and the cosine between their gradients."""
    worst = max(abs(one[0][name] - other[0][name]).item() / other[0][name].item() for name in other[0])
    return worst, torch.nn.functional.cosine_similarity(one[1], other[1], 0).item()


def steps_gradients(name, batch, bf16=False, compiled=False):
    task, net = task_and_net(name)
    if compiled:
        net.backbone.compile()
    workers = Workers(net)
    values = gradients(task, net, batch, workers, Clock(torch.device("cpu")), IMAGES, 1, bf16=bf16)
    return values, workers.buffer[: -Workers.SPARE]


@pytest.mark.parametrize("name", ["fixed", "static", "dynamic"])
def test_bf16_is_close(name):
    batch = make_batch()
    worst, cosine = agreement(steps_gradients(name, batch, bf16=True), steps_gradients(name, batch))
    assert worst < 0.02
    assert cosine > 0.99


def test_in_bf16_the_masks_are_still_chosen_by_float32_maps(monkeypatch):
    seen, module = [], refine.module
    monkeypatch.setattr(refine, "module", lambda *args: seen.extend(args[:2]) or module(*args))
    steps_gradients("dynamic", make_batch(), bf16=True)
    assert {d.dtype for d in seen} == {torch.float32}, "coarser maps would often be equal, and ties go to advice"


@pytest.mark.programs
def test_a_compiled_backbone_gives_the_same_step(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a pool of processes would take longer to start
    quick = replace(NETWORK, backbone=BackboneConfig("resnet10t", 16, "random"))  # to compile
    monkeypatch.setattr(f"{__name__}.NETWORK", quick)
    batch = make_batch()
    worst, cosine = agreement(steps_gradients("dynamic", batch, compiled=True), steps_gradients("dynamic", batch))
    assert worst < 1e-4
    assert cosine > 1 - 1e-4


def test_a_gpu_that_is_too_small_is_told_with_the_option_that_helps():
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
    assert too_large(8, 8, 0, False, error) == (
        "the GPU has too little memory for 8 images at once: try --step.micro-batch 4 "
        "(CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )
    assert "for 8 images at once: try --step.micro-batch 2 " in too_large(8, 2, 4, True, error), "as by default"
    assert "for 4 images at once: try --step.micro-batch 1 " in too_large(8, 2, 1, True, error)
    assert "for 2 images at once: try a smaller augment.crop" in too_large(8, 1, 1, True, error)
    assert "for 1 images at once: try a smaller augment.crop" in too_large(1, 1, 0, False, error)


class Miscounting(FixedTask):
    """Its counts are not those of its losses."""

    changes = staticmethod(lambda counts: counts)

    def counts(self, batch):
        return self.changes(super().counts(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"main": c["main"].repeat(2)}, r"of the loss main has the shape \(2,\), but the loss has \(1,\)"),
        (lambda c: {"main": c["main"] + 1}, r"of the loss main is \[\d+\], but the loss has \[\d+\]"),
        (lambda c: {**c, "sub": c["main"]}, r"has sub, which losses\(\) does not give"),
    ],
)
def test_counts_that_are_not_those_of_the_losses_are_refused(change, message):
    task, net = task_and_net("fixed")
    wrong = Miscounting(**vars(task))
    object.__setattr__(wrong, "changes", change)
    with pytest.raises(ValueError, match=message):
        gradients(wrong, net, make_batch(), Workers(net), Clock(torch.device("cpu")), 4, 1)

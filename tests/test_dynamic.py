"""The dynamic step (sec. 4.2) on a small network, with the CRF in this process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import NETWORK

from ssdd import losses, refine
from ssdd.nets import checkpoints
from ssdd.nets.networks import DynamicNet, StaticNet
from ssdd.objectives.dynamic import DynamicTask
from ssdd.objectives.fixed import FixedTask
from ssdd.objectives.optimizer import lr_factor, optimizer_for
from ssdd.objectives.task import Halfway
from ssdd.presets import mini
from ssdd.refine import module
from ssdd.storage.artifacts import Artifact
from ssdd.training import trainer, worker

CLASSES = 4
SIZE = NETWORK.mask_size(64)


class GivenCRF:
    """A CRF whose masks are a function of the network's own."""

    runs_on_actors = False

    def __init__(self, change=lambda mask: mask):
        self.change = change

    def request(self, images, logits, presence):
        self.images, self.mask = images, self.change(refine.presence_argmax(logits, presence))
        return self

    def wait(self):
        pass

    def masks(self):
        return self.mask


def losses_of(task, net, data):
    """The values of a task's losses on a whole batch."""
    begun = task.losses(net, data)
    if isinstance(begun, Halfway):
        begun = begun.finish()
    known = task.counts(data)
    for name, counts in known.items():
        torch.testing.assert_close(counts, begun[name].counts)
    return {name: loss.value() for name, loss in begun.items()}


def batch():
    rng = np.random.default_rng(0)
    presence = torch.tensor([[True, True, False, True], [True, False, True, False]])
    seed = torch.from_numpy(rng.integers(0, 2, (2, SIZE, SIZE)))
    return {
        "image": torch.from_numpy(rng.integers(0, 255, (2, 3, 64, 64), dtype=np.uint8)),
        "plain": torch.from_numpy(rng.integers(0, 255, (2, 3, SIZE, SIZE), dtype=np.uint8)),
        "presence": presence,
        "refined": torch.stack([seed[0] * 3, seed[1] * 2]).byte(),
    }


@pytest.fixture
def net():
    torch.manual_seed(0)
    return DynamicNet(NETWORK, CLASSES).train()


def task(crf=None, **changes):
    return DynamicTask(
        network=NETWORK, dynamic=replace(mini().dynamic, **changes), classes=CLASSES, start=None, crf=crf or GivenCRF()
    )


def test_a_step_has_the_four_losses_of_eq_15_and_trains_everything(net):
    out = losses_of(task(), net, batch())
    assert list(out) == ["main", "sub", "diff1", "diff2"]
    assert all(torch.isfinite(v) for v in out.values())
    sum(out.values()).backward()
    for part in ("backbone", "main", "sub", "ddnet2"):
        assert any(p.grad is not None and p.grad.any() for p in net.get_submodule(part).parameters()), part


def test_the_crf_sees_the_image_without_colour_jitter(net):
    crf, data = GivenCRF(), batch()
    losses_of(task(crf), net, data)
    assert crf.images is data["plain"]
    assert task().sampling.plain


def test_main_learns_a_mask_of_present_classes_made_of_seed_and_network(net, monkeypatch):
    masks = []
    original = losses.segmentation_loss
    monkeypatch.setattr(losses, "segmentation_loss", lambda logits, mask: masks.append(mask) or original(logits, mask))
    data = batch()
    losses_of(task(), net, data)
    refined2, seed, target = masks
    torch.testing.assert_close(seed, data["refined"].long())
    assert ((refined2 == seed) | (refined2 == target)).all(), "m^D2 takes each pixel from m^D0 or m^D1 (eq. 4)"
    for mask, present in zip(refined2, data["presence"], strict=True):
        assert present[mask.unique()].all()


def test_alpha_weighs_seed_against_target(net):
    data = batch()
    net.eval()
    whole, none, half = (losses_of(task(alpha=a), net, data)["sub"].item() for a in (1.0, 0.0, 0.5))
    logits = net.sub(net.features(data["image"]).high)[0]
    assert whole == pytest.approx(losses.segmentation_loss(logits, data["refined"]).value().item(), rel=1e-5)
    assert half == pytest.approx((whole + none) / 2, rel=1e-5)


def test_agreement_of_network_and_crf_leaves_only_agreeing_pixels(net):
    net.eval()
    data = batch()
    logits = net(data["image"])
    mask = refine.presence_argmax(logits, data["presence"])
    gone = refine.vanished(mask, mask, data["presence"])
    diff1 = losses_of(task(), net, data)["diff1"].item()
    assert np.isfinite(diff1)
    assert (diff1 == 0) == bool(refine.bad_samples(gone).all())


def test_bad_samples_are_left_out_of_diff1(net):
    wipe_out = GivenCRF(torch.zeros_like)
    net.main.conv2.bias.data[0] = -50  # the network's own mask is all foreground
    data = batch()
    assert losses_of(task(wipe_out), net, data)["diff1"].item() == 0
    assert losses_of(task(wipe_out, bad_ratio=0.0), net, data)["diff1"].item() > 0


@pytest.mark.parametrize("target", ["d1", "d2"])
def test_the_second_step_by_the_equations(net, target):
    """Eqs. 13-14, from the network's parts, with a CRF that changes the masks."""
    net.eval()
    torch.manual_seed(3)
    for layer in (net.ddnet1.predict, net.ddnet2.predict):
        torch.nn.init.normal_(layer.weight, std=0.5)
    data, config = batch(), replace(mini().dynamic, target=target, alpha=0.3)
    presence, d0 = data["presence"], data["refined"].long()
    features = net.features(data["image"])
    logits, high = net.main(features.high)
    sub_logits, sub_high = net.sub(features.high)

    def difference(ddnet, above, mask):
        return ddnet(ddnet.features(features.low, above), mask)

    def integrated(d_before, d_after, before, after, bias):
        return module(d_before.sigmoid(), d_after.sigmoid(), before, after, presence, bias)

    k1 = refine.presence_argmax(logits, presence)
    a1 = k1.roll(5, 2)
    crf = GivenCRF(lambda mask: mask.roll(5, 2))
    found = losses_of(DynamicTask(network=NETWORK, dynamic=config, classes=CLASSES, start=None, crf=crf), net, data)
    d1 = integrated(difference(net.ddnet1, high, k1), difference(net.ddnet1, high, a1), k1, a1, config.bias1)
    d_d0, d_d1 = (difference(net.ddnet2, sub_high, mask) for mask in (d0, d1))
    d2 = integrated(d_d0, d_d1, d0, d1, config.bias2)
    assert (d1 != d2).any()
    goal = d1 if target == "d1" else d2
    sub = 0.3 * losses.segmentation_loss(sub_logits, d0) + 0.7 * losses.segmentation_loss(sub_logits, goal)
    torch.testing.assert_close(found["sub"], sub.value())
    msub, keep = refine.presence_argmax(sub_logits, presence), torch.ones(2, dtype=torch.bool)
    diff2 = losses.difference_loss(d_d0, d0 != msub, keep) + losses.difference_loss(d_d1, msub != goal, keep)
    torch.testing.assert_close(found["diff2"], diff2.value())
    torch.testing.assert_close(found["main"], losses.segmentation_loss(logits, d2).value())


def test_fixed_masks_are_the_baseline(net):
    fixed = FixedTask(network=NETWORK, train=mini().dynamic.train, classes=CLASSES, start=None, column="advice")
    data = batch()
    expected = losses.segmentation_loss(net.eval()(data["image"]), data["refined"]).value()
    torch.testing.assert_close(losses_of(fixed, net, {**data, "advice": data["refined"]})["main"], expected)


def test_start_from_the_static_network(tmp_path):
    torch.manual_seed(1)
    static = StaticNet(NETWORK, CLASSES)
    torch.save(static.state_dict(), tmp_path / checkpoints.MODEL)
    artifact = Artifact("static", "x", tmp_path)
    started = replace(task(), start=artifact).build()
    for part, source in (("backbone", "backbone"), ("main", "main"), ("sub", "main"), ("ddnet1", "ddnet")):
        for name, value in static.get_submodule(source).state_dict().items():
            torch.testing.assert_close(started.get_submodule(part).state_dict()[name], value)
    assert not torch.equal(started.ddnet2.predict.weight, static.ddnet.predict.weight)
    torch.manual_seed(2)
    from_classifier = replace(task(), start=replace(artifact, name="classifier")).build()
    assert not torch.equal(from_classifier.main.conv1.weight, static.main.conv1.weight)
    torch.testing.assert_close(from_classifier.backbone.state_dict(), static.backbone.state_dict())


def test_a_cut_off_checkpoint_is_not_taken_for_whole(tmp_path):
    for epoch, size in ((1, 10), (2, 10)):
        folder = tmp_path / "run" / f"checkpoint_{epoch}"
        folder.mkdir(parents=True)
        (folder / worker.STATE).write_bytes(b"x" * size)
        (folder / "meta.json").write_text(f'{{"epoch": {epoch}, "bytes": 10}}')
    assert trainer.last_checkpoint(tmp_path)[0] == 2
    (tmp_path / "run" / "checkpoint_2" / worker.STATE).write_bytes(b"x" * 9)
    assert trainer.last_checkpoint(tmp_path) == (1, tmp_path / "run" / "checkpoint_1")
    (tmp_path / "run" / "checkpoint_1" / "meta.json").write_text('{"epoch"')
    assert trainer.last_checkpoint(tmp_path) == (0, None)
    assert trainer.last_checkpoint(Path("/nowhere")) == (0, None)


def test_learning_rate_schedules():
    cosine, poly = mini().dynamic.train, mini().seeds.classifier
    assert lr_factor(cosine, 0) == 1
    assert lr_factor(cosine, 1) == pytest.approx((1 + np.cos(np.pi / 1.2)) / 2), "the ramp is 1.2 x as long"
    assert lr_factor(replace(poly, schedule="poly"), 0.5) == pytest.approx(0.5**0.9)


def test_new_layers_learn_faster_and_frozen_ones_not_at_all(net):
    optimizer = optimizer_for(net, mini().dynamic.train)
    backbone, new = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["scale"] for group in optimizer.param_groups] == [1.0, 10.0]
    assert id(net.main.conv1.weight) in new
    assert id(net.backbone.net.conv_stem.weight) in backbone
    assert not {id(p) for p in net.parameters() if not p.requires_grad} & (backbone | new)

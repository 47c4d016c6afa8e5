"""Command line, checks and presets. The mini preset's values are nobody's promise and are not tested."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import get_args

import pytest

from ssdd.checks import validate
from ssdd.cli import parse
from ssdd.config import BiasConfig, Config, ConfigError, StepConfig
from ssdd.crf import CRFParams
from ssdd.fields import flatten, from_dict, replaced, to_dict, type_of
from ssdd.presets import PRESETS

PAPER = PRESETS["paper"]()


def changed(config, **changes):
    """A copy with fields given by dotted name (`static__train__lr`) replaced."""
    for name, value in changes.items():
        first, _, rest = name.partition("__")
        config = dataclasses.replace(
            config, **{first: changed(getattr(config, first), **{rest: value}) if rest else value}
        )
    return config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_parse_to_themselves(preset):
    assert parse(["--preset", preset]) == parse([f"--preset={preset}"]) == PRESETS[preset]()
    assert PRESETS[preset]().preset == preset


def test_the_default_preset_is_mini():
    assert parse([]) == PRESETS["mini"]()


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_override_the_preset(preset):
    args = (
        f"--preset {preset} --dynamic.train.epochs 21 --network.backbone.name resnet50 --static.train.augment.crop 144 "
        "--static.bias.bias 0.2 --static.bias.no-presence --data some/folder --dynamic.target d2 --workers 3 "
        "--evaluate.scales 1.0 2.0 --dynamic.crf.bilateral-weight 4 --evaluate.no-mirror"
    )
    assert parse(args.split()) == changed(
        PRESETS[preset](),
        dynamic__train__epochs=21,
        network__backbone__name="resnet50",
        static__train__augment__crop=144,
        static__bias__bias=0.2,
        static__bias__presence=False,
        data=Path("some/folder"),
        dynamic__target="d2",
        workers=3,
        evaluate__scales=(1.0, 2.0),
        dynamic__crf__bilateral_weight=4,
        evaluate__mirror=False,
    )


def test_help_lists_the_presets(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "--preset" in out
    assert "--dynamic.train.epochs" in out


@pytest.mark.parametrize(
    "args", [["--preset", "none"], ["--no-such-flag", "1"], ["--seed", "many"], ["--dynamic.target", "d3"]]
)
def test_a_wrong_command_line_exits(args, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(args)
    assert exit_.value.code == 2
    assert args[0] in "".join(capsys.readouterr())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    assert validate(PRESETS[preset]()) is None


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"seeds__classifier__epochs": 0}, ["--seeds.classifier.epochs"]),
        ({"seeds__affinity__batch_size": 0}, ["--seeds.affinity.batch-size"]),
        ({"static__train__lr": 0}, ["--static.train.lr"]),
        ({"dynamic__train__augment__crop": 31}, ["--dynamic.train.augment.crop"]),
        ({"static__train__augment__resize": (500, 400)}, ["--static.train.augment.resize"]),
        ({"network__backbone__output_stride": 4}, ["--network.backbone.output-stride"]),
        (
            {"network__head_dilation": 56},
            ["--static.train.augment.crop", "--static.size", "--network.head-dilation 56"],
        ),
        ({"evaluate__scales": (1.0, 0.1)}, ["--evaluate.size"]),
        ({"evaluate__size": 500}, ["--evaluate.size: with full-size masks, 250 pixels (size times scale)"]),
        ({"evaluate__size": 450, "evaluate__scales": (0.8, 1.6)}, ["--evaluate.size: with full-size masks, 450"]),
        ({"evaluate__scales": ()}, ["--evaluate.scales"]),
        ({"seeds__cam_scales": ()}, ["--seeds.cam-scales"]),
        ({"seeds__cam_scales": (1.0, 0.0)}, ["--seeds.cam-scales"]),
        ({"seeds__cam_size": 16}, ["--seeds.cam-size"]),
        ({"seeds__radius": 1}, ["--seeds.radius"]),
        ({"seeds__alpha_walk": 0.0, "seeds__beta": -1.0}, ["--seeds.alpha-walk", "--seeds.beta"]),
        ({"static__train__momentum": 1.0}, ["--static.train.momentum"]),
        ({"static__train__weight_decay": -1e-4}, ["--static.train.weight-decay"]),
        ({"crf__bilateral_sxy": 0}, ["--crf.bilateral-sxy"]),
        ({"dynamic__crf__bilateral_srgb": 1e-6}, ["--dynamic.crf.bilateral-srgb: must be at least 0.01"]),
        ({"dynamic__crf__iterations": 0}, ["--dynamic.crf.iterations"]),
        ({"seeds__crf__gaussian_weight": -1}, ["--seeds.crf.gaussian-weight"]),
        ({"evaluate__min_probability": 1.5}, ["--evaluate.min-probability"]),
        ({"evaluate__panels": -1}, ["--evaluate.panels"]),
        ({"network__ddnet_channels": 2}, ["--network.ddnet-channels"]),
        ({"dynamic__train__lr": float("nan")}, ["--dynamic.train.lr"]),
        ({"dynamic__alpha": 1.1}, ["--dynamic.alpha"]),
        ({"num_cpus": 0}, ["--num-cpus"]),
        ({"workers": 0}, ["--workers"]),
        ({"part_size": 0}, ["--part-size"]),
        ({"inference_batch": 0}, ["--inference-batch"]),
        ({"step": StepConfig(micro_batch=0, parts=0)}, ["--step.parts", "--step.micro-batch"]),
        ({"static__bad_ratio": -0.1, "dynamic__bad_ratio": 2.0}, ["--static.bad-ratio", "--dynamic.bad-ratio"]),
        ({"rounds": 0}, ["--rounds"]),
        ({"compare__random_seeds": ()}, ["--compare.random-seeds"]),
        ({"compare__random_seeds": (1, 1)}, ["--compare.random-seeds"]),
        ({"compare__rows": ()}, ["--compare.rows"]),
        ({"evaluate__sharpen": -1}, ["--evaluate.sharpen"]),
        ({"seed": -1}, ["--seed"]),
        ({"compare__random_seeds": (0, -1)}, ["--compare.random-seeds"]),
        ({"network__backbone__output_stride": 0}, ["--network.backbone.output-stride"]),
        ({"network__head_dilation": 0}, ["--network.head-dilation"]),
        ({"network__levels": 4}, ["--network.levels"]),
        ({"network__stride": 16}, ["--network.stride"]),
        ({"network__stride": 0}, ["--network.stride"]),
        ({"network__stride": 3}, ["--network.stride: must be one of [1, 2, 4, 8]"]),
        ({"seeds__background_factor": 0.0}, ["--seeds.background-factor"]),
        ({"dynamic__baseline_epochs": 0, "dynamic__baseline_lr": -1.0}, ["baseline-epochs", "baseline-lr"]),
        ({"gentle_crf__iterations": 0}, ["--gentle-crf.iterations"]),
        ({"evaluate__train_images": -1}, ["--evaluate.train-images"]),
        ({"seeds__classifier_weights": Path("a.pth")}, ["--seeds.classifier-weights: a.pth: no such file"]),
        ({"static__weights": (Path("a.pth"), Path("b.pth"))}, ["--static.weights: a.pth", "--static.weights: b.pth"]),
        ({"dynamic__weights": (Path(__file__),), "rounds": 2}, ["--rounds"]),
        ({"knowledge": Path("k")}, ["--advice: is needed too"]),
        ({"advice": Path("a")}, ["--knowledge: is needed too"]),
        (
            {"static__train__epochs": 0, "workers": -1, "dynamic__alpha": -0.1},
            ["--static.train.epochs", "--workers", "--dynamic.alpha"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_validate_names_every_wrong_field(changes, fields):
    with pytest.raises(ConfigError) as error:
        validate(changed(PAPER, **changes))
    assert [field for field in fields if field not in str(error.value)] == []


def test_validate_says_nothing_of_the_fields_that_are_right():
    with pytest.raises(ConfigError) as error:
        validate(changed(PAPER, workers=0))
    assert len(str(error.value).splitlines()) == 2


def test_parse_checks_what_it_read():
    with pytest.raises(ConfigError, match=r"--dynamic\.alpha: must lie in 0\.\.1"):
        parse(["--dynamic.alpha", "2"])


@pytest.mark.parametrize("preset", PRESETS)
def test_dict_and_json_round_trip(preset):
    config = changed(
        PRESETS[preset](),
        data=Path("/somewhere"),
        workers=2,
        static__bias__presence=False,
        dynamic__weights=(Path("seg.pth"), Path("ssdd.pth")),
        compare__random_seeds=(3,),
    )
    back = from_dict(json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert isinstance(back, Config)
    assert from_dict(to_dict(PRESETS[preset]())) == PRESETS[preset]()


def test_from_dict_names_fields_that_differ():
    data = to_dict(PAPER)
    data["dynamic"]["extra"] = data["dynamic"].pop("alpha")
    with pytest.raises(ValueError, match=r"DynamicConfig.*'alpha', 'extra'"):
        from_dict(data)


def test_flatten_gives_the_command_line_s_names():
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}
    flat = flatten(to_dict(PAPER))
    assert flat["dynamic.train.augment.crop"] == 448
    assert flat["static.bias.background"] == 0.1


def test_mask_size_rounds_up():
    assert PAPER.network.mask_size(448) == 112
    assert PAPER.network.mask_size(449) == 114
    assert dataclasses.replace(PAPER.network, stride=4).mask_size(449) == 2 * 113


def test_the_baselines_have_a_schedule_of_their_own():
    dynamic = PAPER.dynamic
    assert dynamic.baseline_train == dynamic.train
    changed = dataclasses.replace(dynamic, baseline_epochs=3, baseline_lr=0.5)
    assert changed.baseline_train == dataclasses.replace(dynamic.train, epochs=3, lr=0.5)


def test_paper_preset_networks():
    network = PAPER.network
    assert (network.backbone.name, network.backbone.output_stride) == ("resnet38", 8)
    assert (network.head_channels, network.head_dilation, network.ddnet_channels) == (512, 12, 256)


def test_paper_preset_trainings():
    def facts(train):
        return train.epochs, train.batch_size, train.lr, train.augment.crop, train.augment.resize, train.schedule

    assert facts(PAPER.static.train) == (10, 16, 1e-3, 448, (448, 512), "cosine")
    assert facts(PAPER.dynamic.train) == (30, 8, 1e-3, 448, (512, 768), "cosine")
    assert facts(PAPER.seeds.classifier) == (15, 16, 0.1, 448, (256, 512), "poly")
    assert (PAPER.seeds.affinity.epochs, PAPER.seeds.affinity.batch_size) == (8, 8)
    for train in (PAPER.static.train, PAPER.dynamic.train):
        assert (train.new_layers_lr, train.weight_decay, train.momentum) == (10, 2e-4, 0.9)
        assert train.augment.jitter == (0.3, 0.3, 0.3, 0.1)


def test_paper_preset_biases():
    assert PAPER.static.bias == BiasConfig(bias=0.1, background=0.1, presence=True, vanish_ratio=0.5)
    assert PAPER.dynamic.bias1 == PAPER.dynamic.bias2 == BiasConfig(bias=0.4, background=0, presence=True)
    assert PAPER.dynamic.target == "d1"


def test_paper_preset_crf_and_test_time():
    assert PAPER.crf == CRFParams(
        gaussian_weight=3, gaussian_sxy=3, bilateral_weight=10, bilateral_sxy=80, bilateral_srgb=13, iterations=10
    )
    assert PAPER.dynamic.crf == CRFParams(
        gaussian_weight=3, gaussian_sxy=3, bilateral_weight=10, bilateral_sxy=80, bilateral_srgb=13, iterations=3
    )
    assert PAPER.evaluate.size == 448
    assert PAPER.evaluate.scales == (0.5, 0.75, 1, 1.25, 1.5)
    assert PAPER.evaluate.mirror


def test_paper_preset_seeds():
    seeds = PAPER.seeds
    assert (seeds.alpha_low, seeds.alpha_high, seeds.alpha_walk) == (4, 32, 16)
    assert (seeds.radius, seeds.beta, seeds.walk_steps) == (5, 8, 256)
    assert sorted(seeds.cam_scales) == [0.5, 1, 1.5, 2]


def _numeric_fields():
    """Every field of the configuration that takes numbers, with the type of one of them."""
    for name in flatten(to_dict(PAPER)):
        kind = type_of(name)
        inner = {kind, *get_args(kind)}
        if float in inner or int in inner:
            yield name, float if float in inner else int


def _with(name, number):
    """The paper's configuration with a number in a field; in one of several numbers, as the last."""
    value = functools.reduce(getattr, name.split("."), PAPER)
    return replaced(PAPER, {name: (*value[:-1], number) if isinstance(value, tuple) else number})


@pytest.mark.parametrize(("name", "kind"), _numeric_fields())
def test_every_number_is_finite_and_negative_only_as_a_bias(name, kind):
    flag = f"--{name.replace('_', '-')}:"
    for number in (float("nan"), float("inf"), float("-inf")) if kind is float else ():
        with pytest.raises(ConfigError, match="must be a finite number") as error:
            validate(_with(name, number))
        assert flag in str(error.value)
    if name.endswith((".bias", ".background")):
        validate(_with(name, kind(-0.25)))
        return
    with pytest.raises(ConfigError) as error:
        validate(_with(name, kind(-1)))
    assert flag in str(error.value)
    assert "must not be negative" not in str(error.value) or len(str(error.value).splitlines()) == 2

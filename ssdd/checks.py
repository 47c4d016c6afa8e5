"""Validation of a configuration before anything runs: finds the fields that cannot work, each with the remedy."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ssdd.config import Config, ConfigError
from ssdd.crf import MIN_WIDTH
from ssdd.storage.paths import ABSENT, stat


def validate(config: Config) -> None:
    """Raise a ConfigError that lists every field whose value cannot work, with the remedy."""
    problems: list[tuple[str, str]] = []

    def check(ok: bool, field_name: str, remedy: str) -> None:
        if not ok:
            problems.append((field_name.replace("_", "-"), remedy))

    for name, number in numbers(config):
        check(math.isfinite(number), name, f"is {number}, but must be a finite number")
    if problems:
        raise _error(problems)
    trainings = {
        "seeds.classifier": config.seeds.classifier,
        "seeds.affinity": config.seeds.affinity,
        "static.train": config.static.train,
        "dynamic.train": config.dynamic.train,
    }
    schedule = (("epochs", config.dynamic.baseline_epochs), ("lr", config.dynamic.baseline_lr))
    for name, value in schedule:
        check(value is None or value > 0, f"dynamic.baseline_{name}", "must be positive")
    for name, train in trainings.items():
        check(train.epochs >= 1, f"{name}.epochs", "must be at least 1")
        check(train.batch_size >= 1, f"{name}.batch-size", "must be at least 1")
        check(train.lr > 0, f"{name}.lr", "must be positive")
        check(train.new_layers_lr > 0, f"{name}.new-layers-lr", "must be positive")
        check(0 <= train.momentum < 1, f"{name}.momentum", "must be at least 0 and below 1")
        check(train.augment.crop >= 32, f"{name}.augment.crop", "must be at least 32 pixels")
        low, high = train.augment.resize
        check(1 <= low <= high, f"{name}.augment.resize", "must be a range with 1 <= low <= high")
        if not name.startswith("seeds"):
            check(
                low >= train.augment.crop,
                f"{name}.augment.resize",
                "must not be below the crop size: this training takes no crops with padding",
            )
        check(train.augment.jitter[3] <= 0.5, f"{name}.augment.jitter", "the hue must be at most 0.5")
    for name, crf in (
        *(("crf", config.crf), ("gentle_crf", config.gentle_crf)),
        *(("seeds.crf", config.seeds.crf), ("dynamic.crf", config.dynamic.crf)),
    ):
        check(crf.iterations >= 1, f"{name}.iterations", "must be at least 1")
        for width in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            remedy = f"must be at least {MIN_WIDTH}: narrower kernels can crash the CRF's process"
            check(getattr(crf, width) >= MIN_WIDTH, f"{name}.{width}", remedy)
    for name, weights in weight_files(config):
        try:
            check(stat(weights.expanduser()) != ABSENT, name, f"{weights}: no such file")
        except PermissionError:
            check(False, name, f"{weights}: permission denied")
    output_stride = config.network.backbone.output_stride
    check(output_stride in (8, 16), "network.backbone.output-stride", "must be 8 or 16")
    check(1 <= config.network.levels <= 3, "network.levels", "must be 1, 2 or 3")
    strides = [stride for stride in (1, 2, 4, 8, 16) if stride <= output_stride]
    fits = config.network.stride in (None, *strides)
    check(fits, "network.stride", f"must be one of {strides}, at most the backbone's output stride")
    stride = max(1, config.network.feature_stride)
    check(config.network.head_dilation >= 1, "network.head-dilation", "must be at least 1")
    # Reflection padding must be smaller than the map that it pads.
    for name, side in (
        ("static.train.augment.crop", config.static.train.augment.crop),
        ("dynamic.train.augment.crop", config.dynamic.train.augment.crop),
        ("static.size", config.static.size),
        ("evaluate.size", int(config.evaluate.size * min(config.evaluate.scales or (1.0,)))),
    ):
        check(
            -(-side // stride) > config.network.head_dilation,
            name,
            f"{side} pixels at stride {stride} is too small for --network.head-dilation {config.network.head_dilation}",
        )
    # Scores of training images and exported networks use the scale 1, whatever `evaluate.scales` is.
    for side in sorted({*config.evaluate.sides, config.evaluate.size}) if config.evaluate.full_size else []:
        # Otherwise the masks would be stretched by up to a stride.
        remedy = f"with full-size masks, {side} pixels (size times scale) must be a multiple of the stride {stride}"
        check(side % stride == 0, "evaluate.size", remedy)
    for name, scales in (("evaluate.scales", config.evaluate.scales), ("seeds.cam-scales", config.seeds.cam_scales)):
        check(bool(scales) and min(scales) > 0, name, "needs at least one scale, and every scale must be positive")
    for name, size in (("head-channels", config.network.head_channels), ("upsample", config.network.upsample)):
        check(size >= 1, f"network.{name}", "must be at least 1")
    check(config.network.ddnet_channels >= 4, "network.ddnet-channels", "must be at least 4")
    check(config.seeds.cam_size >= 32, "seeds.cam-size", "must be at least 32 pixels")
    for name in ("alpha_low", "alpha_high", "alpha_walk", "background_factor", "beta"):
        check(getattr(config.seeds, name) > 0, f"seeds.{name}", "must be positive")
    check(config.seeds.radius >= 2, "seeds.radius", "must be at least 2")
    check(0 <= config.evaluate.min_probability <= 1, "evaluate.min-probability", "must lie in 0..1")
    check(0 <= config.dynamic.alpha <= 1, "dynamic.alpha", "must lie in 0..1")
    for name, ratio in (("static", config.static.bad_ratio), ("dynamic", config.dynamic.bad_ratio)):
        check(0 <= ratio <= 1, f"{name}.bad-ratio", "must lie in 0..1 (0: no image is left out)")
    check(config.rounds >= 1, "rounds", "must be at least 1")
    can_repeat = config.rounds == 1 or not config.dynamic.weights
    check(
        can_repeat, "rounds", "more than one round needs a training of the dynamic stage: leave out --dynamic.weights"
    )
    repeats = config.compare.random_seeds
    check(bool(repeats), "compare.random-seeds", "needs at least one random seed")
    check(len(set(repeats)) == len(repeats), "compare.random-seeds", "must not contain the same random seed twice")
    check(bool(config.compare.rows), "compare.rows", "needs at least one row")
    check(config.sweep.trials >= 1, "sweep.trials", "must be at least 1")
    check(config.sweep.images >= 1, "sweep.images", "must be at least 1")
    check(config.sweep.parallel is None or config.sweep.parallel >= 1, "sweep.parallel", "must be at least 1")
    check(0 < config.sweep.gpu <= 1, "sweep.gpu", "must be above 0 and at most 1")
    is_another_list = config.sweep.split != config.split
    remedy = f"{config.split} is the list whose scores are reported (--split): score the trials on another one"
    check(is_another_list, "sweep.split", remedy)
    check(config.step.parts is None or config.step.parts >= 1, "step.parts", "must be at least 1")
    check(config.step.micro_batch is None or config.step.micro_batch >= 1, "step.micro-batch", "must be at least 1")
    both = (config.knowledge is None) == (config.advice is None)
    check(both, "knowledge" if config.knowledge is None else "advice", "is needed too: give both folders, or neither")
    check(config.maps_background > 0, "maps-background", "must be positive")
    registered = config.register
    is_name = registered is None or (bool(registered) and not set("/:'") & set(registered))
    check(is_name, "register", "must be a name without `/`, `:` and `'`")
    check(config.num_cpus is None or config.num_cpus >= 1, "num-cpus", "must be at least 1")
    check(config.workers is None or config.workers >= 1, "workers", "must be at least 1")
    check(config.part_size >= 1, "part-size", "must be at least 1")
    check(config.max_pixels >= 1, "max-pixels", "must be at least 1")
    check(config.inference_batch >= 1, "inference-batch", "must be at least 1")
    refused = {name for name, _ in problems}
    for name, number in numbers(config):
        signed = name.endswith((".bias", ".background"))  # the biases of eq. 3 may be negative
        check(number >= 0 or signed or name.replace("_", "-") in refused, name, "must not be negative")
    if problems:
        raise _error(problems)


def _error(problems: list[tuple[str, str]]) -> ConfigError:
    lines = dict.fromkeys(f"--{name}: {remedy}" for name, remedy in problems)
    return ConfigError("the configuration cannot work:\n  " + "\n  ".join(lines))


def numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The dotted name and value of every number in a configuration; the numbers of a tuple share one name."""
    for entry in fields(config):
        value, name = getattr(config, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from numbers(value, f"{name}.")
        else:
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, (int, float)) and not isinstance(one, bool):
                    yield name, one


def weight_files(config: Config) -> list[tuple[str, Path]]:
    """The published weight files that a configuration names: pairs of a field's dotted name and a path."""
    named = [
        ("seeds.classifier_weights", config.seeds.classifier_weights),
        ("seeds.affinity_weights", config.seeds.affinity_weights),
        *(("static.weights", path) for path in config.static.weights),
        *(("dynamic.weights", path) for path in config.dynamic.weights),
    ]
    return [(name, path) for name, path in named if path is not None]

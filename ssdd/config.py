"""The typed configuration of every stage, and its presets. `parse` reads it from a command line (tyro).

Every field is settable, e.g. `--preset mini --dynamic.train.epochs 20 --network.backbone.name resnet50`.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro
import yaml

from ssdd.crf import CRFParams
from ssdd.paths import AnyPath, RemotePath, path_flag, to_path

_Folder = Annotated[
    AnyPath | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|DIR|s3://BUCKET/KEY",
        instance_from_str=lambda args: None if args[0] == "None" else to_path(args[0]),
        is_instance=lambda value: value is None or isinstance(value, AnyPath),
        str_from_instance=lambda value: [str(value)],
    ),
]


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field and the remedy."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which network makes the features, and where its ImageNet weights come from."""

    name: str = "resnet38"
    """`resnet38` (the paper's), or the name of any timm model that supports features_only."""
    output_stride: int = 8
    """8 or 16: input pixels per pixel of the high-level features."""
    weights: str = "auto"
    """`auto` (timm's hub, else an installed weight package), `random`, or the path of a state dict or of MXNet's
    `.params` file."""
    frozen_stride: int = 2
    """Layers down to this stride keep their ImageNet weights (2 in PSA); 0: all are trained. With random weights all
    are trained anyway."""


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the networks, shared by all stages."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head_channels: int = 512
    """Width of the segmentation head, whose features are DD-Net's high-level input e^h."""
    head_dilation: int = 12
    """Dilation of the head's two 3x3 convolutions."""
    head_norm: Literal["frozen", "group"] = "frozen"
    """Between the head's convolutions: `frozen` (a batch norm that stays what it was, as published) or `group` (a group
    norm that learns). Without the latter, steps as large as a short schedule needs can switch the head's ReLUs off."""
    upsample: int = 2
    """Masks have this many times the resolution of the high-level features (2: 56 -> 112 at 448 pixels)."""
    ddnet_channels: int = 256
    """Width of DD-Net."""

    def mask_size(self, crop: int) -> int:
        """Side of the masks that belong to a square input of side `crop`."""
        return -(-crop // self.backbone.output_stride) * self.upsample


@dataclass(frozen=True)
class AugmentConfig:
    """Square resize to a random side, random crop, horizontal flip, colour jitter (sec. 5.1, method notes)."""

    crop: int = 448
    """Side of the square training input, in pixels."""
    resize: tuple[int, int] = (448, 512)
    """Range of the side that the image is resized to (both sides, as a square) before the crop."""
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    """Brightness, contrast, saturation and hue."""


@dataclass(frozen=True)
class TrainConfig:
    """One training: schedule, optimizer (SGD), augmentation."""

    epochs: int
    batch_size: int
    """Images a step over all workers together."""
    lr: float
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    new_layers_lr: float = 10.0
    """Learning rate of newly initialised layers (heads, DD-Net), as a multiple of the backbone's."""
    momentum: float = 0.9
    """The paper names 0.9; in the published loop it never acts, because a new optimizer is built at every step."""
    weight_decay: float = 2e-4
    schedule: Literal["cosine", "poly"] = "cosine"
    """cosine: ramp-down whose length is 1.2 x the epochs (published code); poly: power 0.9 (PSA)."""


@dataclass(frozen=True)
class BiasConfig:
    """Eq. 3's bias and the vanished-class test behind its presence part."""

    bias: float
    background: float
    presence: bool = True
    """Add the presence part (-1 / +1 at classes that the mapping wiped out)."""
    vanish_ratio: float = 0.5
    """A class has vanished where pixels in advice / pixels in knowledge is below this."""


@dataclass(frozen=True)
class SeedsConfig:
    """PSA: classifier, CAM, AffinityNet, random walk (method notes)."""

    classifier: TrainConfig
    affinity: TrainConfig
    cam_size: int = 448
    """Side that images are resized to for CAMs and affinities at scale 1."""
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    alpha_low: float = 4
    alpha_high: float = 32
    alpha_walk: float = 16
    radius: int = 5
    beta: float = 8
    walk_steps: int = 256
    crf: CRFParams = CRFParams()
    """The CRF of AffinityNet's labels; the one that makes advice is the top-level `crf`."""
    classifier_weights: Path | None = None
    """PSA's published res38_cls.pth, instead of training a classifier."""
    affinity_weights: Path | None = None
    """PSA's published res38_aff.pth, instead of training AffinityNet."""


@dataclass(frozen=True)
class StaticConfig:
    """Static region refinement (sec. 4.1)."""

    train: TrainConfig
    bias: BiasConfig = BiasConfig(bias=0.1, background=0.1)
    bad_ratio: float = 0.5
    """An image of which a class keeps less than this share of its pixels is a bad training sample: left out of
    L_diff0. The bias acts after the training and has a ratio of its own."""
    size: int = 448
    """Side of the square input of inference."""
    weights: tuple[Path, ...] = ()
    """SSDD's published checkpoints of this stage, segmentation and DD-Net, instead of training."""


@dataclass(frozen=True)
class DynamicConfig:
    """Dynamic region refinement (sec. 4.2); the baseline uses its `train` too."""

    train: TrainConfig
    init: Literal["classifier", "static"] = "classifier"
    """Where this stage's networks, the baseline's too, start from: the classifier's backbone (sec. 5.1), or all of
    the static stage's network (for short schedules: the first masks m^K1 are then already sensible)."""
    alpha: float = 0.5
    """Eq. 14: share of m^D0 against the interpolation target in the sub branch's loss."""
    target: Literal["d1", "d2"] = "d1"
    """Second mask of eqs. 13-14: m^D1 (paper) or m^D2 (published code)."""
    bias1: BiasConfig = BiasConfig(bias=0.4, background=0.0)
    bias2: BiasConfig = BiasConfig(bias=0.4, background=0.0)
    bad_ratio: float = 0.5
    """As in the static stage, for L_diff1."""
    crf: CRFParams = CRFParams(iterations=3)
    """The CRF of every iteration, at the masks' resolution."""
    weights: tuple[Path, ...] = ()
    """SSDD's published checkpoints of this stage, segmentation and DD-Nets, instead of training."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Test-time inference: the softmax summed over scales and mirror images, resized to the image; then the CRF."""

    size: int = 448
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    mirror: bool = True
    min_probability: float = 0.0
    """Labels whose probability stays below this everywhere in an image are left out of its CRF, which costs time for
    each label. 0: all labels, as in the paper."""
    sharpen: float = 0.0
    """Before the CRF the published code takes the softmax of the ten maps' sum, that is of 10 x the probabilities,
    which leaves the CRF less to say. 0: the CRF gets the probabilities."""
    full_size: bool = False
    """Softmax and their sum at the resolution of the input, as in the published code, instead of the masks'."""
    panels: int = 12
    """Number of images in the pictures."""
    show_data: bool = True
    """Whether pictures show the photographs and their true masks. False for data that may not be copied."""


@dataclass(frozen=True)
class StepConfig:
    """How a training step runs: what changes its speed and memory, but beyond rounding not its result."""

    crf: Literal["actors", "inline", "exact"] | None = None
    """The CRF of the dynamic stage's iterations. actors: pydensecrf on a pool of Ray CPU actors, beside the network;
    inline: in the training process, image by image, as in the published code; exact: without pydensecrf's
    approximation, on the training's device, which should be a GPU (its masks differ a little: it trains anew).
    Default: inline where a training worker has no more than one core for itself and no GPU, so that nothing would be
    idle meanwhile; actors everywhere else."""
    parts: int | None = None
    """With CRF actors, a worker's batch goes through the network in so many parts: one's CRF runs beside the others.
    Default: 4 on GPUs; 1 on CPUs, which are slower with few images at once and have work for every core anyway."""
    micro_batch: int | None = None
    """Images in a part, where a batch does not fit into memory: then only two parts are in the backbone at once. The
    activations of the dynamic stage's DD-Nets, which are small beside it, stay for the whole batch."""
    bf16: bool | None = None
    """Networks in bfloat16 where torch's autocast deems it safe. Default: on GPUs that compute in it."""
    compile: bool = False
    """Compile the backbone with torch.compile: pays off in long trainings on GPUs."""

    def crf_of(self, threads: int, on_gpu: bool) -> Literal["actors", "inline", "exact"]:
        """The CRF of a training whose workers have so many threads each, or GPUs."""
        return self.crf or ("actors" if on_gpu or threads > 1 else "inline")

    def parts_of(self, batch: int, elsewhere: bool, on_gpu: bool) -> tuple[int, int]:
        """Images in a part of a worker's batch, and parts that may be ahead of the first one's backward pass.

        Args:
            batch: images of the worker.
            elsewhere: whether other processes compute something for it.
            on_gpu: whether the network runs on a GPU.
        """
        if self.micro_batch is not None:
            return self.micro_batch, int(elsewhere)
        parts = (self.parts or (4 if on_gpu else 1)) if elsewhere else 1
        return -(-batch // parts), parts


@dataclass(frozen=True)
class CompareConfig:
    """The paper's comparison: networks that differ only in the masks that they learn from."""

    random_seeds: tuple[int, ...] = (0, 1)
    """One repetition for each: static stage, networks and random order. PSA's seeds are made once, with `seed`."""
    rows: tuple[Literal["baseline_knowledge", "baseline", "baseline_refined", "dynamic"], ...] = (
        "baseline_knowledge",
        "baseline",
        "baseline_refined",
        "dynamic",
    )
    """What is trained: networks on raw knowledge, on advice (PSA retrained), on m^D0, and with SSDD."""


@dataclass(frozen=True)
class SweepConfig:
    """What the sweeps of ray_jobs/sweep_*.py vary, how they choose, and by which metric."""

    space: tuple[str, ...] = ()
    """`FIELD=A,B,...` for values to try, `FIELD=LOW:HIGH` or `FIELD=LOW:HIGH:log` for a range (not with `grid`); FIELD
    is any field of this configuration, as on the command line. Default: the script's own."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: `trials` points, drawn with `seed`; optuna: `trials` points, each chosen after
    those before it (needs the extra: pip install 'ssdd[sweep]')."""
    trials: int = 16
    """Number of points of random and optuna."""
    metric: str | None = None
    """What is maximised; the job's help lists them. Default: the script's own."""
    split: str | None = None
    """The image list, with true masks, on which sweep_alpha measures. Default: the training list; never the one
    that is reported, `split`."""
    images: int = 128
    """Images of that list on which it scores a network after each epoch."""
    stage: Literal["static", "dynamic"] = "static"
    """Whose biases sweep_bias varies. static: integrations of stored difference maps; dynamic: real trainings."""
    parallel: int | None = None
    """Trials at the same time. Default: as many as the cluster has room for."""
    gpu: float = 1
    """GPUs of each process of a trial: with 0.5, two share one."""
    resume: bool = False
    """Go on with the same sweep, which was interrupted, and keep its finished trials."""


@dataclass(frozen=True)
class Config:
    """One configuration for all jobs. A stage runs only if something that it depends on has changed."""

    seeds: SeedsConfig
    static: StaticConfig
    dynamic: DynamicConfig
    evaluate: EvaluateConfig
    preset: Literal["mini", "photographs", "paper"] = "mini"
    """mini: the embedded data set, minutes on 2 cores; photographs: VOC-like images there; paper: sec. 5.1's values."""
    data: _Folder = None
    """A VOC-layout folder, on a disk or as s3://BUCKET/KEY. Without it the embedded data set is drawn into the
    workspace."""
    workspace: _Folder = None
    """Where everything is written, a folder that every node sees: of a shared disk, or s3://BUCKET/KEY. Default:
    ./workspace; for a submitted Ray job, ~/ssdd-workspace on the head node."""
    knowledge: _Folder = None
    """A folder of masks ID.png that take the place of PSA's as knowledge; needs `advice`."""
    advice: _Folder = None
    """The masks ID.png of the same images after a mapping, say a CRF; needs `knowledge`."""
    train_split: str = "train"
    """The image list that is trained on (ImageSets/Segmentation/*.txt)."""
    split: str = "val"
    """The image list that the models are scored on."""
    skip_broken: bool = False
    """Leave out images with a broken or missing file, mask or label, and list them, instead of refusing the list."""
    seed: int = 0
    rounds: int = 1
    """Static and dynamic refinement once more, on the dynamic network's own masks and their CRF, for each above 1."""
    compare: CompareConfig = CompareConfig()
    sweep: SweepConfig = SweepConfig()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    crf: CRFParams = CRFParams()
    """The full-size CRF: advice, and test time."""
    part_size: int = 32
    """Images in one file of a stage table: the unit of reading and shuffling."""
    inference_batch: int = 8
    step: StepConfig = StepConfig()
    num_cpus: int | None = None
    """CPUs of the local Ray that is started; not for a cluster that runs already."""
    workers: int | None = None
    """Training workers. Default: one per GPU; without GPUs, two per node."""
    gpus: bool | None = None
    """Train on GPUs. Default: where the cluster has them."""


def paper() -> Config:
    """Sec. 5.1's values, where the paper is silent those of the published code and of PSA."""
    psa: dict[str, Any] = dict(lr=0.1, schedule="poly", weight_decay=5e-4, momentum=0.0)
    return Config(
        preset="paper",
        seeds=SeedsConfig(
            classifier=TrainConfig(15, 16, augment=AugmentConfig(448, (256, 512)), **psa),
            affinity=TrainConfig(8, 8, augment=AugmentConfig(448, (448, 512)), **psa),
        ),
        static=StaticConfig(TrainConfig(10, 16, 1e-3, AugmentConfig(448, (448, 512)))),
        dynamic=DynamicConfig(TrainConfig(30, 8, 1e-3, AugmentConfig(448, (512, 768)))),
        evaluate=EvaluateConfig(sharpen=10, full_size=True),
    )


def mini() -> Config:
    """The embedded data set on a laptop: a light pretrained backbone, small inputs, few epochs.

    alpha and the random walk's length belong to PSA's finer and better trained maps; here they are smaller.
    """
    augment = AugmentConfig(crop=160, resize=(160, 200))
    backbone = BackboneConfig("tf_efficientnet_lite0", output_stride=16, frozen_stride=4)
    # A network of few epochs is unsure of its foreground: trained on its own masks' CRFs it would soon see background
    # alone. A class that loses a fifth of its pixels already counts as wiped out, and the knowledge of it is kept.
    protective = BiasConfig(bias=0.4, background=0.0, vanish_ratio=0.8)
    return Config(
        preset="mini",
        network=NetworkConfig(
            backbone, head_channels=128, head_dilation=2, head_norm="group", upsample=4, ddnet_channels=64
        ),
        seeds=SeedsConfig(
            classifier=TrainConfig(8, 16, 0.01, augment),
            affinity=TrainConfig(2, 8, 0.03, augment),
            cam_size=256,
            cam_scales=(1.0,),
            alpha_low=1,
            alpha_high=8,
            alpha_walk=4,
            walk_steps=32,
        ),
        static=StaticConfig(
            TrainConfig(6, 8, 0.002, augment),
            # Coarse maps shrink much under a CRF: at 0.5 half of the images would have a vanished class. On so few
            # images the features learn the knowledge by heart, and with them d^A rises everywhere: a larger bias.
            BiasConfig(bias=0.4, background=0.1, vanish_ratio=0.3),
            size=160,
        ),
        dynamic=DynamicConfig(
            TrainConfig(4, 8, 0.002, augment),
            init="static",
            bias1=protective,
            bias2=protective,
            # The widths that 3 and 80 pixels of the paper's 112-pixel masks are on masks of 40.
            crf=CRFParams(gaussian_sxy=1, bilateral_sxy=30, iterations=3),
        ),
        evaluate=EvaluateConfig(size=160, scales=(1.0, 1.25), min_probability=0.05),
        part_size=16,
    )


def photographs() -> Config:
    """Some thousand photographs on 2 cores in hours: mini's networks on larger inputs, and CRFs that change less.

    Every value was chosen on the training list of a piece of VOC 2012. With the published CRF weights advice was worse
    than knowledge there, and knowledge true as often as advice where they differ: coarse seeds want a gentler CRF.
    """
    augment = AugmentConfig(crop=192, resize=(192, 288))
    start = mini()
    return replace(
        start,
        preset="photographs",
        seeds=SeedsConfig(
            classifier=TrainConfig(4, 16, 0.01, AugmentConfig(288, (288, 400))),
            affinity=TrainConfig(2, 8, 0.03, AugmentConfig(224, (224, 320))),
            cam_size=288,
            cam_scales=(1.0, 0.75),
            alpha_low=1,
            alpha_high=8,
            alpha_walk=3,
            walk_steps=64,
            crf=CRFParams(iterations=5),
        ),
        crf=CRFParams(bilateral_weight=5, bilateral_sxy=40, bilateral_srgb=10, iterations=5),
        static=StaticConfig(
            TrainConfig(8, 8, 0.002, augment),
            BiasConfig(bias=0.2, background=0.0, vanish_ratio=0.1),
            bad_ratio=0.0,  # half of the images have a class that neither mask found: too many to leave out
            size=256,
        ),
        dynamic=replace(
            start.dynamic,
            train=TrainConfig(4, 8, 0.002, augment),
            bad_ratio=0.0,
            crf=CRFParams(gaussian_sxy=1.5, bilateral_weight=6, bilateral_sxy=30, iterations=3),
        ),
        evaluate=replace(start.evaluate, size=256),
        part_size=32,
    )


PRESETS = {"mini": mini, "photographs": photographs, "paper": paper}


def parse(args: list[str] | None = None, description: str | None = None) -> Config:
    """The configuration that a command line asks for: `--preset` chooses the defaults, every other flag changes one.

    `--config FILE` (see `changes`) changes fields before the flags do.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=PRESETS)
    first.add_argument("--config", type=path_flag)
    known, _ = first.parse_known_args(args)
    rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    rest.add_argument("--config")
    _, flags = rest.parse_known_args(args)
    if known.config is None:
        return override(PRESETS[known.preset or "mini"](), flags, description)
    fields = _read(known.config)
    preset = known.preset or fields.pop("preset", "mini")
    if preset not in PRESETS:
        raise ConfigError(f"{known.config}: preset {preset!r} is none of {', '.join(PRESETS)}")
    try:
        default = changed(PRESETS[preset](), fields | {"preset": preset})
    except ConfigError as error:
        raise ConfigError(f"{known.config}: {error}") from error
    return override(default, flags, description)


def override(default: Config, args: list[str] | None = None, description: str | None = None) -> Config:
    """`default` with the fields that a command line names changed, checked.

    Raises:
        SystemExit: the command line does not parse (a message was printed).
        ConfigError: values that cannot work, see `validate`.
    """
    config = tyro.cli(Config, args=args, default=default, description=description)
    validate(config)
    return config


def changed(default: Config, fields: dict[str, Any]) -> Config:
    """`default` with some fields changed, checked.

    Args:
        default: where the other fields come from.
        fields: values by dotted name, `dynamic.alpha` say; underscores or dashes.

    Raises:
        ConfigError: an unknown field, a value of another type, or one that cannot work.
    """
    known, kinds = flatten(to_dict(default)), get_type_hints(Config)
    args: list[str] = []
    for name, value in fields.items():
        name = name.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise ConfigError(f"there is no field {name}" + (f"; did you mean {', '.join(near)}?" if near else ""))
        if RemotePath in get_args(kinds.get(name)):
            try:
                to_path(str(value))
            except ValueError as error:  # tyro would not say why
                raise ConfigError(f"{name}: {error}") from None
        flag = name.replace("_", "-")
        if isinstance(known[name], bool) and isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            args.append(f"--{flag}" if value else f"--{head}{dot}no-{last}")
        else:
            args += [f"--{flag}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            config = tyro.cli(Config, args=args, default=default, console_outputs=False)
    except SystemExit as error:
        given = ", ".join(f"{name} = {value!r}" for name, value in fields.items() if "://" not in str(value))
        raise ConfigError(f"a value is not of its field's type: {given}") from error
    validate(config)
    return config


def replaced(config: Any, fields: dict[str, Any]) -> Any:
    """`config` with values of the right types at dotted names; not checked."""
    for name, value in fields.items():
        head, _, rest = name.partition(".")
        config = replace(config, **{head: replaced(getattr(config, head), {rest: value}) if rest else value})
    return config


def changes(config: Config) -> dict[str, Any]:
    """What distinguishes a configuration from its preset, by dotted name: what `--config` reads, as YAML.

    Neither the workspace nor the machine's part (`num_cpus`, `workers`, `gpus`) nor the sweep belongs to it.
    """
    left_out = ("workspace", "num_cpus", "workers", "gpus", "sweep.")
    preset, own = (flatten(to_dict(c)) for c in (PRESETS[config.preset](), config))
    return {"preset": config.preset} | {
        name: value for name, value in own.items() if value != preset[name] and not name.startswith(left_out)
    }


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is no YAML: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ConfigError(f"--config {path}: must hold fields and values, `dynamic.alpha: 0.5` say")
    return flatten(fields)


def validate(config: Config) -> None:
    """Refuse values that cannot work, before anything runs. Raises ConfigError that names each field."""
    problems = []

    def check(ok: bool, field_name: str, remedy: str) -> None:
        if not ok:
            problems.append(f"--{field_name.replace('_', '-')}: {remedy}")

    trainings = {
        "seeds.classifier": config.seeds.classifier,
        "seeds.affinity": config.seeds.affinity,
        "static.train": config.static.train,
        "dynamic.train": config.dynamic.train,
    }
    for name, train in trainings.items():
        check(train.epochs >= 1, f"{name}.epochs", "must be at least 1")
        check(train.batch_size >= 1, f"{name}.batch-size", "must be at least 1")
        check(train.lr > 0, f"{name}.lr", "must be positive")
        check(train.new_layers_lr > 0, f"{name}.new-layers-lr", "must be positive")
        check(0 <= train.momentum < 1, f"{name}.momentum", "must lie in 0..1, below 1")
        check(train.weight_decay >= 0, f"{name}.weight-decay", "must not be negative")
        check(train.augment.crop >= 32, f"{name}.augment.crop", "must be at least 32 pixels")
        low, high = train.augment.resize
        check(1 <= low <= high, f"{name}.augment.resize", "must be a range: low <= high")
        if not name.startswith("seeds"):
            check(
                low >= train.augment.crop, f"{name}.augment.resize", "must not be below the crop: masks have no padding"
            )
        hue = train.augment.jitter[3]
        check(min(train.augment.jitter) >= 0 and hue <= 0.5, f"{name}.augment.jitter", "must be >= 0, the hue <= 0.5")
    for name, crf in (("crf", config.crf), ("seeds.crf", config.seeds.crf), ("dynamic.crf", config.dynamic.crf)):
        check(crf.iterations >= 1, f"{name}.iterations", "must be at least 1")
        for kernel in ("gaussian_weight", "bilateral_weight"):
            check(getattr(crf, kernel) >= 0, f"{name}.{kernel}", "must not be negative")
        for width in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            check(getattr(crf, width) > 0, f"{name}.{width}", "must be positive")
    for name, weights in weight_files(config):
        check(weights.expanduser().is_file(), name, f"{weights}: no such file")
    stride = config.network.backbone.output_stride
    check(config.network.backbone.frozen_stride >= 0, "network.backbone.frozen-stride", "must not be negative")
    check(stride in (8, 16), "network.backbone.output-stride", "must be 8 or 16")
    stride = max(1, stride)
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
    for name, scales in (("evaluate.scales", config.evaluate.scales), ("seeds.cam-scales", config.seeds.cam_scales)):
        check(bool(scales) and min(scales) > 0, name, "needs at least one scale, all of them positive")
    for name, size in (("head-channels", config.network.head_channels), ("upsample", config.network.upsample)):
        check(size >= 1, f"network.{name}", "must be at least 1")
    check(config.network.ddnet_channels >= 4, "network.ddnet-channels", "must be at least 4")
    check(config.seeds.cam_size >= 32, "seeds.cam-size", "must be at least 32 pixels")
    for name in ("alpha_low", "alpha_high", "alpha_walk", "beta"):
        check(getattr(config.seeds, name) > 0, f"seeds.{name}", "must be positive")
    check(config.seeds.radius >= 2, "seeds.radius", "must be at least 2")
    check(config.seeds.walk_steps >= 0, "seeds.walk-steps", "must not be negative")
    check(0 <= config.evaluate.min_probability <= 1, "evaluate.min-probability", "must lie in 0..1")
    check(config.evaluate.panels >= 0, "evaluate.panels", "must not be negative")
    check(0 <= config.dynamic.alpha <= 1, "dynamic.alpha", "must lie in 0..1")
    for name, ratio in (("static", config.static.bad_ratio), ("dynamic", config.dynamic.bad_ratio)):
        check(0 <= ratio <= 1, f"{name}.bad-ratio", "must lie in 0..1 (0: no image is left out)")
    check(config.evaluate.sharpen >= 0, "evaluate.sharpen", "must not be negative")
    check(config.rounds >= 1, "rounds", "must be at least 1")
    further = config.rounds == 1 or not config.dynamic.weights
    check(further, "rounds", "a further round trains the dynamic stage: leave --dynamic.weights out")
    check(config.seed >= 0, "seed", "must not be negative")
    repeats = config.compare.random_seeds
    check(min(repeats, default=0) >= 0, "compare.random-seeds", "must not be negative")
    check(bool(repeats), "compare.random-seeds", "needs at least one seed")
    check(len(set(repeats)) == len(repeats), "compare.random-seeds", "must differ from each other")
    check(bool(config.compare.rows), "compare.rows", "needs at least one row")
    check(config.sweep.trials >= 1, "sweep.trials", "must be at least 1")
    check(config.sweep.images >= 1, "sweep.images", "must be at least 1")
    check(config.sweep.parallel is None or config.sweep.parallel >= 1, "sweep.parallel", "must be at least 1")
    check(0 < config.sweep.gpu <= 1, "sweep.gpu", "must lie in 0..1, above 0")
    own = config.sweep.split != config.split
    check(own, "sweep.split", f"{config.split} is what is reported (--split): choose by another image list")
    check(config.step.parts is None or config.step.parts >= 1, "step.parts", "must be at least 1")
    check(config.step.micro_batch is None or config.step.micro_batch >= 1, "step.micro-batch", "must be at least 1")
    both = (config.knowledge is None) == (config.advice is None)
    check(both, "knowledge" if config.knowledge is None else "advice", "is needed too: give both folders, or neither")
    check(config.num_cpus is None or config.num_cpus >= 1, "num-cpus", "must be at least 1")
    check(config.workers is None or config.workers >= 1, "workers", "must be at least 1")
    check(config.part_size >= 1, "part-size", "must be at least 1")
    check(config.inference_batch >= 1, "inference-batch", "must be at least 1")
    if problems:
        raise ConfigError("the configuration cannot work:\n  " + "\n  ".join(problems))


def weight_files(config: Config) -> list[tuple[str, Path]]:
    """The published files that a configuration names, each with its field."""
    named = [
        ("seeds.classifier_weights", config.seeds.classifier_weights),
        ("seeds.affinity_weights", config.seeds.affinity_weights),
        *(("static.weights", path) for path in config.static.weights),
        *(("dynamic.weights", path) for path in config.dynamic.weights),
    ]
    return [(name, path) for name, path in named if path is not None]


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON data: nested dicts, lists, strings, numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(data: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        ValueError: `data` has other fields than this version's configuration.
    """
    return _rebuild(Config, data)


def _rebuild(kind: Any, data: Any) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if set(data) != set(hints):
            raise ValueError(f"{kind.__name__}: fields differ: {sorted(set(data) ^ set(hints))}")
        return kind(**{name: _rebuild(hints[name], value) for name, value in data.items()})  # type: ignore[operator]
    if isinstance(data, list):
        return tuple(Path(item) if Path in get_args(kind) else item for item in data)
    return to_path(data) if data is not None and Path in get_args(kind) else data


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat

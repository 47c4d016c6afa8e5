"""The typed fields of every stage: all that a user can set, with its meaning and its default.

Neither tyro nor YAML nor torch: `cli` reads a command line, `presets` has the values of each preset.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ssdd.crf import CRFParams
from ssdd.storage.paths import AnyPath


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


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of the networks, shared by all stages."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    levels: int = 1
    """How many of the backbone's last three levels the heads see, resized to one stride and concatenated. 1: the last
    one alone, as in the paper."""
    stride: int | None = None
    """Input pixels per pixel of what the heads see. Default: the backbone's output stride. A smaller one gives a
    light network finer masks."""
    head_channels: int = 512
    """Width of the segmentation head's hidden layer."""
    head_dilation: int = 12
    """Dilation of the head's two 3x3 convolutions."""
    head_norm: Literal["frozen", "group"] = "frozen"
    """Between the head's convolutions: `frozen` (a batch norm that stays what it was, as published) or `group` (a group
    norm that learns). Without the latter, steps as large as a short schedule needs can switch the head's ReLUs off."""
    upsample: int = 2
    """Masks have this many times the resolution of what the heads see (2: 56 -> 112 at 448 pixels)."""
    ddnet_channels: int = 256
    """Width of DD-Net."""
    ddnet_features: Literal["head", "backbone"] = "head"
    """DD-Net's high-level input e^h. head: the head's hidden layer, as in the published code; backbone: what the head
    sees, as sec. 3.1 has it. A head that is trained on few images learns the seeds by heart, and its hidden layer
    then says little about where they are wrong."""

    @property
    def feature_stride(self) -> int:
        """Input pixels per pixel of what the heads see."""
        return self.stride or self.backbone.output_stride

    def mask_size(self, crop: int) -> int:
        """Side of the masks that belong to a square input of side `crop`."""
        return -(-crop // self.feature_stride) * self.upsample


@dataclass(frozen=True)
class AugmentConfig:
    """Square resize to a random side, random crop, horizontal flip, colour jitter (sec. 5.1, method notes)."""

    crop: int = 448
    """Side of the square training input, in pixels."""
    resize: tuple[int, int] = (448, 512)
    """Range of the side that the image is resized to (both sides, as a square) before the crop."""
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    """Brightness, contrast, saturation and hue."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
    background_factor: float = 1.0
    """The random walk starts from so many times the background score (1 - max CAM)^alpha_walk (1: PSA). Above 1, seeds
    that cover too much shrink."""
    radius: int = 5
    beta: float = 8
    walk_steps: int = 256
    crf: CRFParams = CRFParams()
    """The CRF of AffinityNet's labels; the one that makes advice is the top-level `crf`."""
    classifier_weights: Path | None = None
    """PSA's published res38_cls.pth, instead of training a classifier."""
    affinity_weights: Path | None = None
    """PSA's published res38_aff.pth, instead of training AffinityNet."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """Dynamic region refinement (sec. 4.2), and the baselines that it must beat: networks on fixed masks."""

    train: TrainConfig
    baseline: Literal["knowledge", "advice"] = "advice"
    """The masks that dynamic.py's baseline learns from: advice (PSA retrained), or knowledge where that is the stronger
    rival. compare.py has a row for each."""
    baseline_epochs: int | None = None
    """Epochs of the baselines. Default: those of `train`."""
    baseline_lr: float | None = None
    """Learning rate of the baselines. Default: that of `train`."""
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

    @property
    def baseline_train(self) -> TrainConfig:
        """The training of the baselines: `train` with a schedule of their own."""
        epochs, lr = self.baseline_epochs or self.train.epochs, self.baseline_lr or self.train.lr
        return replace(self.train, epochs=epochs, lr=lr)


@dataclass(frozen=True, kw_only=True)
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
    gentle: bool = False
    """Also score the masks after the gentle CRF (`gentle_crf`)."""
    full_size: bool = False
    """Softmax and their sum at the resolution of the input, as in the published code, instead of the masks'."""
    train_images: int = 256
    """On how many training images the trained networks and the modules of the dynamic stage are scored, where they have
    true masks. It is rounded up to whole parts of the list. 0: none."""
    panels: int = 12
    """Number of images in the pictures."""
    show_data: bool = True
    """Whether pictures show the photographs and their true masks. False for data that may not be copied."""


@dataclass(frozen=True, kw_only=True)
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

    def parts_of(self, batch: int, runs_on_actors: bool, on_gpu: bool) -> tuple[int, int]:
        """Images in a part of a worker's batch, and parts that may be ahead of the first one's backward pass.

        Args:
            batch: images of the worker.
            runs_on_actors: whether other processes compute something for it.
            on_gpu: whether the network runs on a GPU.
        """
        if self.micro_batch is not None:
            return self.micro_batch, int(runs_on_actors)
        parts = (self.parts or (4 if on_gpu else 1)) if runs_on_actors else 1
        return -(-batch // parts), parts


@dataclass(frozen=True)
class CompareConfig:
    """The paper's comparison: networks that differ only in the masks that they learn from."""

    random_seeds: tuple[int, ...] = (0, 1)
    """One repetition for each: static stage, networks and random order. PSA's seeds are made once, with `seed`."""
    rows: tuple[Literal["baseline_knowledge", "baseline", "gentle_baseline", "baseline_refined", "dynamic"], ...] = (
        "baseline_knowledge",
        "baseline",
        "baseline_refined",
        "dynamic",
    )
    """What is trained: networks on raw knowledge, on advice (PSA retrained), on the advice of the gentle CRF, on m^D0,
    and with SSDD."""


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What predict.py does: which network, which photographs, which outputs."""

    model: AnyPath
    """A workspace, an exported file, or SSDD's published segmentation checkpoint (.pth)."""
    input: str
    """A photograph, a folder of them with its subfolders, a glob in quotes, or s3://BUCKET/KEY."""
    output: AnyPath
    """The folder of the masks. Given again, what is finished there is not repeated."""
    network: str | None = None
    """Of a workspace: `baseline`, `dynamic` or another one. Default: the one that was trained last."""
    preset: Literal["mini", "photographs", "paper"] = "paper"
    """Whose networks published weights are."""
    crf: bool = True
    """Refine the masks by the CRF of the model's configuration; takes most of the time."""
    overlay: bool = False
    """Also write pictures of the masks over the photographs."""
    probabilities: bool = False
    """Also write the probability of each class at each pixel: ID.npy, float16 (classes, height, width)."""
    labels: AnyPath | None = None
    """A CSV with lines `NAME,class;class` for all photographs: only these classes and the background compete."""
    below: float = 0.0
    """Pixels whose largest probability (before the CRF) is below this get the value 255."""
    max_pixels: int | None = None
    """Photographs with more pixels are left out. Default: the limit of the model's training."""
    batch: int = 8
    """Images that the network gets at once."""
    num_cpus: int | None = None
    """CPUs of the local Ray that is started; not for a cluster that runs already."""
    workers: int | None = None
    """Processes that run the network. Default: one per GPU; without GPUs, two per node."""
    gpus: bool | None = None
    """Run the network on GPUs. Default: where the cluster has them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One configuration for all jobs. A stage runs only if something that it depends on has changed."""

    seeds: SeedsConfig
    static: StaticConfig
    dynamic: DynamicConfig
    evaluate: EvaluateConfig
    preset: Literal["mini", "photographs", "paper"] = "mini"
    """mini: the embedded data set, minutes on 2 cores; photographs: VOC-like images there; paper: sec. 5.1's values."""
    data: AnyPath | None = None
    """A VOC-layout folder, on a disk or as s3://BUCKET/KEY. Without it the embedded data set is drawn into the
    workspace."""
    workspace: AnyPath | None = None
    """Where everything is written, a folder that every node sees: of a shared disk, or s3://BUCKET/KEY. Default:
    ./workspace; for a submitted Ray job, ~/ssdd-workspace on the head node."""
    knowledge: AnyPath | None = None
    """A folder of masks ID.png, or of class maps ID.npy as PSA and IRN write them, in the place of PSA's masks as
    knowledge; needs `advice`."""
    advice: AnyPath | None = None
    """The same of the same images after a mapping, say a CRF; needs `knowledge`."""
    maps_background: float = 16
    """The background's score beside class maps ID.npy; the highest score of a pixel is its class. 1 and above: a power,
    (1 - the highest map) ^ maps_background, as in PSA (16). Below 1: this score at every pixel, as in IRN (0.15)."""
    train_split: str = "train"
    """The image list that is trained on (ImageSets/Segmentation/*.txt)."""
    split: str = "val"
    """The image list that the models are scored on."""
    skip_broken: bool = False
    """Leave out images with a broken or missing file, mask or label, and list them, instead of refusing the list."""
    apply_exif: bool = False
    """Turn photographs as their EXIF data say. Default: the pixels as they are stored, which the masks of most data
    sets belong to."""
    max_pixels: int = 25_000_000
    """Photographs with more pixels are refused: the full-size CRF takes 160 bytes a pixel, and 25 for each label."""
    register: str | None = None
    """The name under which dynamic.py and compare.py register the trained network in MLflow's model registry. Without
    it the network is a model of the run alone."""
    seed: int = 0
    rounds: int = 1
    """Static and dynamic refinement once more, on the dynamic network's own masks and their CRF, for each above 1."""
    compare: CompareConfig = CompareConfig()
    sweep: SweepConfig = SweepConfig()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    crf: CRFParams = CRFParams()
    """The full-size CRF: advice, and test time."""
    gentle_crf: CRFParams = CRFParams(bilateral_weight=5, bilateral_sxy=40, bilateral_srgb=10, iterations=5)
    """A CRF that changes less than the published one: makes the advice of compare's `gentle_baseline`, and is a second
    one at test time with `evaluate.gentle`."""
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

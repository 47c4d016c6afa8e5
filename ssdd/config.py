"""The typed fields of every stage: everything that a user can set, with its meaning and its default.

This module imports neither tyro nor YAML nor torch. `cli` reads command lines, `presets` has each preset's values.
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
    """The network that computes the features, and the source of its ImageNet weights."""

    name: str = "resnet38"
    """`resnet38` (the paper's), or the name of any timm model that supports features_only."""
    output_stride: int = 8
    """Stride of the high-level features in input pixels: 8 or 16."""
    weights: str = "auto"
    """random: no pretrained weights; auto: for timm models, from an installed weight package or, for models without
    one, from timm's hub; `resnet38` needs a path. Otherwise the path of a state dict or of an MXNet `.params` file."""
    frozen_stride: int = 2
    """Layers with at most this stride keep their ImageNet weights (PSA: 2). 0: all layers are trained. Layers with
    random weights are always trained. The backbone's batch norms never are."""

    @property
    def architecture(self) -> "BackboneConfig":
        """The same backbone without the path of a weight file, for an artifact's recipe, which names the weights."""
        return self if self.weights in ("auto", "random") else replace(self, weights="file")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of the networks, shared by all stages."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    levels: int = 1
    """The segmentation heads get the last 1, 2 or 3 feature levels of the backbone, resized to one stride and
    concatenated. 1: only the last level, as in the paper."""
    stride: int | None = None
    """Stride, in input pixels, of the features that the segmentation heads get. Default: the backbone's output stride.
    A smaller stride gives a light network finer masks."""
    head_channels: int = 512
    """Number of channels of the segmentation head's hidden layer."""
    head_dilation: int = 12
    """Dilation of the segmentation head's two 3x3 convolutions."""
    head_norm: Literal["frozen", "group"] = "frozen"
    """The norm between the segmentation head's convolutions: `frozen` (a batch norm that is not trained, as published)
    or `group` (a group norm that is trained). With `frozen`, the large learning rates of a short schedule can leave the
    head's ReLUs at zero."""
    upsample: int = 2
    """The networks' masks have this many times the resolution of the features that the segmentation heads get. With 2,
    an input of 448 pixels and features of 56 x 56 give masks of 112 x 112."""
    ddnet_channels: int = 256
    """Number of channels of DD-Net, the network that predicts where knowledge and advice differ."""
    ddnet_features: Literal["head", "backbone"] = "head"
    """DD-Net's high-level input e^h. head: the hidden layer of the segmentation head, as in sec. 5.1 and the published
    code; backbone: the features that the head gets, as in sec. 3.1. A head that is trained on few images memorises its
    training masks; its hidden layer then tells little about where they are wrong."""

    @property
    def architecture(self) -> "NetworkConfig":
        """The same network without the path of a weight file, see `BackboneConfig.architecture`."""
        return replace(self, backbone=self.backbone.architecture)

    @property
    def feature_stride(self) -> int:
        """Stride, in input pixels, of the features that the segmentation heads get."""
        return self.stride or self.backbone.output_stride

    def mask_size(self, crop: int) -> int:
        """Side of the networks' masks for a square input of side `crop`."""
        return -(-crop // self.feature_stride) * self.upsample


@dataclass(frozen=True)
class AugmentConfig:
    """Square resize to a random side, random crop, horizontal flip, colour jitter (sec. 5.1, docs/method.md)."""

    crop: int = 448
    """Side of the square training input, in pixels."""
    resize: tuple[int, int] = (448, 512)
    """Before the crop, the image is resized to a square whose side, in pixels, is drawn from this range."""
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    """Largest random changes of brightness, contrast, saturation (relative) and hue (share of the colour circle)."""
    jitter_kind: Literal["matrix", "torchvision"] = "matrix"
    """How the colours are changed. matrix: all four changes in one step, which is many times faster; torchvision: one
    change after the other, the hue in HSV."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training: schedule, optimizer (SGD), augmentation."""

    epochs: int
    batch_size: int
    """Images per training step, all workers together."""
    lr: float
    """Initial learning rate of the backbone."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    new_layers_lr: float = 10.0
    """Learning rate of all layers outside of the backbone (heads, DD-Net), as a multiple of `lr`."""
    momentum: float = 0.9
    """The paper has 0.9. In the published code momentum has no effect, because each step builds a new optimizer."""
    weight_decay: float = 2e-4
    schedule: Literal["cosine", "poly"] = "cosine"
    """How the learning rate falls. cosine: half a cosine wave over 1.2 times the epochs, so that it ends at 0.07 of
    `lr`; poly: (1 - share of the training done)^0.9, as in PSA."""


@dataclass(frozen=True)
class BiasConfig:
    """The bias of eq. 3, and the test for vanished classes that its presence part needs."""

    bias: float
    """Added to the confidence w in advice at every pixel: positive values favour advice, negative ones knowledge."""
    background: float
    """Added to w where only advice is background, subtracted where only knowledge is: positive values favour
    background."""
    presence: bool = True
    """Add the presence part, so that a vanished class is kept: -1 where knowledge shows it, +1 where advice does."""
    vanish_ratio: float = 0.5
    """A class has vanished from an image if (its pixels in advice) / (its pixels in knowledge) is below this."""


@dataclass(frozen=True, kw_only=True)
class SeedsConfig:
    """PSA's seeds: classifier, class activation maps (CAMs), AffinityNet, random walk."""

    classifier: TrainConfig
    affinity: TrainConfig
    cam_size: int = 448
    """Side, in pixels, of the square that images are resized to for affinities, and for CAMs at scale 1."""
    cam_scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """Multiples of `cam_size`: the CAMs at all of these scales are summed."""
    alpha_low: float = 4
    """AffinityNet's foreground labels come from a CRF with the background score (1 - max CAM)^alpha_low."""
    alpha_high: float = 32
    """AffinityNet's background labels come from a CRF with the background score (1 - max CAM)^alpha_high."""
    alpha_walk: float = 16
    """The random walk starts with the background score (1 - max CAM)^alpha_walk."""
    background_factor: float = 1.0
    """The random walk's initial background score is multiplied by this (PSA: 1). A value above 1 shrinks seeds that
    cover too much."""
    radius: int = 5
    """Affinities connect pixels, at stride 8, that are closer than this."""
    beta: float = 8
    """The random walk uses affinities to this power."""
    walk_steps: int = 256
    """Number of steps of the random walk."""
    crf: CRFParams = CRFParams()
    """The CRF for AffinityNet's labels. The advice is made with another one, the top-level `crf`."""
    classifier_weights: Path | None = None
    """Path of PSA's published res38_cls.pth, to use it instead of training a classifier."""
    affinity_weights: Path | None = None
    """Path of PSA's published res38_aff.pth, to use it instead of training AffinityNet."""


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Static region refinement (sec. 4.1)."""

    train: TrainConfig
    bias: BiasConfig = BiasConfig(bias=0.1, background=0.1)
    bad_ratio: float = 0.5
    """An image is a bad training sample if (pixels in advice) / (pixels in knowledge) is below this for one of its
    classes; it is then left out of the loss L_diff0. The bias, which acts after the training, has its own
    `bias.vanish_ratio`."""
    size: int = 448
    """Side, in pixels, of the square input at inference."""
    weights: tuple[Path, ...] = ()
    """Paths of SSDD's published checkpoints of this stage (segmentation, DD-Net), to use them instead of training."""


@dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """Dynamic region refinement (sec. 4.2), and its baselines: segmentation networks trained on fixed masks."""

    train: TrainConfig
    baseline: Literal["knowledge", "advice"] = "advice"
    """The masks on which dynamic.py's baseline is trained. advice: PSA retrained; knowledge: for data on which it gives
    the stronger baseline. compare.py can train both."""
    baseline_epochs: int | None = None
    """Epochs of the baselines. Default: `dynamic.train.epochs`."""
    baseline_lr: float | None = None
    """Learning rate of the baselines. Default: `dynamic.train.lr`."""
    init: Literal["classifier", "static"] = "classifier"
    """The initial weights of this stage's networks and of the baselines. classifier: the classifier's backbone
    (sec. 5.1); static: the whole network of the static stage, for short schedules, since its masks m^K1 are sensible
    from the first step on. DD-Net 2 always starts with random weights."""
    alpha: float = 0.5
    """Eq. 14: weight of m^D0 in the sub branch's loss. The second mask, see `target`, has the weight 1 - alpha."""
    target: Literal["d1", "d2"] = "d1"
    """Second mask of eqs. 13-14: m^D1 (paper) or m^D2 (published code)."""
    bias1: BiasConfig = BiasConfig(bias=0.4, background=0.0)
    """The bias (eq. 3) of the first module, which makes m^D1 from the network's masks m^K1 and their CRF m^A1."""
    bias2: BiasConfig = BiasConfig(bias=0.4, background=0.0)
    """The bias (eq. 3) of the second module, which makes m^D2 from m^D0 and m^D1."""
    bad_ratio: float = 0.5
    """Like `static.bad_ratio`, for the loss L_diff1."""
    crf: CRFParams = CRFParams(iterations=3)
    """The CRF of every training step, at the resolution of the networks' masks."""
    weights: tuple[Path, ...] = ()
    """Paths of SSDD's published checkpoints of this stage (segmentation, DD-Nets), to use them instead of training."""

    @property
    def baseline_train(self) -> TrainConfig:
        """The training of the baselines: `train` with the baselines' epochs and learning rate."""
        epochs, lr = self.baseline_epochs or self.train.epochs, self.baseline_lr or self.train.lr
        return replace(self.train, epochs=epochs, lr=lr)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Test-time inference: softmax summed over scales and mirror images, resized to the image; then the CRF."""

    size: int = 448
    """Side, in pixels, of the square input at scale 1."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """Multiples of `size`: the softmax is summed over inputs of these scales."""
    mirror: bool = True
    """Also sum the softmax of the mirror images."""
    min_probability: float = 0.0
    """The CRF leaves out labels whose probability is below this at every pixel of an image, since it takes time for
    each label. 0: all labels, as in the paper."""
    sharpen: float = 0.0
    """Above 0, the CRF gets softmax(`sharpen` x probabilities); the larger the value, the less it changes. In the
    published code it gets the softmax of the sum of ten maps, which is `sharpen` 10. 0: the CRF gets the
    probabilities."""
    gentle: bool = False
    """Also score the masks that a second CRF, `gentle_crf`, makes in place of `crf`."""
    full_size: bool = False
    """Compute the softmax and its sum at the resolution of the input, as in the published code, instead of the
    resolution of the network's masks."""
    train_images: int = 256
    """The trained networks and the modules of the dynamic stage are also scored on this many training images that have
    true masks, rounded up to whole parts (see `part_size`); on fewer, if that needs over 4 times as many images. 0: on
    none."""
    panels: int = 12
    """Number of images in each picture of masks."""
    show_data: bool = True
    """Show the photographs and their true masks in pictures. Turn it off for data that may not be copied."""

    @property
    def sides(self) -> list[int]:
        """Sides of the network's square inputs, in pixels: one for each scale."""
        return [round(self.size * scale) for scale in self.scales]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Speed and memory of a training step. Up to rounding, the result stays the same (except with `crf` exact)."""

    crf: Literal["actors", "inline", "exact"] | None = None
    """How the CRF of the dynamic stage's training steps is computed. actors: with pydensecrf on Ray CPU actors, in
    parallel to the network; inline: with pydensecrf in the training process, image by image, as in the published code;
    exact: without pydensecrf's approximation, on the training's device, which should be a GPU (the masks differ a
    little, so a training with another choice is not reused). Default: inline if a training worker has no GPU and only
    one core, because actors would compete with the workers for the cores; else actors."""
    parts: int | None = None
    """With CRF actors, a worker's batch is split into this many parts: the CRF of one part runs while the network works
    on another. Default: 4 on GPUs; 1 on CPUs, where small parts are slower and every core is busy anyway."""
    micro_batch: int | None = None
    """Images per part (micro-batch), instead of `parts`, if a batch does not fit into memory. Memory then holds the
    backbone's activations of at most two parts. The activations of the dynamic stage's DD-Nets, which are much smaller,
    are kept for the whole batch."""
    bf16: bool | None = None
    """Compute in bfloat16 wherever torch's autocast considers it safe. Default: on GPUs that support bfloat16. CPUs are
    refused: on one with AVX512-BF16, torch 2.14's gradients of dilated convolutions are wrong, or not finite."""
    compile: bool = False
    """Compile the backbone with torch.compile, which pays off in long trainings on GPUs."""

    def crf_of(self, threads: int, on_gpu: bool) -> Literal["actors", "inline", "exact"]:
        """`crf`, or its default for workers with this number of threads each, on GPUs or not."""
        return self.crf or ("actors" if on_gpu or threads > 1 else "inline")

    def parts_of(self, batch: int, runs_on_actors: bool, on_gpu: bool) -> tuple[int, int]:
        """Images per part of a worker's batch, and how many of the next parts may start before a part's backward pass.

        Args:
            batch: number of the worker's images.
            runs_on_actors: whether CRF actors compute masks during the step.
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
    """The static stage and all networks are trained once with each of these random seeds. PSA's seed masks are made
    only once, with `seed`."""
    rows: tuple[Literal["baseline_knowledge", "baseline", "gentle_baseline", "baseline_refined", "dynamic"], ...] = (
        "baseline_knowledge",
        "baseline",
        "baseline_refined",
        "dynamic",
    )
    """The networks to train. baseline_knowledge: on knowledge; baseline: on advice (PSA retrained); gentle_baseline: on
    the advice of `gentle_crf`; baseline_refined: on the static stage's masks m^D0; dynamic: with SSDD."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What the sweeps of ray_jobs/sweep_*.py vary, how they choose points, and which metric they maximise."""

    space: tuple[str, ...] = ()
    """The fields to vary: `FIELD=A,B,...` for values, `FIELD=LOW:HIGH` or `FIELD=LOW:HIGH:log` for a range (not with
    `grid`). FIELD is spelled as on the command line. Default: chosen by the job."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: `trials` points, drawn with `seed`; optuna: `trials` points, each chosen by the
    results so far (needs pip install 'ssdd[sweep]')."""
    trials: int = 16
    """Number of points for `random` and `optuna`."""
    metric: str | None = None
    """The metric to maximise; the job's help lists the choices. Default: the first of them."""
    split: str | None = None
    """The image list, with true masks, on which trials of the dynamic stage are scored. Default: the training list. It
    must differ from the top-level `split`, on which the final scores are reported."""
    images: int = 128
    """Number of images of `sweep.split` on which a trial's network is scored after each epoch."""
    stage: Literal["static", "dynamic"] = "static"
    """The stage whose biases sweep_bias varies. static: nothing is trained, and the refined masks follow from stored
    difference maps; dynamic: each trial is a training."""
    parallel: int | None = None
    """Largest number of trials that run at the same time. Default: as many as the cluster has room for."""
    gpu: float = 1
    """GPUs per process of a trial: with 0.5, two processes share a GPU."""
    resume: bool = False
    """Continue the same sweep after an interruption; its finished trials are kept."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What predict.py does: which network, which photographs, which outputs."""

    model: AnyPath
    """A workspace, an exported file, or SSDD's published segmentation checkpoint (.pth)."""
    input: str
    """A photograph, a folder (its subfolders are included), a glob in quotes, or s3://BUCKET/KEY."""
    output: AnyPath
    """The folder for the masks. If an earlier run has finished some of them there, only the others are made."""
    network: str | None = None
    """Which network of a workspace: `dynamic`, `baseline` or another one. Default: `dynamic`, SSDD's network."""
    preset: Literal["mini", "photographs", "paper"] = "paper"
    """For published weights: the preset that describes their network."""
    crf: bool = True
    """Refine the masks with the CRF of the model's configuration, which takes most of the time."""
    overlay: bool = False
    """Also write pictures of the masks over the photographs."""
    probabilities: bool = False
    """Also write the probability of each class at each pixel: ID.npy, float16 (classes, height, width)."""
    labels: AnyPath | None = None
    """A CSV with a line `NAME,class;class` for every photograph; its mask gets only these classes and background."""
    below: float = 0.0
    """Pixels whose largest probability (before the CRF) is below this get the value 255, which means no label."""
    max_pixels: int | None = None
    """Photographs with more pixels are left out. Default: the limit of the model's training."""
    apply_exif: bool | None = None
    """Rotate photographs by their EXIF orientation; photographs from a phone need it. Default: as in the training."""
    batch: int = 8
    """Images per batch of the network."""
    num_cpus: int | None = None
    """CPUs of the local Ray that this job starts. Leave it out to use a cluster that is already running."""
    workers: int | None = None
    """Number of processes that run the network. Default: one per GPU; without GPUs, two per node."""
    gpus: bool | None = None
    """Run the network on GPUs. Default: if the cluster has any."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One configuration for all jobs. A stage runs only if something that it depends on has changed."""

    seeds: SeedsConfig
    static: StaticConfig
    dynamic: DynamicConfig
    evaluate: EvaluateConfig
    preset: Literal["mini", "photographs", "paper"] = "mini"
    """The default values. mini: for the embedded data set, minutes on 2 cores; photographs: for VOC-like images, hours
    on 2 cores; paper: the values of sec. 5.1."""
    data: AnyPath | None = None
    """The data set: a folder in VOC's layout (docs/data.md), on a disk or s3://BUCKET/KEY. Default: the embedded data
    set, which is drawn into the workspace (for a workspace in an object store, into ~/.cache/ssdd)."""
    workspace: AnyPath | None = None
    """The folder for all results, which every node must be able to reach: on a shared disk, or s3://BUCKET/KEY.
    Default: ./workspace; for a submitted Ray job, ~/ssdd-workspace on the head node."""
    knowledge: AnyPath | None = None
    """A folder with masks ID.png, or class maps ID.npy as PSA and IRN write them, to be used as knowledge instead of
    PSA's masks. Needs `advice`."""
    advice: AnyPath | None = None
    """A folder with masks or class maps of the same images, to be used as advice: what a mapping, such as a CRF, makes
    of the knowledge. Needs `knowledge`."""
    maps_background: float = 16
    """The score of the background if class maps ID.npy have none; each pixel gets the class with the highest score. A
    value of 1 or more is an exponent: the score is (1 - the highest map)^value (PSA: 16). A value below 1 is the score
    itself, the same at every pixel (IRN: 0.15)."""
    train_split: str = "train"
    """The image list to train on: the name of a file in ImageSets/Segmentation/, without .txt."""
    split: str = "val"
    """The image list on which the trained networks are scored."""
    skip_broken: bool = False
    """Leave out images with a broken or missing file, mask or label, and list them, instead of ending with an error."""
    apply_exif: bool = False
    """Rotate photographs by their EXIF orientation. Default: use the pixels as they are stored, which fits the masks of
    most data sets."""
    max_pixels: int = 25_000_000
    """A photograph with more pixels is an error: the full-size CRF takes 160 bytes a pixel, and 25 more for each
    label."""
    register: str | None = None
    """The name under which dynamic.py and compare.py register the trained network in MLflow's model registry. Default:
    the network is logged as a model of the run, but not registered."""
    seed: int = 0
    """Random seed."""
    rounds: int = 1
    """Rounds of static and dynamic refinement. Each round after the first takes the masks of the trained dynamic
    network as knowledge, and their CRF as advice."""
    compare: CompareConfig = CompareConfig()
    sweep: SweepConfig = SweepConfig()
    network: NetworkConfig = field(default_factory=NetworkConfig)
    crf: CRFParams = CRFParams()
    """The CRF at the images' own size, which makes the advice and refines masks at test time."""
    gentle_crf: CRFParams = CRFParams(bilateral_weight=5, bilateral_sxy=40, bilateral_srgb=10, iterations=5)
    """A CRF that changes less than the published one. It makes the advice for compare.py's row `gentle_baseline`, and
    with `evaluate.gentle` masks are also scored after it."""
    part_size: int = 32
    """Images in one file (part) of a stage's table. A part is read at once, and images are shuffled
    within groups of four parts."""
    inference_batch: int = 8
    """Images per batch of a network outside of trainings."""
    step: StepConfig = StepConfig()
    num_cpus: int | None = None
    """CPUs of the local Ray that this job starts. Leave it out to use a cluster that is already running."""
    workers: int | None = None
    """Number of training workers. Default: one per GPU; without GPUs, two per node."""
    gpus: bool | None = None
    """Train on GPUs. Default: if the cluster has any."""

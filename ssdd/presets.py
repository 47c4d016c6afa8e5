"""The three presets: `paper` (sec. 5.1), `mini` (the embedded data set), `photographs` (VOC-like images on CPUs)."""

from dataclasses import replace
from typing import Any

from ssdd.config import (
    AugmentConfig,
    BackboneConfig,
    BiasConfig,
    Config,
    DynamicConfig,
    EvaluateConfig,
    NetworkConfig,
    SeedsConfig,
    StaticConfig,
    TrainConfig,
)
from ssdd.crf import CRFParams
from ssdd.fields import flatten, to_dict


def paper() -> Config:
    """Sec. 5.1's values, where the paper is silent those of the published code and of PSA."""
    psa: dict[str, Any] = dict(lr=0.1, schedule="poly", weight_decay=5e-4, momentum=0.0)
    return Config(
        preset="paper",
        seeds=SeedsConfig(
            classifier=TrainConfig(epochs=15, batch_size=16, augment=AugmentConfig(448, (256, 512)), **psa),
            affinity=TrainConfig(epochs=8, batch_size=8, augment=AugmentConfig(448, (448, 512)), **psa),
        ),
        static=StaticConfig(
            train=TrainConfig(epochs=10, batch_size=16, lr=1e-3, augment=AugmentConfig(448, (448, 512)))
        ),
        dynamic=DynamicConfig(
            train=TrainConfig(epochs=30, batch_size=8, lr=1e-3, augment=AugmentConfig(448, (512, 768)))
        ),
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
            backbone=backbone, head_channels=128, head_dilation=2, head_norm="group", upsample=4, ddnet_channels=64
        ),
        seeds=SeedsConfig(
            classifier=TrainConfig(epochs=8, batch_size=16, lr=0.01, augment=augment),
            affinity=TrainConfig(epochs=2, batch_size=8, lr=0.03, augment=augment),
            cam_size=256,
            cam_scales=(1.0,),
            alpha_low=1,
            alpha_high=8,
            alpha_walk=4,
            walk_steps=32,
        ),
        static=StaticConfig(
            train=TrainConfig(epochs=6, batch_size=8, lr=0.002, augment=augment),
            # Coarse maps shrink much under a CRF: at 0.5 half of the images would have a vanished class. On so few
            # images the features learn the knowledge by heart, and with them d^A rises everywhere: a larger bias.
            bias=BiasConfig(bias=0.4, background=0.1, vanish_ratio=0.3),
            size=160,
        ),
        dynamic=DynamicConfig(
            train=TrainConfig(epochs=4, batch_size=8, lr=0.002, augment=augment),
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
            classifier=TrainConfig(epochs=4, batch_size=16, lr=0.01, augment=AugmentConfig(288, (288, 400))),
            affinity=TrainConfig(epochs=2, batch_size=8, lr=0.03, augment=AugmentConfig(224, (224, 320))),
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
            train=TrainConfig(epochs=8, batch_size=8, lr=0.002, augment=augment),
            bias=BiasConfig(bias=0.2, background=0.0, vanish_ratio=0.1),
            bad_ratio=0.0,  # half of the images have a class that neither mask found: too many to leave out
            size=256,
        ),
        dynamic=replace(
            start.dynamic,
            train=TrainConfig(epochs=4, batch_size=8, lr=0.002, augment=augment),
            bad_ratio=0.0,
            crf=CRFParams(gaussian_sxy=1.5, bilateral_weight=6, bilateral_sxy=30, iterations=3),
        ),
        evaluate=replace(start.evaluate, size=256),
        part_size=32,
    )


PRESETS = {"mini": mini, "photographs": photographs, "paper": paper}


def changes(config: Config) -> dict[str, Any]:
    """What distinguishes a configuration from its preset, by dotted name: what `--config` reads, as YAML.

    Neither the workspace nor the machine's part (`num_cpus`, `workers`, `gpus`) nor the sweep belongs to it.
    """
    left_out = ("workspace", "num_cpus", "workers", "gpus", "sweep.")
    preset, own = (flatten(to_dict(c)) for c in (PRESETS[config.preset](), config))
    return {"preset": config.preset} | {
        name: value for name, value in own.items() if value != preset[name] and not name.startswith(left_out)
    }

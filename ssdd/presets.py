"""The three presets: `paper` (sec. 5.1), `mini` (the embedded data set), `photographs` (VOC-like images on CPUs)."""

from dataclasses import replace
from typing import Any

from ssdd.config import (
    AugmentConfig,
    BackboneConfig,
    BiasConfig,
    CompareConfig,
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
    """The values of sec. 5.1, completed by values of the published code and of PSA where the paper has none."""
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

    PSA's alphas and number of random walk steps fit finer and better trained maps, so smaller values are used here.
    """
    augment = AugmentConfig(crop=160, resize=(160, 200))
    # A network that is trained for few epochs on its own masks after a CRF soon predicts too little foreground. So a
    # class that loses over a tenth of its pixels counts as vanished and is kept, and background gets a negative bias.
    protective = BiasConfig(bias=0.1, background=-0.06, vanish_ratio=0.9)
    return Config(
        preset="mini",
        network=NetworkConfig(
            backbone=BackboneConfig("tf_efficientnet_lite0", output_stride=16, frozen_stride=4),
            levels=3,
            stride=8,
            head_channels=128,
            head_dilation=4,
            head_norm="group",
            upsample=2,
            ddnet_channels=32,
            ddnet_features="backbone",
        ),
        seeds=SeedsConfig(
            classifier=TrainConfig(epochs=5, batch_size=16, lr=0.01, augment=augment),
            affinity=TrainConfig(epochs=1, batch_size=8, lr=0.03, augment=augment),
            cam_size=256,
            cam_scales=(1.0,),
            alpha_low=1,
            alpha_high=8,
            alpha_walk=4,
            walk_steps=32,
        ),
        # The drawn images have a third of a photograph's width, so the kernels are narrower.
        crf=CRFParams(gaussian_sxy=1, bilateral_sxy=40),
        static=StaticConfig(
            train=TrainConfig(epochs=4, batch_size=8, lr=0.002, augment=augment),
            # A CRF shrinks coarse masks a lot: at vanish_ratio 0.5, half of the images would have a vanished class.
            bias=BiasConfig(bias=0.2, background=0.0, vanish_ratio=0.3),
            size=160,
        ),
        dynamic=DynamicConfig(
            train=TrainConfig(epochs=5, batch_size=8, lr=0.003, augment=augment),
            baseline="knowledge",  # with a CRF at test time, this baseline is by far the stronger one
            baseline_lr=0.002,
            init="static",
            bias1=protective,
            bias2=protective,
            # The masks have about a quarter of the image's side, so bilateral_sxy is smaller than in `crf` above.
            crf=CRFParams(gaussian_sxy=1, bilateral_sxy=12, iterations=3),
        ),
        evaluate=EvaluateConfig(size=160, scales=(1.0,), min_probability=0.05, train_images=144),
        part_size=16,
    )


def photographs() -> Config:
    """A few thousand photographs, in hours on 2 cores: mini's networks, larger inputs, published CRFs, biases of 0.

    DD-Net has more channels than in mini. docs/photographs.md has the reasons and the measurements.
    """
    augment = AugmentConfig(crop=256, resize=(256, 384))
    start = mini()
    # d^K - d^A varies so little here that a bias of 0.1 would take advice at almost every pixel.
    unbiased = BiasConfig(bias=0.0, background=0.0, vanish_ratio=0.8)
    return replace(
        start,
        preset="photographs",
        network=replace(start.network, ddnet_channels=64),
        seeds=SeedsConfig(
            classifier=TrainConfig(epochs=8, batch_size=16, lr=0.01, augment=AugmentConfig(288, (288, 400))),
            affinity=TrainConfig(epochs=3, batch_size=8, lr=0.03, augment=AugmentConfig(224, (224, 320))),
            cam_size=320,
            cam_scales=(1.0, 0.5, 1.5),
            alpha_low=1,
            alpha_high=8,
            alpha_walk=3,
            background_factor=1.25,  # at 1 the seeds cover 1.4 times the true foreground
            walk_steps=64,
            crf=CRFParams(iterations=5),
        ),
        crf=CRFParams(),
        static=StaticConfig(
            train=TrainConfig(epochs=8, batch_size=8, lr=0.0007, augment=augment),
            bias=BiasConfig(bias=0.0, background=0.0, vanish_ratio=0.1),
            # At 0, no image is left out. Above 0, half of them would be: neither mask shows one of their classes.
            bad_ratio=0.0,
            size=320,
        ),
        dynamic=replace(
            start.dynamic,
            train=TrainConfig(epochs=3, batch_size=8, lr=0.0005, augment=augment),
            baseline="advice",
            baseline_lr=None,
            bias1=unbiased,
            bias2=unbiased,
            # The paper's widths of 3 and 80 pixels for masks of 112 pixels, scaled to masks of 64 pixels.
            crf=CRFParams(gaussian_sxy=1.7, bilateral_sxy=45, iterations=3),
        ),
        evaluate=replace(start.evaluate, size=320, gentle=True, train_images=256),
        compare=CompareConfig(rows=("baseline_knowledge", "baseline", "gentle_baseline", "dynamic")),
        part_size=32,
    )


PRESETS = {"mini": mini, "photographs": photographs, "paper": paper}


def changes(config: Config) -> dict[str, Any]:
    """The values that differ from a configuration's preset, by dotted name. `--config` reads them from a YAML file.

    The workspace, the sweep, and what depends on the machine (`num_cpus`, `workers`, `gpus`) are left out.
    """
    left_out = ("workspace", "num_cpus", "workers", "gpus", "sweep.")
    preset, chosen = (flatten(to_dict(c)) for c in (PRESETS[config.preset](), config))
    return {"preset": config.preset} | {
        name: value for name, value in chosen.items() if value != preset[name] and not name.startswith(left_out)
    }

"""The sweep of the CRF that makes advice (sec. 5.2, Fig. 6): its weights and widths against what SSDD makes of it."""

from ssdd import evaluate, figures, images, seeds, static
from ssdd.config import Config, ConfigError
from ssdd.images import Images
from ssdd.session import Session
from ssdd.sweep import Kind, Outcome

METRICS = ("train.refined", "train.advice", "train.knowledge")


def trial(session: Session, base: Config) -> dict[str, float]:
    """Advice by this CRF from the stored knowledge maps, DD-Net trained on both, and the scores of all three masks."""
    made = seeds.run(session, seeds.run(session.with_config(base)))
    scores = evaluate.score_refined(session, static.run(session, made))
    return scores.mean | {f"difference.{name}": value for name, value in scores.difference.items()}


def check(config: Config) -> None:
    """Refuse what cannot be swept."""
    if config.knowledge is not None:
        raise ConfigError("--knowledge: the CRF needs PSA's probabilities, which masks are not; leave it out")
    measured_on_train(config)


def measured_on_train(config: Config) -> None:
    """Refuse another list than the training's, whose masks are measured, and one that is reported."""
    if config.sweep.split not in (None, config.train_split):
        raise ConfigError(f"--sweep.split {config.sweep.split}: masks of the training list are measured; leave it out")
    not_reported(config, config.train_split)


def not_reported(config: Config, split: str) -> None:
    """Refuse to choose by the list whose scores are reported."""
    if split == config.split:
        raise ConfigError(f"--split {split}: is reported, so that no trial may be chosen by it")


def prepare(session: Session) -> None:
    """PSA's seeds of the training list, which must have true masks."""
    need_truth(session, session.config.train_split)
    seeds.run(session)


def measured(session: Session, split: str) -> Images:
    """The images on which trials are compared."""
    return images.run(session, split, need_labels=split == session.config.train_split)


def need_truth(session: Session, split: str) -> None:
    """Refuse an image list on which nothing can be measured."""
    found = measured(session, split)
    for part in range(len(found.table.parts)):
        if any(row["truth"] is not None for row in found.table.read(part, ["truth"])):
            return
    raise ConfigError(
        f"no image of the list {split} has a true mask, so that trials cannot be compared; put some masks into "
        "SegmentationClass/"
    )


def figure(outcome: Outcome) -> figures.Figure:
    """Fig. 6: raw knowledge, CRF alone, SSDD and CRF, over each parameter."""
    names = {
        "train.knowledge": "knowledge $m^{K0}$",
        "train.advice": "CRF, advice $m^{A0}$",
        "train.refined": "SSDD + CRF, $m^{D0}$",
    }
    return figures.trials([(t.point, t.metrics) for t in outcome.finished()], names)


KIND = Kind(
    "sweep_crf",
    ("crf.bilateral-weight=1,3,5,10,20",),
    ("crf.", "static."),
    METRICS,
    trial,
    check,
    prepare,
    figure,
)

"""The sweep of the CRF that makes advice (sec. 5.2, Fig. 6): its weights and widths against what SSDD makes of it."""

from ssdd import evaluate, figures, images, seeds, static
from ssdd.config import Config, ConfigError
from ssdd.session import Session
from ssdd.sweep import Kind, Outcome

METRICS = ("train.refined", "train.advice", "train.knowledge")


def trial(session: Session, base: Config) -> dict[str, float]:
    """Advice by this CRF from the stored knowledge maps, DD-Net trained on both, and the scores of all three masks."""
    made = seeds.with_crf(session, seeds.run(session.with_config(base)))
    scores = evaluate.score_refined(session, static.run(session, made))
    return scores.mean | {f"difference.{name}": value for name, value in scores.difference.items()}


def prepare(session: Session) -> None:
    """PSA's seeds of the training list, which must have true masks."""
    if session.config.knowledge is not None:
        raise ConfigError("--knowledge: the CRF needs PSA's probabilities, which masks are not; leave it out")
    need_truth(session, session.config.train_split)
    seeds.run(session)


def need_truth(session: Session, split: str) -> None:
    """Refuse an image list on which nothing can be measured."""
    found = images.run(session, split, need_labels=split == session.config.train_split)
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
    prepare,
    figure,
)

"""The sweep of the CRF that makes advice (sec. 5.2, Fig. 6): its weights and widths against what SSDD makes of it."""

from ssdd.config import Config, ConfigError
from ssdd.reports import figures
from ssdd.runtime.session import Session
from ssdd.stages import evaluate, seeds, static
from ssdd.sweeps import base
from ssdd.sweeps.base import Kind, Outcome

METRICS = ("train.refined", "train.advice", "train.knowledge")


def trial(session: Session, shared: Config) -> dict[str, float]:
    """Advice by this CRF from the stored knowledge maps, DD-Net trained on both, and the scores of all three masks."""
    made = seeds.run(session, seeds.run(session.with_config(shared)))
    scores = evaluate.score_refined(session, static.run(session, made))
    return scores.flat()


def check(config: Config) -> None:
    """Refuse what cannot be swept."""
    if config.knowledge is not None:
        raise ConfigError("--knowledge: the CRF needs PSA's probabilities, which masks are not; leave it out")
    base.measured_on_train(config)


def prepare(session: Session) -> None:
    """PSA's seeds of the training list, which must have true masks."""
    base.need_truth(session, session.config.train_split)
    seeds.run(session)


def figure(outcome: Outcome) -> figures.Figure:
    """Fig. 6: raw knowledge, CRF alone, SSDD and CRF, over each parameter."""
    names = {
        "train.knowledge": "knowledge $m^{K0}$",
        "train.advice": "CRF, advice $m^{A0}$",
        "train.refined": "SSDD + CRF, $m^{D0}$",
    }
    return figures.trials([(t.point, t.metrics) for t in outcome.finished()], names)


CRF_SWEEP = Kind(
    name="sweep_crf",
    space=("crf.bilateral-weight=1,3,5,10,20",),
    allowed=("crf.", "static."),
    metrics=METRICS,
    trial=trial,
    check=check,
    prepare=prepare,
    figure=figure,
)

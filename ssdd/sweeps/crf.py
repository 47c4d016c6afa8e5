"""The sweep of the CRF that makes advice (sec. 5.2, Fig. 6): how its weights and widths change advice and m^D0."""

from ssdd.config import Config, ConfigError
from ssdd.reports import figures
from ssdd.runtime.session import Session
from ssdd.stages import evaluate, seeds, static
from ssdd.sweeps import base
from ssdd.sweeps.base import Kind, Outcome

METRICS = ("train.refined", "train.advice", "train.knowledge")


def trial(session: Session, shared: Config) -> dict[str, float]:
    """Make advice with the trial's CRF from PSA's stored probabilities, train DD-Net, and score all three masks."""
    seed_masks = seeds.run(session, seeds.run(session.with_config(shared)))
    scores = evaluate.score_refined(session, static.run(session, seed_masks))
    return scores.flat()


def check(config: Config) -> None:
    """Raise ConfigError for a configuration that cannot be swept."""
    if config.knowledge is not None:
        raise ConfigError("--knowledge: this sweep's CRF needs PSA's probabilities, not masks; leave --knowledge out")
    base.measured_on_train(config)


def prepare(session: Session) -> None:
    """Make PSA's seed masks and store its probabilities. Raises ConfigError if the training list has no true masks."""
    base.need_truth(session, session.config.train_split)
    seeds.run(session)


def figure(outcome: Outcome) -> figures.Figure:
    """Plot Fig. 6: mean IoU of knowledge, of the CRF alone, and of SSDD with the CRF, over each varied field."""
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

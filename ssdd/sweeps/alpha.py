"""The sweep of the dynamic stage (sec. 4.2): alpha (eq. 14), biases, learning rate. Each trial is a training."""

from ssdd.config import Config, ConfigError
from ssdd.nets.inference import load_segmentation
from ssdd.reports import figures
from ssdd.runtime.session import Session
from ssdd.stages import dynamic, evaluate, knowledge, static
from ssdd.stages.validation import validation
from ssdd.sweeps.base import Kind, Outcome, measured, need_truth, not_reported
from ssdd.training import worker

IOU = f"dynamic.{worker.IOU}"


def split_of(config: Config) -> str:
    """The image list on which trials are measured."""
    return config.sweep.split or config.train_split


def trial(session: Session, shared: Config) -> dict[str, float]:
    """A dynamic training, scored after each epoch; for comparison, the network is then scored as the plain job does."""
    scored = measured(session, split_of(shared))
    refined = static.run(session, knowledge.run(session))
    validate = validation(shared, scored)
    net = dynamic.run(session, refined, validate)
    last = session.tracker.last(IOU)
    if last is None:  # the same training was there already
        last = validate.mean_iou(load_segmentation(shared.network, validate.classes, net.path))
        session.tracker.metrics({IOU: last})
    test = evaluate.open_split(session)
    if test is None:
        return {IOU: last}
    scores = evaluate.score_models(session, test, {"dynamic": net.path}, shared.network, scored.classes, shared.split)
    return {IOU: last, **scores.mean}


def check(config: Config) -> None:
    """Refuse what cannot be swept."""
    not_reported(config, split_of(config))
    for text in config.sweep.space:
        if text.startswith("dynamic.baseline"):
            raise ConfigError(f"--sweep.space {text}: baselines do not change SSDD's training; leave it out")
    if config.dynamic.weights:
        raise ConfigError("--dynamic.weights: a sweep trains the dynamic stage; leave them out")


def prepare(session: Session) -> None:
    """m^D0 of the training list."""
    need_truth(session, split_of(session.config))
    evaluate.open_split(session)
    static.run(session, knowledge.run(session))


def figure(outcome: Outcome) -> figures.Figure:
    """The networks' mean IoU over each parameter."""
    return figures.trials([(t.point, t.metrics) for t in outcome.trials if t.metrics], {IOU: "SSDD, no CRF"})


ALPHA_SWEEP = Kind(
    name="sweep_alpha",
    space=("dynamic.alpha=0.25,0.75", "dynamic.train.lr=0.002,0.004"),
    allowed=("dynamic.",),
    metrics=(IOU,),
    trial=trial,
    check=check,
    prepare=prepare,
    figure=figure,
    stops=True,
)

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
    """Train the dynamic stage; score it on `split_of(shared)` after each epoch, and on `shared.split` at the end."""
    scored = measured(session, split_of(shared))
    refined = static.run(session, knowledge.run(session))
    validate = validation(shared, scored)
    net = dynamic.run(session, refined, validate)
    last = session.tracker.last(IOU)
    if last is None:  # a cache hit: this process has logged no epochs
        last = validate.mean_iou(load_segmentation(shared.network, validate.classes, net.path))
        session.tracker.metrics({IOU: last})
    test = evaluate.open_split(session)
    if test is None:
        return {IOU: last}
    scores = evaluate.score_models(session, test, {"dynamic": net.path}, shared.network, scored.classes, shared.split)
    return {IOU: last, **scores.mean}


def check(config: Config) -> None:
    """Raise ConfigError for a configuration that cannot be swept."""
    not_reported(config, split_of(config))
    for text in config.sweep.space:
        if text.startswith("dynamic.baseline"):
            raise ConfigError(
                f"--sweep.space {text}: the baselines' fields do not change SSDD's training; leave this field out"
            )
    if config.dynamic.weights:
        raise ConfigError("--dynamic.weights: this sweep trains the dynamic stage itself; leave the weights out")


def prepare(session: Session) -> None:
    """Make m^D0 of the training list. Raises ConfigError if trials cannot be measured on the chosen list."""
    need_truth(session, split_of(session.config))
    evaluate.open_split(session)
    static.run(session, knowledge.run(session))


def figure(outcome: Outcome) -> figures.Figure:
    """Plot the networks' mean IoU over each field that the sweep varies."""
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

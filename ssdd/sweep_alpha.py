"""The sweep of the dynamic stage (sec. 4.2): alpha (eq. 14), biases, learning rate. Each trial is a training."""

from dataclasses import replace

from ssdd import dynamic, evaluate, figures, images, knowledge, static, training
from ssdd.config import Config, ConfigError
from ssdd.session import Session
from ssdd.sweep import Kind, Outcome
from ssdd.sweep_crf import need_truth

IOU = f"dynamic.{training.IOU}"


def split_of(config: Config) -> str:
    """The image list on which trials are measured."""
    return config.sweep.split or config.train_split


def trial(session: Session, base: Config) -> dict[str, float]:
    """A dynamic training, scored after each epoch; at its end the network is scored as the other jobs do it."""
    scored = images.run(session, split_of(base), need_labels=False)
    refined = static.run(session, knowledge.run(session))
    validate = dynamic.validation(base, scored)
    net = dynamic.run(session, refined, validate)
    last = validate.mean_iou(dynamic.load_segmentation(base.network, validate.classes, net.path))
    if not session.tracker.has_metric(IOU):  # the same training was there already
        session.tracker.metrics({IOU: last})
    with_split = session.with_config(replace(session.config, split=split_of(base)))
    classes = scored.classes
    scores = evaluate.score_models(with_split, scored, {"dynamic": net.path}, base.network, classes, split_of(base))
    return {IOU: last, **scores.mean}


def prepare(session: Session) -> None:
    """m^D0 of the training list."""
    config = session.config
    if split_of(config) == config.split:
        raise ConfigError(
            f"--split {config.split}: is reported, so that no trial may be chosen by it; see --sweep.split"
        )
    if config.dynamic.weights:
        raise ConfigError("--dynamic.weights: a sweep trains the dynamic stage; leave them out")
    need_truth(session, split_of(config))
    static.run(session, knowledge.run(session))


def figure(outcome: Outcome) -> figures.Figure:
    """The networks' mean IoU over each parameter."""
    return figures.trials([(t.point, t.metrics) for t in outcome.trials if t.metrics], {IOU: "SSDD, no CRF"})


KIND = Kind(
    "sweep_alpha",
    ("dynamic.alpha=0.25,0.75", "dynamic.train.lr=0.002,0.004"),
    ("dynamic.",),
    (IOU,),
    trial,
    prepare,
    figure,
    stops=True,
)

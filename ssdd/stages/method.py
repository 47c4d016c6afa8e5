"""The whole method: seed masks, static and dynamic refinement in one or more rounds; scores, also later (`rescore`)."""

from ssdd.config import ConfigError
from ssdd.fields import from_dict
from ssdd.nets import checkpoints
from ssdd.nets.checkpoints import Trained
from ssdd.reports.scores import Scores
from ssdd.runtime.session import Session, resolve
from ssdd.stages import (
    dynamic,
    evaluate,
    images,
    knowledge,
    log_model,
    report,
    static,
    training_images,
    weight_import,
)
from ssdd.stages.dynamic import Models
from ssdd.stages.seeds import Seeds
from ssdd.storage.paths import AnyPath


def run(session: Session) -> Scores:
    """Train the missing networks, score all of them, and write `metrics.json`, the pictures and `report.html`."""
    test = evaluate.open_split(session)  # first, so that its errors appear before any training
    weight_import.convert_all(session)
    seed_masks = knowledge.run(session)
    models, scores = _rounds(session, seed_masks)
    classes, split = seed_masks.images.classes, session.config.split
    trained = {"baseline": models.baseline, "dynamic": models.dynamic}
    scores |= training_images.run(session, models.refined, trained)
    if test is not None:
        folders = {name: model.path for name, model in trained.items()}
        scores |= evaluate.score_models(session, test, folders, session.config.network, classes, split)
    checkpoints.remember(session.workspace, session.config, classes, trained)
    report.write(session, scores, networks={name: model.path for name, model in trained.items()})
    log_model.run(session, models.dynamic, classes, scores)
    return scores


def _rounds(session: Session, seed_masks: Seeds) -> tuple[Models, Scores]:
    """Run the static and the dynamic stage; each further round repeats both on the dynamic network's masks."""
    config = session.config
    refined = static.run(session, seed_masks)
    scores = evaluate.score_refined(session, refined)
    models = Models(
        refined, dynamic.run(session, refined), dynamic.run_fixed(session, refined, session.config.dynamic.baseline)
    )
    earlier: dict[str, float] = {}
    for number in range(2, config.rounds + 1):
        earlier |= {f"round{number - 1}.{name}": value for name, value in scores.mean.items()}
        with session.child(config, f"round {number}", session.plan) as this_round:
            refined = static.run(this_round, dynamic.relabel(this_round, models))
            scores = evaluate.score_refined(this_round, refined)
            models = Models(refined, dynamic.run(this_round, refined), models.baseline)
    return models, Scores(earlier, {}) | scores


def rescore(session: Session, submission: AnyPath | None = None, train: bool = False) -> Scores:
    """Score the workspace's models on the configured data and split.

    On the training's own data and split, the scores go into `metrics.json`, which keeps earlier scores of the same
    networks. Otherwise they are written to `metrics-FOLDER-SPLIT.json`, the report to `report-FOLDER-SPLIT.html`, and
    the picture to `figures/predictions-FOLDER-SPLIT.png`.

    Args:
        session: cluster, workspace, tracking.
        submission: path of the archive to write for VOC's test server, with the masks `dynamic_crf`; None: no archive.
        train: train first if no training has finished in the workspace.

    Raises:
        ConfigError: no training has finished in the workspace, `train` is False, and `dynamic.weights` is empty.
    """
    config = session.config
    split = config.split
    if submission:
        submission = resolve(submission, default="results.tgz", flag="--submission")
        if submission.is_dir():
            raise ConfigError(f"--submission {submission}: is a folder; name a file in it, for example results.tgz")
    if train and not config.dynamic.weights and checkpoints.recall(session.workspace) is None:
        if submission:
            images.run(session, split, need_labels=False)  # reports missing images before any training
        scores = run(session)
        if not submission:
            return scores
    test = images.run(session, split, need_labels=False)
    if config.dynamic.weights:
        same_list, network, classes = False, config.network, test.classes
        models = {"dynamic": weight_import.dynamic(session, classes).path}
    else:
        trained = find_trained(session.workspace)
        training = from_dict(trained.config)
        same_list = (config.data, split) == (training.data, training.split)
        network, classes = training.network, trained.classes
        models = {name: session.workspace / folder for name, folder in trained.models.items()}
    name = split if same_list else f"{images.open_data(session).root.name}-{split}"
    scores = evaluate.score_models(session, test, models, network, classes, name, submission)
    if same_list:
        report.write(session, report.earlier_scores(session, models) | scores, networks=models)
    else:
        report.write(session, scores, name)
    return scores


def find_trained(workspace: AnyPath) -> Trained:
    """The workspace's last finished training. ConfigError if there is none, or if another version wrote it."""
    trained = checkpoints.recall(workspace)
    if trained is None:
        raise ConfigError(
            f"--workspace {workspace}: nothing was trained there, or not to the end: {checkpoints.TRAINED} is missing; "
            "check the path, or give --train to train there first"
        )
    return trained

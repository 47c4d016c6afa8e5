"""The whole method: seeds, static and dynamic refinement in one or more rounds, scores; and scoring it again later."""

from ssdd.config import ConfigError
from ssdd.fields import from_dict
from ssdd.nets import checkpoints
from ssdd.nets.checkpoints import Trained
from ssdd.reports.scores import Scores, read_scores
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
    """Everything: trains what is missing, then scores it; writes `metrics.json`, the pictures and `report.html`."""
    test = evaluate.open_split(session)  # first, so that what is wrong with it shows before anything is trained
    weight_import.convert_all(session)
    made = knowledge.run(session)
    models, scores = _rounds(session, made)
    classes, split = made.images.classes, session.config.split
    trained = {"baseline": models.baseline, "dynamic": models.dynamic}
    scores |= training_images.run(session, models.refined, trained)
    if test is not None:
        folders = {name: model.path for name, model in trained.items()}
        scores |= evaluate.score_models(session, test, folders, session.config.network, classes, split)
    checkpoints.remember(session.workspace, images.located(session.config), classes, trained)
    report.write(session, scores)
    log_model.run(session, scores)
    return scores


def _rounds(session: Session, made: Seeds) -> tuple[Models, Scores]:
    """The static and the dynamic stage, again on the dynamic network's own masks for each further round."""
    config = session.config
    refined = static.run(session, made)
    scores = evaluate.score_refined(session, refined)
    models = Models(
        refined, dynamic.run(session, refined), dynamic.run_fixed(session, refined, session.config.dynamic.baseline)
    )
    earlier: dict[str, float] = {}
    for number in range(2, config.rounds + 1):
        earlier |= {f"round{number - 1}.{name}": value for name, value in scores.mean.items()}
        with session.child(config, f"round {number}", session.plan) as own:
            refined = static.run(own, dynamic.relabel(own, models))
            scores = evaluate.score_refined(own, refined)
            models = Models(refined, dynamic.run(own, refined), models.baseline)
    return models, Scores(earlier, {}) | scores


def rescore(session: Session, submission: AnyPath | None = None, train: bool = False) -> Scores:
    """Score the workspace's models on the configured data and split.

    Scores of the training's own data and split replace those in `metrics.json`; others are written to
    `metrics-FOLDER-SPLIT.json`, their report to `report-FOLDER-SPLIT.html`, and their picture to
    `predictions-FOLDER-SPLIT.png`.

    Args:
        session: cluster, workspace, tracking.
        submission: the archive for VOC's test server to write, of `dynamic_crf`.
        train: first train where nothing was trained there.

    Raises:
        ConfigError: nothing was trained there, and `dynamic.weights` names no published files.
    """
    config = session.config
    split = config.split
    if submission:
        submission = resolve(submission, default="results.tgz", flag="--submission")
        if submission.is_dir():
            raise ConfigError(f"--submission {submission}: is a folder; name a file in it, results.tgz say")
    if train and not config.dynamic.weights and checkpoints.recall(session.workspace) is None:
        if submission:
            images.run(session, split, need_labels=False)  # missing images are to show before anything is trained
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
        same_list = (images.data_path(config), split) == (training.data, training.split)
        network, classes = training.network, trained.classes
        models = {name: session.workspace / folder for name, folder in trained.models.items()}
    name = split if same_list else f"{images.open_data(session).root.name}-{split}"
    scores = evaluate.score_models(session, test, models, network, classes, name, submission)
    if same_list:
        path = report.metrics_path(session)
        report.write(session, (read_scores(path) if path.exists() else Scores({}, {})) | scores)
    else:
        report.write(session, scores, name)
    return scores


def find_trained(workspace: AnyPath) -> Trained:
    """What the workspace has trained last. ConfigError where there is nothing, or of another version."""
    trained = checkpoints.recall(workspace)
    if trained is None:
        raise ConfigError(
            f"--workspace {workspace}: nothing was trained there to its end ({checkpoints.TRAINED} is missing); check "
            "the path, or give --train to train there first"
        )
    return trained

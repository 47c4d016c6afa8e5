"""Log a job's trained network to MLflow, as a model."""

import hashlib
import json
import tempfile
from pathlib import Path

from ssdd import segmenter
from ssdd.nets import checkpoints
from ssdd.reports.scores import Scores
from ssdd.runtime import mlflow_model
from ssdd.runtime.session import Session
from ssdd.storage.artifacts import Artifact


def run(session: Session, model: Artifact, classes: tuple[str, ...], scores: Scores) -> None:
    """Log SSDD's network (see `mlflow_model`), and register it if `Config.register` gives a name.

    Args:
        session: cluster, workspace, tracking.
        model: the network's artifact.
        classes: class names, background first.
        scores: the job's scores, of which those of SSDD's network are logged with the model.
    """
    network_scores = {name: value for name, value in scores.mean.items() if name.split(".")[-1].startswith("dynamic")}
    network = segmenter.of_artifact(model.path, checkpoints.portable(session.config), classes)
    settings = json.dumps(segmenter.test_time(network.config), sort_keys=True)
    identity = f"{network.identity}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        mlflow_model.save(network, folder, network_scores)
        if session.tracker.model(folder, identity, network_scores, session.config.register):
            name = session.config.register
            session.console.line("model logged to MLflow" + (f" as {name}" if name else ""))

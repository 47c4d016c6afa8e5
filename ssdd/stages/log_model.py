"""Log a job's trained network to MLflow, as a model."""

import tempfile
from pathlib import Path

from ssdd import segmenter
from ssdd.reports.scores import Scores
from ssdd.runtime import mlflow_model
from ssdd.runtime.session import Session


def run(session: Session, scores: Scores) -> None:
    """Log the workspace's last network (see `mlflow_model`), and register it if `Config.register` gives a name.

    Args:
        session: cluster, workspace, tracking.
        scores: the job's scores, of which those of SSDD's network are logged with the model.
    """
    network_scores = {name: value for name, value in scores.mean.items() if name.split(".")[-1].startswith("dynamic")}
    with tempfile.TemporaryDirectory() as folder:
        model, network = Path(folder, "model"), segmenter.load(session.workspace)
        mlflow_model.save(network, model, network_scores)
        session.tracker.model(model, network.identity, network_scores, session.config.register)
    session.console.line("model logged to MLflow" + (f" as {name}" if (name := session.config.register) else ""))

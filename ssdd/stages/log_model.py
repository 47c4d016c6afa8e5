"""The network that a job has trained, as a model in MLflow."""

import tempfile
from pathlib import Path

from ssdd import segmenter
from ssdd.reports.scores import Scores
from ssdd.runtime import mlflow_model
from ssdd.runtime.session import Session


def run(session: Session, scores: Scores) -> None:
    """Log the workspace's last network, see `mlflow_model`, and register it where `register` names it.

    Args:
        session: cluster, workspace, tracking.
        scores: of the job; those of the SSDD network are noted with the model.
    """
    of_network = {name: value for name, value in scores.mean.items() if name.split(".")[-1].startswith("dynamic")}
    with tempfile.TemporaryDirectory() as folder:
        model, network = Path(folder, "model"), segmenter.load(session.workspace)
        mlflow_model.save(network, model, of_network)
        session.tracker.model(model, network.identity, of_network, session.config.register)
    session.console.line("model logged to MLflow" + (f" as {name}" if (name := session.config.register) else ""))

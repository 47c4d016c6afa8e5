"""MLflow: one run for each job, with its configuration, metrics over time, and pictures. Used by the driver alone."""

import logging
import os
from pathlib import Path
from typing import Any

from ssdd.config import Config, flatten, to_dict


class Tracker:
    """The MLflow run of one job. The store is MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""

    def __init__(self, config: Config, job: str, workspace: Path):
        import mlflow  # takes seconds, and only the driver needs it

        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.mlflow = mlflow
        experiment = f"ssdd-{config.preset}"
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{workspace / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(experiment) is None:
                mlflow.create_experiment(experiment, artifact_location=(workspace / "mlartifacts").as_uri())
        mlflow.set_experiment(experiment)
        self.run = mlflow.start_run(run_name=job, tags={"job": job, "preset": config.preset})
        parameters = flatten(to_dict(config))
        mlflow.log_params({name: value for name, value in parameters.items() if value is not None})
        mlflow.log_dict(to_dict(config), "config.json")

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.mlflow.log_metrics(values, step=step)

    def figure(self, figure: Any, name: str) -> None:
        self.mlflow.log_figure(figure, f"{name}.png")

    def close(self, failed: bool) -> None:
        self.mlflow.end_run("FAILED" if failed else "FINISHED")

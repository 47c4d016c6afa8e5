"""MLflow: one run for each job, with its configuration, metrics over time, and pictures. Used by the driver alone."""

import copy
import logging
import os
import time
from pathlib import Path
from typing import Any

from ssdd.config import Config, flatten, to_dict


class Tracker:
    """The MLflow run of one job. The store is MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""

    def __init__(self, config: Config, job: str, workspace: Path):
        import mlflow  # takes seconds, and only the driver needs it
        from mlflow.entities import Metric
        from mlflow.tracking.context import registry

        self._metric = Metric
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        experiment = f"ssdd-{config.preset}"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        # A client and a run id rather than mlflow's global store and active run, which belongs to one thread.
        self.client = mlflow.MlflowClient(server or f"sqlite:///{workspace / 'mlflow.db'}")
        artifacts = None if server else (workspace / "mlartifacts").as_uri()
        found = self.client.get_experiment_by_name(experiment)
        self.experiment_id = found.experiment_id if found else self.client.create_experiment(experiment, artifacts)
        self._start(config, job, {**registry.resolve_tags(), "job": job})

    def child(self, config: Config, name: str) -> "Tracker":
        """A run below this one, as MLflow's UI nests them."""
        other = copy.copy(self)
        other._start(config, name, {"mlflow.parentRunId": self.run_id})
        return other

    def _start(self, config: Config, name: str, tags: dict[str, str]) -> None:
        from mlflow.entities import Param

        tags = {**tags, "preset": config.preset}
        self.run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        params = [Param(k, str(v)) for k, v in flatten(to_dict(config)).items() if v is not None]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self.client.log_dict(self.run_id, to_dict(config), "config.json")

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [self._metric(name, value, now, step) for name, value in values.items()])

    def figure(self, figure: Any, name: str) -> None:
        self.client.log_figure(self.run_id, figure, f"{name}.png")

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

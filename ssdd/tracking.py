"""MLflow: one run for each job and one below it for each of its parts, with configuration, metrics over time, pictures.

Used by the driver, and in a sweep by the process of each trial.
"""

import copy
import logging
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from ssdd.config import Config, flatten, to_dict


class Tracker:
    """The MLflow run of one job. The store is MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""

    def __init__(self, config: Config, job: str, workspace: Path):
        from mlflow.tracking.context import registry  # takes seconds, and few processes need it

        experiment = f"ssdd-{config.preset}"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = server or f"sqlite:///{workspace / 'mlflow.db'}"
        artifacts = None if server else (workspace / "mlartifacts").as_uri()
        found = self.client.get_experiment_by_name(experiment)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else the UI takes it for one of prompts
        self.experiment_id = (
            found.experiment_id if found else self.client.create_experiment(experiment, artifacts, tags=kind)
        )
        self.run_id = ""
        self.tags = {**registry.resolve_tags(), "job": job}
        self._start(config, job)

    @cached_property
    def client(self) -> Any:
        # A client and a run id rather than mlflow's global store and active run, which belongs to one thread.
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "client"}

    def child(self, config: Config, name: str) -> "Tracker":
        """A run below this one, as MLflow's UI nests them."""
        other = copy.copy(self)
        other.tags = self.tags | {"mlflow.parentRunId": self.run_id}
        other._start(config, name)
        return other

    def resume(self, run_id: str) -> bool:
        """Go on with an earlier run instead of this one; False if it is not there any more."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, "RUNNING")
        except MlflowException:
            return False
        self.client.delete_run(self.run_id)
        self.run_id = run_id
        return True

    def end_children(self) -> None:
        """Mark the runs below this one that never ended: their processes were stopped."""
        parts = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], parts):
            self.client.set_terminated(run.info.run_id, "KILLED")

    def _start(self, config: Config, name: str) -> None:
        from mlflow.entities import Param

        data = config.data.name if config.data else "embedded"
        tags = {**self.tags, "preset": config.preset, "data": data}
        self.run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        params = [Param(k, str(v)) for k, v in flatten(to_dict(config)).items() if v is not None]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self.client.log_dict(self.run_id, to_dict(config), "config.json")

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in values.items()])

    def last(self, name: str) -> float | None:
        """The last value of a metric of this run; None if it has none."""
        return self.client.get_run(self.run_id).data.metrics.get(name)

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.run_id, name, value)

    def file(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def figure(self, figure: Any, name: str) -> None:
        self.client.log_figure(self.run_id, figure, f"{name}.png")

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

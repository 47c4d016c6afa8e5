"""MLflow tracking: a run for each job and nested runs for its parts, with configuration, metrics and pictures.

The driver uses this module and, in a sweep, so does the process of each trial. If the MLflow server stops answering,
the job goes on: the calls that failed are kept in the workspace, in order, and sent when the server answers again.
"""

import contextlib
import copy
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ssdd.config import Config, ConfigError
from ssdd.fields import flatten, to_dict
from ssdd.runtime import environment
from ssdd.runtime.outbox import Outbox
from ssdd.storage.paths import AnyPath, disk_beside, on_disk

UNSENT = "unsent"
RETRY_AFTER = 60.0  # seconds
_log = logging.getLogger(__name__)
# Error codes of a call that is wrong, and of one whose object no longer exists. Other codes may be temporary.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED")
_GONE = ("RESOURCE_DOES_NOT_EXIST",)


class TrackingError(RuntimeError):
    """MLflow's store cannot be used; the message says which one and why."""


class Tracker:
    """The MLflow run of one job. The store is MLFLOW_TRACKING_URI or, if that is unset, a SQLite file in the workspace.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is unset, and the workspace cannot hold a SQLite file.
        TrackingError: the store does not answer or refuses a new run, or the experiment was deleted.
    """

    run_id: str
    outbox: Outbox
    lock: threading.Lock  # another thread sends metrics
    refused: set[str]
    """The calls that MLflow has refused; each gives one warning."""
    silent: bool
    """Whether MLflow has refused this run of a part of the job, so that nothing of the part is sent."""
    tried: float

    def __init__(self, config: Config, job: str, workspace: AnyPath):
        from mlflow.tracking.context import registry  # this import takes seconds, and few processes need it

        environment.set_defaults()
        disk = disk_beside(workspace)
        self.workspace = workspace
        experiment = f"ssdd-{config.preset}"
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server and disk != workspace:
            raise ConfigError(
                f"--workspace {workspace}: an object store cannot hold MLflow's database; start a server "
                "(`mlflow server`) and name it in MLFLOW_TRACKING_URI"
            )
        self.uri = server or sqlite_uri(disk / "mlflow.db")
        artifacts = None if server else (disk / "mlartifacts").as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # otherwise MLflow's UI guesses the kind or asks
        try:
            existing = self.client.get_experiment_by_name(experiment)
            self.experiment_id = (
                existing.experiment_id if existing else self.client.create_experiment(experiment, artifacts, tags=kind)
            )
        except Exception as error:  # from MLflow, SQLAlchemy, the database's driver or the network
            another = "name another in" if disk != workspace else "use a file in the workspace: unset"
            remedy = _remedy(error, self.uri) or (
                f"start it, or {another} MLFLOW_TRACKING_URI" if server else "check the permissions of its file"
            )
            text = f"MLflow's store {self.uri} cannot be used ({_reason(error)}); {remedy}"
            raise TrackingError(_without_password(text)) from error
        if existing and existing.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow's store {_without_password(self.uri)}: the experiment {experiment} is deleted; bring it back "
                f"with `mlflow experiments restore --experiment-id {existing.experiment_id}` (with MLFLOW_TRACKING_URI "
                f"set to {_without_password(self.uri)}), or remove it for good with `mlflow gc`"
            )
        self.tags = {**registry.resolve_tags(), "job": job}
        for folder in sorted(path for path in self.unsent.glob("*") if path.is_dir()):
            earlier = copy.copy(self)
            earlier.outbox = Outbox(folder)
            if earlier.outbox.take():
                if earlier.outbox.store() == _without_password(self.uri) and earlier.deliver():
                    _log.warning(f"sent to MLflow the calls that an earlier job kept in {folder}")
                earlier.outbox.release()
        self._start(config, job)

    @property
    def unsent(self) -> Path:  # not in __init__, because a tracker can be sent to another machine
        return disk_beside(self.workspace) / UNSENT

    @cached_property
    def client(self) -> Any:
        # Not mlflow's global store and active run: an active run belongs to one thread.
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("client", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.lock = threading.Lock()

    def child(self, config: Config, name: str) -> "Tracker":
        """A tracker with a new run, which MLflow's UI shows nested below this one."""
        other = copy.copy(self)
        other.tags = self.tags | {"mlflow.parentRunId": self.run_id}
        other._start(config, name)
        return other

    def resume(self, run_id: str) -> bool:
        """Continue an earlier run and delete this one; False if the earlier run never began, or was deleted."""
        from mlflow.exceptions import MlflowException

        if not run_id:
            return False
        try:
            if self.client.get_run(run_id).info.lifecycle_stage != "active":
                return False
            self.client.update_run(run_id, "RUNNING")
        except MlflowException as error:
            if error.error_code in _GONE:
                return False
            raise TrackingError(f"MLflow's store {_without_password(self.uri)}: {_reason(error)}") from error
        if self.outbox.has_calls():
            self.deliver()
        self._do("delete")
        self.run_id = run_id
        return True

    def end_children(self) -> None:
        """Mark nested runs that never ended as killed: their processes were stopped."""
        self._do("end_children")

    def _start(self, config: Config, name: str) -> None:
        data = config.data.name if config.data else "embedded"
        tags = {**self.tags, "preset": config.preset, "data": data}
        self.run_id = ""
        self.refused, self.silent = set(), False
        self.tried = 0.0
        self.lock = threading.Lock()
        self.outbox = Outbox(self.unsent / uuid.uuid4().hex[:12])
        self._do("start", name, tags, int(time.time() * 1000))
        self._do("config", to_dict(config))

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log metrics; characters that MLflow does not allow in a name become `_`."""
        self._do("metrics", _allowed(values), step, int(time.time() * 1000))

    def last(self, name: str) -> float | None:
        """The last value of a metric of this run; None if there is none, or if some calls are not yet sent."""
        from mlflow.exceptions import MlflowException

        if self.outbox.has_calls():
            return None
        try:
            return self.client.get_run(self.run_id).data.metrics.get(name)
        except MlflowException:
            return None

    def tag(self, name: str, value: str) -> None:
        self._do("tag", name, value)

    def file(self, path: AnyPath) -> None:
        with on_disk(path) as file:
            self._do("file", str(file))

    def figure(self, figure: Any, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.png")
            figure.savefig(path)
            self._do("file", str(path))

    def model(self, folder: Path, network: str, scores: dict[str, float], register: str | None = None) -> bool:
        """Log the model of this run. A network is uploaded only once: later runs of the network refer to that model.

        Returns True if MLflow has the model now; False if the call was dropped, or kept and perhaps sent later.

        Args:
            folder: a model folder that MLflow saved.
            network: identifies the network and its settings within the experiment.
            scores: metrics of the model.
            register: if given, also make the model the newest version of the registered model with this name.
        """
        return self._do("model", str(folder), network, _allowed(scores), register, int(time.time() * 1000))

    def close(self, failed: bool) -> None:
        self.tried = -RETRY_AFTER
        self._do("close", "FAILED" if failed else "FINISHED")
        self.outbox.release()
        if self.outbox.has_calls():
            _log.warning(f"some calls did not reach MLflow; the next job in this workspace sends {self.outbox.folder}")

    def _do(self, call: str, *args: Any) -> bool:
        """Send a call now, or keep it if MLflow does not answer or earlier calls are unsent.

        Returns False also for a call that was kept and then delivered with the others, because MLflow may refuse some.
        """
        from mlflow.exceptions import MlflowException

        with self.lock:
            if self.silent:
                return False
            if not self.outbox.has_calls():
                try:
                    self.send(call, *args)
                    return True
                except (MlflowException, OSError) as error:
                    reason = _reason(error)
                    if getattr(error, "error_code", None) in _REFUSALS or _is_refusal(error):
                        if call == "start" and "mlflow.parentRunId" not in args[1]:
                            raise TrackingError(
                                f"MLflow's store {_without_password(self.uri)} refuses a new run ({reason}); get the "
                                "right to write there, or name another store in MLFLOW_TRACKING_URI"
                            ) from error
                        self.silent = call == "start"
                        if call not in self.refused:
                            _log.warning(f"MLflow refuses the call {call!r} ({reason}); it is dropped")
                        self.refused.add(call)
                        return False
                    _log.warning(f"MLflow does not answer ({reason}); unsent calls are kept in {self.outbox.folder}")
                    self.tried = time.monotonic()
            self.outbox.keep(call, args, self._where())
            if time.monotonic() - self.tried > RETRY_AFTER:
                self.deliver()
            return False

    def _where(self) -> list[str]:
        return [_without_password(self.uri), self.experiment_id, self.run_id]

    def deliver(self) -> bool:
        """Send the kept calls in order; False if some could not be sent yet."""
        from mlflow.exceptions import MlflowException

        self.tried = time.monotonic()
        (_, self.experiment_id, self.run_id), calls = self.outbox.read()
        for k, (call, args) in enumerate(calls):
            try:
                self.send(call, *args)
            except (MlflowException, OSError) as error:
                if getattr(error, "error_code", None) in (*_REFUSALS, *_GONE) or (
                    isinstance(error, FileNotFoundError) or _is_refusal(error)
                ):
                    _log.warning(f"the kept call {call!r} cannot be sent to MLflow ({_reason(error)}); it is dropped")
                    continue
                self.outbox.rewrite(self._where(), calls[k:])
                return False
        self.outbox.clear()
        return True

    def send(self, call: str, *args: Any) -> None:
        """Send one call to MLflow; its arguments are JSON data."""
        from mlflow.entities import Metric, Param

        client = self.client
        match call, args:
            case "start", (name, tags, began):
                self.run_id = client.create_run(self.experiment_id, began, tags, name).info.run_id
            case "config", (config,):
                params = [Param(k, str(v)) for k, v in flatten(config).items() if v is not None]
                for first in range(0, len(params), 100):  # a server accepts at most 100 at once
                    client.log_batch(self.run_id, params=params[first : first + 100])
                client.log_dict(self.run_id, config, "config.json")
            case "metrics", (values, step, now):
                client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in values.items()])
            case "tag", (name, value):
                client.set_tag(self.run_id, name, value)
            case "file", (path,):
                client.log_artifact(self.run_id, path)
            case "model", (folder, network, scores, register, now):
                self._send_model(folder, network, scores, register, now)
            case "delete", ():
                client.delete_run(self.run_id)
            case "close", (status,):
                client.set_terminated(self.run_id, status)
            case "end_children", ():
                parts = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
                for run in client.search_runs([self.experiment_id], parts):
                    client.set_terminated(run.info.run_id, "KILLED")

    def _send_model(self, folder: str, network: str, scores: dict[str, float], register: str | None, now: int) -> None:
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        client, run_id = self.client, self.run_id
        try:
            same = client.search_logged_models([self.experiment_id], f"tags.network = '{network}'")
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            reason = f"the server {_without_password(self.uri)} is older than 3.0 and cannot store models"
            raise MlflowException.invalid_parameter_value(reason) from error
        ready = [model for model in same if str(model.status) == "READY"]
        model = ready[0] if ready else self._upload_model(folder, network, scores, now)
        outputs = client.get_run(run_id).outputs
        if outputs is None or all(output.model_id != model.model_id for output in outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        if register is None:
            return
        try:
            client.create_registered_model(register)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if all(v.source != model.artifact_location for v in client.search_model_versions(f"name = '{register}'")):
            # Not the URI `models:/ID`, which MLflow would look up in the process's global store.
            client.create_model_version(register, model.artifact_location, run_id, model_id=model.model_id)

    def _upload_model(self, folder: str, network: str, scores: dict[str, float], now: int) -> Any:
        """Upload a new model to the experiment; its status is READY only after all its files have arrived."""
        from mlflow.entities import Metric

        client, run_id = self.client, self.run_id
        model = client.create_logged_model(self.experiment_id, "segmentation", run_id, tags={"network": network})
        try:
            client.log_model_artifacts(model.model_id, folder)
            metrics = [Metric(k, value, now, 0, model_id=model.model_id, run_id=run_id) for k, value in scores.items()]
            client.log_batch(run_id, metrics)
            return client.finalize_logged_model(model.model_id, "READY")
        except Exception:  # the call is retried later or dropped; delete the incomplete model
            with contextlib.suppress(Exception):
                client.delete_logged_model(model.model_id)
            raise


def _allowed(values: dict[str, float]) -> dict[str, float]:
    """Metrics under names that MLflow allows."""
    return {re.sub(r"[^\w./: -]", "_", name): value for name, value in values.items()}


def _is_refusal(error: Exception) -> bool:
    """Whether a server or a proxy rejects a call by its HTTP status, for example because the data are too large."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return 400 <= status < 500 and status not in (408, 429)


def _reason(error: Exception) -> str:
    return _without_password((str(error) or repr(error)).splitlines()[0])


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file for MLflow; ConfigError if SQLAlchemy cannot represent the path.

    SQLAlchemy before 2.1 expects the path as it is, later versions expect it percent-encoded. For an address that
    begins with `sqlite:///`, MLflow would create a folder with the encoded name. So a path that the encoding changes
    gets an address with `sqlite+pysqlite:///`, for which MLflow creates no folder.
    """
    from sqlalchemy import make_url

    if quote(str(path)) == str(path):
        return f"sqlite:///{path}"
    for spelled in (str(path), quote(str(path))):
        uri = f"sqlite+pysqlite:///{spelled}"
        if make_url(uri).database == str(path) and not make_url(uri).query:
            return uri
    raise ConfigError(
        f"--workspace {path.parent}: MLflow's database cannot be in a folder with `?` in its name; rename the folder"
    )


def _remedy(error: Exception, uri: str) -> str | None:
    """What the user can do about an error of MLflow's store; None if the error is not a known one."""
    text = str(error)
    if "Invalid Host header" in text:
        return "start it with --allowed-hosts NAME:*, where NAME is the host's name in this address"
    if "error code 401" in text or "error code 403" in text:
        return "log in: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if "database is locked" in text:
        return "close the other program that writes to it (a job, `mlflow server`, a database browser)"
    if "out-of-date database schema" in text:
        return (
            f"another version of MLflow wrote this database: copy it and run `mlflow db upgrade {uri}`, or install "
            "that version"
        )
    if "file is not a database" in text or "disk image is malformed" in text:
        return "its file is damaged: restore a copy, or move the file away to begin a new one"
    if "disk is full" in text:
        return "free some space on its disk"
    if isinstance(error, ImportError):
        packages = {"MySQLdb": "mysqlclient", "psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}
        return f"install the database's driver (pip install '{packages.get(error.name or '', error.name)}')"
    return None


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@ ]*@", "//", text)

"""One MLflow run for a job, also when its metrics come from another thread."""

import contextlib
import pickle
import re
import shutil
import sqlite3
import sys
import threading
from pathlib import Path

import matplotlib.figure
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from ssdd.presets import mini
from ssdd.runtime import tracking
from ssdd.runtime.tracking import Tracker, TrackingError
from ssdd.storage.paths import to_path


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow's tables without a run: they take seconds to make."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(params=["workspace", "MLFLOW_TRACKING_URI"])
def tracker(request, tmp_path, monkeypatch, empty_database):
    monkeypatch.chdir(tmp_path)  # where mlflow puts artifacts of a store that says nothing else
    if request.param == "workspace":
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(empty_database, tmp_path / "mlflow.db")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        shutil.copy(empty_database, tmp_path / "other.db")
    made = Tracker(mini(), "static", tmp_path)
    assert (tmp_path / "mlflow.db").exists() == (request.param == "workspace")
    return made


def test_everything_is_in_one_run(tracker):
    threads = [threading.Thread(target=tracker.metrics, args=({"static.lr": 0.1 * i}, i)) for i in (1, 2)]
    for thread in threads:
        thread.start()
        thread.join()
    tracker.metrics({"train.refined": 50.0, "train+val (2).dynamic": 40.0})
    tracker.figure(matplotlib.figure.Figure(), "refinement")
    tracker.close(failed=False)

    client = tracker.client
    (experiment,) = [e for e in client.search_experiments() if e.name == "ssdd-mini"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["job"] == "static"
    assert run.data.metrics == {"static.lr": 0.2, "train.refined": 50.0, "train_val _2_.dynamic": 40.0}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "static.lr")] == [1, 2]
    assert run.data.params["dynamic.alpha"] == "0.5"
    assert {"config.json", "refinement.png"} == {a.path for a in client.list_artifacts(run.info.run_id)}
    assert Path(experiment.artifact_location.removeprefix("file://")).name


@pytest.mark.parametrize("name", ["a b", "50%", "what?", "a%20 ?#b"])
def test_any_name_of_a_workspace(tmp_path, monkeypatch, empty_database, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = tmp_path / "outer" / name
    workspace.mkdir(parents=True)
    if name != "a%20 ?#b":  # which is begun anew
        shutil.copy(empty_database, workspace / "mlflow.db")
    made = Tracker(mini(), "static", workspace)
    made.metrics({"train.refined": 50.0})
    made.figure(matplotlib.figure.Figure(), "refinement")
    made.close(failed=False)
    assert [path.name for path in (tmp_path / "outer").iterdir()] == [name], "nothing beside it"
    assert {"mlflow.db", "mlartifacts"} <= {path.name for path in workspace.iterdir()}
    assert list(workspace.glob("mlartifacts/*/artifacts/refinement.png"))


def damage(path, kind):
    """Make a database unusable in one of several ways."""
    if kind == "garbage":
        path.write_bytes(b"no database" * 1000)
    elif kind == "malformed":
        data = bytearray(path.read_bytes())
        data[5000:200000] = b"x" * 195000
        path.write_bytes(data)
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("update alembic_version set version_num = '451aebb31d03'")
            connection.commit()


def test_a_locked_database_waits_for_the_other_program(tmp_path):
    """MLflow itself would wait for 5 seconds."""
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as first:
        first.execute("begin exclusive")
        second = sqlite3.connect(tmp_path / "x.db", timeout=0)
        with contextlib.closing(second), pytest.raises(sqlite3.OperationalError) as error:
            second.execute("create table a (b)")
    assert "close the other program" in tracking._remedy(error.value, "sqlite:///x.db")
    assert tracking._remedy(ValueError("something else"), "sqlite:///x.db") is None


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("garbage", "its file is damaged: restore a copy, or move the file away"),
        ("malformed", "its file is damaged"),
        ("old", "copy it and run `mlflow db upgrade sqlite:"),
    ],
)
def test_an_unusable_database_is_named_with_what_helps(tmp_path, monkeypatch, empty_database, kind, hint):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path)
    damage(tmp_path / "mlflow.db", kind)
    with pytest.raises(TrackingError, match=re.escape(hint)) as error:
        Tracker(mini(), "static", tmp_path)
    assert f"{tmp_path}/mlflow.db" in str(error.value)
    assert "delete" not in str(error.value), "all runs would be lost"


def test_a_deleted_experiment_is_brought_back(tracker, tmp_path):
    tracker.client.delete_experiment(tracker.experiment_id)
    match = (
        rf"ssdd-mini is deleted; bring it back with `mlflow experiments restore --experiment-id {tracker.experiment_id}"
    )
    with pytest.raises(TrackingError, match=match):
        Tracker(mini(), "static", tmp_path)


@pytest.mark.parametrize("uri", ["mysql+nosuchdriver://me:secret@127.0.0.1/x", "foo://x"])
def test_a_store_that_cannot_be_used_is_named(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="cannot be used") as error:
        Tracker(mini(), "static", tmp_path)
    assert "secret" not in str(error.value)


def test_a_driver_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://me:secret@127.0.0.1/x")
    with pytest.raises(TrackingError, match=r"install the database's driver \(pip install 'pymysql'\)"):
        Tracker(mini(), "static", tmp_path)


def test_a_failed_job_is_marked(tracker):
    tracker.close(failed=True)
    assert tracker.client.get_run(tracker.run_id).info.status == "FAILED"


def test_a_tracker_that_is_sent_keeps_what_is_unsent_in_the_home_of_its_machine(bucket, tracking, monkeypatch):
    made = pickle.dumps(Tracker(mini(), "static", to_path(f"{bucket}/w")))
    monkeypatch.setenv("HOME", "/home/of/a/node")
    assert str(pickle.loads(made).unsent).startswith("/home/of/a/node/.cache/ssdd/")


def test_a_server_that_is_not_there_ends_the_job_at_once_and_no_password_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    advice = {
        tmp_path: "use a file in the workspace: unset MLFLOW_TRACKING_URI",
        to_path("s3://b/w"): "name another in",
    }
    for workspace, remedy in advice.items():
        match = rf"http://127\.0\.0\.1:9 cannot be used .*; start it, or {remedy}"
        with pytest.raises(TrackingError, match=match) as error:
            Tracker(mini(), "static", workspace)
        assert "secret" not in str(error.value)


def test_a_run_that_was_deleted_in_the_ui_does_not_end_the_job_and_is_not_resumed(tracker, caplog):
    earlier = tracker.run_id
    tracker.client.delete_run(earlier)
    tracker.metrics({"train.refined": 50.0})
    tracker.metrics({"train.refined": 51.0})
    tracker.close(failed=False)
    assert caplog.text.count("MLflow refuses the call 'metrics'") == 1
    later = tracker.child(mini(), "later")
    assert not later.resume(earlier)
    assert not later.resume("")
    assert not later.resume("0" * 32)
    assert later.run_id not in (earlier, "")


def test_a_store_that_lets_nobody_write_ends_the_job_at_once(tracker, monkeypatch, caplog):
    def refused(*args):
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "create_run", refused)
    part = tracker.child(mini(), "part")
    part.metrics({"train.refined": 50.0})
    part.close(failed=False)
    assert caplog.text.count("MLflow refuses the call") == 1, "a part of a job goes on"
    assert not part.outbox.has_calls()
    with pytest.raises(TrackingError, match=r"refuses a new run \(.*Permission denied\); get the right to write there"):
        Tracker(mini(), "another", tracker.workspace)

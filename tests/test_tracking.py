"""One MLflow run for a job, also when its metrics come from another thread."""

import pickle
import threading
from pathlib import Path

import matplotlib.figure
import pytest

from ssdd.presets import mini
from ssdd.runtime.tracking import Tracker, TrackingError
from ssdd.storage.paths import to_path


@pytest.fixture(params=["workspace", "MLFLOW_TRACKING_URI"])
def tracker(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where mlflow puts artifacts of a store that says nothing else
    if request.param == "workspace":
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    made = Tracker(mini(), "static", tmp_path)
    assert (tmp_path / "mlflow.db").exists() == (request.param == "workspace")
    return made


def test_everything_is_in_one_run(tracker):
    threads = [threading.Thread(target=tracker.metrics, args=({"static.lr": 0.1 * i}, i)) for i in (1, 2)]
    for thread in threads:
        thread.start()
        thread.join()
    tracker.metrics({"train.refined": 50.0})
    tracker.figure(matplotlib.figure.Figure(), "refinement")
    tracker.close(failed=False)

    client = tracker.client
    (experiment,) = [e for e in client.search_experiments() if e.name == "ssdd-mini"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["job"] == "static"
    assert run.data.metrics == {"static.lr": 0.2, "train.refined": 50.0}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "static.lr")] == [1, 2]
    assert run.data.params["dynamic.alpha"] == "0.5"
    assert {"config.json", "refinement.png"} == {a.path for a in client.list_artifacts(run.info.run_id)}
    assert Path(experiment.artifact_location.removeprefix("file://")).name


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
        match = rf"http://127\.0\.0\.1:9 does not answer .*; start it, or {remedy}"
        with pytest.raises(TrackingError, match=match) as error:
            Tracker(mini(), "static", workspace)
        assert "secret" not in str(error.value)

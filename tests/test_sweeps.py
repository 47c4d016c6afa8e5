"""The sweeps, small, through Ray Tune on the cluster and the workspace of the other jobs; then a kill, and a server."""

import contextlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from small import ROOT, SMALL, run_job

from ssdd import cli
from ssdd.config import ConfigError
from ssdd.presets import mini
from ssdd.runtime.tracking import Tracker, TrackingError, sqlite_uri
from ssdd.sweeps import base

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def small(places):
    """Arguments of the jobs, after the sweeps' shared tables are there."""
    folder, workspace = places
    args = [*SMALL, "--data", str(folder), "--workspace", str(workspace)]
    run_job("static", *args)
    return args


def newest(workspace, name):
    return max((workspace / "sweeps").glob(f"{name}-*"), key=lambda p: p.stat().st_mtime)


def runs_below(workspace, parent=None, uri=None):
    """Parent and children of the newest sweep, or of one run."""
    client = mlflow.MlflowClient(uri or sqlite_uri(workspace / "mlflow.db"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "ssdd-mini"]
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time desc"], max_results=500)
    parent = parent or next(r for r in runs if "sweep" in r.data.tags and "mlflow.parentRunId" not in r.data.tags)
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return client, parent, children


def test_sweep_crf_compares_its_trials_in_mlflow(places, small, capsys):
    _, workspace = places
    run_job("sweep_crf", *small, "--sweep.space", "crf.bilateral-weight=9,1")  # which no job before had
    check_sweep_crf(workspace, capsys.readouterr().out)
    _, _, children = runs_below(workspace)
    assert {r.info.status for r in children} == {"FINISHED"}


@pytest.mark.minutes
def test_a_killed_sweep_goes_on_without_its_finished_trials(places, small, capsys):
    _, workspace = places
    args = [*small, "--sweep.space", "crf.bilateral-weight=8,2"]
    command = [sys.executable, "ray_jobs/sweep_crf.py", *args, "--sweep.parallel", "1"]
    options = dict(cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, text=True)
    killed = subprocess.Popen(command, stderr=subprocess.STDOUT, **options)
    deadline = time.monotonic() + 240
    before = set(workspace.glob("sweeps/sweep_crf-*/trials/*.json"))
    while not (kept := set(workspace.glob("sweeps/sweep_crf-*/trials/*.json")) - before):
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    times = {path: path.stat().st_mtime_ns for path in kept}
    _, interrupted, _ = runs_below(workspace)

    run_job("sweep_crf", *args, "--sweep.resume")
    out = capsys.readouterr().out
    assert f"{len(kept)} trials have ended already" in out
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    check_sweep_crf(workspace, out, (2, 8))
    _, parent, children = runs_below(workspace)
    assert parent.info.run_id == interrupted.info.run_id
    assert {r.info.status for r in children} <= {"FINISHED", "KILLED"}, "what was killed is not left as running"


def check_sweep_crf(workspace, out, weights=(1, 9)):
    """The results, figure, best.yaml and MLflow runs of the newest sweep over crf.bilateral-weight."""
    folder = newest(workspace, "sweep_crf")
    trials = json.loads((folder / "trials.json").read_text())
    assert tuple(sorted(t["point"]["crf.bilateral_weight"] for t in trials)) == weights
    assert {t["state"] for t in trials} == {"finished"}
    scores = [t["metrics"]["train.refined"] for t in trials]
    assert scores == sorted(scores, reverse=True)
    assert len({t["metrics"]["train.knowledge"] for t in trials}) == 1, "the knowledge is the same"
    best = cli.parse(["--config", str(folder / "best.yaml")])
    assert best.crf.bilateral_weight == trials[0]["point"]["crf.bilateral_weight"]
    assert best.seeds.walk_steps == 4, "what the command line changed is in it too"
    assert f"--crf.bilateral-weight {best.crf.bilateral_weight}" in out
    assert (folder / "sweep_crf.png").stat().st_size > 5000

    client, parent, children = runs_below(workspace)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["job"] == "sweep_crf"
    assert parent.data.metrics["train.refined"] == pytest.approx(scores[0])
    assert {"sweep_crf.png", "best.yaml"} <= {a.path for a in client.list_artifacts(parent.info.run_id)}
    finished = [r for r in children if r.info.status == "FINISHED"]
    assert tuple(sorted(float(r.data.params["crf.bilateral_weight"]) for r in finished)) == weights
    for run in finished:
        assert {"train.refined", "train.advice", "static.loss.base"} <= set(run.data.metrics)
        assert run.data.tags["job"] == "sweep_crf"
        assert run.data.tags["data"] == "data"


def test_sweep_bias_agrees_with_the_masks_themselves(places, small, capsys):
    _, workspace = places
    run_job("sweep_bias", *small)
    folder = newest(workspace, "sweep_bias")
    trials = json.loads((folder / "trials.json").read_text())
    assert len(trials) == 400
    own = cli.parse(small).static.bias
    point = {"static.bias.bias": own.bias, "static.bias.background": own.background}
    (at_own,) = [t for t in trials if t["point"] == point]
    run_job("static", *small)
    shown = re.findall(r"train\.refined +([\d.]+)", capsys.readouterr().out)[-1]
    assert float(shown) == pytest.approx(at_own["metrics"]["train.refined"], abs=0.051)


def test_a_failed_trial_does_not_end_sweep_alpha(places, small, capsys):
    _, workspace = places
    run_job("sweep_alpha", *small, "--sweep.space", "dynamic.train.lr=0.0025,1e30", "--sweep.images", "4")
    out = capsys.readouterr().out
    trials = json.loads((newest(workspace, "sweep_alpha") / "trials.json").read_text())
    assert [t["state"] for t in trials] == ["finished", "failed"]
    assert "lower the learning rate" in trials[1]["error"]
    assert "the trial lr=1e+30 failed" in out
    _, _, children = runs_below(workspace)
    assert sorted(r.info.status for r in children) == ["FAILED", "FINISHED"]
    done = next(r for r in children if r.info.status == "FINISHED")
    assert {"dynamic.iou", "val.dynamic", "val.dynamic_crf", "dynamic.loss.main"} <= set(done.data.metrics)


def test_resuming_what_was_never_begun_is_refused(small):
    with pytest.raises(SystemExit, match=r"--sweep\.resume: .* has no such sweep"):
        run_job("sweep_crf", *small, "--sweep.space", "crf.iterations=7", "--sweep.resume")


def test_an_earlier_sweep_that_cannot_be_deleted_is_not_mixed_with_the_new_one(small, monkeypatch):
    monkeypatch.setattr(base, "remove", lambda folder: None)
    tracker = SimpleNamespace(run_id="r", tag=lambda *both: None)
    chosen = cli.parse(small)
    session = SimpleNamespace(config=chosen, workspace=chosen.workspace, tracker=tracker)
    base.open_folder(session, "other")
    with pytest.raises(ConfigError, match=r"other-.*cannot be deleted"):
        base.open_folder(session, "other")


TRIAL = """
import pickle, sys
tracker, number = pickle.loads(bytes.fromhex(sys.argv[1])), int(sys.argv[2])
from ssdd import presets
own = tracker.child(presets.mini(), f"trial {number}")
for step in range(30):
    own.metrics({"dynamic.loss.main": 1 / (step + 1), "dynamic.iou": step}, step)
own.tag("number", str(number))
own.close(failed=False)
"""


@pytest.mark.parametrize("server", [True, False])
def test_several_processes_write_to_one_store_at_once(tmp_path, monkeypatch, server):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    running = None
    try:
        if server:
            running, uri = serve(tmp_path)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        else:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(mini(), "sweep_alpha", tmp_path)
        tracker.tag("sweep", "x")
        sent = pickle.dumps(tracker).hex()
        trials = [subprocess.Popen([sys.executable, "-c", TRIAL, sent, str(k)], cwd=ROOT) for k in range(3)]
        assert [trial.wait(timeout=120) for trial in trials] == [0, 0, 0]
        tracker.file(Path(__file__))
        tracker.close(failed=False)
        client, parent, children = runs_below(tmp_path, uri=uri)
        assert sorted(r.data.tags["number"] for r in children) == ["0", "1", "2"]
        for run in children:
            assert len(client.get_metric_history(run.info.run_id, "dynamic.iou")) == 30
        assert [a.path for a in client.list_artifacts(parent.info.run_id) if a.path.endswith(".py")]
    finally:
        if running is not None:
            stop(running)


def serve(folder, port=None):
    """An MLflow server on loopback, and its address."""
    if port is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "files")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(300):
        assert running.poll() is None, "the server ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return running, f"http://127.0.0.1:{port}"
        time.sleep(0.2)
    raise AssertionError("no server")


def stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


def test_a_server_that_goes_away_gets_everything_later(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server, uri = serve(tmp_path)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        whole, broken = (Tracker(mini(), name, tmp_path / "w") for name in ("whole", "broken"))
        for tracker in (whole, broken):
            tracker.metrics({"static.loss.base": 1.0}, 1)
        stop(server)
        part = broken.child(mini(), "part")
        picture = tmp_path / "picture.txt"
        picture.write_text("a file")
        for tracker in (whole, broken, part):
            tracker.metrics({"static.loss.base": 0.5}, 2)
            tracker.file(picture)
            tracker.tag("best", "alpha")
        picture.unlink()
        assert caplog.text.count("MLflow does not answer") == 3
        for tracker in (part, broken):
            tracker.close(failed=False)
        assert caplog.text.count("the next job in this workspace sends") == 2
        with pytest.raises(TrackingError, match=f"{uri} cannot be used"):
            Tracker(mini(), "new", tmp_path / "w")

        server, _ = serve(tmp_path, int(uri.rpartition(":")[2]))
        whole.close(failed=False)
        Tracker(mini(), "next", tmp_path / "w").close(failed=False)
        assert caplog.text.count("sent to MLflow the calls that an earlier job kept") == 2
        assert not list((tmp_path / "w" / "unsent").iterdir())
        client = mlflow.MlflowClient(uri)
        runs = {run.info.run_name: run for run in client.search_runs(["1"])}
        assert set(runs) == {"whole", "broken", "part", "next"}
        assert runs["part"].data.tags["mlflow.parentRunId"] == runs["broken"].info.run_id
        assert runs["part"].data.params["preset"] == "mini"
        for name, steps in (("whole", [1, 2]), ("broken", [1, 2]), ("part", [2])):
            run = runs[name]
            assert run.info.status == "FINISHED"
            assert run.data.tags["best"] == "alpha"
            assert [m.step for m in client.get_metric_history(run.info.run_id, "static.loss.base")] == steps
            assert {"config.json", "picture.txt"} == {a.path for a in client.list_artifacts(run.info.run_id)}
    finally:
        stop(server)

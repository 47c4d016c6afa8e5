"""A whole job whose data, tables, checkpoints and results are in a bucket, killed in mid-training; then other jobs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small import ROOT, SMALL

from ssdd.data import synthetic
from ssdd.nets import checkpoints
from ssdd.storage import paths

pytestmark = [pytest.mark.ray, pytest.mark.minutes]


def started(name, *args):
    """A script of ray_jobs/ with a Ray of its own."""
    command = [sys.executable, f"ray_jobs/{name}.py", *map(str, args)]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "local"}, **options)


def ended(name, *args):
    job = started(name, *args)
    out, _ = job.communicate(timeout=600)
    assert job.returncode == 0, out
    return out


def test_a_job_in_a_bucket_that_is_killed_goes_on_and_ends_like_one_on_a_disk(remote, tracking, tmp_path):
    folder = synthetic.generate(tmp_path / "data", train=10, val=4)
    paths.copy(folder, remote / "data")
    workspace = remote / "w"
    args = [*SMALL, "--dynamic.train.epochs", "6", "--data", remote / "data", "--workspace", workspace]
    killed = started("dynamic", *args)
    deadline = time.monotonic() + 500
    while not list(workspace.glob("runs/dynamic-*/*/*/meta.json")):
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(workspace.glob("artifacts/dynamic-*"))
    out = ended("dynamic", *args)
    assert "[static] unchanged" in out
    assert "[dynamic] goes on after epoch" in out
    assert not list(workspace.glob("runs/*-*/*"))

    local = [*args[:-4], "--data", folder, "--workspace", tmp_path / "w"]
    ended("dynamic", *local)
    found, expected = (json.loads((where / "metrics.json").read_text()) for where in (workspace, tmp_path / "w"))
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, abs=0.1), name
    weights, undisturbed = (next(where.glob("artifacts/dynamic-*")) for where in (workspace, tmp_path / "w"))
    weights, undisturbed = (checkpoints.read(where / checkpoints.MODEL) for where in (weights, undisturbed))
    for name, value in undisturbed.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    print("the same network, killed in a bucket and undisturbed on a disk")

    ended("evaluate", "--workspace", workspace, "--submission", remote / "results.tgz")
    assert (remote / "results.tgz").stat().st_size > 100
    out = ended("sweep_alpha", *args, "--sweep.space", "dynamic.alpha=0.5,0.9", "--sweep.images", "4")
    (best,) = workspace.glob("sweeps/sweep_alpha-*/best.yaml")
    assert f"use it with --config {best}" in out
    with paths.on_disk(best) as file:
        assert "s3://" in file.read_text()

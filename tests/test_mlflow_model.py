"""The trained network as an MLflow model: its folder, the run's model, the registry, and a server that is away."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import untrained
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from PIL import Image
from untrained import CLASSES, CONFIG

from ssdd.data import codec
from ssdd.nets import checkpoints
from ssdd.presets import mini
from ssdd.reports.scores import Scores
from ssdd.runtime import mlflow_model
from ssdd.runtime.progress import Console
from ssdd.runtime.tracking import Tracker
from ssdd.segmenter import Segmenter
from ssdd.stages import log_model
from ssdd.storage.artifacts import Artifact


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(untrained.network(), CONFIG, CLASSES)


@pytest.fixture(scope="module")
def folder(segmenter, tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "model"
    mlflow_model.save(segmenter, path, {"val.dynamic": 50.0})
    return path


def files(count):
    """Photographs as the bytes of PNG files, and their pixels."""
    pixels = [np.random.default_rng(k).integers(0, 256, (3, 4, 3), dtype=np.uint8) for k in range(count)]
    pixels = [np.asarray(Image.fromarray(p).resize((30 + k, 20))) for k, p in enumerate(pixels)]
    buffers = [io.BytesIO() for _ in pixels]
    for image, buffer in zip(pixels, buffers, strict=True):
        Image.fromarray(image).save(buffer, "PNG")
    return pixels, [buffer.getvalue() for buffer in buffers]


def test_masks_for_png_bytes(segmenter, folder):
    model = mlflow.pyfunc.load_model(str(folder))
    pixels, data = files(2)
    for params in ({}, {"crf": True}):
        table = model.predict(pd.DataFrame({"image": data}), params=params)
        for image, mask in zip(pixels, table["mask"], strict=True):
            np.testing.assert_array_equal(codec.read_mask(mask), segmenter.predict(image, **params))
    with pytest.raises(MlflowException, match="image"):
        model.predict(pd.DataFrame({"picture": data}))


LOAD = """
import sys
for name in ("ray", "tyro"):
    sys.modules[name] = None
import mlflow
mlflow.pyfunc.load_model(sys.argv[1])
import ssdd
print(ssdd.__file__)
"""


@pytest.mark.programs
def test_the_folder_says_what_it_is_and_holds_what_it_needs(folder):
    model = mlflow.models.Model.load(str(folder))
    assert model.metadata == {"classes": list(CLASSES), "scores": {"val.dynamic": 50.0}}
    assert model.signature.inputs.input_names() == ["image"]
    example = model.load_input_example(str(folder))
    assert codec.read_photograph(bytes(example["image"][0]), False).shape == (120, 160, 3)
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "ray" not in requirements
    assert not list(folder.rglob("*.pyc"))
    out = subprocess.run([sys.executable, "-c", LOAD, folder], check=True, capture_output=True, text=True).stdout
    assert out.strip() == str(folder / "code" / "ssdd" / "__init__.py")


def test_the_runs_model_and_the_registry(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(mini(), "dynamic", tmp_path)
    for network in ("dynamic-1", "dynamic-2", "dynamic-2"):  # the last one is there already
        assert tracker.model(folder, network, {"val.dynamic": 50.0}, "masks")
    tracker.close(failed=False)
    client = tracker.client
    models = client.search_logged_models([tracker.experiment_id])
    assert len(models) == 2
    assert {str(model.status) for model in models} == {"READY"}
    assert {metric.value for model in models for metric in model.metrics} == {50.0}
    assert {output.model_id for output in client.get_run(tracker.run_id).outputs.model_outputs} == {
        model.model_id for model in models
    }
    versions = client.search_model_versions("name = 'masks'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    assert {version.run_id for version in versions} == {tracker.run_id}


def test_a_model_is_kept_while_the_server_is_away(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(mini(), "dynamic", tmp_path)
    with monkeypatch.context() as patch:

        def away(*args, **kwargs):
            raise MlflowException("connection refused")

        patch.setattr(MlflowClient, "log_model_artifacts", away)
        assert not tracker.model(folder, "dynamic-1", {}, None)
    (kept,) = tracker.outbox.folder.glob("model-*")
    assert (kept / "MLmodel").is_file()
    assert json.loads((tracker.outbox.folder / "calls.jsonl").read_text().splitlines()[1])[0] == "model"
    tracker.close(failed=False)
    (model,) = tracker.client.search_logged_models([tracker.experiment_id])
    assert model.source_run_id == tracker.run_id
    assert not tracker.outbox.folder.exists()


def test_a_model_that_a_server_refuses_does_not_hold_up_the_rest(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(mini(), "dynamic", tmp_path)

    def too_large(*args, **kwargs):
        response = requests.Response()
        response.status_code = 413
        raise requests.HTTPError("413 Request Entity Too Large", response=response)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", too_large)
    assert not tracker.model(folder, "dynamic-1", {}, None)
    tracker.metrics({"train.refined": 50.0})
    tracker.close(failed=False)
    run = tracker.client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train.refined": 50.0}
    assert not tracker.client.search_logged_models([tracker.experiment_id]), "no half model"


def test_a_server_that_cannot_store_models_is_told(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(mini(), "dynamic", tmp_path)

    def absent(*args):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_logged_models", absent)
    assert not tracker.model(folder, "dynamic-1", {}, None)
    assert "is older than 3.0 and cannot store models); it is dropped" in caplog.text
    assert not tracker.outbox.has_calls()
    tracker.close(failed=False)


def test_other_settings_at_test_time_make_another_model(tmp_path, monkeypatch):
    model = Artifact("dynamic", "0123", tmp_path / "dynamic-0123")
    model.path.mkdir()
    checkpoints.save(untrained.network().state_dict(), model.path / checkpoints.MODEL)
    monkeypatch.setattr(mlflow_model, "save", lambda *args: None)
    logged = []

    def log(config):
        tracker = SimpleNamespace(model=lambda folder, *args: logged.append(args))
        session = SimpleNamespace(config=config, tracker=tracker, console=Console())
        log_model.run(session, model, CLASSES, Scores({"val.dynamic": 50.0, "val.baseline": 49.0}, {}))

    log(CONFIG)
    log(replace(CONFIG, evaluate=replace(CONFIG.evaluate, panels=1), num_cpus=2, register="masks"))
    log(replace(CONFIG, evaluate=replace(CONFIG.evaluate, sharpen=10.0)))
    log(replace(CONFIG, crf=replace(CONFIG.crf, iterations=3)))
    identities, scores, names = zip(*logged, strict=True)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3
    assert all(identity.startswith("dynamic-0123-") for identity in identities)
    assert scores == ({"val.dynamic": 50.0},) * 4
    assert names == (None, "masks", None, None)

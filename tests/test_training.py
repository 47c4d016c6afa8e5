"""What a training refuses; the loop itself runs in test_jobs.py, its step in test_step.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssdd import cluster, training
from ssdd.config import mini
from ssdd.paths import RemoteError
from ssdd.weight_files import WeightsError


def test_published_weights_are_refused_for_other_classes():
    with pytest.raises(WeightsError, match=r"seg\.pth: the published weights know VOC's 20 classes.*cat, dog"):
        training.convert(None, "dynamic", (Path("seg.pth"),), mini().network, ("background", "cat", "dog"), None)


@pytest.fixture
def fit(monkeypatch, tmp_path, one_thread):
    """Runs `_fit` of two epochs over a list of what happens in turn: an error, or the epochs that are done."""

    def run(events):
        waited, events = [], list(events)

        def last_checkpoint(runs):
            event = events.pop(0)
            if isinstance(event, Exception):
                raise event
            return event, tmp_path if event else None

        training.save({"net": {"x": torch.ones(2)}}, tmp_path / training.STATE)
        monkeypatch.setattr(training, "_last_checkpoint", last_checkpoint)
        monkeypatch.setattr(training, "_attempt", lambda *args: None)
        monkeypatch.setattr(training.time, "sleep", waited.append)
        monkeypatch.setattr(cluster, "remaining", lambda plan: plan)
        console = SimpleNamespace(line=lambda text: None)
        session = SimpleNamespace(plan=SimpleNamespace(workers=1), console=console)
        task = SimpleNamespace(train=SimpleNamespace(epochs=2))
        (tmp_path / "made").mkdir()
        training._fit(session, "net", tmp_path, task, [], tmp_path / "made", None)
        assert training.read(tmp_path / "made" / training.MODEL)["x"].tolist() == [1, 1]
        assert events == []
        return waited

    return run


def test_an_object_store_that_is_away_for_a_while_is_waited_for(fit):
    away = RemoteError("s3://x: away")
    assert fit([away, away, 0, 2, 2]) == [5, 20]


def test_an_object_store_that_stays_away_ends_the_training_with_its_own_message(fit):
    with pytest.raises(RemoteError, match="s3://x: away"):
        fit([RemoteError("s3://x: away")] * 4)


def test_every_finished_epoch_gives_new_patience(fit):
    away = RemoteError("s3://x: away")
    assert fit([0, away, 0, away, 1, away, 1, 2, 2]) == [5, 20, 5]

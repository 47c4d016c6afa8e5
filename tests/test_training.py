"""What a training refuses; the loop itself runs in test_jobs.py, its step in test_step.py."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from ssdd.nets import checkpoints
from ssdd.nets.weight_files import WeightsError
from ssdd.presets import mini
from ssdd.runtime import cluster
from ssdd.stages import weight_import
from ssdd.storage.paths import RemoteError
from ssdd.storage.tables import cut, write_table
from ssdd.training import trainer, worker
from ssdd.training.ingest import Order


def test_published_weights_are_refused_for_other_classes():
    with pytest.raises(WeightsError, match=r"seg\.pth: the published weights are for VOC's 20 classes.*cat, dog"):
        weight_import.convert(None, "dynamic", (Path("seg.pth"),), mini().network, ("background", "cat", "dog"), None)


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Runs a training of two epochs over a list of what happens in turn: an error, or the epochs that are done."""

    def run(events, has_history=True, earlier=0):
        waited, events = [], list(events)

        def last_checkpoint(runs):
            event = events.pop(0)
            if isinstance(event, Exception):
                raise event
            return event, tmp_path if event else None

        checkpoints.save({"net": {"x": torch.ones(2)}}, tmp_path / worker.STATE)
        history = [{"step": 4, "epoch": 1.0, "seconds": 100.0, "loss.a": 2.0}]
        (tmp_path / worker.META).write_text(json.dumps({"history": history} if has_history else {}))
        monkeypatch.setattr(trainer, "last_checkpoint", last_checkpoint)
        monkeypatch.setattr(trainer._Training, "_attempt", lambda *args: None)
        monkeypatch.setattr(trainer.time, "sleep", waited.append)
        monkeypatch.setattr(cluster, "remaining", lambda plan, pool=None: plan)
        console = SimpleNamespace(line=lambda text: None)
        session = SimpleNamespace(plan=SimpleNamespace(workers=1), console=console)
        task = SimpleNamespace(train=SimpleNamespace(epochs=2))
        (tmp_path / "made").mkdir()
        training = trainer._Training(
            pool=0, session=session, name="net", runs=tmp_path, task=task, joined=[], validate=None
        )
        told = training.fit(tmp_path / "made")
        assert told["history"] == (history if has_history else [])
        assert earlier <= told["seconds"] < earlier + 100, "those of earlier jobs count once"
        assert checkpoints.read(tmp_path / "made" / checkpoints.MODEL)["x"].tolist() == [1, 1]
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


def test_a_training_that_goes_on_takes_what_it_took_before_as_well(fit):
    assert fit([1, 2, 2], earlier=100) == []


def test_checkpoints_of_earlier_versions_have_no_history(fit):
    assert fit([1, 2, 2], has_history=False) == []


def test_the_history_goes_on_behind_the_checkpoint_and_leaves_out_where_time_goes(loop, tmp_path):
    events = []
    (tmp_path / worker.META).write_text('{"history": [{"step": 2, "epoch": 1.0, "seconds": 50.0, "lr": 1.0}]}')
    going = replace(loop, resume=tmp_path, first_epoch=1, mailbox=SimpleNamespace(send=events.append))
    log = worker._Log(going, 4, SimpleNamespace(read=lambda: {"forward": 1.0}), rank=0)
    for step in (3, 4):
        log.step(step, {"a": torch.tensor(float(step))}, 0.5, images=4)
    first, last = log.history
    assert first == {"step": 2, "epoch": 1.0, "seconds": 50.0, "lr": 1.0}
    assert (last["step"], last["epoch"], last["loss.a"], last["lr"]) == (4, 2.0, 3.5, 0.5)
    assert last["seconds"] >= 50
    assert set(last) == {"step", "epoch", "seconds", "loss.a", "lr", "images_per_s"}
    assert "share.forward" in events[0].metrics
    other = worker._Log(going, 4, SimpleNamespace(read=dict), rank=1)
    other.step(4, {"a": torch.tensor(1.0)}, 0.5, images=4)
    assert other.history == []
    assert len(events) == 1


@pytest.fixture
def loop(tmp_path):
    """Two epochs of ten images in steps of four: eight images an epoch."""
    schema = pa.schema([("image_id", pa.string())])
    ids = [f"i{k}" for k in range(10)]
    table = write_table(tmp_path, cut(ids, 4), schema, ({"image_id": i} for i in ids))
    task = SimpleNamespace(train=SimpleNamespace(epochs=2))
    nothing = dict(step=None, checkpoints=None, resume=None, mailbox=None, validate=None, threads=1, name="net")
    order = Order(10, 4, 0)
    return worker.Loop(task=task, order=order, table=table.path, images=4, steps=2, first_epoch=0, **nothing)


def rows_of(loop, rank, workers, step):
    """As the order says, by hand: the images of a step in pieces, one for each worker."""
    stream = [row for _, row in loop.order.rows(0, 16)]
    share = 4 // workers
    return torch.tensor(stream[4 * step + rank * share :][:share])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_worker_knows_its_samples_before_they_come(loop, workers):
    for rank in range(workers):
        checks = worker._Checks(loop, rank, workers)
        for step in range(4):
            checks.add(step + 1, {"a": torch.tensor(1.0)}, rows_of(loop, rank, workers, step))
        checks.run()
        assert checks.steps == []
    late = list(worker._expected_rows(replace(loop, first_epoch=1), 0, workers))
    assert late == [rows_of(loop, 0, workers, step).tolist() for step in (2, 3)]


def test_other_samples_than_expected_end_the_training(loop):
    checks = worker._Checks(loop, 1, 2)
    checks.add(1, {"a": torch.tensor(1.0)}, rows_of(loop, 1, 2, 0))
    checks.run()
    wrong, right = rows_of(loop, 0, 2, 1), rows_of(loop, 1, 2, 1)
    checks.add(2, {"a": torch.tensor(1.0)}, wrong)
    names = [", ".join(f"i{row}" for row in rows.tolist()) for rows in (wrong, right)]
    with pytest.raises(worker.OrderError, match=f"at step 2 worker 1 got the images {names[0]} instead of {names[1]}"):
        checks.run()


def test_a_loss_that_is_no_number_is_named_with_its_images(loop):
    checks = worker._Checks(loop, 0, 1)
    rows = rows_of(loop, 0, 1, 0)
    checks.add(1, {"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))}, rows)
    with pytest.raises(worker.DivergedError, match=r"loss\.b is nan at step 1") as error:
        checks.run()
    assert error.value.images == tuple(f"i{row}" for row in rows.tolist())

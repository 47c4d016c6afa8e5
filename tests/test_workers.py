"""How many workers share a step: the images of a step are the configured ones, before and after a loss."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
import torch
from small import SMALL

from ssdd import cli
from ssdd.data import synthetic
from ssdd.data.drawn_objects import CLASSES
from ssdd.nets import checkpoints
from ssdd.objectives.classifier import ClassifierTask
from ssdd.runtime import cluster
from ssdd.runtime.session import Session
from ssdd.stages import images, weight_import
from ssdd.training import trainer

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Noting(ClassifierTask):
    """Without dropout, which each worker draws for itself; notes each step's images, in a file for each worker."""

    folder: Path = Path()

    def build(self):
        net = super().build()
        net.dropout.p = 0.0
        return net

    def losses(self, net, batch):
        with (self.folder / str(os.getpid())).open("a") as lines:
            lines.write(" ".join(map(str, batch["row"].tolist())) + "\n")
        return super().losses(net, batch)


@dataclass(frozen=True)
class Killed(Noting):
    """Kills the process of one worker in the second epoch, once."""

    def losses(self, net, batch):
        found = super().losses(net, batch)
        steps = len((self.folder / str(os.getpid())).read_text().splitlines())
        if steps == 2:
            try:
                (self.folder / "killed").mkdir()
            except FileExistsError:
                return found
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def steps(folder):
    """The images of each worker, step by step; those of a later attempt come later."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    return [[sorted(map(int, line.split())) for line in path.read_text().splitlines()] for path in files]


def train(session, name, kind, folder, batch, workers):
    """A training for which a number of workers is to be had; the images of its steps."""
    folder.mkdir()
    session.plan = replace(session.plan, workers=workers, unit=1 / 8, crf_actors=1, data_tasks=1, threads=1)
    chosen = replace(session.config.seeds.classifier, epochs=3, batch_size=batch)
    start = weight_import.backbone(session).path
    task = kind(session.config.network, chosen, 1 + len(CLASSES), start, folder)
    table = images.run(session, "train").table
    net = trainer.run(session, name, {"a": name}, task, [table])
    return checkpoints.read(net.path / checkpoints.MODEL), steps(folder)


@pytest.mark.minutes
def test_three_workers_train_a_batch_of_eight_as_one_does(places, tmp_path, capsys):
    folder, _ = places
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Session(cli.parse([*SMALL, "--data", str(folder), "--workspace", str(tmp_path / "w")]), "eight") as session:
        alone, of_one = train(session, "one", Noting, tmp_path / "one", batch=8, workers=1)
        together, of_both = train(session, "three", Noting, tmp_path / "three", batch=8, workers=3)
    assert "[three] 8 images a step on 2 workers of 3: more would not divide" in capsys.readouterr().out
    assert [[len(step) for step in worker] for worker in of_one] == [[8, 8, 8]]
    assert [[len(step) for step in worker] for worker in of_both] == [[4, 4, 4], [4, 4, 4]]
    assert [sorted(first + second) for first, second in zip(*of_both, strict=True)] == of_one[0]
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.minutes
def test_a_batch_of_sixteen_stays_one_where_a_worker_of_six_is_lost(places, tmp_path, capsys, monkeypatch):
    folder = synthetic.generate(tmp_path / "data", train=16, val=2)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    killed = tmp_path / "six" / "killed"
    monkeypatch.setattr(
        cluster, "remaining", lambda plan, pool=None: replace(plan, workers=5) if killed.exists() else plan
    )
    with Session(cli.parse([*SMALL, "--data", str(folder), "--workspace", str(tmp_path / "w")]), "lost") as session:
        _, seen = train(session, "six", Killed, tmp_path / "six", batch=16, workers=6)
    out = capsys.readouterr().out
    assert "[six] 16 images a step on 4 workers of 6: more would not divide the images" in out
    assert "[six] interrupted (" in out
    assert "[six] 16 images a step on 4 workers of 5: more would not divide the images" in out
    assert len(seen) == 8
    assert all(len(step) == 4 for worker in seen for step in worker)
    first, second = seen[:4], seen[4:]
    assert [len(worker) for worker in second] == [2, 2, 2, 2], "the second epoch again, and the third"
    for workers in ([worker[0] for worker in first], *zip(*second, strict=True)):
        assert sorted(row for images_of_one in workers for row in images_of_one) == list(range(16)), "of a step"
    print("16 images a step on 4 of 6 workers, and on 4 of 5")

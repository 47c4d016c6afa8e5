"""What breaks from outside: a full disk, processes that are killed."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import ray
from small import ROOT, SMALL, listening, run_job

from ssdd import cli
from ssdd.data.drawn_objects import CLASSES
from ssdd.jobs import job
from ssdd.objectives.classifier import ClassifierTask
from ssdd.runtime import cluster, pipelines
from ssdd.runtime.progress import Mailbox
from ssdd.runtime.session import Session
from ssdd.stages import images, weight_import
from ssdd.training import trainer

FILL = """
import errno, sys
from pathlib import Path
import pyarrow as pa
import torch
from ssdd.nets import checkpoints
from ssdd.storage.artifacts import Store
from ssdd.storage.tables import cut, open_table, write_table

schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
store = Store(Path(sys.argv[1]))

def make(count):
    ids = [f"{k:03d}" for k in range(count)]
    rows = ({"image_id": i, "image": Path("/dev/urandom").open("rb").read(20_000)} for i in ids)
    return lambda folder: write_table(folder, cut(ids, 4), schema, rows)

small = store.build("small", {}, make(4))
for large in (make(40), lambda folder: checkpoints.save(torch.zeros(100_000), folder / "model.pt")):
    try:
        store.build("large", {}, large)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise AssertionError("it fitted")
assert [path.name for path in store.root.iterdir()] == [small.path.name]
assert [len(row["image"]) for row in open_table(small.path)] == [20_000] * 4
store.build("after", {}, make(4))
print("kept")
"""


def test_a_full_disk_leaves_what_was_there_and_no_half_table(tmp_path):
    mount = f"mount -t tmpfs -o size=300k tmpfs '{tmp_path}'"
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*private, mount], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    command = [*private, f'{mount} && exec "$0" -c "$1" "$2"', sys.executable, FILL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "kept\n", done.stderr


@pytest.mark.ray
def test_a_full_disk_ends_a_job_with_a_message(places, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["job", *SMALL, "--workspace", str(tmp_path)])

    def run(session):
        raise OSError(errno.ENOSPC, "No space left on device", "part-00001.parquet")

    with pytest.raises(
        SystemExit, match=r"static: no space left .*part-00001\.parquet.*; free some space and run the same"
    ):
        job("static", run, None)


@pytest.mark.ray
def test_a_damaged_table_ends_a_job_with_a_message(places, tmp_path, monkeypatch):
    folder, _ = places
    monkeypatch.setattr(sys, "argv", ["job", *SMALL, "--data", str(folder), "--workspace", str(tmp_path)])

    def run(session):
        table = images.run(session, "train").table
        part = table.path / "part-00001.parquet"
        part.write_bytes(part.read_bytes()[:-20])
        return list(pipelines.infer([table], ["image"], None, None, 4, session.plan))

    with pytest.raises(SystemExit) as error:
        job("static", run, None)
    assert re.fullmatch(r"static: \S+part-00001\.parquet: .*; delete its folder.*makes it again", str(error.value))


@pytest.mark.ray
def test_a_local_ray_listens_on_loopback_alone(places, tmp_path):
    cluster.connect(cli.parse([*SMALL, "--workspace", str(tmp_path)]))
    with listening() as found:
        pass
    assert {name for name, *_ in found} >= {"gcs_server", "raylet"}
    assert {address for _, _, address, _ in found} == {"127.0.0.1"}

    named = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    connect = "from ssdd.runtime import cluster; from ssdd import cli; print(cluster.connect(cli.parse([])).workers)"
    other = subprocess.run([sys.executable, "-c", connect], env=named, capture_output=True, text=True, timeout=120)
    assert other.stdout.strip() == "2", other.stderr


@pytest.mark.ray
@pytest.mark.minutes
def test_two_workers_of_a_local_ray_meet_on_loopback(places, tmp_path):
    folder, _ = places
    with listening() as found:
        run_job("seeds", *SMALL, "--workers", "2", "--data", folder, "--workspace", tmp_path)
    ports = Counter(process for name, process, *_ in found if name == "ray::RayTrainWorker")
    assert max(ports.values()) > 1, "Ray's and, for the other worker, torch's"
    assert {address for _, _, address, _ in found} == {"127.0.0.1"}


@pytest.mark.ray
@pytest.mark.minutes
def test_nobody_gets_into_a_local_ray_without_its_token(places, tmp_path):
    cluster.connect(cli.parse([*SMALL, "--workspace", str(tmp_path)]))
    address = ray.get_runtime_context().gcs_address
    enter = f"import ray; ray.init('{address}', logging_level=50); print('inside')"
    guessed = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-that-somebody-guessed"}
    guessed |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else it would not even look on the loopback interface
    done = subprocess.run([sys.executable, "-c", enter], env=guessed, capture_output=True, text=True)
    assert done.returncode == 1
    assert "inside" not in done.stdout
    assert "Failed to connect to Ray cluster" in done.stderr


@dataclass(frozen=True)
class Orphaned(ClassifierTask):
    """Kills the process of its training's controller in its first step, once."""

    mark: Path = Path()

    def losses(self, net, batch):
        if not self.mark.exists():
            self.mark.touch()
            ours = psutil.Process().parent().children(recursive=True)  # of the raylet
            (controller,) = [process for process in ours if "TrainController" in process.name()]
            controller.kill()
            time.sleep(5)
        return super().losses(net, batch)


@pytest.mark.ray
@pytest.mark.minutes
def test_a_controller_that_is_killed_leaves_no_reservation_and_the_training_goes_on(places, tmp_path, capsys):
    folder, _ = places
    small = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(tmp_path)])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Session(small, "orphaned") as session:
        table, pretrained = images.run(session, "train").table, weight_import.backbone(session).path
        train = replace(small.seeds.classifier, batch_size=4)
        task = Orphaned(small.network, train, 1 + len(CLASSES), pretrained, tmp_path / "killed")
        trainer.run(session, "orphaned", {}, task, [table])
    assert "[orphaned] interrupted (" in capsys.readouterr().out
    deadline = time.monotonic() + 30
    while ray.available_resources()["CPU"] < 2:
        assert time.monotonic() < deadline, ray.util.placement_group_table()
        time.sleep(0.2)


@dataclass(frozen=True)
class Slow(ClassifierTask):
    """Marks its first step, and takes its time."""

    mark: Path = Path()

    def losses(self, net, batch):
        self.mark.touch()
        time.sleep(2)
        return super().losses(net, batch)


class Trial:
    """As a trial of Ray Tune: a training's driver in a process of its own."""

    def train(self, session, task, table):
        trainer.run(session, "stopped", {}, task, [table])


@pytest.mark.ray
@pytest.mark.minutes
def test_a_trial_that_is_stopped_in_mid_training_leaves_no_reservation(places, tmp_path):
    folder, _ = places
    small = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(tmp_path)])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Session(small, "stopped") as session:
        table, pretrained = images.run(session, "train").table, weight_import.backbone(session).path
        train = replace(small.seeds.classifier, batch_size=4, epochs=50)
        task = Slow(small.network, train, 1 + len(CLASSES), pretrained, tmp_path / "begun")
        trial = ray.remote(num_cpus=0)(Trial).remote()
        trial.train.remote(session.for_trial(session.plan, Mailbox()), task, table)
        deadline = time.monotonic() + 120
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert ray.available_resources()["CPU"] < 2
        ray.kill(trial)
        deadline = time.monotonic() + 60
        while ray.available_resources()["CPU"] < 2:
            assert time.monotonic() < deadline, ray.util.placement_group_table()
            time.sleep(0.2)


TRAIN = """
from ssdd.runtime import environment
import sys
from small import SMALL
from ssdd import cli
from ssdd.runtime import cluster
from ssdd.runtime.session import Session
from ssdd.stages import images, seeds

data, workspace, epochs = sys.argv[1:]
args = [*SMALL, "--data", data, "--workspace", workspace, "--seeds.classifier.epochs", epochs]
with Session(cli.parse(args), "beside") as session:
    assert cluster.on_loopback()
    seeds.run_classifier(session, images.run(session, "train"))
"""


@pytest.mark.ray
@pytest.mark.minutes
def test_two_local_rays_train_beside_each_other_and_one_ends_first(places, tmp_path):
    folder, _ = places
    options = dict(cwd=ROOT / "tests", env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, text=True)
    options |= dict(stderr=subprocess.STDOUT)
    commands = [
        [sys.executable, "-c", TRAIN, folder, tmp_path / name, epochs] for name, epochs in (("a", "2"), ("b", "40"))
    ]
    short, long = (subprocess.Popen(list(map(str, command)), **options) for command in commands)
    out, _ = short.communicate(timeout=200)
    assert short.returncode == 0, out
    assert long.poll() is None, "still trains"
    out, _ = long.communicate(timeout=400)
    assert long.returncode == 0, out
    assert "interrupted" not in out
    assert "[classifier] done" in out


@dataclass(frozen=True)
class Killing:
    """A CRF stage whose process is killed with the third image, once."""

    mark: Path

    def __call__(self, rows):
        object.__setattr__(self, "seen", getattr(self, "seen", 0) + len(rows))
        if self.seen >= 3 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"image_id": row["image_id"], "size": len(row["image"])} for row in rows]


@pytest.mark.ray
def test_a_ray_data_actor_that_is_killed_changes_nothing(places, tmp_path):
    folder, workspace = places
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with Session(cli.parse([*SMALL, "--data", str(folder), "--workspace", str(workspace)]), "killed") as session:
        table = images.run(session, "train").table
        rows = list(pipelines.infer([table], ["image"], None, Killing(tmp_path / "killed"), 4, session.plan))
    assert (tmp_path / "killed").exists()
    assert sorted((row["image_id"], row["size"]) for row in rows) == sorted(
        (row["image_id"], len(row["image"])) for row in table
    )

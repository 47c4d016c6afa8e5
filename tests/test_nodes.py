"""Clusters of several nodes, simulated on one machine, each in a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest
from small import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.minutes]

START = """
import json, os, signal, sys, threading, time
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np, pyarrow as pa, ray, torch
from ray.cluster_utils import Cluster
from small import SMALL
from ssdd import cli
from ssdd.data import synthetic
from ssdd.nets import checkpoints
from ssdd.objectives.classifier import ClassifierTask
from ssdd.runtime import cluster, pipelines
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.stages import images, weight_import
from ssdd.training import ingest, trainer

work = Path(sys.argv[1])
ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])

def session(name, **changes):
    args = [*SMALL[4:], "--data", str(work / "data"), "--workspace", str(work / "w")]
    return Session(replace(cli.parse(args), **changes), name)

def classifier_task(s, kind=ClassifierTask, epochs=3, **more):
    pretrained = weight_import.backbone(s)
    train = replace(s.config.seeds.classifier, epochs=epochs, batch_size=4)
    return kind(s.config.network, train, 1 + len(synthetic.CLASSES), pretrained.path, **more)

def start(*nodes, **head):
    made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0) | head)
    started = [made.add_node(**node) for node in nodes]
    made.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = made.address
    return made, started

@dataclass(frozen=True)
class Where(ClassifierTask):
    "Without dropout, which each worker draws for itself; notes its node and its steps."
    folder: Path = Path()

    def build(self):
        net = super().build()
        net.dropout.p = 0.0
        return net

    def losses(self, net, batch):
        object.__setattr__(self, "steps", getattr(self, "steps", 0) + 1)
        (self.folder / f"{ray.get_runtime_context().get_node_id()}-{os.getpid()}").write_text(str(self.steps))
        if self.steps == 4 and not (self.folder / "lost").exists():
            time.sleep(2)  # a step in whose midst the other node is lost
        return super().losses(net, batch)

def weights(artifact):
    return torch.load(artifact.path / checkpoints.MODEL, weights_only=True)

synthetic.generate(work / "data", train=10, val=2)
"""


def run(script, folder, timeout=280):
    text = START + textwrap.dedent(script) + "\nray.shutdown()  # before the cluster ends, which objects are in\n"
    command = [sys.executable, "-c", text, str(folder)]
    # Nodes of a cluster, unlike a local Ray, are to be reached from others: the workers meet as Ray has it.
    options = dict(cwd=ROOT / "tests", env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"})
    done = subprocess.run(command, **options, capture_output=True, text=True, timeout=timeout, start_new_session=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)
    return done.stdout


def test_two_workers_on_two_nodes_are_one_and_a_lost_node_changes_nothing(tmp_path):
    out = run(
        """
        made, (first, second) = start(dict(num_cpus=2), dict(num_cpus=2))

        (work / "quiet").mkdir(), (work / "loud").mkdir()
        (work / "quiet" / "lost").touch()
        with session("one", workers=1) as s:
            table = images.run(s, "train").table
            one = trainer.run(s, "one", {"a": 1}, classifier_task(s, Where, folder=work / "quiet"), [table])
        for path in (work / "quiet").glob("*-*"):
            path.unlink()
        with session("two", workers=2) as s:
            two = trainer.run(s, "two", {"a": 2}, classifier_task(s, Where, folder=work / "quiet"), [table])
        nodes = {p.name.split("-")[0] for p in (work / "quiet").glob("*-*")}
        assert len(nodes) == 2, nodes
        def lose():
            while not any(p.read_text() == "4" for p in (work / "loud").glob("*-*")):
                time.sleep(0.05)
            made.remove_node(second, allow_graceful=False)
            (work / "loud" / "lost").touch()

        threading.Thread(target=lose, daemon=True).start()
        with session("three", workers=2) as s:
            three = trainer.run(s, "three", {"a": 3}, classifier_task(s, Where, folder=work / "loud"), [table])
        for name, value in weights(one).items():
            for other in (two, three):
                torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=1e-4)
        print("the same from one worker, two nodes, and through the loss of one")
        """,
        tmp_path,
    )
    assert "[three] interrupted (" in out
    assert "the same from one worker" in out


def test_crf_and_decoding_go_to_nodes_without_gpus_first(tmp_path):
    out = run(
        """
        start(dict(num_cpus=4, num_gpus=1), dict(num_cpus=2), dict(num_cpus=2))
        ray.init()
        gpu = {n.node_id for n in cluster.nodes() if n.gpus}
        assert len(cluster.nodes()) == 3 and len(gpu) == 1
        crfs = CRFPool(cpu_nodes_first(cluster.nodes(), 4, 1), 1)
        where = ray.get([actor.node.remote() for actor in crfs.actors])
        assert len(set(where)) == 2 and not set(where) & gpu, where
        crfs.close()
        while ray.available_resources()["CPU"] < 8:
            time.sleep(0.2)
        crfs = CRFPool(cpu_nodes_first(cluster.nodes(), 6, 1), 1)
        where = ray.get([actor.node.remote() for actor in crfs.actors])
        assert sum(node in gpu for node in where) == 2, "the others have no room"
        crfs.close()

        def here(rows):
            return [{"node": ray.get_runtime_context().get_node_id()} for _ in rows]

        def read(work, joined, sampling, order, stream):
            time.sleep(0.5)
            yield pa.Table.from_pylist(here(stream))

        ingest._read_samples = read
        with session("decoding") as s:
            table = images.run(s, "train").table
            plan = replace(s.plan, unit=1, data_tasks=3, crf_actors=3)
            order = ingest.Order(10, 1, 0, together=1)
            blocks = ingest.samples([table], classifier_task(s).sampling, order, range(0, 30), plan)
            found = {row["node"] for block in blocks.iter_batches(batch_format="pyarrow") for row in block.to_pylist()}
            assert len(found) == 2 and not found & gpu, found
            found = {row["node"] for row in pipelines.infer([table], ["image"], None, here, 4, plan)}
            assert found and not found & gpu, found
        print("CPU nodes have CRF and decoding first")
        """,
        tmp_path,
    )
    assert "CPU nodes have CRF and decoding first" in out


def test_where_others_hold_the_nodes_without_gpus_the_rest_is_used(tmp_path):
    out = run(
        """
        start(dict(num_cpus=4, num_gpus=1), dict(num_cpus=1))
        with session("held") as s:
            table = images.run(s, "train").table

            @ray.remote(num_cpus=1)
            class Holder:
                def node(self):
                    return ray.get_runtime_context().get_node_id()

            holder = Holder.options(**cluster.off_gpus()).remote()
            (gpu,) = [n.node_id for n in cluster.nodes() if n.gpus]
            assert ray.get(holder.node.remote()) != gpu
            plan = replace(s.plan, unit=1, data_tasks=1, crf_actors=1)
            order = ingest.Order(10, 4, 0)
            blocks = ingest.samples([table], classifier_task(s).sampling, order, range(0, 20, 2), plan)
            rows = [row["row"] for block in blocks.iter_batches(batch_format="pyarrow") for row in block.to_pylist()]
            found = list(pipelines.infer([table], ["image"], None, lambda rows: rows, 4, plan))
        print(len(rows), "samples and", len(found), "rows beside a held node")
        """,
        tmp_path,
    )
    assert "20 samples and 10 rows beside a held node" in out


def test_a_nearly_full_object_store_slows_and_ends_nothing(tmp_path):
    out = run(
        """
        start(num_cpus=2, object_store_memory=80 * 2**20)
        with session("full") as s:
            held = [ray.put(np.zeros(10 * 2**20, np.uint8)) for _ in range(7)]
            table = images.run(s, "train").table
            made = trainer.run(s, "full", {"a": 1}, classifier_task(s), [table])
            assert all(torch.isfinite(v).all() for v in weights(made).values())
        print("trained beside", len(held) * 10, "of 80 MiB")
        """,
        tmp_path,
    )
    assert "trained beside 70 of 80 MiB" in out

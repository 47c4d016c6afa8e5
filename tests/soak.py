"""A thousand steps of the dynamic stage at the mini preset's size: a CRF actor is killed every 50, a worker every 300.

    python tests/soak.py FOLDER

Ends with an error if images were not seen as they should be, or if memory grew.
"""

import ssdd.runtime.environment  # noqa: F401 (before Ray is imported)

# isort: split
import os
import random
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import ray
import torch

from ssdd import cli
from ssdd.data import synthetic
from ssdd.nets import checkpoints
from ssdd.nets.networks import DynamicNet
from ssdd.objectives.dynamic import DynamicTask
from ssdd.runtime import cluster
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.stages import images, weight_import
from ssdd.training import trainer
from ssdd.training.ingest import Order

STEPS, EPOCH, BATCH, KILL_ACTOR, KILL_WORKER = 1000, 20, 8, 50, 300


def weights(artifact):
    return torch.load(artifact.path / checkpoints.MODEL, weights_only=True)


@dataclass(frozen=True)
class Task(DynamicTask):
    """Starts from the pretrained backbone; notes each step's images, in a file for each process."""

    folder: Path = Path()

    def build(self):
        net = DynamicNet(self.network, self.classes)
        net.backbone.load_state_dict(weights(self.start))
        return net

    def losses(self, net, batch):
        with (self.folder / str(os.getpid())).open("a") as lines:
            lines.write(" ".join(map(str, batch["row"].tolist())) + "\n")
        return super().losses(net, batch)


class Notes:
    """The steps that each process has begun."""

    def __init__(self, folder):
        self.folder, self.pids = folder, []

    def read(self):
        """Process id and the images of its steps, in the order in which the processes began."""
        self.pids += [int(path.name) for path in self.folder.iterdir() if int(path.name) not in self.pids]
        return [(pid, (self.folder / str(pid)).read_text().splitlines()) for pid in self.pids]

    def kept(self):
        """The images of the steps that were not done again: a process begins where the last whole epoch ended."""
        files = self.read()
        whole = [lines[: len(lines) // EPOCH * EPOCH] for _, lines in files[:-1]] + [files[-1][1]]
        return [int(row) for lines in whole for line in lines for row in line.split()]


def memory():
    """MiB of this process and of everything of Ray's, without what they share."""
    total = 0
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.pid == os.getpid() or line.startswith("ray::") or "raylet" in line or "gcs_server" in line:
            total += process.info["memory_info"].rss - process.info["memory_info"].shared
    return total / 2**20


class Killer(threading.Thread):
    """Kills by the number of steps, and measures memory."""

    def __init__(self, notes, crfs):
        super().__init__(daemon=True)
        self.notes, self.crfs, self.over = notes, crfs, threading.Event()
        self.actors = self.workers = 0
        self.measured = []

    def run(self):
        while not self.over.wait(0.2):
            files = self.notes.read()
            done = sum(len(lines) for _, lines in files)
            if done >= KILL_ACTOR * (self.actors + 1):
                ray.kill(random.choice(self.crfs.actors), no_restart=False)
                self.actors += 1
            if done >= KILL_WORKER * (self.workers + 1) and 5 <= len(files[-1][1]) % EPOCH <= 15:
                os.kill(files[-1][0], signal.SIGKILL)
                self.workers += 1
            if not self.measured or done >= self.measured[-1][0] + 5:
                self.measured.append((done, memory()))

    def median(self, first, last):
        """MiB between two steps."""
        return statistics.median(mib for done, mib in self.measured if first <= done < last)


def main(work):
    folder = synthetic.generate(work / "data", train=EPOCH * BATCH, val=2)
    args = ["--data", str(folder), "--workspace", str(work / "w"), "--num-cpus", "2", "--workers", "1"]
    chosen = cli.parse([*args, "--dynamic.train.epochs", str(STEPS // EPOCH)])
    assert chosen.dynamic.train.batch_size == BATCH
    (work / "seen").mkdir()
    notes = Notes(work / "seen")
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    with Session(chosen, "soak") as session:
        made = images.run(session, "train")
        schema = pa.schema([("image_id", pa.string()), ("refined", pa.binary())])
        masks, _ = session.build_table(
            "masks",
            {"images": made.artifact},
            made.table.parts,
            schema,
            lambda: ({"image_id": row["image_id"], "refined": row["truth"]} for row in made.table),
        )
        nodes = cpu_nodes_first(cluster.nodes(), 2, session.plan.unit)
        crfs = CRFPool(nodes, session.plan.unit, session.plan.crf_environment)
        start, crf = weight_import.backbone(session), ActorCRF(chosen.dynamic.crf, crfs)
        parts = dict(network=chosen.network, dynamic=chosen.dynamic, classes=len(made.classes), start=start, crf=crf)
        task = Task(**parts, folder=notes.folder)
        killer, begun = Killer(notes, crfs), time.monotonic()
        killer.start()
        net = trainer.run(session, "soak", {}, task, [made.table, masks])
        killer.over.set()
        crfs.close()
    order = Order(made.table.rows, chosen.part_size, chosen.seed)
    assert notes.kept() == [row for _, row in order.rows(0, STEPS * BATCH)], "each image as often as it should be"
    assert all(torch.isfinite(value).all() for value in weights(net).values())
    before, after = killer.median(500, 600), killer.median(930, 2000)
    print(
        f"{STEPS} steps in {time.monotonic() - begun:.0f} s; killed {killer.actors} CRF actors and {killer.workers} "
        f"workers; memory {before:.0f} MiB, then {after:.0f} ({100 * (after / before - 1):+.1f} %)"
    )
    assert killer.workers == STEPS // KILL_WORKER
    assert killer.actors >= STEPS // KILL_ACTOR - 1
    assert after < 1.05 * before


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The benchmarks of trainings: the cost of a sample, of a start and of a step, each against a plain way to do it."""

import contextlib
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import torch
from plain import PlainLoop, PlainSamples
from simulated import SimulatedNet, Taken, row, seconds

from ssdd.config import TrainConfig
from ssdd.data import codec, transforms
from ssdd.data.sampling import Sampling
from ssdd.losses import Means
from ssdd.objectives.crf import InlineCRF
from ssdd.objectives.dynamic import DynamicTask
from ssdd.objectives.fixed import FixedTask
from ssdd.objectives.optimizer import optimizer_for
from ssdd.presets import PRESETS, mini, paper, photographs
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.storage.artifacts import ABOUT, Artifact, read_about
from ssdd.training import trainer


def sample_cost(preset, goal, setting):
    """CPU seconds of a sample of the dynamic stage, over those with torchvision's transforms (`PlainSamples`)."""
    chosen = PRESETS[preset]()
    size, config = chosen.network.mask_size(chosen.dynamic.train.augment.crop), chosen.dynamic.train.augment
    rows = setting.labelled(64)
    plain = PlainSamples(config, size)

    def ours():
        for k, r in enumerate(rows):
            transforms.augment(config, r["image"], [codec.read_mask(r["refined"])], k, size, plain=True)

    def theirs():
        for r in rows:
            plain(r)

    def used(function):
        begun = time.process_time()
        function()
        return time.process_time() - begun

    ours(), theirs()  # warm
    times = [(used(ours), used(theirs)) for _ in range(5)]
    print(f"  {preset}: {1000 * times[-1][0] / len(rows):.1f} ms instead of {1000 * times[-1][1] / len(rows):.1f}")
    return row(f"sample_cost_{preset}", [a / b for a, b in times], goal)


@dataclass(frozen=True, kw_only=True)
class FirstStep(FixedTask):
    """A training that writes into `file` the time at which its first step begins."""

    file: str

    def losses(self, net, batch):
        with contextlib.suppress(FileExistsError), open(self.file, "x") as file:
            file.write(str(time.time()))
        return super().losses(net, batch)


def training_start(setting):
    """Seconds from one training's end to the next one's first step, over the seconds of two bare Python processes.

    The bare processes, one for each worker, run side by side, import torch, timm and Ray Train, and end.
    """
    table, chosen = setting.table(16), mini()
    start = setting.static_network(chosen)
    train = replace(chosen.dynamic.train, epochs=1)
    imports = [sys.executable, "-c", "import ray.train, torch._dynamo, timm"]

    def bare():
        for process in [subprocess.Popen(imports) for _ in range(2)]:
            process.wait()

    ratios, took, last = [], [], 0.0
    with setting.session(chosen) as session:
        for turn in range(4):
            file = setting.scratch / f"first-step-{turn}"
            task = FirstStep(
                network=chosen.network, train=train, classes=21, start=start, column="refined", file=str(file)
            )
            trainer.run(session, "start", {"turn": turn}, task, [table])
            if turn:  # not the first training, which also starts Ray's idle processes
                took.append(float(file.read_text()) - last)
                ratios.append(took[-1] / seconds(bare))
            last = time.time()
    print(f"  {statistics.median(took):.1f} s from one training's end to the next one's first step")
    return row("training_start", ratios, None)


@dataclass(frozen=True, kw_only=True)
class OnAccelerator:
    """A training whose steps take a given time on a simulated accelerator."""

    train: TrainConfig
    sampling: Sampling
    network: float
    """Seconds of a step."""
    runs_on_actors = False

    def build(self):
        net = SimulatedNet()
        net.backbone = torch.nn.Identity()
        return net

    def counts(self, batch):
        return {"main": torch.tensor([len(batch["image"])])}

    def losses(self, net, batch):
        output = Taken.apply(net.weight, self.network / 3, self.network * 2 / 3)
        return {"main": Means(output, self.counts(batch)["main"])}


def data_wait(milliseconds, setting):
    """The share of a training's time in which a simulated accelerator waits for samples of the paper's size.

    It is the training's own `data_wait`, in the second half of an epoch of 256 steps: the readers' start is left out.
    """
    chosen, table = paper(), setting.table(64, copies=32)
    train = replace(chosen.dynamic.train, epochs=1, lr=1e-9)
    size = chosen.network.mask_size(train.augment.crop)
    sampling = Sampling(masks=("refined",), mask_size=size, augment=train.augment, num_classes=21, plain=True)
    task = OnAccelerator(train=train, sampling=sampling, network=milliseconds / 1000)
    shares, steps = [], []
    for _ in range(3):
        with setting.session(replace(mini(), workers=1)) as session:
            artifact = trainer.run(session, "wait", {}, task, [table])
            last = read_about(artifact)["history"][-1]["step"]
            images, waits = (
                [
                    metric.value
                    for metric in session.tracker.client.get_metric_history(session.tracker.run_id, f"wait.{name}")
                    if last / 2 < metric.step < last  # the last window is shorter
                ]
                for name in ("images_per_s", "share.data_wait")
            )
        shares.append(statistics.mean(waits))
        steps.append(1000 * train.batch_size / statistics.mean(images))
    print(f"  a step takes {statistics.median(steps):.1f} ms")
    return row(f"data_wait_{milliseconds}ms", shares, 0.05)


def against_published_loop(setting):
    """Seconds for an image in a dynamic training (preset `photographs`), over those of `PlainLoop` with all threads."""
    chosen, table = photographs(), setting.table(64)
    start = setting.static_network(chosen)
    dynamic = replace(chosen.dynamic, train=replace(chosen.dynamic.train, epochs=2))
    task = DynamicTask(network=chosen.network, dynamic=dynamic, classes=21, start=start, crf=InlineCRF(dynamic.crf))
    net = task.build().to(memory_format=torch.channels_last).train()
    samples = PlainSamples(dynamic.train.augment, chosen.network.mask_size(dynamic.train.augment.crop))
    loop = PlainLoop(net, optimizer_for(net, dynamic.train), dynamic, samples)
    rows = list(table)

    def plain():
        torch.set_num_threads(setting.cpus)
        took = seconds(lambda: [loop.step(rows[k : k + 8]) for k in range(8, 64, 8)])
        torch.set_num_threads(1)
        return took / 56

    ratios = []
    loop.step(rows[:8])
    with setting.session(chosen) as session:
        for turn in range(3):
            pool = None
            if session.config.step.crf_of(session.plan.threads, session.plan.use_gpu) == "actors":
                pool = setting.pool(session.plan.crf_actors)
                task = replace(task, crf=ActorCRF(dynamic.crf, pool))
            artifact = trainer.run(session, "ours", {"turn": turn}, task, [table])
            if pool:
                pool.close()
            history = read_about(artifact)["history"]
            first, last = history[0], history[-1]
            ours = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"]) / 8
            theirs = plain()
            print(f"  {ours:.3f} s an image, the plain loop {theirs:.3f}")
            ratios.append(ours / theirs)
    return row("against_published_loop", ratios, 0.8)


def demo(setting):
    """The seconds that all artifacts in the workspace took, over those of the steps of its trainings alone."""
    folders = [path.parent for path in (setting.workspace / "artifacts").glob(f"*/{ABOUT}")]
    records = [read_about(Artifact(folder.name, "", folder)) for folder in folders]
    steps = sum(record["history"][-1]["seconds"] for record in records if record.get("history"))
    if not steps:
        print(f"  demo: nothing is trained in {setting.workspace}; run `make demo`, or name a workspace")
        return []
    whole = sum(record["seconds"] for record in records)
    print(f"  {whole:.0f} s, of which {steps:.0f} are training steps")
    return row("demo", [whole / steps], None)

"""Runs the benchmarks and prints a table. Most rows are ratios of two things that are measured in turns in one run.

    make bench        or: python bench/run.py [--only NAME ...] [--data DIR] [--workspace DIR] [--output FILE]

`--data` is a folder of photographs in VOC's layout (default: the embedded data set; for test_time_crf, the data set of
the job that trained). `--workspace` is a workspace in which a job has trained (default: ./workspace): test_time_crf,
predict and demo need it. A benchmark that cannot run on this machine prints why, and its rows are left out.
"""

import ssdd.runtime.environment  # before Ray is imported

# isort: split
import argparse
import fnmatch
import io
import json
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
import trainings
from PIL import Image
from simulated import CPU, SimulatedNet, SimulatedTask, in_turns, pictures, row, seconds
from step import FreeCRF, batch_of, build

from ssdd.config import PredictConfig, StepConfig
from ssdd.crf import CRFParams, crf_masks
from ssdd.data import codec, synthetic, voc
from ssdd.fields import from_dict
from ssdd.nets import checkpoints
from ssdd.nets.inference import PredictStage
from ssdd.nets.networks import StaticNet
from ssdd.objectives.crf import ExactCRF, InlineCRF, copied
from ssdd.objectives.optimizer import optimizer_for
from ssdd.objectives.step import Clock, Workers, gradients
from ssdd.presets import PRESETS, mini, paper
from ssdd.runtime import cluster, pipelines
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.environment import CPU_ENVIRONMENT
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, predict
from ssdd.storage import maps, tables
from ssdd.storage.artifacts import Artifact

TRAINING_CRF = CRFParams(iterations=3)


# The offline stage.


def offline_crf_stage(setting):
    """The rate of the pipeline with CRF actors, over the rate of one bare CRF loop times the number of CRF actors.

    Both go over the same photographs. If there are fewer CPUs than CRF actors, the factor is the number of CPUs.
    """
    table = setting.photographs(64)
    advise = partial(crf_rows.advise, CRFParams())
    rows = [
        r
        for part in range(len(table.parts))
        for block in pipelines.read_rows([table], COLUMNS, part)
        for r in block.to_pylist()
    ]
    rows = {row["image_id"]: row for row in rows}
    plan = setting.plan
    ratios, starts = [], []
    for _ in range(3):
        begun, ends = time.perf_counter(), {}
        for done in pipelines.infer([table], COLUMNS, Identity, advise, 4, plan):
            ends[done["image_id"]] = time.perf_counter()
        # Time the part in which every actor has work. At the first results, some processes are still starting.
        first, *timed = list(ends)[len(rows) // 4 : len(rows) - 2 * plan.crf_actors]
        took = ends[timed[-1]] - ends[first]
        copies = [[dict(rows[i])] for i in timed]
        bare = seconds(lambda copies=copies: [advise(copy) for copy in copies])
        starts.append(ends[first] - begun)
        ratios.append(bare / took / min(plan.crf_actors, setting.cpus))
    print(f"  not timed: the first quarter of the photographs, {min(starts):.1f} to {max(starts):.1f} s")
    return row("offline_crf_stage", ratios, 0.95, "higher")


COLUMNS = ["image", "presence", "probs"]


class Identity:
    def __call__(self, rows):
        return rows


# The CRF of a training step.


def crf_actor_overhead(setting):
    """Seconds in which the actors of a busy pool serve 20 requests each, over those of a bare loop for 20; minus 1.

    In the first row, the process that sends the requests has a core of its own; in the second, each core has an actor.
    """
    spare, full = (_overhead(setting.pool(actors)) for actors in (max(1, setting.cpus - 1), setting.cpus))
    return [row("crf_actor_overhead", spare, 0.10), row("crf_actor_overhead_on_all_cores", full, None)]


def _overhead(crfs):
    inputs, actors = _requests(4), len(crfs.actors)

    def loaded():
        asked = deque()
        for _ in range(20 * actors):
            if len(asked) == 2 * actors:
                asked.popleft().masks()
            asked.append(crfs.request(*inputs, TRAINING_CRF))
        for request in asked:
            request.masks()

    def bare():
        for _ in range(20):
            crf_masks(*inputs, TRAINING_CRF)

    times = in_turns(5, loaded, bare)
    crfs.close()
    return [a / b - 1 for a, b in times]


def _requests(count, side=112):
    """The inputs of `crf_masks` and of a pool's `request`, for smooth pictures."""
    image, logits, presence = pictures(count, side)
    return copied(image, logits, presence)()


def overlap(milliseconds, goal, setting):
    """Seconds of a step on a simulated accelerator, over the larger of network seconds and CRF seconds / actors."""
    n, actors = 8, setting.crf_actors
    batch, inputs = {"image": torch.arange(n)}, _requests(n)
    crfs = setting.pool(actors)
    clock, network = Clock(CPU), milliseconds / 1000
    steps = {}
    size, ahead = StepConfig().parts_of(n, True, True)
    for name, crf, part in (("actors", ActorCRF(TRAINING_CRF, crfs), size), ("inline", InlineCRF(TRAINING_CRF), n)):
        net = SimulatedNet()
        task, workers = SimulatedTask(crf, network, inputs), Workers(net)
        steps[name] = partial(gradients, task, net, batch, workers, clock, part, ahead)
    bare = partial(crf_masks, *inputs, TRAINING_CRF)

    def several(function):  # steps follow each other, as in a training
        for _ in range(4):
            function()

    rounds = in_turns(8, *(partial(several, function) for function in (steps["actors"], steps["inline"], bare)))
    times = [[t / 4 for t in turn] for turn in rounds]
    crfs.close()
    inline = [b / (network + c) for _, b, c in times]
    crf = statistics.median(c for _, _, c in times)
    print(
        f"  network {milliseconds} ms, CRF {crf * 1000:.0f} ms: "
        f"inline costs {statistics.median(inline):.2f} x (network + CRF)"
    )
    return row(f"overlap_{milliseconds}ms", [a / max(network, c / actors) for a, _, c in times], goal)


# A dynamic step on CPUs.


@ray.remote
class StepWorker:
    """A training worker, which runs steps of the dynamic stage on its share of a batch."""

    def __init__(self, preset, share):
        torch.set_num_threads(1)
        self.chosen, self.share, self.step = PRESETS[preset](), share, {}

    def join(self, rank, count, address):
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)

    def prepare(self, name, crf):
        task, kind = build(self.chosen, "dynamic", crf)
        torch.manual_seed(0)
        net = kind(self.chosen.network, 21).to(memory_format=torch.channels_last).train()
        size, ahead = self.chosen.step.parts_of(self.share, crf.runs_on_actors, False)
        one = partial(gradients, task, net, batch_of(task, self.share, CPU), Workers(net), Clock(CPU), size, ahead)
        optimizer = optimizer_for(net, replace(task.train, lr=1e-9))
        self.step[name] = lambda: (one(), optimizer.step())

    def steps(self, name, count):
        """Run `count` steps; return the CPU seconds of one."""
        begun = time.process_time()
        for _ in range(count):
            self.step[name]()
        return (time.process_time() - begun) / count

    def peak(self):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cpu_step(preset, setting):
    """Seconds of a dynamic step of 8 images with 2 workers and CRF actors, over (network + CRF CPU seconds) / cores.

    The network's CPU seconds are what both workers together use for the same step without a CRF; the CRF's are the time
    of a bare loop. The second row is the same step, over one whose workers compute the CRF themselves (inline).
    """
    chosen, count, steps = PRESETS[preset](), 8, 5
    params = chosen.dynamic.crf
    options = dict(num_cpus=setting.plan.unit, runtime_env={"env_vars": CPU_ENVIRONMENT})
    crfs = setting.pool(setting.crf_actors)
    workers = [StepWorker.options(**options).remote(preset, count // 2) for _ in range(2)]
    address = f"file://{tempfile.mkdtemp()}/group"
    ray.get([w.join.remote(rank, 2, address) for rank, w in enumerate(workers)])
    for name, backend in (
        ("none", FreeCRF(runs_on_actors=False)),
        ("actors", ActorCRF(params, crfs)),
        ("inline", InlineCRF(params)),
    ):
        ray.get([w.prepare.remote(name, backend) for w in workers])
    inputs = _requests(count, chosen.network.mask_size(chosen.dynamic.train.augment.crop))
    network = []

    def all_steps(name):
        used = ray.get([w.steps.remote(name, steps) for w in workers])
        if name == "none":
            network.append(sum(used))

    def crf():
        for _ in range(steps):
            crf_masks(*inputs, params)

    times = in_turns(5, *(partial(all_steps, name) for name in ("none", "actors", "inline")), crf)
    cores = min(setting.cpus, len(workers) + setting.crf_actors)
    bounds = [(cpu + t[-1] / steps) / cores for cpu, t in zip(network[1:], times, strict=True)]
    ratios = {
        k: [t[i] / steps / bound for t, bound in zip(times, bounds, strict=True)] for i, k in ((1, "a"), (2, "i"))
    }
    print(
        f"  {preset}: network {network[-1]:.2f} s, CRF {times[-1][-1] / steps:.2f} s of CPU; a step without CRF takes "
        f"{times[-1][0] / steps:.2f} s; inline costs {statistics.median(ratios['i']):.2f} x the bound"
    )
    for worker in workers:
        ray.kill(worker)
    crfs.close()
    return [
        row(f"cpu_step_{preset}", ratios["a"], 1.10),
        row(f"cpu_step_{preset}_over_inline", [actors / inline for _, actors, inline, _ in times], 1.0),
    ]


def peak_memory(setting):
    """A worker's peak memory if CRF actors compute the masks, over that if the worker computes them (inline)."""
    crfs, params = setting.pool(setting.crf_actors), mini().dynamic.crf
    peaks = {}
    for name, backend in (("inline", InlineCRF(params)), ("actors", ActorCRF(params, crfs))):
        peaks[name] = []
        for _ in range(2):  # each time in a new process, because a process's peak never falls
            worker = StepWorker.options(num_cpus=setting.plan.unit).remote("photographs", 8)
            ray.get(worker.prepare.remote(name, backend))
            ray.get(worker.steps.remote(name, 3))
            peaks[name].append(ray.get(worker.peak.remote()))
            ray.kill(worker)
    inputs = _requests(8)  # as many images as a step has
    for _ in range(5):
        crfs.request(*inputs, replace(TRAINING_CRF, iterations=1)).masks()
    before = object_store_bytes()
    for _ in range(500):
        crfs.request(*inputs, replace(TRAINING_CRF, iterations=1)).masks()
    print(f"  the object store grew by {(object_store_bytes() - before) / 2**20:.1f} MiB over 500 requests of 8 images")
    crfs.close()
    return row("peak_memory", [a / b for a in peaks["actors"] for b in peaks["inline"]], 1.05)


def object_store_bytes():
    time.sleep(2)  # Ray reports it with a delay
    total, free = ray.cluster_resources(), ray.available_resources()
    return total["object_store_memory"] - free["object_store_memory"]


# Test time.


def test_time_crf(setting):
    """The time of test-time CRFs with all labels over that without improbable labels, and the share of equal pixels.

    The CRFs get a trained network's predictions. The first two rows use the paper's CRF of 10 iterations, the rows
    `test_time_crf_own` the CRF of the workspace's configuration.
    """
    trained = checkpoints.recall(setting.workspace)
    if trained is None:
        print(f"  test_time_crf: nothing is trained in {setting.workspace}; run `make demo`, or name a workspace")
        return []
    chosen = from_dict(trained.config)
    folder = voc.open_folder(setting.data or chosen.data or setting.workspace / "embedded")
    ids = voc.read_split(folder, chosen.split)[:16]
    model = {"dynamic": setting.workspace / trained.models["dynamic"]}
    stage = PredictStage(network=chosen.network, evaluate=chosen.evaluate, classes=len(trained.classes), models=model)
    rows = [{"image_id": i, "image": (folder.root / "JPEGImages" / f"{i}.jpg").read_bytes()} for i in ids]
    rows = [r for first in range(0, len(rows), 8) for r in stage(rows[first : first + 8])]
    drop, out = chosen.evaluate.min_probability, []
    for name, crf in (("test_time_crf", CRFParams()), ("test_time_crf_own", chosen.crf)):
        both = [
            partial(crf_rows.segment, ("dynamic",), {"crf": crf}, p, chosen.evaluate.sharpen, rows) for p in (0.0, drop)
        ]
        every, probable = (np.concatenate([codec.read_mask(r["dynamic_crf"]).ravel() for r in made()]) for made in both)
        times = in_turns(3, *both)
        out += [
            row(name, [a / b for a, b in times], 2.0 if name == "test_time_crf" else None, "higher"),
            row(f"{name}_equal_pixels", [float((every == probable).mean())], 0.999, "higher"),
        ]
    return out


def predict_rate(setting):
    """Photographs a second of predict.py without CRF, over those of one process with all threads; starts excluded."""
    if checkpoints.recall(setting.workspace) is None:
        print(f"  predict: nothing is trained in {setting.workspace}; run `make demo`, or name a workspace")
        return []
    count, source = 256, setting.scratch / "photographs"
    source.mkdir()
    table = setting.photographs(64)
    rows = [r for part in range(len(table.parts)) for r in table.read(part, ["image"])]
    for k in range(count):
        (source / f"{k:04d}.jpg").write_bytes(rows[k % len(rows)]["image"])
    ratios = []
    for turn in range(3):
        output = setting.scratch / f"predicted-{turn}"
        predict.run(PredictConfig(model=setting.workspace, input=str(source), output=output, crf=False))
        # Time the part in which every process has work: without the first quarter and the last 16 photographs.
        written = sorted(path.stat().st_mtime_ns for path in (output / "masks").iterdir())[count // 4 : -16]
        rate = (len(written) - 1) / (written[-1] - written[0]) * 1e9
        ratios.append(rate * _bare_predictions(setting, sorted(source.iterdir())[: len(written)]))
    return row("predict", ratios, 0.9, "higher")


def _bare_predictions(setting, files):
    """Seconds in which one process with all threads reads, decodes, predicts, encodes and writes one photograph."""
    segmenter = ssdd.load(setting.workspace)
    folder = setting.scratch / "bare"
    folder.mkdir(exist_ok=True)

    def loop():
        for first in range(0, len(files), 8):
            batch = files[first : first + 8]
            for file, mask in zip(batch, segmenter.predict(batch), strict=True):
                (folder / f"{file.stem}.png").write_bytes(codec.encode_mask(mask))

    torch.set_num_threads(setting.cpus)
    segmenter.predict(files[:8])
    took = seconds(loop)
    torch.set_num_threads(1)
    return took / len(files)


# On a GPU.


def gpu_steps(setting):
    """Steps of ResNet-38 and ResNet-50 at the paper's size with each CRF, and the exact CRF against pydensecrf."""
    if not torch.cuda.is_available():
        print("  gpu: this machine has no GPU")
        return []
    where, rows = torch.device("cuda"), []
    crfs = setting.pool(min(setting.plan.crf_actors, 8))
    for backbone in ("resnet38", "resnet50"):
        chosen = paper()
        network = replace(chosen.network, backbone=replace(chosen.network.backbone, name=backbone))
        chosen, params = replace(chosen, network=network), chosen.dynamic.crf
        steps = {
            "none": _gpu_step(chosen, FreeCRF(runs_on_actors=False), True),
            "actors": _gpu_step(chosen, ActorCRF(params, crfs), True),
            "exact": _gpu_step(chosen, ExactCRF(params), True),
            "inline": _gpu_step(chosen, InlineCRF(params), False),  # one part, single precision, as published
        }
        times = [dict(zip(steps, t, strict=True)) for t in in_turns(5, *steps.values())]
        print(f"  {backbone}: " + ", ".join(f"{k} {v:.3f} s" for k, v in times[-1].items()))
        suffix = "" if backbone == "resnet38" else f"_{backbone}"
        rows += [
            row(f"gpu_step_over_no_crf{suffix}", [t["actors"] / t["none"] for t in times], 1.05),
            row(f"gpu_speedup_over_inline{suffix}", [t["inline"] / t["actors"] for t in times], 5.0, "higher"),
            row(f"gpu_exact_step{suffix}", [t["exact"] / t["none"] for t in times], 1.15),
        ]
        del steps
    crfs.close()
    image, logits, presence = pictures(8, 112, where)
    inputs = _requests(8)

    def exact():
        ExactCRF(TRAINING_CRF).request(image, logits, presence)
        torch.cuda.synchronize()

    times = in_turns(5, exact, partial(crf_masks, *inputs, TRAINING_CRF))
    return [*rows, row("gpu_exact_over_core", [b / a for a, b in times], 10.0, "higher")]


def _gpu_step(chosen, crf, fast):
    """A function that runs one step of 8 images on the GPU; `fast`: in bfloat16."""
    count, where = 8, torch.device("cuda")
    task, kind = build(chosen, "dynamic", crf)
    net = kind(chosen.network, 21).to(where, memory_format=torch.channels_last).train()
    size, ahead = chosen.step.parts_of(count, crf.runs_on_actors, True)
    workers, batch = Workers(net), batch_of(task, count, where)
    optimizer = optimizer_for(net, task.train)

    def step():
        gradients(task, net, batch, workers, Clock(CPU), size, ahead, fast)
        optimizer.step()
        torch.cuda.synchronize()

    return step


BENCHMARKS = {
    "offline_crf_stage": offline_crf_stage,
    "crf_actor_overhead": crf_actor_overhead,
    "overlap_20ms": partial(overlap, 20, 1.25),
    "overlap_60ms": partial(overlap, 60, 1.15),
    "overlap_200ms": partial(overlap, 200, 1.05),
    "test_time_crf": test_time_crf,
    "cpu_step_mini": partial(cpu_step, "mini"),
    "cpu_step_photographs": partial(cpu_step, "photographs"),
    "peak_memory": peak_memory,
    "predict": predict_rate,
    "sample_cost_paper": partial(trainings.sample_cost, "paper", 0.2),
    "sample_cost_photographs": partial(trainings.sample_cost, "photographs", 0.25),
    "training_start": trainings.training_start,
    "data_wait_60ms": partial(trainings.data_wait, 60),
    "against_published_loop": trainings.against_published_loop,
    "demo": trainings.demo,
    "gpu": gpu_steps,
}


class Setting:
    """What the benchmarks share: options, the plan of a local Ray, CRF actors, sessions and data."""

    def __init__(self, args, scratch):
        self.data, self.workspace, self.scratch = args.data, args.workspace, scratch
        self.cpus = int(args.num_cpus or os.cpu_count() or 1)
        self.plan = cluster.connect(replace(mini(), num_cpus=self.cpus))
        self.crf_actors = 2

    def pool(self, actors):
        nodes = cpu_nodes_first(cluster.nodes(), actors, self.plan.unit)
        return CRFPool(nodes, self.plan.unit, self.plan.crf_environment)

    def session(self, preset):
        """A session with a new workspace."""
        folder = tempfile.mkdtemp(dir=self.scratch)
        return Session(replace(preset, workspace=Path(folder), num_cpus=self.cpus), "bench")

    def static_network(self, preset):
        """An artifact like the static stage's, with a network that has not been trained."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        checkpoints.save(StaticNet(preset.network, 21).state_dict(), folder / checkpoints.MODEL)
        return Artifact("static", "0", folder)

    def labelled(self, count):
        """Rows with a photograph of about 375 x 500 pixels and a mask of the same size, in the column `refined`."""
        rows = list(self.photographs(count))
        for r in rows:
            height, width = codec.read_image(r["image"]).shape[:2]
            labels = np.array([0, *r["presence"]], np.uint8)
            mask = labels[maps.resize(maps.unpack(r.pop("probs")), (height, width)).argmax(0)]
            r["refined"] = codec.encode_mask(mask)
        return rows

    def table(self, count, copies=1):
        """The rows of `labelled`, each of them `copies` times under different ids, as a stage table."""
        labelled = self.labelled(count)
        rows = [row | {"image_id": f"{row['image_id']}-{k}"} for k in range(copies) for row in labelled]
        ids = [row["image_id"] for row in rows]
        parts = tuple(tuple(ids[first : first + 16]) for first in range(0, len(ids), 16))
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        tables.write_table(folder, parts, SCHEMA.remove(3).append(pa.field("refined", pa.binary())), iter(rows))
        return tables.open_table(folder)

    def photographs(self, count):
        """A stage table of photographs of about 375 x 500 pixels, with smooth probabilities of 2 or 3 labels each."""
        folder = self.data or synthetic.generate(self.scratch / f"data-{count}", train=count, val=1)
        opened = voc.open_folder(folder)
        ids = voc.read_split(opened, "train")[:count]
        generator = np.random.default_rng(0)
        rows = []
        for k, i in enumerate(ids):
            probs = maps.resize(generator.random((2 + k % 2, 5, 5), dtype=np.float32), (47, 63))
            image = (opened.root / "JPEGImages" / f"{i}.jpg").read_bytes()
            if not self.data:
                image = _resized(image, (500, 375))
            labels = list(range(1, 2 + k % 2))
            rows.append({"image_id": i, "image": image, "presence": labels, "probs": maps.pack(probs)})
        parts = tuple(tuple(ids[first : first + 8]) for first in range(0, len(ids), 8))
        (self.scratch / "table").mkdir(exist_ok=True)
        tables.write_table(self.scratch / "table", parts, SCHEMA, iter(rows))
        return tables.open_table(self.scratch / "table")


def _resized(jpeg, size):
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize(size).save(out, "JPEG", quality=95)
    return out.getvalue()


SCHEMA = pa.schema(
    [("image_id", pa.string()), ("image", pa.binary()), ("presence", pa.list_(pa.int64())), ("probs", pa.binary())]
)


def machine():
    """The processor, the GPU and the versions with which the benchmarks run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--output", type=Path, help="default: results.json here, unless --only is given")
    parser.add_argument("--num-cpus", type=int)
    args = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    torch.set_num_threads(1)
    os.nice(15)  # the priority of Ray's workers: with a higher one, this process would get a whole core
    rows = []
    if args.output is None and args.only == list(BENCHMARKS):
        args.output = Path(__file__).with_name("results.json")
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(args, Path(scratch))
        for name in args.only:
            print(name)
            made = BENCHMARKS[name](setting)
            rows += made if isinstance(made, list) else [made]
    record = {"machine": machine(), "rows": [asdict(r) for r in rows]}
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["machine"]))
    missed = unexplained(rows, Path(__file__).parents[1] / "docs" / "benchmarks.md")
    print(f"{'':32} {'median':>8} {'low':>8} {'high':>8}   goal")
    for r in rows:
        goal = "" if r.goal is None else f"{'<=' if r.better == 'lower' else '>='} {r.goal}"
        print(f"{r.name:32} {r.value:8.3f} {r.low:8.3f} {r.high:8.3f}   {goal}")
    if missed:
        sys.exit(f"goals that are missed, and not explained in docs/benchmarks.md: {', '.join(missed)}")


def unexplained(rows, page):
    """The names of the rows that miss their goals, without those for which the page gives a reason."""
    reasons = page.read_text().partition("What is not reached")[2]
    explained = re.findall(r"`([\w*]+)`", reasons)
    missed = [
        r.name for r in rows if r.goal is not None and (r.value > r.goal if r.better == "lower" else r.value < r.goal)
    ]
    return [name for name in missed if not any(fnmatch.fnmatch(name, pattern) for pattern in explained)]


if __name__ == "__main__":
    main()

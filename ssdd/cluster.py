"""Connecting to Ray, and who gets which CPU: a plan that can be met with 1, 2, 4 or 64 CPUs."""

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data
from ray._private import ray_constants
from ray._private.services import (
    find_bootstrap_address,  # the address that `ray start` left; there is no public way
    get_node_ip_address,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback  # no public name either
from ray.exceptions import RayTaskError

from ssdd.config import Config
from ssdd.paths import AnyPath, RemotePath
from ssdd.store import DISK_FULL

# Freed memory must be kept: giving it back and faulting it in again costs a training step a quarter and a CRF a tenth
# (glibc does so for large blocks, and more in threads other than the first, where Ray Train runs the loop).
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Of processes that run networks on CPUs. Threads must not spin while they wait: beside other processes that costs half
# the speed on 2 cores.
CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY}


class ResourceError(RuntimeError):
    """The cluster can never give what was asked for."""


@dataclass(frozen=True)
class Plan:
    """Logical resources of everything that runs at the same time.

    A training or network process, the CRF actors and the data tasks each hold `unit` CPUs a process; their sum
    never exceeds the cluster, so that nothing waits for ever. With few CPUs `unit` is a fraction, because a process
    that waits for another one needs no core of its own.
    """

    unit: float
    workers: int
    crf_actors: int
    data_tasks: int
    use_gpu: bool
    threads: int
    """torch threads of one training or network process without a GPU."""
    gpu: float = 1
    """GPUs of one training or network process, where `use_gpu`."""

    @property
    def network_resources(self) -> dict[str, float]:
        """Of one training worker or network actor."""
        return {"CPU": self.unit, "GPU": self.gpu} if self.use_gpu else {"CPU": self.unit}

    @property
    def network_environment(self) -> dict[str, dict[str, str]]:
        """Ray runtime environment of the same processes."""
        return {} if self.use_gpu else {"env_vars": CPU_ENVIRONMENT}

    @property
    def crf_environment(self) -> dict[str, dict[str, str]]:
        """Of CRF actors."""
        return {"env_vars": KEEP_MEMORY}


def make_plan(cpus: float, gpus: float, nodes: int, workers: int | None, use_gpu: bool | None) -> Plan:
    """Split a cluster.

    Args:
        cpus, gpus, nodes: what the cluster has.
        workers: training workers; None for one per GPU or, without GPUs, two per node.
        use_gpu: None for: where there are GPUs.

    Raises:
        ResourceError: the request can never be met; says what is there and what to change.
    """
    if cpus < 1:
        raise ResourceError(f"the cluster has {cpus:g} CPUs; at least 1 is needed (`ray start --num-cpus`)")
    if use_gpu is None:
        use_gpu = gpus >= 1
    if use_gpu and gpus < 1:
        raise ResourceError(f"--gpus True, but the cluster has {gpus:g} GPUs; leave --gpus out to train on CPUs")
    whole = int(cpus)
    on_a_node = max(1, whole // nodes)
    if workers is None:
        # On CPUs two workers of a node are faster together than one with all its threads.
        workers = int(gpus) if use_gpu else min(whole, nodes * min(2, on_a_node))
    if use_gpu and workers > gpus:
        raise ResourceError(
            f"--workers {workers} on GPUs, but the cluster has {gpus:g} GPUs; ask for at most that many"
        )
    if not use_gpu and workers > whole:
        raise ResourceError(
            f"--workers {workers}, but the cluster has {cpus:g} CPUs and no GPUs; ask for at most {whole} workers"
        )
    data_tasks = max(1, whole // 4)
    crf_actors = max(whole - workers - data_tasks, min(whole, 4))
    unit = 1 / math.ceil((workers + data_tasks + crf_actors) / whole)
    threads = max(1, min(os.cpu_count() or 1, on_a_node) // -(-workers // nodes))
    return Plan(unit, workers, crf_actors, data_tasks, use_gpu, threads)


def lanes(plan: Plan, cpus: float, wanted: int, gpu: float = 1) -> tuple[Plan, int]:
    """A share of the plan for each of several parts of a job that work side by side, and how many there are.

    A share has at least one training worker. All shares together fit into the cluster.

    Args:
        plan: the whole job's.
        cpus: of the cluster.
        wanted: parts.
        gpu: GPUs of a worker; below 1, parts with one worker each share them, where there are fewer GPUs than parts.
    """
    if plan.use_gpu and wanted > plan.workers:
        plan = replace(plan, workers=min(wanted, plan.workers * int(1 / gpu)), gpu=gpu)
    count = max(1, min(wanted, plan.workers))
    if count == 1:
        return plan, 1
    workers = plan.workers // count
    crf_actors, data_tasks = max(1, plan.crf_actors // count), max(1, plan.data_tasks // count)
    unit = 1 / math.ceil((workers + crf_actors + data_tasks) * count / int(cpus))
    return replace(plan, unit=unit, workers=workers, crf_actors=crf_actors, data_tasks=data_tasks), count


@dataclass(frozen=True)
class Node:
    """A node of the cluster that has CPUs."""

    node_id: str
    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """The nodes that live and have at least one CPU."""
    found = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [Node(i, r["CPU"], r.get("GPU", 0)) for i, r in found if r.get("CPU", 0) >= 1]


def places(nodes: list[Node], count: int, unit: float) -> list[str]:
    """Nodes for processes that need no GPU: nodes without GPUs first, whose CPUs no training needs, and in turns.

    Args:
        nodes: of the cluster.
        count: processes.
        unit: CPUs of each.

    Returns:
        Their ids, one for each process that there is room for.
    """
    chosen: list[str] = []
    for with_gpus in (False, True):
        # A training worker for each GPU needs a share, too.
        room = {n.node_id: int(n.cpus / unit - n.gpus + 1e-6) for n in nodes if (n.gpus > 0) == with_gpus}
        while max(room.values(), default=0) > 0 and len(chosen) < count:
            for node_id in [i for i, left in room.items() if left > 0]:
                chosen.append(node_id)
                room[node_id] -= 1
    return chosen[:count]


def off_gpus() -> dict[str, Any]:
    """Options of tasks and actors that need no GPU: nodes without GPUs first, then any."""
    with_gpus = [node.node_id for node in nodes() if node.gpus > 0]
    if not with_gpus:
        return {}
    return {
        "label_selector": {"ray.io/node-id": f"!in({','.join(with_gpus)})"},
        "fallback_strategy": [{"label_selector": {}}],
    }


def training_environment() -> dict[str, Any]:
    """The runtime environment of the tasks of a training: Ray takes a process that has it already, if there is one."""
    from ray.train.v2._internal.constants import get_env_vars_to_propagate  # no public name, and a driver's matter

    return {"env_vars": {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}}


def remaining(plan: Plan) -> Plan:
    """The plan with as many training workers as the cluster still has room for, after some of it was lost.

    Raises:
        ResourceError: no worker has room.
    """
    alive = nodes()
    if plan.use_gpu:
        room = sum(int(node.gpus / plan.gpu + 1e-6) for node in alive)
    else:
        room = int(sum(node.cpus for node in alive) / plan.unit + 1e-6) - plan.data_tasks
    if room < 1:
        raise ResourceError("no node is left for a training worker; the same command goes on when there are some")
    return replace(plan, workers=min(plan.workers, room))


def in_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(config: Config) -> Plan:
    """Connect to the cluster that RAY_ADDRESS names or that runs here, else start a local Ray; plan its use."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
    options: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    if not ray.is_initialized():
        own_size = config.num_cpus is not None and os.environ.get("RAY_ADDRESS") in (None, "", "local")
        address = "local" if own_size else find_cluster()
        if address == "local":
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine goes as a whole
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # sees sooner that a training has ended
        if own_size:
            options |= dict(num_cpus=config.num_cpus, include_dashboard=False)
        with _loopback_only() if address == "local" or _is_loopback_only(address) else contextlib.nullcontext():
            ray.init(address, **options)
    if config.num_cpus is not None and ray.cluster_resources().get("CPU", 0) != config.num_cpus:
        raise ResourceError(
            f"--num-cpus {config.num_cpus} is for a local Ray, but this runs on a cluster with "
            f"{ray.cluster_resources().get('CPU', 0):g} CPUs; leave it out"
        )
    quiet()
    _wait_for_a_node()
    resources = ray.cluster_resources()
    _wait_until_free(resources.get("CPU", 0))
    cpus, gpus, count = resources.get("CPU", 0), resources.get("GPU", 0), max(1, len(nodes()))
    plan = make_plan(cpus, gpus, count, config.workers, config.gpus)
    trainings = (config.seeds.classifier, config.seeds.affinity, config.static.train, config.dynamic.train)
    smallest = min(train.batch_size for train in trainings)
    if plan.workers > smallest and config.workers is not None:
        raise ResourceError(f"--workers {config.workers} is more than the smallest batch has images ({smallest})")
    return plan if plan.workers <= smallest else make_plan(cpus, gpus, count, smallest, config.gpus)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Nobody outside this machine reaches a local Ray: all of its servers listen on the loopback interface.

    Ray does so by itself on macOS and Windows; its processes read it from the environment.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, own = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = own
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def on_loopback() -> bool:
    """Whether the cluster is a local Ray, which only this machine reaches."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} == {"127.0.0.1"}


def own_error(error: Exception) -> Exception:
    """What a task raised, instead of Ray's report of it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def disk_is_full(error: Exception) -> bool:
    """Whether that is what a process, this one or a task's, was told."""
    return getattr(own_error(error), "errno", None) in DISK_FULL


def own_words(error: Exception) -> str:
    """An error's message, without what Ray adds where a task raised it."""
    cause = own_error(error)
    return str(cause).partition("\nFailed to apply UDF transform after")[0].strip() or repr(cause)


def storage(folder: AnyPath) -> dict[str, Any]:
    """Where Ray Train and Ray Tune keep their files, for a RunConfig."""
    if isinstance(folder, RemotePath):  # not as a URL, in which some keys would mean something else
        return {"storage_path": folder.key, "storage_filesystem": folder.filesystem}
    return {"storage_path": str(folder)}


def _is_loopback_only(address: str) -> bool:
    """Whether it is that of a local Ray of another process; this one must then use the loopback interface, too."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((get_node_ip_address(), int(port)), timeout=5).close()
        return False
    except OSError:
        return True


def find_cluster() -> str:
    """Address of the cluster that RAY_ADDRESS names, else of the one that was started here; `local` where none runs.

    Ray itself would try for many minutes to reach a cluster that is gone, and a killed one leaves its address behind.

    Raises:
        ResourceError: nothing answers where RAY_ADDRESS says.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named == "local":
        return named
    address = (find_bootstrap_address(None) or "") if named in (None, "", "auto") else named
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        return address
    except (OSError, ValueError) as error:
        if named:
            raise ResourceError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there ({error}); start it (`ray start --head`) or unset "
                "RAY_ADDRESS for a local one"
            ) from error
        return "local"


def _wait_for_a_node(patience: float = 300) -> None:
    """A cluster may begin with a head that does no work."""
    deadline = time.monotonic() + patience
    while ray.cluster_resources().get("CPU", 0) < 1 and time.monotonic() < deadline:
        time.sleep(2)


def _wait_until_free(cpus: float, patience: float = 45) -> None:
    """Two jobs that each plan with the whole cluster would wait for each other for ever."""
    deadline = time.monotonic() + patience
    while (free := ray.available_resources().get("CPU", 0)) < cpus - 1e-3:
        if time.monotonic() > deadline:
            raise ResourceError(
                f"other work holds {cpus - free:g} of the cluster's {cpus:g} CPUs; start this job when it has ended"
            )
        time.sleep(0.5)


class Breather(ExecutionCallback):
    """A pause in each turn of Ray Data's scheduling loop.

    Without it the loop spins for as long as samples wait for a training to take them, on half a core.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.02)


def quiet() -> None:
    """Leave the terminal to our own progress lines, and the cores to the work; errors still show."""
    context = ray.data.DataContext.get_current()
    if Breather not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Breather)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)

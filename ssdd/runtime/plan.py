"""Who gets which CPU: a plan of a job's processes that can be met with 1, 2, 4 or 64 CPUs."""

import math
import os
from dataclasses import dataclass, replace

from ssdd.runtime.environment import CPU_ENVIRONMENT, KEEP_MEMORY


class ResourceError(RuntimeError):
    """The cluster can never give what was asked for."""


@dataclass(frozen=True, kw_only=True)
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
    return Plan(
        unit=unit, workers=workers, crf_actors=crf_actors, data_tasks=data_tasks, use_gpu=use_gpu, threads=threads
    )


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


def workers_for(images: int, available: int) -> int:
    """The largest number of workers that divides the images of a step: every worker gets as many, and none is lost."""
    return max(n for n in range(1, available + 1) if images % n == 0)


@dataclass(frozen=True)
class Node:
    """A node of the cluster that has CPUs."""

    node_id: str
    cpus: float
    gpus: float


def cpu_nodes_first(nodes: list[Node], count: int, unit: float) -> list[str]:
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

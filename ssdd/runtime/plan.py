"""Plans a job's processes and their share of the CPUs, so that they fit into any cluster, even with one CPU."""

import math
from dataclasses import dataclass, replace

from ssdd.runtime.environment import CPU_ENVIRONMENT, KEEP_MEMORY


class ResourceError(RuntimeError):
    """There is no usable cluster, or it cannot provide what was asked for; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The logical resources of all processes that run at the same time.

    Each training worker or network actor, each CRF actor and each data task holds `unit` CPUs. Their sum never exceeds
    the cluster's CPUs, so that no process waits for ever. With few CPUs `unit` is a fraction, because a process that
    waits for another one needs no core of its own.
    """

    unit: float
    workers: int
    crf_actors: int
    data_tasks: int
    use_gpu: bool
    threads: int
    """torch threads of one training worker or network actor without a GPU."""
    lanes: int = 1
    """How many such plans share the cluster, see `lanes`."""
    gpu: float = 1
    """GPUs of one training worker or network actor, if `use_gpu` is true."""

    @property
    def network_resources(self) -> dict[str, float]:
        """The Ray resources of one training worker or network actor."""
        return {"CPU": self.unit, "GPU": self.gpu} if self.use_gpu else {"CPU": self.unit}

    @property
    def network_environment(self) -> dict[str, dict[str, str]]:
        """The Ray runtime environment of training workers and network actors."""
        return {} if self.use_gpu else {"env_vars": CPU_ENVIRONMENT}

    @property
    def crf_environment(self) -> dict[str, dict[str, str]]:
        """The Ray runtime environment of CRF actors."""
        return {"env_vars": KEEP_MEMORY}


def make_plan(
    cpus: float, gpus: float, nodes: int, workers: int | None, use_gpu: bool | None, cores: int | None = None
) -> Plan:
    """Divide a cluster's CPUs and GPUs among a job's processes.

    Args:
        cpus, gpus, nodes: the numbers of CPUs, GPUs and nodes of the cluster.
        workers: training workers; None for one per GPU or, without GPUs, two per node.
        use_gpu: whether to use GPUs; None to use them if there are any.
        cores: the CPU cores of a node, if they are known: a local Ray may have been given more CPUs than there are.

    Raises:
        ResourceError: the cluster is too small; the message says what it has and what to change.
    """
    if cpus < 1:
        raise ResourceError(f"the cluster has {cpus:g} CPUs; at least 1 is needed (`ray start --num-cpus`)")
    if use_gpu is None:
        use_gpu = gpus >= 1
    if use_gpu and gpus < 1:
        raise ResourceError(f"--gpus True, but the cluster has {gpus:g} GPUs; leave --gpus out to train on CPUs")
    whole = int(cpus)
    cpus_of_node = max(1, whole // nodes)
    if workers is None:
        # On CPUs, two workers on a node are faster than one worker that uses all the node's threads.
        workers = int(gpus) if use_gpu else min(whole, nodes * min(2, cpus_of_node))
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
    threads = max(1, min(cores or cpus_of_node, cpus_of_node) // -(-workers // nodes))
    return Plan(
        unit=unit, workers=workers, crf_actors=crf_actors, data_tasks=data_tasks, use_gpu=use_gpu, threads=threads
    )


def lanes(plan: Plan, cpus: float, wanted: int, gpu: float = 1) -> tuple[Plan, int]:
    """Split a plan into equal shares for parts of a job that run at the same time.

    A share has at least one training worker. All shares together fit into the cluster.

    Args:
        plan: the plan of the whole job.
        cpus: the CPUs of the cluster.
        wanted: the number of parts.
        gpu: the GPUs of a worker if the plan has fewer GPU workers than parts. If it is below 1, parts share a GPU.

    Returns:
        The plan of one share, and the number of shares, at most `wanted`.
    """
    if plan.use_gpu and wanted > plan.workers:
        plan = replace(plan, workers=min(wanted, plan.workers * int(1 / gpu)), gpu=gpu)
    count = max(1, min(wanted, plan.workers))
    if count == 1:
        return plan, 1
    workers = plan.workers // count
    crf_actors, data_tasks = max(1, plan.crf_actors // count), max(1, plan.data_tasks // count)
    unit = 1 / math.ceil((workers + crf_actors + data_tasks) * count / int(cpus))
    share = replace(plan, unit=unit, workers=workers, crf_actors=crf_actors, data_tasks=data_tasks, lanes=count)
    return share, count


def workers_for(images: int, available: int) -> int:
    """The largest number of workers that divides a step's images, so that all workers get the same number of them."""
    return max(n for n in range(1, available + 1) if images % n == 0)


@dataclass(frozen=True)
class Node:
    """A node of the cluster that has CPUs."""

    node_id: str
    cpus: float
    gpus: float


def without_lost_nodes(plan: Plan, nodes: list[Node], pool: int | None = None) -> Plan:
    """The plan, with fewer processes if the nodes, some of which may be lost, have no room for all of them.

    Args:
        plan: a plan of the whole cluster or of a share, see `lanes`.
        nodes: the nodes that are left.
        pool: the number of CRF actors that already run; None if the plan may have fewer of them, too.

    Raises:
        ResourceError: there is no room for even one worker.
    """
    room = sum(int(node.cpus / plan.unit + 1e-6) for node in nodes) // plan.lanes
    gpus = plan.workers
    if plan.use_gpu:  # each worker needs a GPU and CPUs of the same node
        places = (min(int(n.gpus / plan.gpu + 1e-6), int(n.cpus / plan.unit + 1e-6)) for n in nodes)
        total = sum(places)
        gpus = max(min(1, total), total // plan.lanes)  # with too few for all lanes, some wait for others
    actors = plan.crf_actors if pool is None else pool
    if room >= plan.workers + plan.data_tasks + actors and gpus >= plan.workers:
        return plan
    data_tasks = min(plan.data_tasks, max(1, room // 4))
    if pool is None:
        actors = min(actors, max(1, (room - data_tasks) // 2))
    workers = min(plan.workers, gpus, room - data_tasks - actors)
    if workers < 1:
        raise ResourceError(
            "the cluster has too little room left for the job's processes, perhaps because a node was lost; give the "
            "same command again, which plans with the nodes that are there and continues where this job ended"
        )
    return replace(plan, workers=workers, data_tasks=data_tasks, crf_actors=actors)


def cpu_nodes_first(nodes: list[Node], count: int, unit: float, workers: int | None = None) -> list[str]:
    """Choose nodes for processes that need no GPU: nodes without GPUs first, as GPU training leaves their CPUs free.

    Nodes of the same kind get one process each in turn.

    Args:
        nodes: the nodes of the cluster.
        count: the number of processes.
        unit: the CPUs of each process.
        workers: the number of training workers on GPUs; None for one for each GPU.

    Returns:
        One node id for each process for which the nodes have room, and at least one.
    """
    chosen: list[str] = []

    def room_on(node: Node) -> int:
        # On a node with GPUs, leave `unit` CPUs for each training worker that may come there.
        reserved = node.gpus if workers is None else min(node.gpus, workers)
        return int(node.cpus / unit - reserved + 1e-6)

    for with_gpus in (False, True):
        room = {node.node_id: room_on(node) for node in nodes if (node.gpus > 0) == with_gpus}
        while max(room.values(), default=0) > 0 and len(chosen) < count:
            for node_id in [i for i, left in room.items() if left > 0]:
                chosen.append(node_id)
                room[node_id] -= 1
    return (chosen or [node.node_id for node in nodes])[:count]

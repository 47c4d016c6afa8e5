"""Connects to a Ray cluster or starts a local Ray, and asks it for its nodes and resources."""

import contextlib
import errno
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError, RayError

from ssdd.config import Config, ConfigError
from ssdd.data.problems import first_line
from ssdd.runtime import environment
from ssdd.runtime.errors import disk_is_full
from ssdd.runtime.plan import Node, Plan, ResourceError, make_plan, without_lost_nodes
from ssdd.runtime.ray_internals import Breather, gcs_status
from ssdd.storage.paths import AnyPath, RemotePath


def nodes() -> list[Node]:
    """The nodes that are alive and have at least one CPU."""
    alive = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [Node(i, r["CPU"], r.get("GPU", 0)) for i, r in alive if r.get("CPU", 0) >= 1]


def off_gpus() -> dict[str, Any]:
    """Ray options for tasks and actors that need no GPU: they run on nodes without GPUs if possible, else on any."""
    with_gpus = [node.node_id for node in nodes() if node.gpus > 0]
    if not with_gpus:
        return {}
    return {
        "label_selector": {"ray.io/node-id": f"!in({','.join(with_gpus)})"},
        "fallback_strategy": [{"label_selector": {}}],
    }


def remaining(plan: Plan, pool: int | None = None) -> Plan:
    """`plan.without_lost_nodes` for the nodes that are alive. Raises ResourceError."""
    return without_lost_nodes(plan, nodes(), pool)


def check_writes(folder: AnyPath, flag: str) -> None:
    """Raise ConfigError if a file that is written into a folder is not there on all nodes of the cluster."""
    if isinstance(folder, Path):
        probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
        probe.touch()
        try:
            check_reads(probe, f"{flag} {folder}")
        finally:
            probe.unlink()


def check_reads(path: AnyPath, what: str) -> None:
    """Raise ConfigError, which begins with `what`, if a file or folder is not there on all nodes of the cluster."""
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    others.pop(here, None)
    if isinstance(path, RemotePath):
        return
    calls = {i: _sees.options(label_selector={"ray.io/node-id": i}).remote(str(path)) for i in others}
    blind = []
    for node_id, call in calls.items():
        with contextlib.suppress(RayError):  # a node that is lost now cannot tell; later stages notice it
            if not ray.get(call, timeout=120):
                blind.append(others[node_id])
    if blind:
        raise ConfigError(
            f"{what}: is not the same on the node{'s' * (len(blind) > 1)} {', '.join(blind)}; use a disk that all "
            "nodes share, or an object store"
        )


@ray.remote(num_cpus=0)
def _sees(path: str) -> bool:
    """Whether a file exists on this node; a network disk may show it after some seconds."""
    for _ in range(20):
        if os.path.exists(path):
            return True
        time.sleep(0.5)
    return False


def connect(config: Config, trains: bool = True) -> Plan:
    """Connect to the cluster that RAY_ADDRESS names or that runs on this machine, else start a local Ray; make a plan.

    Args:
        config: its `num_cpus`, `workers` and `gpus` are used.
        trains: whether the job trains. If it does, the plan has at most as many workers as the smallest training batch
            has images.

    Raises:
        ResourceError: the cluster cannot provide what the configuration asks for.
    """
    environment.set_defaults()
    options: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    if not ray.is_initialized():
        named = environment.ray_address()
        own_size = config.num_cpus is not None and named in (None, "local")
        address = "local" if own_size else find_cluster()
        if address == "local":
            _start_local(config.num_cpus, options)
        else:
            # For a cluster on this machine, Ray finds the token if it gets "auto", but not if it gets the address.
            _init(named or "auto", address, **options)
    if config.num_cpus is not None and ray.cluster_resources().get("CPU", 0) != config.num_cpus:
        raise ResourceError(
            f"--num-cpus {config.num_cpus} is only for a local Ray, but this job runs on a cluster with "
            f"{ray.cluster_resources().get('CPU', 0):g} CPUs; leave --num-cpus out"
        )
    quiet()
    _wait_for_a_node()
    resources = ray.cluster_resources()
    _wait_until_free(resources.get("CPU", 0))
    cpus, gpus, count = resources.get("CPU", 0), resources.get("GPU", 0), max(1, len(nodes()))
    if gpus >= 1 and config.gpus is not False and (reason := _unusable_gpu()):
        if config.gpus:
            raise ResourceError(f"--gpus True, but torch cannot use the cluster's GPUs ({reason}); leave --gpus out")
        logging.getLogger(__name__).warning(f"torch cannot use the cluster's GPUs ({reason}); the job uses CPUs")
        gpus = 0
    cores = os.cpu_count() if on_loopback() else None
    plan = make_plan(cpus, gpus, count, config.workers, config.gpus, cores)
    if not trains:
        return plan
    trainings = (config.seeds.classifier, config.seeds.affinity, config.static.train, config.dynamic.train)
    smallest = min(train.batch_size for train in trainings)
    if plan.workers > smallest and config.workers is not None:
        raise ResourceError(
            f"--workers {config.workers}, but the smallest training batch has {smallest} images; ask for at most "
            f"{smallest} workers"
        )
    return plan if plan.workers <= smallest else make_plan(cpus, gpus, count, smallest, config.gpus, cores)


def _unusable_gpu() -> str:
    """Why torch cannot use a GPU that Ray counts, for example on a Mac or with an old driver; empty if it can."""
    with contextlib.suppress(RayError):
        return ray.get(_cuda_error.remote(), timeout=120)
    return ""


@ray.remote(num_cpus=0, num_gpus=1)
def _cuda_error() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda").sum().item()
    except Exception as error:  # torch raises errors of several types
        return first_line(error) or repr(error)
    return ""


def _start_local(num_cpus: int | None, options: dict[str, Any]) -> None:
    """Start a local Ray.

    Raises:
        ResourceError: other machines could reach the local Ray.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with environment.of_local_ray(port):
        _init("local", "local", num_cpus=num_cpus, include_dashboard=True, dashboard_port=port, **options)
    if not on_loopback():
        ray.shutdown()
        raise ResourceError(
            "other machines could reach the local Ray, so it was stopped: import ssdd.runtime.environment before ray, "
            "and leave RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER unset"
        )


def _init(argument: str, address: str, **options: Any) -> None:
    """Call `ray.init`; turn its errors, except that of a full disk, into a ResourceError with the cause and a remedy.

    Args:
        argument: the `address` argument of `ray.init`, for example `auto`.
        address: the address of that cluster; `local` if a local Ray is to start.
        options: other arguments of `ray.init`.
    """
    try:
        ray.init(argument, **options)
    except Exception as error:
        if disk_is_full(error):
            raise
        what = "Ray does not start" if address == "local" else f"the Ray cluster at {address} cannot be joined"
        raise ResourceError(f"{what} ({str(error).strip() or repr(error)}); {remedy(error, address)}") from error


def remedy(error: Exception, address: str) -> str:
    """What the user can do about an error of `ray.init`.

    Args:
        error: the error that `ray.init` raised.
        address: the address of the cluster; `local` if a local Ray was to start.
    """
    text = str(error)
    if "Version mismatch" in text:
        return (
            "install the cluster's versions of Ray and Python here (pip install 'ray==VERSION'), or set "
            "RAY_ADDRESS=local for a local Ray"
        )
    asks_for_token = address != "local" and _gcs_status(address) in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    if isinstance(error, AuthenticationError) or asks_for_token:
        return (
            "the cluster asks for its token: set RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN to the content of "
            "~/.ray/auth_token on the head node (or RAY_AUTH_TOKEN_PATH to a copy of that file); for a local Ray, set "
            "RAY_ADDRESS=local"
        )
    if "AF_UNIX path" in text:
        return "set RAY_TMPDIR to a short path such as /tmp: the paths of Ray's sockets can have at most 107 bytes"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        if Path(str(error.filename)).is_relative_to(Path.home() / ".ray"):
            return "set HOME to a folder that you can write to: Ray keeps its token in the subfolder .ray"
        return "set RAY_TMPDIR to a folder with a short path that you can write to: /tmp/ray belongs to another user"
    if address != "local":
        return "check that the cluster runs (`ray status` on its head node), or set RAY_ADDRESS=local for a local Ray"
    return (
        "read the logs in /tmp/ray/session_latest/logs (or below RAY_TMPDIR), or set RAY_ADDRESS to a running cluster"
    )


def on_loopback() -> bool:
    """Whether the cluster is a local Ray that only this machine can reach."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} == {"127.0.0.1"}


def storage(folder: AnyPath) -> dict[str, Any]:
    """Options of a RunConfig that make Ray Train and Ray Tune keep their files in a folder."""
    if isinstance(folder, RemotePath):  # pass the key: some of its characters could have another meaning in a URL
        return {"storage_path": folder.key, "storage_filesystem": folder.filesystem}
    return {"storage_path": str(folder)}


def find_cluster() -> str:
    """The address of the cluster that RAY_ADDRESS names, else of one that runs on this machine; `local` if none runs.

    Ray itself would try for many minutes to reach a cluster that has ended, and a killed cluster leaves its address in
    a file.

    Raises:
        ResourceError: no cluster's head node answers at RAY_ADDRESS.
    """
    named = environment.ray_address()
    if named == "local":
        return named
    if named and named.startswith(("http://", "https://")):
        raise ResourceError(
            f"RAY_ADDRESS={named}: this is the address of a dashboard, to which `ray job submit` sends jobs; for a "
            "script that runs here, set RAY_ADDRESS to the head node's HOST:PORT that `ray start --head` printed (port "
            "6379), or unset it for a local Ray"
        )
    address = named or _address_left_behind()
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        status = _gcs_status(address)
        if status not in ("OK", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise OSError(f"the program that listens there is not a Ray head node: gRPC status {status}")
        return address
    except (OSError, ValueError) as error:
        if named:
            raise ResourceError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there ({error}); set RAY_ADDRESS to the address that "
                "`ray start --head` printed (port 6379), start a cluster, or unset RAY_ADDRESS for a local Ray"
            ) from error
        return "local"


def _gcs_status(address: str) -> str:
    """`ray_internals.gcs_status`, but always OK for `ray://` addresses and with TLS, where that check would fail."""
    if "://" in address or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return "OK"
    return gcs_status(address)


def _address_left_behind() -> str:
    """The address in the file that `ray start` wrote on this machine; empty if there is no such file.

    The documentation of `ray.init` names the file. The file stays when that Ray ends.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _wait_for_a_node(patience: float = 300) -> None:
    """Wait until the cluster has a CPU: a cluster may begin with only a head node, which offers none."""
    deadline = time.monotonic() + patience
    while ray.cluster_resources().get("CPU", 0) < 1 and time.monotonic() < deadline:
        time.sleep(2)


def _wait_until_free(cpus: float, patience: float = 45) -> None:
    """Wait until all CPUs are free: two jobs that each plan with the whole cluster would wait for each other for ever.

    Raises:
        ResourceError: other jobs still hold CPUs after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while (free := ray.available_resources().get("CPU", 0)) < cpus - 1e-3:
        if time.monotonic() > deadline:
            raise ResourceError(
                f"other jobs hold {cpus - free:g} of the cluster's {cpus:g} CPUs; start this job when they have ended"
            )
        time.sleep(0.5)


def quiet() -> None:
    """Turn off Ray's output except errors, and make Ray Data's scheduling loop use less CPU time (`Breather`)."""
    context = ray.data.DataContext.get_current()
    callbacks: list[type] = context.custom_execution_callback_classes  # type: ignore[assignment]
    if Breather not in callbacks:
        callbacks.append(Breather)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)

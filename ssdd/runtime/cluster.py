"""Connecting to a Ray cluster or starting a local one, and what is asked of it."""

import errno
import logging
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError

from ssdd.config import Config
from ssdd.runtime import environment
from ssdd.runtime.errors import disk_is_full
from ssdd.runtime.plan import Node, Plan, ResourceError, make_plan
from ssdd.runtime.ray_internals import Breather, gcs_status
from ssdd.storage.paths import AnyPath, RemotePath


def nodes() -> list[Node]:
    """The nodes that live and have at least one CPU."""
    found = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [Node(i, r["CPU"], r.get("GPU", 0)) for i, r in found if r.get("CPU", 0) >= 1]


def off_gpus() -> dict[str, Any]:
    """Options of tasks and actors that need no GPU: nodes without GPUs first, then any."""
    with_gpus = [node.node_id for node in nodes() if node.gpus > 0]
    if not with_gpus:
        return {}
    return {
        "label_selector": {"ray.io/node-id": f"!in({','.join(with_gpus)})"},
        "fallback_strategy": [{"label_selector": {}}],
    }


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


def connect(config: Config, trains: bool = True) -> Plan:
    """Connect to the cluster that RAY_ADDRESS names or that runs here, else start a local Ray; plan its use.

    Args:
        config: the size of a local Ray, workers, GPUs.
        trains: whether there are to be no more workers than the smallest batch of its trainings has images.

    Raises:
        ResourceError: the cluster cannot give what the configuration asks for.
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
            # By its address alone, Ray would not look for the token of the cluster that was started here.
            _init(named or "auto", address, **options)
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
    if not trains:
        return plan
    trainings = (config.seeds.classifier, config.seeds.affinity, config.static.train, config.dynamic.train)
    smallest = min(train.batch_size for train in trainings)
    if plan.workers > smallest and config.workers is not None:
        raise ResourceError(f"--workers {config.workers} is more than the smallest batch has images ({smallest})")
    return plan if plan.workers <= smallest else make_plan(cpus, gpus, count, smallest, config.gpus)


def _start_local(num_cpus: int | None, options: dict[str, Any]) -> None:
    """Start a local Ray.

    Raises:
        ResourceError: it could be reached from other machines.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with environment.of_local_ray(port):
        _init("local", "local", num_cpus=num_cpus, include_dashboard=True, dashboard_port=port, **options)
    if not on_loopback():
        ray.shutdown()
        raise ResourceError(
            "the local Ray that was started could be reached from other machines: import ssdd.runtime.environment "
            "before ray, and leave RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER unset"
        )


def _init(asked: str, address: str, **options: Any) -> None:
    """`ray.init`. ResourceError with the cause and what helps, whatever it raises but that the disk is full.

    Args:
        asked: what Ray is given.
        address: of the cluster that this means; `local` for a Ray that is started.
        options: of `ray.init`.
    """
    try:
        ray.init(asked, **options)
    except Exception as error:
        if disk_is_full(error):
            raise
        what = "Ray does not start" if address == "local" else f"the Ray cluster at {address} cannot be joined"
        raise ResourceError(f"{what} ({str(error).strip() or repr(error)}); {remedy(error, address)}") from error


def remedy(error: Exception, address: str) -> str:
    """What helps against an error of `ray.init`.

    Args:
        error: that it raised.
        address: of the cluster that was to be joined; `local` for a Ray that is started.
    """
    text = str(error)
    if "Version mismatch" in text:
        return (
            "install the cluster's versions of Ray and Python here (pip install 'ray==VERSION'), or unset RAY_ADDRESS"
        )
    asks_for_token = address != "local" and _gcs_status(address) in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    if isinstance(error, AuthenticationError) or asks_for_token:
        return (
            "the cluster asks for its token: set RAY_AUTH_MODE=token, and in RAY_AUTH_TOKEN what the head node has in "
            "~/.ray/auth_token (or in RAY_AUTH_TOKEN_PATH a file with it)"
        )
    if "AF_UNIX path" in text:
        return "set RAY_TMPDIR to a short path, /tmp say: the paths of Ray's sockets have at most 107 bytes"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        if Path(str(error.filename)).is_relative_to(Path.home() / ".ray"):
            return "set HOME to a folder that can be written: Ray keeps its token there, in .ray"
        return "set RAY_TMPDIR to a folder that can be written, with a short path: /tmp/ray belongs to another user"
    if address != "local":
        return "see that it runs (`ray status` on its head node), or unset RAY_ADDRESS for a local Ray"
    return (
        "see the logs in /tmp/ray/session_latest/logs (or below RAY_TMPDIR), or name a running cluster in RAY_ADDRESS"
    )


def on_loopback() -> bool:
    """Whether the cluster is a local Ray, which only this machine reaches."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} == {"127.0.0.1"}


def storage(folder: AnyPath) -> dict[str, Any]:
    """Where Ray Train and Ray Tune keep their files, for a RunConfig."""
    if isinstance(folder, RemotePath):  # not as a URL, in which some keys would mean something else
        return {"storage_path": folder.key, "storage_filesystem": folder.filesystem}
    return {"storage_path": str(folder)}


def find_cluster() -> str:
    """Address of the cluster that RAY_ADDRESS names, else of the one that was started here; `local` where none runs.

    Ray itself would try for many minutes to reach a cluster that is gone, and a killed one leaves its address behind.

    Raises:
        ResourceError: no head of a cluster answers where RAY_ADDRESS says.
    """
    named = environment.ray_address()
    if named == "local":
        return named
    if named and named.startswith(("http://", "https://")):
        raise ResourceError(
            f"RAY_ADDRESS={named}: this is the address of a dashboard, to which `ray job submit` sends jobs; a script "
            "that runs here needs HOST:PORT of the head node, as `ray start --head` prints it (port 6379), or no "
            "RAY_ADDRESS for a local Ray"
        )
    address = named or _address_left_behind()
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        status = _gcs_status(address)
        if status not in ("OK", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise OSError(f"what listens there is no head of a cluster, it says {status}")
        return address
    except (OSError, ValueError) as error:
        if named:
            raise ResourceError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there ({error}); give the address that `ray start "
                "--head` printed (port 6379), start one, or unset RAY_ADDRESS for a local Ray"
            ) from error
        return "local"


def _gcs_status(address: str) -> str:
    """`ray_internals.gcs_status`; OK for addresses that cannot be asked like this, of Ray's client and with TLS."""
    if "://" in address or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return "OK"
    return gcs_status(address)


def _address_left_behind() -> str:
    """The address that `ray start` has written down on this machine, in a file that `ray.init`'s documentation names.

    It stays there when that Ray ends. Empty where there is none.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


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


def quiet() -> None:
    """Leave the terminal to our own progress lines, and the cores to the work; errors still show."""
    context = ray.data.DataContext.get_current()
    callbacks: list[type] = context.custom_execution_callback_classes  # type: ignore[assignment]
    if Breather not in callbacks:
        callbacks.append(Breather)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)

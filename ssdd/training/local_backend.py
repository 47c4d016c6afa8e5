"""Workers of a training on a local Ray: they meet in a file, and connect on the loopback interface alone.

Ray's own way is torch's store, which the first worker starts: it listens on every interface, without a password.
"""

import os
import shutil
import socket
import tempfile
from datetime import timedelta
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, get_device

LEAVE_WITHIN = 30.0  # seconds


class LocalTorchConfig(TorchConfig):
    """The `torch_config` of a TorchTrainer whose workers meet in a file."""

    @property
    def backend_cls(self) -> type["_LocalBackend"]:
        return _LocalBackend


class _LocalBackend(Backend):
    share_cuda_visible_devices = True  # as TorchConfig's: `get_device` tells which of them is this worker's
    folder = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a start that failed
        self.folder = tempfile.mkdtemp(prefix="ssdd-")
        ray.get(worker_group.execute_async(_join, f"file://{self.folder}/store", backend_config.timeout_s))

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_WITHIN)
        except GetTimeoutError:
            pass  # they are ended afterwards
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _join(store: str, timeout: float) -> None:
    """In each worker: the variables that torch's tools look for, and the process group."""
    context, where = ray.train.get_context(), get_device()
    loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    os.environ |= {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    torch.distributed.init_process_group(
        "nccl" if where.type == "cuda" else "gloo",
        init_method=store,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout),
    )


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

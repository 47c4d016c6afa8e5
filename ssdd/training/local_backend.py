"""Connects the workers of a training on a local Ray: they find each other through a file, and use only loopback.

With Ray's own TorchConfig, the first worker starts torch's TCP store, which listens on every interface without a
password.
"""

import os
import shutil
import socket
import tempfile
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

LEAVE_WITHIN = 30.0  # seconds
TIMEOUT = timedelta(minutes=30)
"""The timeout of the workers' communication, as in Ray's TorchConfig."""


class LocalTorchConfig(BackendConfig):
    """The `torch_config` of a TorchTrainer whose workers find each other through a file.

    The class does not inherit from TorchConfig, and this module does not import torch: Ray's controller loads the
    config, and would import torch for three seconds before it starts the workers.

    Args:
        use_gpu: whether the workers train on GPUs.
    """

    def __init__(self, use_gpu: bool):
        self.backend = "nccl" if use_gpu else "gloo"

    @property
    def backend_cls(self) -> type["_LocalBackend"]:
        return _LocalBackend

    @property
    def train_func_context(self) -> Any:
        from ray.train.torch import TorchConfig

        # Each worker trains inside this context, which selects its GPU. Ray reads the property on the driver, where the
        # import does no harm.
        return TorchConfig().train_func_context


class _LocalBackend(Backend):
    share_cuda_visible_devices = True  # as in TorchConfig: workers see all GPUs, `get_device` names theirs
    folder = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # a start that failed may have left its folder
        self.folder = tempfile.mkdtemp(prefix="ssdd-")
        ray.get(worker_group.execute_async(_join, f"file://{self.folder}/store", backend_config.backend))

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_WITHIN)
        except GetTimeoutError:
            pass  # Ray ends the workers afterwards
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _join(store: str, backend: str) -> None:
    """In each worker, set the environment variables that torch's tools read, and create the process group."""
    import torch.distributed

    context = ray.train.get_context()
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
        backend,
        init_method=store,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=TIMEOUT,
    )


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

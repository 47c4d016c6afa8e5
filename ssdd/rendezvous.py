"""How the workers of a training meet where all of them are on this machine: in a file instead of at a port.

torch's store, which Ray Train starts in the first worker, listens on every interface, without a password.
"""

import os
import shutil
import socket
import tempfile
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import (  # no public names
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


class LocalTorchConfig(TorchConfig):
    """For `TorchTrainer`: process groups that nobody outside this machine reaches."""

    @property
    def backend_cls(self) -> type["_LocalBackend"]:
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    folder = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a start that failed
        self.folder = tempfile.mkdtemp(prefix="ssdd-")
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(_use_loopback)
        setup = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                timeout_s=backend_config.timeout_s,
                init_method=f"file://{self.folder}/store",
            )
            for rank in range(len(worker_group))
        ]
        ray.get(setup)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _use_loopback() -> None:
    """The workers' connections with each other, for gloo and NCCL."""
    (name, *_) = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}

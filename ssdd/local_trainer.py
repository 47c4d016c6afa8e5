"""Ray Train on a local Ray, which other Rays of this machine do not disturb and nobody outside of it reaches.

Ray's own way there: torch's store, which the first worker starts, listens on every interface, without a password.
"""

import os
import shutil
import socket
import tempfile
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import (  # neither these nor the next one are public
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.torch.torch_trainer import TorchTrainer

from ssdd.local_cleaner import LocalCleanerCallback


class LocalTrainer(TorchTrainer):
    """A TorchTrainer whose workers meet in a file, and which asks its own Ray."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, torch_config=_LocalTorchConfig(), **options)

    def _create_default_callbacks(self) -> list[Any]:
        ours = LocalCleanerCallback(check_interval_s=0.5)
        callbacks = super()._create_default_callbacks()
        return [ours if isinstance(callback, PlacementGroupCleanerCallback) else callback for callback in callbacks]


class _LocalTorchConfig(TorchConfig):
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
                init_method=f"file://{self.folder}/store",
                timeout_s=backend_config.timeout_s,
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
    """For the workers' connections with each other, by gloo and NCCL."""
    (name, *_) = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}

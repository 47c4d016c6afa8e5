"""Ray Train on a local Ray, which other Rays of this machine do not disturb and nobody outside of it reaches.

Ray's own way there: torch's store, which the first worker starts, listens on every interface, without a password; and
an actor asks whether the training's controller lives, but it asks whichever Ray it finds on the machine, waits for one
that has ended, and where another one knows of no such controller it takes the workers' placement group away.
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


class LocalTrainer(TorchTrainer):
    """A TorchTrainer whose workers meet in a file; its placement group ends with the driver, as all of a local Ray."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, torch_config=_LocalTorchConfig(), **options)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


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

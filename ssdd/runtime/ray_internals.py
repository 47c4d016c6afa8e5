"""Every use of a private name of Ray in this package, with its purpose and what would happen without it.

This module must not import torch, because the CRF actors import it.
"""

import os
import time
from typing import Any


def is_interruption(error: BaseException) -> bool:
    """Whether an error of Ray Train means that workers did not start or answer, and not that the training failed.

    Purpose: such a training is restarted. Ray has no public classes for these errors, so they are recognized by their
    class names. Without it: a training ends if a node is lost while its workers start, or if a worker hangs.
    """
    return type(error).__name__ in (
        *("WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError", "WorkerHealthCheckTimeoutError"),
        "PreemptionError",  # a worker's node is taken away; this class is public since Ray 2.58
    )


def behind(failure: Exception) -> Exception:
    """The error that ended a worker, if Ray Train only reports a `WorkerHealthCheckFailedError`; else `failure` itself.

    Purpose: find out whether the worker was killed, lost or out of memory. Without it: no such training is restarted.
    """
    return getattr(failure, "health_check_failure", failure)


def training_environment() -> dict[str, Any]:
    """The runtime environment that Ray Train gives to the tasks of a training; Ray has no public function for it.

    Purpose: processes are started with this environment before the training, and Ray reuses them for the tasks that
    read samples. Without it: Ray starts new processes, which delays a training's first step by some seconds.
    """
    handed_on = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return {"env_vars": {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **handed_on}}


class Breather:
    """A callback that pauses Ray Data's scheduling loop for a moment in each iteration.

    It has the methods of Ray Data's `ExecutionCallback`, which has no public name.

    Purpose: saves a quarter of a core. While samples wait for a training to take them, the loop's process uses 0.37 to
    0.39 of a core, and 0.06 to 0.16 with the pause (Ray 2.57 and 2.60, on 2 cores). Without it: the loop uses that core
    time.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.02)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def gcs_status(address: str, timeout: float = 10) -> str:
    """Ask a Ray cluster's head node (its GCS) whether it is alive, and return the name of the answer's gRPC status.

    A Ray head node gives OK, or UNAUTHENTICATED if it wants a token. For other servers the status is UNIMPLEMENTED,
    UNAVAILABLE or DEADLINE_EXCEEDED.

    Purpose: an error at once if RAY_ADDRESS names the port of another program. Without it: `ray.init` tries for 15
    minutes, and `ray health-check` for 40 seconds. The name of the remote call is private.

    Args:
        address: HOST:PORT of the server.
        timeout: in seconds.
    """
    import grpc  # a dependency of ray[default]

    options = [("grpc.enable_http_proxy", 0)]  # Ray sets this option, too
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=timeout)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name

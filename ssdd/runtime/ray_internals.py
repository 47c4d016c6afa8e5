"""Every private name of Ray that this package uses, each with what it buys and what happens without it.

Nothing here may import torch: the processes of the CRF actors import this module.
"""

import os
import time
from typing import Any


def is_interruption(error: BaseException) -> bool:
    """Whether Ray Train says with an error that workers did not start or answer: nothing that the training did itself.

    Buys: such a training starts again. The classes have no public names, so they are told by their names. Without it: a
    training ends where a node is lost while its workers start, or a worker hangs.
    """
    return type(error).__name__ in (
        *("WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError", "WorkerHealthCheckTimeoutError"),
        "PreemptionError",  # public since Ray 2.58: its node is taken away
    )


def behind(failure: Exception) -> Exception:
    """What ended a worker, where Ray Train reports that it answers no more (`WorkerHealthCheckFailedError`).

    Buys: whether it was killed, lost or out of memory. Without it: no such training starts again.
    """
    return getattr(failure, "health_check_failure", failure)


def training_environment() -> dict[str, Any]:
    """The runtime environment that Ray Train gives to the tasks of a training, of which nothing public tells.

    Buys: processes that are started with it ahead of the training are taken by Ray for the tasks that read samples.
    Without it: those are started anew, which delays a training's first step by some seconds.
    """
    handed_on = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    return {"env_vars": {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **handed_on}}


class Breather:
    """A pause in each turn of Ray Data's scheduling loop, as a callback.

    Its methods are those of Ray Data's `ExecutionCallback`, which has no public name.

    Buys: a quarter of a core. While samples wait for a training to take them, the loop's process takes 0.37 to 0.39 of
    a core, and 0.06 to 0.16 with the pause (Ray 2.57 and 2.60, on 2 cores). Without it: just that.
    """

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.02)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def gcs_status(address: str, timeout: float = 10) -> str:
    """The answer of a Ray cluster's head (its GCS) to the question whether it lives: the name of a gRPC status.

    OK, or UNAUTHENTICATED where it wants a token; of other servers UNIMPLEMENTED, UNAVAILABLE or DEADLINE_EXCEEDED.

    Buys: an error at once where RAY_ADDRESS names the port of something else. Without it: `ray.init` tries for 15
    minutes, and `ray health-check` for 40 seconds. The name of the call is private.

    Args:
        address: HOST:PORT.
        timeout: in seconds.
    """
    import grpc  # of ray[default]

    options = [("grpc.enable_http_proxy", 0)]  # as in Ray
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=timeout)
            return "OK"
        except grpc.RpcError as error:
            return error.code().name

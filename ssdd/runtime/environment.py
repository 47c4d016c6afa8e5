"""The environment variables that are set for this process and for those that Ray starts.

Only a training worker's rank and network interface are set elsewhere, in `training.local_backend`.

Ray reads one of them when it is imported. A script that starts a local Ray therefore imports this module first.
"""

import contextlib
import os
from collections.abc import Iterator

# Freed memory must be kept: giving it back and faulting it in again costs a training step a quarter and a CRF a tenth
# (glibc does so for large blocks, and more in threads other than the first, where Ray Train runs the loop).
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Of processes that run networks on CPUs. Threads must not spin while they wait: beside other processes that costs half
# the speed on 2 cores.
CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY}
_API_SERVER = "RAY_API_SERVER_ADDRESS"


def in_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def ray_address() -> str | None:
    """What RAY_ADDRESS names; None where it leaves the choice to Ray."""
    named = os.environ.get("RAY_ADDRESS")
    return None if named in (None, "", "auto") else named


def _stay_on_loopback() -> None:
    """All servers of a local Ray listen on the loopback interface, so that nobody outside this machine reaches it.

    Ray does so by itself on macOS and Windows. It reads this when it is imported, and it changes nothing for a Ray that
    runs already and that listens on other interfaces.
    """
    named = ray_address() or "local"
    if named == "local" or named.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


_stay_on_loopback()


def set_defaults() -> None:
    """What Ray and MLflow say and how long they try, unless the user has set it; read when they are used."""
    defaults = {
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean in a trial what they mean here
        "RAY_AIR_NEW_OUTPUT": "0",  # with it, Ray Tune prints even if it is not to
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow would try for minutes, while the job waits
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def of_local_ray(dashboard_port: int) -> Iterator[None]:
    """For the start of a local Ray, which hands this process's environment on to its own processes.

    Ray Train has an actor that removes the reservation of a training whose controller has died, as that of a trial that
    Ray Tune stops. It asks Ray's API server for the controller, and by itself it takes that of any Ray that it finds on
    the machine. In the block, the address names this Ray's.
    """
    # Ray Train hands these on from the driver: they stay.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine goes as a whole
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # sees sooner that a training has ended
    before = os.environ.get(_API_SERVER)
    os.environ[_API_SERVER] = f"http://127.0.0.1:{dashboard_port}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_API_SERVER]
        else:
            os.environ[_API_SERVER] = before

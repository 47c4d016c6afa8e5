"""Environment variables for this process and for the processes that Ray starts.

Only a training worker's rank and network interface are set elsewhere, in `training.local_backend`.

Ray reads one of the variables when it is imported. A script that starts a local Ray therefore imports this module
before ray.
"""

import contextlib
import os
from collections.abc import Iterator

# These make glibc keep freed memory. By default it returns large blocks to the system, most often in threads other than
# the main thread, and Ray Train runs the training loop in such a thread. Getting the memory back costs a quarter of a
# training step's time and a tenth of a CRF's.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# For processes that run networks on CPUs. Threads must not spin while they wait: on 2 cores that other processes use,
# too, spinning halves the speed.
CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY}
_API_SERVER = "RAY_API_SERVER_ADDRESS"


def in_job() -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def ray_address() -> str | None:
    """The value of RAY_ADDRESS; None if it is unset, empty or `auto`, which leave the choice to Ray."""
    named = os.environ.get("RAY_ADDRESS")
    return None if named in (None, "", "auto") else named


def _stay_on_loopback() -> None:
    """Make all servers of a local Ray listen on the loopback interface only, so that no other machine reaches them.

    By itself, Ray does so only on macOS and Windows. Ray reads the variable that is set here when Ray is imported. The
    variable has no effect on a Ray that already runs and listens on other interfaces.
    """
    named = ray_address() or "local"
    if named == "local" or named.rpartition(":")[0] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


_stay_on_loopback()


def set_defaults() -> None:
    """Set defaults for the output and the retries of Ray and MLflow, except variables that the user has set.

    Ray and MLflow read these variables when they are used.
    """
    defaults = {
        "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # in a trial, relative paths start at the job's working directory
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output of Ray Tune ignores verbose=0
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default MLflow retries for minutes, and the job waits
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def of_local_ray(dashboard_port: int) -> Iterator[None]:
    """Set variables for the block that starts a local Ray, whose processes inherit this process's environment.

    Ray Train has an actor that frees the reserved resources of a training whose controller has died, for example when
    Ray Tune stops a trial. The actor asks Ray's API server about the controller. By default it takes the API server of
    any Ray on the machine; the address that is set here makes it take the server of this Ray.
    """
    # Ray Train copies these two from the driver to its processes, so they stay set after the block. A local Ray has one
    # node, so there is no preemption of single nodes to watch. Frequent health checks notice sooner that a training has
    # ended.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    before = os.environ.get(_API_SERVER)
    os.environ[_API_SERVER] = f"http://127.0.0.1:{dashboard_port}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_API_SERVER]
        else:
            os.environ[_API_SERVER] = before

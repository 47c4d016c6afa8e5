"""The original errors of Ray's tasks, without the error in which Ray wraps them; the error of a full GPU."""

from ray.exceptions import RayTaskError

from ssdd.storage.artifacts import DISK_FULL


class GPUMemoryError(RuntimeError):
    """A step or a batch does not fit into a GPU's memory; the message names the option that makes it smaller."""


def original_error(error: Exception) -> Exception:
    """The error that a task raised, without the RayTaskError around it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def disk_is_full(error: Exception) -> bool:
    """Whether the error, from this process or from a task, means that the disk is full or the quota is used up."""
    return getattr(original_error(error), "errno", None) in DISK_FULL


def message_of(error: Exception) -> str:
    """An error's message, without the text that Ray adds if a task raised the error."""
    cause = original_error(error)
    return str(cause).partition("\nFailed to apply UDF transform after")[0].strip() or repr(cause)

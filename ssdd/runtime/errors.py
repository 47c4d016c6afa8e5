"""What a task of Ray raised, without Ray's report of it."""

from ray.exceptions import RayTaskError

from ssdd.storage.artifacts import DISK_FULL


def original_error(error: Exception) -> Exception:
    """What a task raised, instead of Ray's report of it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def disk_is_full(error: Exception) -> bool:
    """Whether that is what a process, this one or a task's, was told."""
    return getattr(original_error(error), "errno", None) in DISK_FULL


def message_of(error: Exception) -> str:
    """An error's message, without what Ray adds where a task raised it."""
    cause = original_error(error)
    return str(cause).partition("\nFailed to apply UDF transform after")[0].strip() or repr(cause)

"""Ends a job whose processes die again and again on the same images, which Ray would start anew for ever.

A process notes on its machine's disk which images it works on, and removes the note when it is done. A process that is
killed or crashes leaves its note behind, and the one that gets the same work next finds it. Imports no torch.
"""

import contextlib
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MOST_DEATHS = 3
"""Of processes on the same images. On a cluster each machine counts for itself."""


class CrashError(RuntimeError):
    """Processes died again and again while they worked on the same images; the message names them."""

    def __init__(self, images: Sequence[str]):
        self.images = tuple(images)
        super().__init__(self.images)

    def __reduce__(self) -> tuple[type["CrashError"], tuple[tuple[str, ...]]]:
        return CrashError, (self.images,)  # Ray Data adds something to `args`

    def __str__(self) -> str:
        return (
            f"{MOST_DEATHS} processes died while they worked on {', '.join(self.images)}: either the memory does not "
            "suffice (shrink the images, lower --max-pixels or the batch of inference, or run fewer processes at once "
            "with --num-cpus), or a library crashes on them (leave them out)"
        )


def new_work() -> str:
    """A name for one pipeline or request; deaths count within it alone, so that what stops another does not count.

    Notes of processes that were stopped with their job are removed after a day.
    """
    with contextlib.suppress(OSError):
        for note in _folder().iterdir():
            if note.stat().st_mtime < time.time() - 24 * 3600:
                note.unlink()
    return uuid.uuid4().hex[:12]


@contextlib.contextmanager
def noted(work: str, key: str, images: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Note for as long as the block lasts that this process works on some images.

    Args:
        work: the pipeline or request, see `new_work`.
        key: tells these images from others of the same work; the same when they are tried again. No two processes
            work with the same key at the same time.
        images: gives their ids, for the error.

    Raises:
        CrashError: `MOST_DEATHS` processes of this machine have died in such a block.
    """
    path = _folder() / f"{work}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        _folder().mkdir(mode=0o700, exist_ok=True)
        with path.open("a+") as note:
            note.seek(0)
            deaths = len(note.read().splitlines())
            if deaths < MOST_DEATHS:
                note.write(f"{os.getpid()}\n")
    except OSError:  # a full disk: then nothing is counted
        deaths = 0
    if deaths >= MOST_DEATHS:
        raise CrashError(images())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir(), f"ssdd-work-{os.getuid()}")

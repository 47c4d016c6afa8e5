"""Ends a job if its processes die again and again on the same images; Ray would restart them for ever.

A process writes a note to its machine's disk when it begins to work on some images, and removes the note when it has
finished. If it is killed or crashes, the note stays, and the next process that works on the same images finds it. This
module imports no torch.
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
"""The job ends after this many processes have died on the same images. Each machine of a cluster counts its own."""


class CrashError(RuntimeError):
    """Processes died again and again while they worked on the same images; the message names them."""

    def __init__(self, images: Sequence[str]):
        self.images = tuple(images)
        super().__init__(self.images)

    def __reduce__(self) -> tuple[type["CrashError"], tuple[tuple[str, ...]]]:
        return CrashError, (self.images,)  # not `args`, to which Ray Data adds something

    def __str__(self) -> str:
        return (
            f"{MOST_DEATHS} processes died while they worked on {', '.join(self.images)}: either there is too little "
            "memory (shrink the images, lower --max-pixels or the batch size of inference, or run fewer processes at "
            "once, on a local Ray with a lower --num-cpus), or a library crashes on these images (leave them out)"
        )


def new_work() -> str:
    """A new name for the work of one pipeline. Deaths are counted for each name separately.

    The function also removes notes older than a day: processes that were stopped with their job leave them.
    """
    with contextlib.suppress(OSError):
        for note in _folder().iterdir():
            if note.stat().st_mtime < time.time() - 24 * 3600:
                note.unlink()
    return uuid.uuid4().hex[:12]


@contextlib.contextmanager
def noted(work: str, key: str, images: Callable[[], Sequence[str]]) -> Iterator[None]:
    """While the block runs, keep a note that this process works on some images.

    Args:
        work: the name of the work: that of a pipeline (`new_work`), or another name that no other work has.
        key: identifies the images within the work, and is the same when they are retried. Two processes must not use
            the same key of a work at the same time.
        images: returns the ids of the images, for the error message.

    Raises:
        CrashError: `MOST_DEATHS` processes of this machine have died in a block with the same work and key.
    """
    path = _folder() / f"{work}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    try:
        _folder().mkdir(mode=0o700, exist_ok=True)
        with path.open("a+") as note:
            note.seek(0)
            deaths = len(note.read().splitlines())
            if deaths < MOST_DEATHS:
                note.write(f"{os.getpid()}\n")
    except OSError:  # on a full disk, for example, deaths are not counted
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

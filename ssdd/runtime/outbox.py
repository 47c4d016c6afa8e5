"""Calls to MLflow that were not sent yet, kept in a folder."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


class Outbox:
    """A folder with one run's unsent calls: a text file with a line for each call, and copies of the files to upload.

    The first line has the calls' destination: store, experiment and run. The run's id is empty if it has not begun.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lines = folder / "calls.jsonl"
        self._owner: FileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}

    def has_calls(self) -> bool:
        return self._lines.exists()

    def take(self) -> bool:
        """Lock the outbox for this process; False if another process has locked it."""
        # The lock file is beside the folder, because the folder is deleted. Any thread may release the lock.
        self._owner = FileLock(self.folder.with_suffix(".lock"), timeout=0, thread_local=False)
        try:
            self._owner.acquire()
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Unlock the outbox for other processes."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None
            if not self.has_calls():
                self.folder.with_suffix(".lock").unlink(missing_ok=True)

    def keep(self, call: str, args: tuple[Any, ...], where: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.has_calls():
            self.take()
            self._write([where])
        if call == "file":  # copied, because the original may be deleted before it is sent
            args = (shutil.copy(args[0], self.folder),)
        elif call == "model":
            args = (shutil.copytree(args[0], str(self.folder / f"model-{uuid.uuid4().hex[:8]}")), *args[1:])
        with self._lines.open("a") as lines:
            lines.write(json.dumps([call, args]) + "\n")

    def store(self) -> str | None:
        """The store that gets the calls; None if there are no calls."""
        return self.read()[0][0] if self.has_calls() else None

    def read(self) -> tuple[list[str], list[tuple[str, list[Any]]]]:
        """The destination (store, experiment, run), and the calls. An incomplete last line is left out."""
        where, *lines = self._lines.read_text().splitlines(keepends=True)
        return json.loads(where), [tuple(json.loads(line)) for line in lines if line.endswith("\n")]

    def rewrite(self, where: list[str], calls: list[tuple[str, list[Any]]]) -> None:
        self._write([where, *calls])

    def clear(self) -> None:
        self._lines.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, lines: list[Any]) -> None:
        aside = self._lines.with_suffix(".new")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(aside, self._lines)

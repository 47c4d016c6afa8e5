"""Artifacts: folders that are either complete or absent, and that record the recipe they were built from.

An artifact is a folder `WORKSPACE/artifacts/NAME-KEY`, where KEY is a digest of its *recipe*: the configuration and
the inputs that determine it. The same recipe finds the same folder again, and a changed recipe gets another folder. An
unfinished folder has no recipe file; on a disk, it does not have the artifact's name, either.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssdd.storage import paths
from ssdd.storage.paths import AnyPath, RemotePath

RECIPE = "recipe.json"
ABOUT = "about.json"
"""Facts about how an artifact was built, which do not change its key: `seconds`, and the `history` of a training."""
LOCKS = "locks"
UNFINISHED = 7 * 24 * 3600
"""Seconds after the last change of an unfinished folder until it counts as left by a killed job."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORMAT = 7  # increase it when the same recipe gives another result than before


@dataclass(frozen=True)
class Artifact:
    """The folder of a recipe; `key` identifies the recipe and so, transitively, everything that it is built from."""

    name: str
    key: str
    path: AnyPath


class Store:
    """The artifacts of one workspace."""

    def __init__(self, workspace: AnyPath):
        self.workspace = workspace
        self.root = workspace / "artifacts"

    @property
    def _locks(self) -> Path:  # not in __init__, because a store can be sent to another machine
        return paths.disk_beside(self.workspace) / LOCKS

    def build(self, name: str, recipe: dict[str, Any], make: Callable[[AnyPath], None]) -> Artifact:
        """The artifact that `recipe` describes; if it does not exist, `make(folder)` builds it.

        Args:
            name: a word for the kind of artifact.
            recipe: JSON data; an `Artifact` is stored as its name and key, a dataclass as its fields.
            make: fills an empty folder. If it raises an error, no folder with the artifact's name is left.
        """
        artifact = self.identify(name, recipe)
        if is_whole(artifact):
            return artifact
        self._locks.mkdir(parents=True, exist_ok=True)
        # One process builds an artifact, the others wait for it. If the workspace is in an object store, one process on
        # each machine builds it; each file of the artifact then comes complete from one of them.
        with FileLock(self._locks / f"{artifact.path.name}.lock"):
            if not is_whole(artifact):
                self._make(artifact, _canonical(recipe), make)
        return artifact

    def identify(self, name: str, recipe: dict[str, Any]) -> Artifact:
        """The artifact that `build` would return, whether it exists or not."""
        key = hashlib.sha256(f"{FORMAT} {name}\n{_canonical(recipe)}".encode()).hexdigest()[:12]
        return Artifact(name, key, self.root / f"{name}-{key}")

    def lineage(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        """The given artifacts and, transitively, those they were built from, if they exist; inputs come first."""
        seen: dict[str, Artifact] = {}

        def add(artifact: Artifact) -> None:
            if artifact.path.name in seen or not is_whole(artifact):
                return
            for text in _texts(json.loads((artifact.path / RECIPE).read_text())):
                if match := re.fullmatch(r"([^/]+)-([0-9a-f]{12})", text):
                    add(Artifact(match[1], match[2], self.root / text))
            seen[artifact.path.name] = artifact

        for artifact in artifacts:
            add(artifact)
        return list(seen.values())

    def _make(self, artifact: Artifact, recipe: str, make: Callable[[AnyPath], None]) -> None:
        folder = self.root / f".{artifact.path.name}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        if isinstance(artifact.path, Path) and artifact.path.exists():  # somebody deleted its recipe file
            shutil.rmtree(artifact.path)
        try:
            make(folder)
            if isinstance(artifact.path, RemotePath):  # an object store cannot rename a folder
                if not is_whole(artifact):
                    paths.copy(folder, artifact.path)
                    (artifact.path / RECIPE).write_text(recipe)
                return
            (folder / RECIPE).write_text(recipe)
            try:
                os.rename(str(folder), artifact.path)
            except OSError:  # another process finished the same artifact first, which is just as good
                if not is_whole(artifact):
                    raise
        finally:
            paths.remove(folder)

    def remove_unfinished(self) -> None:
        """On a disk, delete what killed jobs left of artifacts.

        Nobody builds an artifact whose lock is free. Not every shared disk has working locks, so young folders stay.
        """
        if not isinstance(self.root, Path):
            return
        self._locks.mkdir(parents=True, exist_ok=True)
        for folder in self.root.glob(".*-*.*"):
            name = folder.name[1:].rpartition(".")[0]
            with contextlib.suppress(OSError), FileLock(self._locks / f"{name}.lock", timeout=0):
                if time.time() - folder.stat().st_mtime > UNFINISHED:
                    paths.remove(folder)


def _texts(recipe: Any) -> Iterator[str]:
    """All strings in JSON data."""
    if isinstance(recipe, str):
        yield recipe
    elif isinstance(recipe, (list, dict)):
        for value in recipe.values() if isinstance(recipe, dict) else recipe:
            yield from _texts(value)


def is_whole(artifact: Artifact) -> bool:
    """Whether the artifact is finished."""
    return (artifact.path / RECIPE).is_file()


def read_about(artifact: Artifact) -> dict[str, Any]:
    """The content of the artifact's `about.json`; empty if the file does not exist, as in earlier versions."""
    path = artifact.path / ABOUT
    return json.loads(path.read_text()) if path.is_file() else {}


def write_text(path: AnyPath, text: str) -> None:
    """Write a file so that other processes see either the old file or the complete new one."""
    with whole(path) as aside:
        aside.write_text(text)


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """A temporary path for a file or folder, which replaces `path` when the block ends without an error.

    In an object store, the files of a folder appear one after another.
    """
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder, path.name)
            yield aside
            paths.copy(aside, path)
        return
    with paths.replacing(path) as aside:
        yield aside


def _canonical(recipe: dict[str, Any]) -> str:
    data = json.loads(json.dumps(recipe, default=_encode), parse_float=_number)
    return json.dumps(data, indent=1, sort_keys=True)


def _number(text: str) -> float:
    """Parse a number; 5.0 becomes 5, so that both give the same key."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _encode(value: Any) -> Any:
    if isinstance(value, Artifact):
        return f"{value.name}-{value.key}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, AnyPath):
        return str(value)
    raise TypeError(f"a recipe cannot hold {type(value).__name__}")

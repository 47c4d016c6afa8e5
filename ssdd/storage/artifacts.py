"""Artifacts that appear whole or not at all and remember what made them.

An artifact is a folder `WORKSPACE/artifacts/NAME-KEY`, where KEY is a digest of its *recipe*: the configuration and
the inputs that it follows from. What has not changed is found again, what has changed gets another folder, and a
folder that was not finished has no recipe, on a disk not even that name.
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
"""What is told of how an artifact was made and changes nothing: `seconds`, and of a training its `history`."""
LOCKS = "locks"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORMAT = 6  # raise it whenever the same recipe would now give something else


@dataclass(frozen=True)
class Artifact:
    """A finished folder; `key` identifies its recipe and so, transitively, everything it was made from."""

    name: str
    key: str
    path: AnyPath


class Store:
    """The artifacts of one workspace."""

    def __init__(self, workspace: AnyPath):
        self.workspace = workspace
        self.root = workspace / "artifacts"

    @property
    def _locks(self) -> Path:  # on each machine that a store is sent to
        return paths.disk_beside(self.workspace) / LOCKS

    def build(self, name: str, recipe: dict[str, Any], make: Callable[[AnyPath], None]) -> Artifact:
        """The artifact that `recipe` describes; `make(folder)` fills it if it is not there yet.

        Args:
            name: what it is, a word.
            recipe: JSON data; `Artifact` values stand for their keys, dataclasses for their fields.
            make: fills an empty folder. If it raises, nothing is left behind under the artifact's name.
        """
        artifact = self.identify(name, recipe)
        if is_whole(artifact):
            return artifact
        self._locks.mkdir(parents=True, exist_ok=True)
        # Of trials that need the same, one works; with a workspace in an object store, one on each machine: there, each
        # file of an artifact comes whole from one of them.
        with FileLock(self._locks / f"{artifact.path.name}.lock"):
            if not is_whole(artifact):
                self._make(artifact, _canonical(recipe), make)
        return artifact

    def identify(self, name: str, recipe: dict[str, Any]) -> Artifact:
        """The artifact that `build` would give, whether it is there or not."""
        key = hashlib.sha256(f"{FORMAT} {name}\n{_canonical(recipe)}".encode()).hexdigest()[:12]
        return Artifact(name, key, self.root / f"{name}-{key}")

    def lineage(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        """Artifacts and all that they follow from, as far as it is there; each stands after what it follows from."""
        seen: dict[str, Artifact] = {}

        def add(artifact: Artifact) -> None:
            if artifact.path.name in seen or not is_whole(artifact):
                return
            recipe = (artifact.path / RECIPE).read_text()
            for name, key in re.findall(r'"([\w-]+)-([0-9a-f]{12})"', recipe):
                add(Artifact(name, key, self.root / f"{name}-{key}"))
            seen[artifact.path.name] = artifact

        for artifact in artifacts:
            add(artifact)
        return list(seen.values())

    def _make(self, artifact: Artifact, recipe: str, make: Callable[[AnyPath], None]) -> None:
        folder = self.root / f".{artifact.path.name}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        if isinstance(artifact.path, Path) and artifact.path.exists():  # somebody took its recipe out
            shutil.rmtree(artifact.path)
        try:
            make(folder)
            if isinstance(artifact.path, RemotePath):  # has no folders that could be renamed
                if not is_whole(artifact):
                    paths.copy(folder, artifact.path)
                    (artifact.path / RECIPE).write_text(recipe)
                return
            (folder / RECIPE).write_text(recipe)
            try:
                os.rename(str(folder), artifact.path)
            except OSError:  # another process finished the same artifact first: theirs is as good
                if not is_whole(artifact):
                    raise
        finally:
            paths.remove(folder)


def is_whole(artifact: Artifact) -> bool:
    """Whether it was made to its end."""
    return (artifact.path / RECIPE).is_file()


def read_about(artifact: Artifact) -> dict[str, Any]:
    """What was written of its making; empty where nothing was, as by earlier versions."""
    path = artifact.path / ABOUT
    return json.loads(path.read_text()) if path.is_file() else {}


def write_text(path: AnyPath, text: str) -> None:
    """Write a file that is either the old one or wholly the new one."""
    with whole(path) as aside:
        aside.write_text(text)


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """A path for a file or folder, which takes the place of `path` when the block ends without an error.

    In an object store the files of a folder appear one after another.
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
    """5.0 and 5 are the same value of a field."""
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

"""Artifacts on disk that appear whole or not at all and remember what made them.

An artifact is a folder `WORKSPACE/artifacts/NAME-KEY`, where KEY is a digest of its *recipe*: the configuration and
the inputs that it follows from. What has not changed is found again, what has changed gets another folder, and a
folder that was not finished never has that name.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

RECIPE = "recipe.json"
LOCKS = "locks"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORMAT = 4  # raise it whenever the same recipe would now give something else


@dataclass(frozen=True)
class Artifact:
    """A finished folder; `key` identifies its recipe and so, transitively, everything it was made from."""

    name: str
    key: str
    path: Path


class Store:
    """The artifacts of one workspace."""

    def __init__(self, workspace: Path):
        self.workspace = workspace
        self.root = workspace / "artifacts"

    def build(self, name: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Artifact:
        """The artifact that `recipe` describes; `make(folder)` fills it if it is not there yet.

        Args:
            name: what it is, a word.
            recipe: JSON data; `Artifact` values stand for their keys, dataclasses for their fields.
            make: fills an empty folder. If it raises, nothing is left behind under the artifact's name.
        """
        artifact = self.identify(name, recipe)
        if artifact.path.is_dir():
            return artifact
        (self.workspace / LOCKS).mkdir(parents=True, exist_ok=True)
        with FileLock(self.workspace / LOCKS / f"{artifact.path.name}.lock"):  # of trials that need the same, one works
            if not artifact.path.is_dir():
                with self._aside(artifact) as folder:
                    make(folder)
                    write_text(folder / RECIPE, _canonical(recipe))
        return artifact

    def identify(self, name: str, recipe: dict[str, Any]) -> Artifact:
        """The artifact that `build` would give, whether it is there or not."""
        key = hashlib.sha256(f"{FORMAT} {name}\n{_canonical(recipe)}".encode()).hexdigest()[:12]
        return Artifact(name, key, self.root / f"{name}-{key}")

    @contextlib.contextmanager
    def _aside(self, artifact: Artifact):
        folder = self.root / f".{artifact.path.name}.{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
            try:
                os.rename(folder, artifact.path)
            except OSError:  # another process finished the same artifact first: theirs is as good
                if not artifact.path.is_dir():
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either the old one or wholly the new one."""
    with whole(path) as aside:
        aside.write_text(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path for a file or folder, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


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
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a recipe cannot hold {type(value).__name__}")

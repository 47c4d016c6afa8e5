"""What a job works with: its configuration, its workspace, the cluster's plan, progress and tracking."""

import copy
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssdd.config import Config, ConfigError
from ssdd.runtime import cluster, progress
from ssdd.runtime.environment import in_job
from ssdd.runtime.plan import Plan
from ssdd.runtime.progress import Console, Mailbox
from ssdd.runtime.tracking import Tracker
from ssdd.storage.artifacts import ABOUT, Artifact, Store, is_whole
from ssdd.storage.paths import AnyPath, RemotePath, make_writable, relative
from ssdd.storage.tables import Row, Table, open_table, write_table


class StoppedError(RuntimeError):
    """Another part of the job failed, so that this one starts no further stage."""


@dataclass(frozen=True)
class Used:
    """An artifact that a job made or reused."""

    artifact: Artifact
    part: str
    """Of the job that it belongs to, see `Session.child`; empty for the whole job."""
    ran: bool
    """Whether this job made it."""


class Session(AbstractContextManager):
    """Connected to Ray and MLflow. Stages are functions of a session; what they make goes through its store."""

    def __init__(self, config: Config, job: str):
        self.config, self.job = config, job
        self.command = tuple(sys.argv)
        self.used: dict[str, Used] = {}  # by the names of their folders; shared with the children
        self.pictures: list[AnyPath] = []  # that this job drew; shared with the children
        self.stop: threading.Event | None = threading.Event()  # shared with the children; None: nobody stops it
        self.in_trial = False  # of a sweep
        self.part = ""  # ends the names of pictures, see `child`
        self.console = Console()
        self.workspace = resolve(config.workspace, default="workspace", flag="--workspace")
        try:
            make_writable(self.workspace)
        except OSError as error:
            raise ConfigError(f"--workspace {self.workspace}: {error.strerror}; name another folder") from error
        self.store = Store(self.workspace)
        self.plan = cluster.connect(config)
        self.console.line(f"workspace {self.workspace}")
        plan = self.plan
        self.console.line(
            f"cluster: {plan.workers} {'GPU' if plan.use_gpu else 'CPU'} worker(s), {plan.crf_actors} CRF actor(s), "
            f"{plan.data_tasks} data task(s), {plan.unit:g} CPU each"
        )
        self.tracker = Tracker(config, job, self.workspace)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.tracker.close(failed=error is not None)

    def child(self, config: Config, name: str, plan: Plan) -> "Session":
        """A part of this job: another configuration, a part of the cluster, an MLflow run below this one's.

        Use it as a context manager. Children may work at the same time, in threads.
        """
        other = copy.copy(self)
        other.config, other.plan, other.part = config, plan, f"-{name.replace(' ', '')}"
        other.console = self.console.labelled(name)
        other.tracker = self.tracker.child(config, name)
        return other

    def with_config(self, config: Config) -> "Session":
        """The same session with another configuration, for what its parts share."""
        other = copy.copy(self)
        other.config = config
        return other

    def stop_parts(self) -> None:
        """Let no part of this job start a further stage."""
        if self.stop is not None:
            self.stop.set()

    def for_trial(self, plan: Plan, mailbox: Mailbox) -> "Session":
        """The same session for the processes of a sweep's trials, to which it can be sent.

        Args:
            plan: each trial's share of the cluster.
            mailbox: shows a trial's lines on this terminal.
        """
        other = copy.copy(self)
        other.plan, other.console, other.stop, other.in_trial = plan, self.console.sent_to(mailbox), None, True
        return other

    def has(self, name: str, recipe: dict[str, Any]) -> bool:
        """Whether `build` would find the artifact."""
        return is_whole(self.store.identify(name, recipe))

    def build(self, name: str, recipe: dict[str, Any], make: Callable[[AnyPath], dict[str, Any] | None]) -> Artifact:
        """`Store.build`, with a line on the terminal that says whether anything ran.

        Args:
            name: of the artifact.
            recipe: what it follows from.
            make: fills the folder. What it returns stands in `about.json`, with the `seconds` that it took.
        """
        ran = False

        def announced(folder: AnyPath) -> None:
            nonlocal ran
            if self.stop is not None and self.stop.is_set():
                raise StoppedError(f"[{name}] not started")
            ran = True
            self.console.line(f"[{name}] starts")
            begun = time.monotonic()
            told = make(folder) or {}
            (folder / ABOUT).write_text(json.dumps({"seconds": time.monotonic() - begun} | told))

        artifact = self.store.build(name, recipe, announced)
        if ran or artifact.path.name not in self.used:
            self.used[artifact.path.name] = Used(artifact, self.console.label.removesuffix(": "), ran)
        self.console.line(f"[{name}] {'done' if ran else 'unchanged'}: {relative(artifact.path, self.workspace)}")
        return artifact

    def build_table(
        self,
        name: str,
        recipe: dict[str, Any],
        parts: tuple[tuple[str, ...], ...],
        schema: pa.Schema,
        rows: Callable[[], Iterator[Row]],
    ) -> tuple[Table, Artifact]:
        """A stage table, whose rows are computed only if its recipe is new."""

        def make(folder: AnyPath) -> None:
            total = sum(map(len, parts))
            write_table(folder, parts, schema, progress.counted(rows(), total, self.console.stage(name)))

        artifact = self.build(name, recipe, make)
        return open_table(artifact.path), artifact


def resolve(path: AnyPath | None, default: str, flag: str) -> AnyPath:
    """An absolute path. A submitted Ray job runs in a temporary copy of the working directory, where nothing lasts.

    Raises:
        ConfigError: a relative path in a submitted job.
    """
    if isinstance(path, RemotePath):
        return path
    if not in_job():
        return (path or Path(default)).expanduser().absolute()
    if path is None:
        return Path.home() / f"ssdd-{default}"
    if not path.expanduser().is_absolute():
        raise ConfigError(f"{flag} {path}: a submitted Ray job needs an absolute path (one that every node sees)")
    return path.expanduser()

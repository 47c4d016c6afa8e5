"""A job's session: its configuration, workspace, store of artifacts, cluster plan, progress lines and tracking."""

import copy
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
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
    """Another part of the job failed, so this part starts no further stage."""


@dataclass(frozen=True)
class Used:
    """An artifact that a job built or reused."""

    artifact: Artifact
    part: str
    """The part of the job that used the artifact, see `Session.child`; empty for the whole job."""
    ran: bool
    """Whether this job built the artifact; false if it was reused."""


class Session(AbstractContextManager):
    """A job that is connected to Ray and MLflow. A stage is a function of a session and builds artifacts with it."""

    def __init__(self, config: Config, job: str):
        self.config, self.job = located(config), job
        self.command = tuple(sys.argv)
        self.used: dict[str, Used] = {}  # artifacts by folder name; shared with the children
        self.pictures: list[AnyPath] = []  # pictures that this job drew; shared with the children
        self.stop: threading.Event | None = threading.Event()  # shared with the children; None: cannot be stopped
        self.in_trial = False  # whether this session runs a trial of a sweep
        self.part = ""  # a suffix for file names of pictures, see `child`
        self.console = Console()
        self.workspace = resolve(config.workspace, default="workspace", flag="--workspace")
        try:
            make_writable(self.workspace)
        except OSError as error:
            raise ConfigError(
                f"--workspace {self.workspace}: cannot write into this folder ({error.strerror}); name another one"
            ) from error
        self.store = Store(self.workspace)
        self.store.remove_unfinished()
        self.plan = cluster.connect(config)
        cluster.check_writes(self.workspace, "--workspace")
        self.console.line(f"workspace {self.workspace}")
        plan = self.plan
        self.console.line(
            f"cluster: {plan.workers} {'GPU' if plan.use_gpu else 'CPU'} worker(s), {plan.crf_actors} CRF actor(s), "
            f"{plan.data_tasks} data task(s), {plan.unit:g} CPU each"
        )
        self.tracker = Tracker(self.config, job, self.workspace)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.tracker.close(failed=error is not None)

    def child(self, config: Config, name: str, plan: Plan) -> "Session":
        """A session for a part of this job, with its own configuration, share of the cluster and nested MLflow run.

        Use it as a context manager. Children may run at the same time, in threads.
        """
        other = copy.copy(self)
        part = name.replace(" ", "")
        if len(part) > 60:  # a point of many fields; the part becomes a part of file names
            part = f"{part[:50]}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"
        other.config, other.plan, other.part = config, plan, f"-{part}"
        other.console = self.console.labelled(name)
        other.tracker = self.tracker.child(config, name)
        return other

    def with_config(self, config: Config) -> "Session":
        """The same session with another configuration, for stages that several parts of the job share."""
        other = copy.copy(self)
        other.config = config
        return other

    def stop_parts(self) -> None:
        """Keep all parts of this job from starting another stage."""
        if self.stop is not None:
            self.stop.set()

    def for_trial(self, plan: Plan, mailbox: Mailbox) -> "Session":
        """A copy of this session that can be sent to the processes of a sweep's trials.

        Args:
            plan: each trial's share of the cluster.
            mailbox: gets a trial's progress lines, which are shown on this terminal.
        """
        other = copy.copy(self)
        other.plan, other.console, other.stop, other.in_trial = plan, self.console.sent_to(mailbox), None, True
        return other

    def has(self, name: str, recipe: dict[str, Any]) -> bool:
        """Whether the artifact exists, so that `build` would reuse it."""
        return is_whole(self.store.identify(name, recipe))

    def build(self, name: str, recipe: dict[str, Any], make: Callable[[AnyPath], dict[str, Any] | None]) -> Artifact:
        """Call `Store.build`, and show on the terminal whether the artifact was built or reused.

        Args:
            name: the artifact's name.
            recipe: the configuration and the inputs that determine the artifact.
            make: fills the folder. The values that it returns are stored in `about.json`, with the `seconds` it took.
        """
        ran = False

        def make_and_report(folder: AnyPath) -> None:
            nonlocal ran
            if self.stop is not None and self.stop.is_set():
                raise StoppedError(f"[{name}] not started, because another part of the job failed")
            ran = True
            self.console.line(f"[{name}] starts")
            begun = time.monotonic()
            about = make(folder) or {}
            (folder / ABOUT).write_text(json.dumps({"seconds": time.monotonic() - begun} | about))

        artifact = self.store.build(name, recipe, make_and_report)
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
        """Build or reuse a stage table; its rows are computed only if no table with this recipe exists."""

        def make(folder: AnyPath) -> None:
            total = sum(map(len, parts))
            write_table(folder, parts, schema, progress.counted(rows(), total, self.console.stage(name)))

        artifact = self.build(name, recipe, make)
        return open_table(artifact.path), artifact


def located(config: Config) -> Config:
    """The same configuration with absolute paths of all inputs: other processes have other working directories.

    Raises:
        ConfigError: a path is relative, and this is a submitted job.
    """
    backbone, seeds = config.network.backbone, config.seeds
    weights = backbone.weights
    if weights not in ("auto", "random"):
        weights = str(_input(Path(weights), "--network.backbone.weights"))
    return replace(
        config,
        data=_input(config.data, "--data"),
        knowledge=_input(config.knowledge, "--knowledge"),
        advice=_input(config.advice, "--advice"),
        network=replace(config.network, backbone=replace(backbone, weights=weights)),
        seeds=replace(
            seeds,
            classifier_weights=_input(seeds.classifier_weights, "--seeds.classifier-weights"),
            affinity_weights=_input(seeds.affinity_weights, "--seeds.affinity-weights"),
        ),
        static=replace(config.static, weights=_inputs(config.static.weights, "--static.weights")),
        dynamic=replace(config.dynamic, weights=_inputs(config.dynamic.weights, "--dynamic.weights")),
    )


def _input(path: Any, flag: str) -> Any:
    return None if path is None else resolve(path, default="", flag=flag)


def _inputs(paths: tuple[Path, ...], flag: str) -> tuple[Path, ...]:
    return tuple(_input(path, flag) for path in paths)


def resolve(path: AnyPath | None, default: str, flag: str) -> AnyPath:
    """The absolute path of a folder; without a path, the default folder.

    A submitted Ray job runs in a temporary copy of the working directory, so it needs an absolute path, and its default
    folder is in the home directory.

    Args:
        path: the path that the user gave, if any.
        default: the name of the default folder.
        flag: the command-line flag of the path, for the error message.

    Raises:
        ConfigError: the path is relative, and this is a submitted job.
    """
    if isinstance(path, RemotePath):
        return path
    if not in_job():
        return (path or Path(default)).expanduser().absolute()
    if path is None:
        return Path.home() / f"ssdd-{default}"
    if not path.expanduser().is_absolute():
        raise ConfigError(f"{flag} {path}: a submitted Ray job needs an absolute path that every node can reach")
    return path.expanduser()

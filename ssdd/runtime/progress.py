"""Shows the workers' progress on the driver: they send events to a mailbox actor, and a driver thread reads them."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssdd.storage.tables import Row

EVERY = 5.0  # seconds between two lines of a stage


@dataclass(frozen=True, kw_only=True)
class Event:
    """A worker's report about the progress of a training."""

    step: int
    steps: int
    epoch: int
    epochs: int
    metrics: dict[str, float] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class _Mailbox:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def put(self, event: Any) -> None:
        self.events.append(event)

    def take(self) -> list[Any]:
        events, self.events = self.events, []
        return events


class Mailbox:
    """Any process can send events (`send` never waits); the driver gets them inside `with mailbox.listen(handle)`."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = _Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]

    def send(self, event: Any) -> None:
        self.actor.put.remote(event)

    def listen(self, handle: Callable[[Any], None], every: float = 0.5) -> "_Listener":
        return _Listener(self.actor, handle, every)


class _Listener:
    def __init__(self, actor: Any, handle: Callable[[Any], None], every: float):
        self.actor, self.handle, self.every = actor, handle, every
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join()
        self._empty()

    def _run(self) -> None:
        while not self.stop.wait(self.every):
            self._empty()

    def _empty(self) -> None:
        try:
            events = ray.get(self.actor.take.remote())
        except RayActorError:  # only progress messages are lost
            return
        for event in events:
            try:
                self.handle(event)
            except Exception as error:  # a tracking server that does not answer must not end the training
                print(f"progress could not be recorded: {error}", file=sys.stderr, flush=True)


class Console:
    """Prints progress lines with the time since the start, the stage, its progress and the remaining time.

    A console with a mailbox can be sent to another process. It sends its lines to the mailbox, and the process that
    listens to the mailbox prints them.
    """

    def __init__(self, start: float | None = None, label: str = "", mailbox: Mailbox | None = None):
        self.start = time.monotonic() if start is None else start
        self.label, self.mailbox = label, mailbox

    def labelled(self, label: str) -> "Console":
        """A console for one of several parts that run at the same time; in its lines the label follows the time."""
        return Console(self.start, f"{label}: ", self.mailbox)

    def sent_to(self, mailbox: Mailbox) -> "Console":
        """A console for another process, with the same start and label; its lines go to the mailbox."""
        return Console(self.start, self.label, mailbox)

    def line(self, text: str) -> None:
        if self.mailbox is not None:
            self.mailbox.send(self.label + text)
            return
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        # A single write, because several threads may print at the same time.
        print(f"{minutes:3d}:{seconds:02d}  {self.label}{text}\n", end="", flush=True)

    def stage(self, name: str) -> "StageProgress":
        return StageProgress(self, name)


class StageProgress:
    """Prints one stage's progress, at most every `EVERY` seconds and at its end.

    The rate since the first report gives the ETA.
    """

    def __init__(self, console: Console, name: str):
        self.console, self.name = console, name
        self.first: tuple[float, int] | None = None
        self.shown = -EVERY

    def __call__(self, done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self.shown < EVERY and done < total:
            return
        self.shown = now
        if self.first is None:
            self.first = now, done
        begun, base = self.first
        eta = ""
        if base < done < total:
            seconds = int((now - begun) / (done - base) * (total - done))
            eta = f"  ETA {seconds // 60}:{seconds % 60:02d}"
        self.console.line(f"[{self.name}] {done}/{total}{'  ' if text else ''}{text}{eta}")


def counted(rows: Iterator[Row], total: int, report: Callable[[int, int], None]) -> Iterator[Row]:
    """Yield the same rows; `report(done, total)` is called after each row."""
    for done, row in enumerate(rows, 1):
        yield row
        report(done, total)

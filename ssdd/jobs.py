"""What the scripts in ray_jobs/ share: read the configuration, connect, run, report."""

import ssdd.runtime.environment  # noqa: F401 (before Ray is imported)

# isort: split
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ssdd import cli
from ssdd.config import Config, ConfigError
from ssdd.data.problems import DataError
from ssdd.nets.weight_files import WeightsError
from ssdd.presets import PRESETS
from ssdd.reports.scores import table_lines
from ssdd.runtime.crashes import CrashError
from ssdd.runtime.errors import GPUMemoryError, disk_is_full, message_of, original_error
from ssdd.runtime.plan import ResourceError
from ssdd.runtime.session import Session
from ssdd.runtime.tracking import TrackingError
from ssdd.storage.paths import RemoteError
from ssdd.storage.tables import DamagedTableError
from ssdd.sweeps import base
from ssdd.sweeps.base import Kind, Outcome, SweepError
from ssdd.training.worker import DivergedError, LostError, OrderError

Result = TypeVar("Result")
ERRORS = (
    *(ConfigError, DataError, RemoteError, ResourceError, WeightsError),
    *(CrashError, DivergedError, GPUMemoryError, LostError, OrderError),
    *(DamagedTableError, SweepError, TrackingError),
)
"""Errors that the user can fix; their messages say how."""


def job(
    name: str,
    run: Callable[[Session], Result],
    description: str | None,
    config: Callable[[], Config] | None = None,
    report: Callable[[Result], list[str]] = table_lines,  # type: ignore[assignment]
) -> None:
    """Run a job in a new `Session` and print its result; errors end the process as in `plain`.

    Args:
        name: the name of the job and of its MLflow run.
        run: does the work.
        description: the text for --help.
        config: reads the configuration; None to read it from the command line.
        report: turns the result into lines for the terminal.
    """

    def result_lines() -> list[str]:
        chosen = config() if config else cli.parse(description=description)
        with Session(chosen, name) as session:
            return report(run(session))

    plain(name, result_lines)


def plain(name: str, run: Callable[[], list[str]]) -> None:
    """Print the lines that `run` returns; `ERRORS` end the process with their message, without a traceback."""
    try:
        lines = run()
    except ERRORS as error:
        sys.exit(f"{name}: {message_of(error)}")
    except OSError as error:
        if disk_is_full(error):
            what = f"no space left on the disk ({message_of(error)})"
            sys.exit(f"{name}: {what}; free some space and run the same command again: it continues the job")
        if isinstance(original_error(error), PermissionError):
            sys.exit(f"{name}: {message_of(error)}; give the user that runs the job the right to read and write there")
        raise
    for line in lines:
        print(line)


def sweep_config(
    kind: Callable[[Config], Kind], args: list[str] | None = None, description: str | None = None
) -> Config:
    """The configuration of a sweep, from a command line and checked by `sweeps.base.checked`.

    Args:
        kind: a function that makes the sweep for a configuration.
        args: the command line; None for the command line of this process.
        description: the text for --help, to which the metrics of the default sweep are added.
    """
    metrics = ", ".join(kind(PRESETS["mini"]()).metrics)
    config = cli.parse(args, f"{description or ''}\nMetrics (--sweep.metric): {metrics}")
    return base.checked(kind(config), config)


def sweep(
    name: str,
    description: str | None,
    kind: Callable[[Config], Kind],
    run: Callable[[Session, Kind], Outcome] = base.run,
) -> None:
    """Run the job of a sweep, which `kind` makes for a configuration."""
    config = partial(sweep_config, kind, description=description)
    job(name, lambda session: run(session, kind(session.config)), description, config, base.lines)

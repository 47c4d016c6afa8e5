"""What the scripts in ray_jobs/ share: read the configuration, connect, run, report."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ssdd import config as configuration
from ssdd.backbones import WeightsError
from ssdd.cluster import ResourceError, disk_is_full, own_words
from ssdd.config import Config, ConfigError
from ssdd.paths import RemoteError, path_flag
from ssdd.report import table_lines
from ssdd.session import Session
from ssdd.sweep import SweepError
from ssdd.tables import DamagedTableError
from ssdd.tracking import TrackingError
from ssdd.training import DivergedError, LostError
from ssdd.voc import DataError

Result = TypeVar("Result")
ERRORS = (
    *(ConfigError, DataError, RemoteError, ResourceError, WeightsError),
    *(DivergedError, LostError, DamagedTableError, SweepError, TrackingError),
)
"""What the user can mend."""


def own_flag(flag: str, kind: Callable[[str], Any] = path_flag, default: Any = None) -> tuple[Any, list[str]]:
    """The value of a flag that only one script has, and the command line without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, type=kind, default=default, dest="value")
    known, rest = parser.parse_known_args()
    return known.value, rest


def job(
    name: str,
    run: Callable[[Session], Result],
    description: str | None,
    config: Callable[[], Config] | None = None,
    report: Callable[[Result], list[str]] = table_lines,  # type: ignore[assignment]
) -> None:
    """Run a job and print its result; `ERRORS` end it with their message alone.

    Args:
        name: of the job and of its MLflow run.
        run: the work.
        description: for --help.
        config: reads the configuration; from the command line if None.
        report: the result as lines for the terminal.
    """
    try:
        chosen = config() if config else configuration.parse(description=description)
        with Session(chosen, name) as session:
            result = run(session)
    except ERRORS as error:
        sys.exit(f"{name}: {own_words(error)}")
    except OSError as error:
        if not disk_is_full(error):
            raise
        what = f"no space left on the disk ({own_words(error)})"
        sys.exit(f"{name}: {what}; make some and give the same command again: it goes on")
    for line in report(result):
        print(line)

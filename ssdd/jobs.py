"""What the scripts in ray_jobs/ share: read the configuration, connect, run, report."""

import sys
from collections.abc import Callable

from ssdd import config as configuration
from ssdd.backbones import WeightsError
from ssdd.cluster import ResourceError
from ssdd.config import Config, ConfigError
from ssdd.report import Scores, table_lines
from ssdd.session import Session
from ssdd.training import DivergedError
from ssdd.voc import DataError


def job(
    name: str, run: Callable[[Session], Scores], description: str | None, config: Callable[[], Config] | None = None
) -> None:
    """Run a job and print its scores; errors that the user can mend end it with their message alone.

    Args:
        name: of the job and of its MLflow run.
        run: the work.
        description: for --help.
        config: reads the configuration; from the command line if None.
    """
    try:
        chosen = config() if config else configuration.parse(description=description)
        with Session(chosen, name) as session:
            scores = run(session)
    except (ConfigError, DataError, ResourceError, WeightsError, DivergedError) as error:
        sys.exit(f"{name}: {error}")
    for line in table_lines(scores):
        print(line)

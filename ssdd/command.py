"""The command `ssdd JOB ...`, which runs a script of ray_jobs/ as `python ray_jobs/JOB.py ...` does."""

import ast
import difflib
import importlib.util
import runpy
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

USAGE = """usage: ssdd JOB ...      (ssdd JOB --help lists the job's flags)
       ssdd --tyro-print-completion {bash,zsh,tcsh}
       ssdd --version
"""


def scripts() -> dict[str, Path]:
    """The scripts of ray_jobs/, as installed with this package, by job name."""
    spec = importlib.util.find_spec("ray_jobs")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.py"))}


def summary(script: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Run the job that the first argument names; without one, list the jobs."""
    jobs, args = scripts(), sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, jobs), default=0)
        print(USAGE, *(f"  {name:<{width}}  {summary(path)}" for name, path in jobs.items()), sep="\n")
    elif args[0] == "--version":
        print(f"ssdd {metadata.version('ssdd')}")
    elif args[0].startswith(("--tyro-print-completion", "--tyro-write-completion")):
        _completion(list(jobs))
    elif args[0] in jobs:
        sys.argv = [f"ssdd {args[0]}", *args[1:]]
        runpy.run_module(f"ray_jobs.{args[0]}", run_name="__main__")
    else:
        similar = difflib.get_close_matches(args[0], jobs, 1)
        hint = f"did you mean {similar[0]!r}?" if similar else f"the jobs are {', '.join(jobs)}"
        sys.exit(f"ssdd: {args[0]!r} is not a job; {hint}")


@dataclass(frozen=True)
class _NoFields:
    pass


def _completion(jobs: list[str]) -> None:
    """Print tyro's completion script, with which a shell completes the names of jobs and their fields."""
    import tyro

    from ssdd.cli import TYPES
    from ssdd.config import PredictConfig
    from ssdd.presets import mini

    predict = PredictConfig(model=Path("workspace"), input="photographs", output=Path("masks"))
    defaults: dict[str, Any] = {name: mini() for name in jobs} | {"predict": predict}
    defaults |= dict.fromkeys(("label", "export"), _NoFields())  # these jobs have no fields, but flags of argparse
    tyro.cli(tyro.extras.subcommand_type_from_defaults(defaults), prog="ssdd", registry=TYPES)

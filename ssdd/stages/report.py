"""Write a job's scores as `metrics.json`, and a page with its scores, pictures and stages as `report.html`."""

import io
import json
import platform
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from PIL import Image

from ssdd.fields import flatten, to_dict
from ssdd.presets import PRESETS, changes
from ssdd.reports import page
from ssdd.reports.page import Page, Stage, Table
from ssdd.reports.scores import Scores, read_networks, read_scores, write_scores
from ssdd.runtime.session import Session
from ssdd.stages import images
from ssdd.storage.artifacts import RECIPE, Artifact, read_about, write_text
from ssdd.storage.paths import AnyPath, FilesIn, relative
from ssdd.storage.tables import open_table
from ssdd.versions import version

_SHOWN = 200  # the most lines of a notice that the report shows


def metrics_path(session: Session, name: str = "") -> AnyPath:
    """`metrics.json`, or `metrics-NAME.json`, in the workspace."""
    return session.workspace / f"metrics{name and f'-{name}'}.json"


def earlier_scores(session: Session, networks: dict[str, AnyPath]) -> Scores:
    """The scores in `metrics.json`, if they belong to the networks with these names and folders; else no scores."""
    path = metrics_path(session)
    if path.is_file() and read_networks(path) in ({}, _relative(session, networks)):
        return read_scores(path)
    return Scores({}, {})


def _relative(session: Session, folders: dict[str, AnyPath]) -> dict[str, str]:
    return {name: relative(folder, session.workspace) for name, folder in folders.items()}


def write(session: Session, scores: Scores, name: str = "", networks: dict[str, AnyPath] | None = None) -> Scores:
    """Write `metrics.json` and `report.html`, or with a name `metrics-NAME.json` and `report-NAME.html`.

    `networks` has the folder of each scored network by the network's name, see `earlier_scores`.
    """
    write_scores(metrics_path(session, name), scores, _relative(session, networks or {}))
    write_page(session, page.score_tables(scores), name)
    return scores


def write_page(session: Session, tables: list[Table], name: str = "") -> None:
    """Write `report.html`, or `report-NAME.html`, and put it into the job's MLflow run."""
    path = session.workspace / f"report{name and f'-{name}'}.html"
    write_text(path, page.render(_page(session, tables)))
    session.tracker.file(path)
    session.console.line(f"report {path}")


def _page(session: Session, tables: list[Table]) -> Page:
    artifacts = session.store.lineage([used.artifact for used in session.used.values()])
    config, plan = session.config, session.plan
    defaults = flatten(to_dict(PRESETS[config.preset]()))
    differing = {name: value for name, value in changes(config).items() if name != "preset"}
    elapsed = page.duration(time.monotonic() - session.console.start)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    lists = [artifact for artifact in artifacts if artifact.name.startswith("images-")]
    facts = {
        "preset": config.preset,
        "data": str(config.data or "the embedded data set (drawn)"),
        **{title: f"{open_table(a.path).rows} images" for title, a in _titles(lists).items()},
        "classes": ", ".join(dict.fromkeys(c for a in lists for c in _recipe(a)["classes"][1:])),
        "workspace": str(session.workspace),
        "cluster": f"{plan.workers} {'GPU' if plan.use_gpu else 'CPU'} training worker(s), {plan.unit:g} CPU each",
        "versions": _versions(session.tracker.tags.get("mlflow.source.git.commit")),
    }
    return Page(
        job=session.job,
        about=f"{now}, {elapsed} after the job's start",
        tables=tables,
        pictures=_pictures(session, {artifact.path.name for artifact in artifacts}),
        stages=[_stage(session, artifact) for artifact in artifacts],
        command=_command(session.command),
        facts=facts,
        changes={name: (value, defaults[name]) for name, value in differing.items()},
        notices=_notices(session, lists),
    )


def _command(words: Sequence[str]) -> tuple[str, ...]:
    """The command's words, quoted for a shell. The first word is a path or `ssdd JOB`, which stays unquoted."""
    program = words[0] if words[0].startswith("ssdd ") else shlex.quote(words[0])
    return (program, *map(shlex.quote, words[1:]))


def _stage(session: Session, artifact: Artifact) -> Stage:
    used, about = session.used.get(artifact.path.name), read_about(artifact)
    return Stage(
        name=f"{used.part}: {artifact.name}" if used and used.part else artifact.name,
        artifact=artifact.path.name,
        origin="made by this job" if used and used.ran else "reused",
        seconds=about.get("seconds"),
        history=about.get("history", []),
    )


def _recipe(artifact: Artifact) -> dict:
    return json.loads((artifact.path / RECIPE).read_text())


def _versions(commit: str | None) -> str:
    def versioned(name: str) -> str:
        return f"{name} {version(name) or '(not installed as a package)'}"

    named = [versioned("ssdd") + (f" (commit {commit[:10]})" if commit else ""), *map(versioned, ("torch", "ray"))]
    return ", ".join([*named, f"Python {platform.python_version()}"])


def _pictures(session: Session, artifacts: set[str]) -> dict[str, bytes]:
    """The pictures that this job drew, and earlier jobs' pictures of the same artifacts.

    An earlier picture is left out if `evaluate.show_data` is False, or if there is already one of the same kind for the
    same artifact.
    """
    folder = session.workspace / "figures"
    earlier = [name for name in FilesIn(folder).names() if name.endswith(".png") and not name.startswith(".")]
    if not session.config.evaluate.show_data:
        earlier = []
    drawn = [path.name for path in session.pictures]
    out, seen = {}, set()
    for name in dict.fromkeys([*drawn, *earlier]):
        try:
            data = (folder / name).read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                source = picture.info.get("Source", "")
        except OSError:  # another job has just replaced it, or it is not a picture
            if name in drawn:
                raise
            continue
        kind = name.removesuffix(".png").partition("-")[0], source
        if name in drawn or (source in artifacts and kind not in seen):
            out[name] = data
            seen.add(kind)
    return out


def _titles(lists: list[Artifact]) -> dict[str, Artifact]:
    """Image lists by a title for the report. Lists of two data folders that have the same name differ by their keys."""
    names = [artifact.name for artifact in lists]
    return {
        f"list {a.name.removeprefix('images-')}" + (f" ({a.path.name})" if names.count(a.name) > 1 else ""): a
        for a in lists
    }


def _notices(session: Session, lists: list[Artifact]) -> dict[str, str]:
    """The left-out images and the warnings of each image list, as texts by title."""
    out = {}
    for list_title, artifact in _titles(lists).items():
        for file, title in ((images.SKIPPED, "left out"), (images.WARNINGS, "warnings")):
            path = artifact.path / file
            if path.is_file():
                lines = path.read_text().splitlines()
                rest = f"... and {len(lines) - _SHOWN} more lines in {relative(path, session.workspace)}"
                out[f"{list_title}: {title}"] = "\n".join([*lines[:_SHOWN], *([rest] if len(lines) > _SHOWN else [])])
    return out

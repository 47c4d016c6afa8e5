"""A job's scores, pictures, curves and configuration as one HTML file, which needs neither a server nor a network."""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup

from ssdd.reports import figures
from ssdd.reports.scores import GATED, NOT_COMPARABLE, STAGES, Scores, difference_table, mean_known, papers_rows

_TITLES = {
    "train": "Masks of the training images",
    GATED: "Networks on the training images, with the classes of each image's labels only",
    "dynamic1": "Dynamic stage, module 1: the network's masks, their CRF masks, and the refined masks m^D1",
    "dynamic2": "Dynamic stage, module 2: m^D0, m^D1, and the refined masks m^D2",
}


class Number(NamedTuple):
    """A value and the format in which it is shown; the page has the exact value, too."""

    value: float
    form: str = ".1f"


Cell = Number | str | None
"""None: there is no value."""


@dataclass(frozen=True)
class Table:
    """A table with a name for each row."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, list[Cell]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An artifact that the scores depend on."""

    name: str
    artifact: str
    """The name of its folder."""
    origin: str
    """Text: whether this job made or reused the artifact."""
    seconds: float | None
    """How long it took to make the artifact; None if the time is not stored."""
    history: list[dict[str, float]]
    """A training's history, see `training.worker.History`; empty for other stages."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a report, from top to bottom."""

    job: str
    about: str
    """A line about the time of the report."""
    tables: list[Table]
    pictures: Mapping[str, bytes]
    """PNG files, by name."""
    stages: list[Stage]
    command: tuple[str, ...]
    facts: Mapping[str, str]
    changes: Mapping[str, tuple[Any, Any]]
    """Fields that differ from the preset: the value, and the preset's value."""
    notices: Mapping[str, str]
    """Texts about left-out images and warnings, by title."""


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": _shown, "duration": duration, "caption": _caption, "data_uri": _data_uri}
    charts = {stage.artifact: drawn for stage in page.stages if (drawn := _charts(stage))}
    return environment.get_template("page.html").render(page=page, charts=charts)


def score_tables(scores: Scores) -> list[Table]:
    """A table of IoUs for each kind of masks; then a table about the pixels where the two masks of a module differ.

    The networks on the scored list come first. For VOC's classes, their table also has the paper's rows.
    """
    kinds: dict[str, dict[str, float]] = {}
    for name, value in scores.mean.items():
        kinds.setdefault(name.rpartition(".")[0], {})[name] = value
    order = [*_TITLES]
    out = []
    for kind in sorted(kinds, key=lambda k: order.index(k) if k in order else len(order) if _round_of(k)[0] else -1):
        means, (round_, base) = kinds[kind], _round_of(kind)
        classes = list(next((scores.per_class[name] for name in means if name in scores.per_class), {}))
        rows: dict[str, list[Cell]] = {}
        for name, mean in means.items():
            values = scores.per_class.get(name, {})
            foreground = scores.foreground.get(name)
            rows[name] = [Number(mean), _number(foreground, ".2f"), *(_number(values.get(c)) for c in classes)]
        papers = {} if base in _TITLES else papers_rows(classes)
        rows |= {name: [_number(mean_known(iou)), None, *map(_number, iou)] for name, iou in papers.items()}
        note = f"Table 1 of the paper is for {NOT_COMPARABLE}." if papers else ""
        head = _TITLES.get(base, f"Networks on the list {base}")
        title = f"{round_}: {head}" if round_ else head
        out.append(Table(title, ("mean IoU (%)", "foreground / truth", *classes), rows, note))
    stages, difference = difference_table(scores.difference)
    if stages:
        rows = {row.title: [_number(value, row.form) for value in row.values] for row in difference}
        out.append(
            Table("Where the two masks of a module differ", tuple(stages), rows, _precondition(scores.difference))
        )
    return out


def _round_of(kind: str) -> tuple[str, str]:
    """The round in a prefix of scores, or an empty text, and the rest: `round1.val` and `val` are of the list `val`."""
    match = re.fullmatch(r"(?:(round\d+)\.)?(.*)", kind)
    assert match is not None
    return match[1] or "", match[2]


def _precondition(difference: Mapping[str, float]) -> str:
    """Whether sec. 3.2's precondition holds, stage by stage."""
    answers = [
        f"{title} {'yes' if difference[f'{stage}.advice_true'] > difference[f'{stage}.advice_false'] else 'no'}"
        for stage, title in STAGES.items()
        if f"{stage}.advice_true" in difference
    ]
    return f"Is |S^A,T| larger than |S^A,F|, as the paper assumes (sec. 3.2)? {', '.join(answers)}."


def _number(value: float | None, form: str = ".1f") -> Number | None:
    return None if value is None else Number(value, form)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    return format(cell.value, cell.form) if isinstance(cell, Number) else cell


def duration(seconds: float | None) -> str:
    """3725.2 as `1 h 02 min`, 65 as `1 min 05 s`, 3.21 as `3.2 s`."""
    if seconds is None:
        return "not stored"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


_CAPTIONS = {
    "refinement": "Static refinement of training images, as in Fig. 7 of the paper",
    "predictions": "Masks of the networks, as in Fig. 8 of the paper",
    "training": "Training images: knowledge, advice, refined mask, and the networks' masks of the labelled classes",
    "reliability": "Reliability of the difference maps d: how often the masks differ where DD-Net's probability is d",
}


def _caption(file: str) -> str:
    return _CAPTIONS.get(file.partition("-")[0].partition(".")[0], file)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _charts(stage: Stage) -> dict[str, Markup]:
    """Losses, learning rate and mean IoU of a training as SVG, by title."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in stage.history:
        for name, value in row.items():
            kind, _, line = name.partition(".")
            if kind in _PANELS:
                epochs, values = panels.setdefault(_PANELS[kind], {}).setdefault(line or kind, ([], []))
                epochs.append(row["epoch"])
                values.append(value)
    return {title: _svg(lines, f"{title} of {stage.name}") for title, lines in panels.items()}


_PANELS = {"loss": "losses", "lr": "learning rate", "iou": "mean IoU (%)"}


def _svg(lines: dict[str, tuple[list[float], list[float]]], label: str) -> Markup:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ssdd", "font.size": 9}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figures.curves(lines).savefig(stream, format="svg", metadata=no_metadata, transparent=True)
    drawn = stream.getvalue().partition("<svg")[2]
    # Numbered ids, such as `line2d_1`, are the same in all SVGs of a page, so they are removed. Nothing refers to them:
    # ids that something refers to are hashes.
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(drawn)

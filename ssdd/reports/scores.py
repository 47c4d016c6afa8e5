"""Mean and per-class IoU: as tables for the terminal, next to the paper's results, and as metrics.json."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ssdd.data.class_names import VOC_CLASSES
from ssdd.storage.artifacts import write_text
from ssdd.storage.paths import AnyPath

# Table 1: IoU (%) of background and each class on the whole official val set, after the CRF; 10,582 training images.
TABLE_1: dict[str, tuple[float, ...]] = {
    "PSA, Table 1": (
        *(88.2, 68.2, 30.6, 81.1, 49.6, 61.0, 77.8, 66.1, 75.1, 29.0, 66.0),
        *(40.2, 80.4, 62.0, 70.4, 73.7, 42.5, 70.7, 42.6, 68.1, 51.6),
    ),
    "SSDD, Table 1": (
        *(89.0, 62.5, 28.9, 83.7, 52.9, 59.5, 77.6, 73.7, 87.0, 34.0, 83.7),
        *(47.6, 84.1, 77.0, 73.9, 69.6, 29.8, 84.0, 43.2, 68.0, 53.4),
    ),
}


GATED = "gated"
"""Prefix of the networks' scores on training images, where a mask can only have the classes of the image's labels."""


@dataclass(frozen=True)
class Scores:
    """Mean and per-class IoU in percent, by name (`train.knowledge`, ...)."""

    mean: dict[str, float]
    per_class: dict[str, dict[str, float | None]]
    difference: dict[str, float] = field(default_factory=dict)
    """Measures of where two masks differ, see `diagnostics.DifferenceReport.metrics`. Named STAGE.NAME: `train.*` for
    knowledge and advice, at the images' size; `dynamic1.*` for the two masks of the dynamic stage's module 1, and
    `dynamic2.*` for those of its module 2, at the masks' resolution."""
    foreground: dict[str, float] = field(default_factory=dict)
    """Foreground pixels of the masks divided by those of the true masks; the names are the same as in `mean`."""

    def __or__(self, other: "Scores") -> "Scores":
        return Scores(
            self.mean | other.mean,
            self.per_class | other.per_class,
            self.difference | other.difference,
            self.foreground | other.foreground,
        )

    def flat(self) -> dict[str, float]:
        """All scores except `per_class` in one dictionary, for MLflow."""
        out = dict(self.mean)
        for kind, values in (("difference", self.difference), ("foreground", self.foreground)):
            out |= {f"{kind}.{name}": value for name, value in values.items()}
        return out


def table_lines(scores: Scores) -> list[str]:
    """IoU of each class, mean IoUs, and the metrics of the difference, as lines for the terminal."""
    if not scores.mean:
        return ["no true masks with a foreground class: nothing to score"]
    other = ("train.", f"{GATED}.", *(f"{stage}." for stage in STAGES))
    tested = {name: iou for name, iou in scores.per_class.items() if not name.startswith(other)}
    return [*per_class_lines(tested), *mean_lines(scores), *difference_lines(scores.difference)]


def mean_lines(scores: Scores) -> list[str]:
    """Mean IoUs as lines, each with its `foreground` if that is known."""
    width = max(map(len, scores.mean))
    lines = ["mean IoU (%)" + ", and foreground pixels / true foreground pixels" * bool(scores.foreground)]
    for name, value in scores.mean.items():
        ratio = f"  {scores.foreground[name]:5.2f}" if name in scores.foreground else ""
        lines.append(f"  {name:<{width}}  {value:5.1f}{ratio}")
    return lines


STAGES = {"train": "seeds", "dynamic1": "module 1", "dynamic2": "module 2"}
_DIFFERENCE = {
    "differing": ("pixels that differ (%)", ".1f"),
    "advice_true": ("advice is true there (%), |S^A,T|", ".0f"),
    "advice_false": ("advice is false there (%), |S^A,F|", ".0f"),
    "knowledge_true": ("knowledge is true there (%)", ".0f"),
    "oracle": ("mean IoU (%) of the oracle's choice", ".1f"),
    "auc_knowledge": ("AUC of d^K for true advice", ".2f"),
    "auc_gap": ("AUC of d^K - d^A for true advice", ".2f"),
    "gap_low": ("d^K - d^A, 5th percentile", ".2f"),
    "gap_high": ("d^K - d^A, 95th percentile", ".2f"),
}


class DifferenceRow(NamedTuple):
    """A metric of the difference of two masks, with a value for each measured stage; None where it is not defined."""

    title: str
    form: str
    values: list[float | None]


def difference_table(difference: Mapping[str, float]) -> tuple[list[str], list[DifferenceRow]]:
    """The metrics of the difference of two masks: titles of the measured stages, and a row for each metric."""
    stages = [stage for stage in STAGES if f"{stage}.differing" in difference]
    rows = [
        DifferenceRow(title, form, [difference.get(f"{stage}.{name}") for stage in stages])
        for name, (title, form) in _DIFFERENCE.items()
    ]
    return [STAGES[stage] for stage in stages], [row for row in rows if any(v is not None for v in row.values)]


def difference_lines(difference: Mapping[str, float]) -> list[str]:
    """`difference_table` for the terminal."""
    stages, rows = difference_table(difference)
    if not stages:
        return []
    width = max(len(title) for title, _ in _DIFFERENCE.values())
    lines = [f"{'where two masks differ':<{width + 2}}" + "".join(f"  {stage:>9}" for stage in stages)]
    for title, form, values in rows:
        cells = "".join(f"  {'-' if value is None else format(value, form):>9}" for value in values)
        lines.append(f"  {title:<{width}}{cells}")
    return lines


def collapsed(per_class: Mapping[str, float | None], classes: Sequence[str]) -> bool:
    """Whether a scored model got no pixel of any foreground class right."""
    return bool(per_class) and not any(per_class[name] for name in classes[1:])


def per_class_lines(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """IoU (%) of each class, one row per model, with the mean at the end; for VOC's classes the paper's rows follow.

    Args:
        rows: name of the row -> class -> IoU in percent, None if neither masks nor true masks have the class.
    """
    if not rows:
        return []
    classes = list(next(iter(rows.values())))
    table = {name: [row[c] for c in classes] for name, row in rows.items()}
    table |= {f"{name} ({NOT_COMPARABLE})": values for name, values in papers_rows(classes).items()}
    width = max(map(len, table))
    header = " ".join(f"{c[:5]:>5}" for c in [*classes, "mean"])
    return [
        f"{'IoU (%)':<{width}} {header}",
        *(f"{name:<{width}} {' '.join(map(_cell, [*values, mean_known(values)]))}" for name, values in table.items()),
    ]


NOT_COMPARABLE = "all of VOC: not comparable with a subset"


def papers_rows(classes: Sequence[str]) -> dict[str, list[float | None]]:
    """IoU (%) of VOC's classes in the paper's Table 1, by the name of the row; empty for other classes."""
    if tuple(classes[1:]) != VOC_CLASSES:
        return {}
    return {name: list(values) for name, values in TABLE_1.items()}


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1f'):>5}"


def write_scores(path: AnyPath, scores: Scores, networks: dict[str, str] | None = None) -> None:
    """Write JSON with the mean IoUs (%) by name, and with `per_class`, `difference` and `foreground`, see `Scores`.

    `networks` has the folder of each scored network by the network's name.
    """
    record = {
        **scores.mean,
        "per_class": scores.per_class,
        "difference": scores.difference,
        "foreground": scores.foreground,
    } | ({"networks": networks} if networks else {})
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_scores(path: AnyPath) -> Scores:
    """Read the scores in a file that `write_scores` wrote."""
    record = json.loads(path.read_text())
    record.pop("networks", None)
    parts = {name: record.pop(name, {}) for name in ("per_class", "difference", "foreground")}
    return Scores(mean=record, **parts)


def read_networks(path: AnyPath) -> dict[str, str]:
    """The networks in a file that `write_scores` wrote; empty if it names none."""
    return json.loads(path.read_text()).get("networks", {})

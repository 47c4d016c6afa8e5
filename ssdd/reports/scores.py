"""Mean and per-class IoU: as tables for the terminal, beside the paper's own figures, and as metrics.json."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ssdd.data.voc import VOC_CLASSES
from ssdd.storage.artifacts import write_text
from ssdd.storage.paths import AnyPath

# Table 1: mean IoU (%) on the whole official val set, after the CRF, trained on all 10,582 images.
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


@dataclass(frozen=True)
class Scores:
    """Mean and per-class IoU in percent, by name (`train.knowledge`, ...)."""

    mean: dict[str, float]
    per_class: dict[str, dict[str, float | None]]
    difference: dict[str, float] = field(default_factory=dict)
    """What the difference of knowledge and advice offers, see `diagnostics.DifferenceReport.metrics`."""

    def __or__(self, other: "Scores") -> "Scores":
        return Scores(self.mean | other.mean, self.per_class | other.per_class, self.difference | other.difference)


def table_lines(scores: Scores) -> list[str]:
    """IoU of each class, mean IoUs, and what the difference offers, as lines for the terminal."""
    if not scores.mean:
        return ["no true masks: nothing to score"]
    width = max(map(len, scores.mean))
    tested = {name: iou for name, iou in scores.per_class.items() if not name.startswith("train.")}
    lines = [
        *per_class_lines(tested),
        "mean IoU (%)",
        *(f"  {name:<{width}}  {value:5.1f}" for name, value in scores.mean.items()),
    ]
    d = {name.rpartition(".")[2]: value for name, value in scores.difference.items()}
    if d:
        lines.append(
            f"knowledge and advice differ in {d['differing']:.1f} % of the pixels; there advice is true in "
            f"{d['advice_true']:.0f} %, knowledge in {d['knowledge_true']:.0f} %; choosing by the truth would give "
            f"{d['oracle']:.1f}"
        )
    if "auc_gap" in d:
        lines.append(
            f"AUC for true advice against true knowledge: d^K {d['auc_knowledge']:.2f}, d^K - d^A {d['auc_gap']:.2f}"
        )
    return lines


def collapsed(per_class: Mapping[str, float | None], classes: Sequence[str]) -> bool:
    """Whether a scored model got no pixel of any foreground class right."""
    return bool(per_class) and not any(per_class[name] for name in classes[1:])


def per_class_lines(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """IoU (%) of each class, a row a model and its mean at the end; for VOC's classes with the paper's rows below.

    Args:
        rows: name of the row -> class -> IoU in percent, None where neither truth nor mask has the class.
    """
    if not rows:
        return []
    classes = list(next(iter(rows.values())))
    table = {name: [row[c] for c in classes] for name, row in rows.items()}
    if tuple(classes[1:]) == VOC_CLASSES:
        table |= {f"{name} (all of VOC: not comparable with a subset)": list(v) for name, v in TABLE_1.items()}
    width = max(map(len, table))
    header = " ".join(f"{c[:5]:>5}" for c in [*classes, "mean"])
    return [
        f"{'IoU (%)':<{width}} {header}",
        *(f"{name:<{width}} {' '.join(map(_cell, [*values, mean_known(values)]))}" for name, values in table.items()),
    ]


def mean_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1f'):>5}"


METRICS = "metrics.json"


def write_scores(path: AnyPath, scores: Scores) -> None:
    """Mean IoUs by name, and `per_class` and `difference` beside them, all but the AUCs in percent."""
    record = {**scores.mean, "per_class": scores.per_class, "difference": scores.difference}
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_scores(path: AnyPath) -> Scores:
    """The inverse of `write_scores`."""
    record = json.loads(path.read_text())
    return Scores(per_class=record.pop("per_class", {}), difference=record.pop("difference", {}), mean=record)

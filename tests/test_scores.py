"""What is said of scores."""

import numpy as np
import pyarrow as pa
import pytest

from ssdd.data import codec
from ssdd.reports.scores import Scores, collapsed, difference_lines, read_scores, table_lines, write_scores
from ssdd.stages import evaluate, images
from ssdd.storage.tables import cut, write_table

CLASSES = ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("per_class", "expected"),
    [
        ({"background": 70.0, "cat": 0.0, "dog": 0.0}, True),
        ({"background": 70.0, "cat": 0.0, "dog": None}, True),  # no dog anywhere
        ({"background": 70.0, "cat": 0.0, "dog": 0.1}, False),
        ({}, False),  # no true masks
    ],
)
def test_a_model_without_a_right_foreground_pixel_has_collapsed(per_class, expected):
    assert collapsed(per_class, CLASSES) is expected


def test_the_table_lists_every_score_or_says_that_there_is_none():
    lines = table_lines(Scores({"train.advice": 50.04, "val.dynamic": 7.0}, {}))
    assert lines == ["mean IoU (%)", "  train.advice   50.0", "  val.dynamic     7.0"]
    assert table_lines(Scores({}, {})) == ["no true masks with a foreground class: nothing to score"]


def test_the_foreground_stands_beside_the_scores_that_have_it():
    lines = table_lines(Scores({"train.advice": 50.04, "val.dynamic": 7.0}, {}, {}, {"train.advice": 1.294}))
    assert lines == [
        "mean IoU (%), and foreground pixels / true foreground pixels",
        "  train.advice   50.0   1.29",
        "  val.dynamic     7.0",
    ]


def test_the_difference_has_a_column_for_each_stage():
    difference = {"train.differing": 3.5, "train.auc_gap": 0.644, "dynamic1.differing": 12.0, "dynamic1.gap_low": -0.1}
    lines = difference_lines(difference)
    assert lines[0].split() == ["where", "two", "masks", "differ", "seeds", "module", "1"]
    assert [line.split()[-2:] for line in lines[1:]] == [["3.5", "12.0"], ["0.64", "-"], ["-", "-0.10"]]
    assert len({len(line) for line in lines}) == 1
    assert difference_lines({}) == []


def test_scores_survive_their_file(tmp_path):
    scores = Scores({"a": 1.0}, {"a": {"cat": None}}, {"train.differing": 3.0}, {"a": 1.1})
    write_scores(tmp_path / "metrics.json", scores)
    assert read_scores(tmp_path / "metrics.json") == scores
    assert scores.flat() == {"a": 1.0, "difference.train.differing": 3.0, "foreground.a": 1.1}


@pytest.mark.parametrize("truth", [[0, 0, 0, 255], [0, 1, 0, 255], None])
def test_without_foreground_in_the_truth_there_is_no_mean_iou(tmp_path, truth):
    """A perfect mask and an empty one would both have 100 %. Single images keep a number, by which they are sorted."""
    schema = pa.schema([("image_id", pa.string()), ("truth", pa.binary()), ("mask", pa.binary())])
    encode = lambda values: codec.encode_mask(np.array([values], np.uint8))  # noqa: E731
    rows = [{"image_id": name, "truth": truth and encode(truth), "mask": encode([0, 0, 2, 0])} for name in "ab"]
    table = write_table(tmp_path, cut(["a", "b"], 1), schema, rows)
    scored = evaluate.score("val", [table], ["mask"], CLASSES)
    has_foreground = truth is not None and 1 in truth
    assert images.has_truth(table) == has_foreground
    assert set(scored.scores.mean) == ({"val.mask"} if has_foreground else set())
    assert set(scored.images) == (set() if truth is None else {"a", "b"})
    assert all(np.isfinite(image["mask"]) for image in scored.images.values())
    assert table_lines(scored.scores)[0].startswith("IoU (%)" if has_foreground else "no true masks with a foreground")

"""What is said of scores."""

import pytest

from ssdd.reports.scores import Scores, collapsed, table_lines

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
    assert table_lines(Scores({}, {})) == ["no true masks: nothing to score"]

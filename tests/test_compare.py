"""Means and spreads of a comparison, and how they are shown; the trainings run in test_jobs.py."""

import threading
import time

import pytest

from ssdd.data.class_names import VOC_CLASSES
from ssdd.reports.page import Number
from ssdd.reports.scores import TABLE_1, Scores, per_class_lines
from ssdd.runtime.session import StoppedError
from ssdd.stages import compare
from ssdd.stages.compare import Comparison

SEEDS = [
    Scores(
        {"val.baseline": 40.0, "val.dynamic": 44.0},
        {"val.baseline": {"a": 40.0}, "val.dynamic": {"a": 44.0}},
        {"train.oracle": 50.0},
    ),
    Scores(
        {"val.baseline": 42.0, "val.dynamic": 43.0},
        {"val.baseline": {"a": None}, "val.dynamic": {"a": 43.0}},
        {"train.oracle": 52.0},
    ),
]


def test_the_average_is_over_the_seeds_that_have_a_class():
    mean = compare.average(SEEDS)
    assert mean.mean == {"val.baseline": 41.0, "val.dynamic": 43.5}
    assert mean.per_class == {"val.baseline": {"a": 40.0}, "val.dynamic": {"a": 43.5}}
    assert mean.difference == {"train.oracle": 51.0}


def test_the_summary_keeps_every_value_and_their_standard_deviation():
    record = compare.summary(Comparison("val", (3, 5), SEEDS))
    assert record["random_seeds"] == [3, 5]
    assert record["scores"]["val.baseline"] == {"mean": 41.0, "std": pytest.approx(2**0.5), "values": [40.0, 42.0]}


def test_a_single_seed_has_no_standard_deviation():
    single = Comparison("val", (3,), SEEDS[:1])
    assert compare.summary(single)["scores"]["val.dynamic"] == {"mean": 44.0, "std": None, "values": [44.0]}
    lines = compare.lines(single)
    assert lines[lines.index("mean IoU (%) on val") + 2] == "  SSDD                          44.0"
    table, gain, *_ = compare.tables(single)
    assert table.title == "Mean IoU (%)"
    assert table.rows["val.dynamic"] == [Number(44.0), None, Number(44.0)]
    assert gain.rows["val.dynamic over val.baseline"] == [Number(4.0, "+.1f"), None, Number(4.0, "+.1f")]


def test_the_lines_show_mean_spread_and_each_seed():
    lines = compare.lines(Comparison("val", (0, 1), SEEDS))
    assert lines[lines.index("mean IoU (%) on val over 2 random seeds, and standard deviation") + 1 :][:2] == [
        "  advice m^A0 (PSA retrained)   41.0 +- 1.4  (40.0  42.0)",
        "  SSDD                          43.5 +- 0.7  (44.0  43.0)",
    ]


def test_ssdd_is_measured_against_the_strongest_baseline_of_each_score():
    scores = [
        {"val.baseline_knowledge": k, "val.baseline": a, "val.baseline_refined": 99.0, "val.dynamic": d}
        for k, a, d in ((40.0, 39.0, 42.0), (41.0, 43.0, 44.0))
    ]
    scores = [Scores(mean, {name: {"a": 1.0} for name in mean}) for mean in scores]
    gains = compare.gains(Comparison("val", (0, 1), scores))
    assert gains == {"val.dynamic": compare.Gain("val.baseline", [3.0, 1.0])}, "by its mean over the seeds"
    record = compare.summary(Comparison("val", (0, 1), scores))["gain"]["val.dynamic"]
    assert record == {"over": "val.baseline", "mean": 2.0, "std": pytest.approx(2**0.5), "values": [3.0, 1.0]}
    lines = compare.lines(Comparison("val", (0, 1), scores))
    assert "  val.dynamic   +2.0 +- 1.4  (+3.0  +1.0)  val.baseline" in lines
    assert compare.gains(Comparison("val", (0,), [Scores({"val.dynamic": 1.0}, {})])) == {}


def test_the_papers_rows_are_shown_for_vocs_classes_only():
    rows = {"ours": dict.fromkeys(("background", *VOC_CLASSES), 50.0)}
    lines = per_class_lines(rows)
    assert [line.split(" (")[0].strip() for line in lines[2:]] == list(TABLE_1)
    assert "not comparable" in lines[2]
    assert lines[1].split()[-1] == "50.0"
    assert len(per_class_lines({"ours": {"background": 50.0, "cat": None}})) == 2
    assert per_class_lines({}) == []


@pytest.mark.parametrize(("name", "mean"), [("PSA, Table 1", 61.7), ("SSDD, Table 1", 64.9)])
def test_table_1_has_the_papers_means(name, mean):
    assert len(TABLE_1[name]) == 21
    assert sum(TABLE_1[name]) / 21 == pytest.approx(mean, abs=0.06)


def test_a_failure_stops_the_others_at_their_next_stage_and_starts_no_more():
    stop, begun = threading.Event(), []

    def one(seed):
        begun.append(seed)
        if seed == 1:
            raise RuntimeError("seed 1")
        assert stop.wait(10)
        raise StoppedError("no further stage")

    def stop_and_say():
        stop.set()
        time.sleep(0.2)  # a print gives the other threads time to take the next seed

    with pytest.raises(RuntimeError, match="seed 1"):
        compare._side_by_side(one, (0, 1, 2, 3), 2, stop_and_say)
    assert begun[:2] == [0, 1]
    assert 3 not in begun


def test_results_come_in_the_order_of_the_seeds():
    stop = threading.Event()
    assert compare._side_by_side(lambda seed: -seed, (3, 1, 2), 2, stop.set) == [-3, -1, -2]
    assert not stop.is_set()

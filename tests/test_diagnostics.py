"""The difference report against hand-worked images and an independent AUC."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd.reports.diagnostics import DifferenceReport, auc


def report_of(knowledge, advice, truth, d_knowledge, d_advice, classes=3):
    report = DifferenceReport(classes)
    report.update(
        *(np.array([row], np.uint8) for row in (knowledge, advice, truth)), *map(np.array, ([d_knowledge], [d_advice]))
    )
    return report


def test_a_hand_worked_image():
    report = report_of(
        knowledge=[0, 0, 1, 1, 2, 0],
        advice=[0, 1, 0, 1, 1, 1],
        truth=[0, 1, 1, 1, 0, 255],  # the last has no label
        d_knowledge=[0.0, 0.8, 0.6, 0.0, 0.1, 1.0],
        d_advice=[0.0, 0.2, 0.4, 0.0, 0.1, 0.0],
    )
    metrics = report.metrics()
    assert metrics["differing"] == pytest.approx(100 * 3 / 5)
    assert metrics["advice_true"] == pytest.approx(100 / 3)  # pixel 1
    assert metrics["knowledge_true"] == pytest.approx(100 / 3)  # pixel 2; at pixel 4 neither is
    assert metrics["advice_false"] == pytest.approx(200 / 3)
    assert metrics["auc_knowledge"] == 1  # 0.8 above 0.6
    assert metrics["auc_gap"] == 1
    # Choosing by the truth: 0 1 1 1 and, where neither is true, knowledge: 2.
    assert metrics["oracle"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)


def test_the_spread_of_the_gap_is_that_of_the_differing_pixels():
    gaps = np.linspace(-0.2, 0.4, 101)
    report = DifferenceReport(3)
    knowledge, advice = np.array([[0] * 101 + [1] * 50], np.uint8), np.array([[2] * 101 + [1] * 50], np.uint8)
    d_knowledge = np.concatenate([0.5 + gaps, np.ones(50)])[None]  # the last 50 agree and do not count
    d_advice = np.concatenate([np.full(101, 0.5), np.zeros(50)])[None]
    report.update(knowledge, advice, np.ones_like(knowledge), d_knowledge, d_advice)  # neither is true: no AUC
    metrics = report.metrics()
    assert metrics["gap_low"] == pytest.approx(-0.17, abs=0.01)
    assert metrics["gap_high"] == pytest.approx(0.37, abs=0.01)
    assert "auc_gap" not in metrics


def test_eq_3s_subtraction_can_help():
    """d^K alone ranks the pixels wrongly; its gap to d^A does not."""
    report = report_of([0, 0], [1, 1], [1, 0], d_knowledge=[0.6, 0.8], d_advice=[0.1, 0.9])
    assert report.metrics()["auc_knowledge"] == 0
    assert report.metrics()["auc_gap"] == 1


def test_masks_that_agree_say_nothing():
    metrics = report_of([0, 1], [0, 1], [0, 1], [0.5, 0.5], [0.5, 0.5]).metrics()
    assert metrics["differing"] == metrics["advice_true"] == 0
    assert "auc_gap" not in metrics  # a NaN would be no JSON
    assert metrics["oracle"] == 100


def test_images_add_up():
    rng = np.random.default_rng(0)
    images = [(*rng.integers(0, 3, (3, 4, 5)).astype(np.uint8), *rng.random((2, 4, 5))) for _ in range(3)]
    apart, together = DifferenceReport(3), DifferenceReport(3)
    for image in images:
        apart.update(*image)
    together.update(*(np.concatenate(parts) for parts in zip(*images, strict=True)))
    assert apart.metrics() == pytest.approx(together.metrics())
    np.testing.assert_array_equal(apart.reliability, together.reliability)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(samples):
    scores = [np.array([s for s, positive in samples if positive == kind]) for kind in (False, True)]
    area = auc(*(np.bincount(s, minlength=6) if len(s) else np.zeros(6, int) for s in scores))
    if not (len(scores[0]) and len(scores[1])):
        assert np.isnan(area)
        return
    pairs = scores[1][:, None] - scores[0][None]
    assert area == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())


def test_calibration_of_a_calibrated_map():
    rng = np.random.default_rng(0)
    d = rng.random((200, 200))
    differ = rng.random(d.shape) < d
    report = DifferenceReport(2)
    report.update(np.zeros(d.shape, np.uint8), differ.astype(np.uint8), np.zeros(d.shape, np.uint8), d, d)
    mean, share, pixels = report.calibration(bins=8)
    assert mean.shape == share.shape == pixels.shape == (2, 8)
    assert pixels.sum() == 2 * d.size
    np.testing.assert_allclose(mean, share, atol=0.03)
    assert (np.diff(mean[0]) > 0).all()


def test_before_there_are_difference_maps():
    report = DifferenceReport(2)
    report.update(*(np.array([row], np.uint8) for row in ([0, 1], [1, 1], [1, 1])))
    assert report.metrics() == {
        "differing": 50.0,
        "advice_true": 100.0,
        "advice_false": 0.0,
        "knowledge_true": 0.0,
        "oracle": 100.0,
    }

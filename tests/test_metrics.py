"""Mean IoU against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssdd.metrics import ConfusionMatrix

CLASSES = 4


def counted(num_classes: int, prediction, target) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(np.array(prediction), np.array(target))
    return matrix


@st.composite
def mask_pairs(draw):
    shape = (draw(st.integers(0, 5)), draw(st.integers(1, 5)))
    prediction = arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1))
    target = arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), 255]))
    return draw(prediction), draw(target)


@settings(max_examples=100)
@given(mask_pairs())
def test_iou_equals_brute_force(pair):
    pairs = [(p, t) for p, t in zip(*(mask.ravel().tolist() for mask in pair), strict=True) if t != 255]
    expected = []
    for c in range(CLASSES):
        union = sum(c in both for both in pairs)
        expected.append(pairs.count((c, c)) / union if union else math.nan)
    matrix = counted(CLASSES, *pair)
    np.testing.assert_allclose(matrix.iou(), expected)
    known = [value for value in expected if not math.isnan(value)]
    np.testing.assert_allclose(matrix.mean_iou(), sum(known) / len(known) if known else math.nan)


@settings(max_examples=30)
@given(mask_pairs(), mask_pairs())
def test_two_updates_equal_one(first, second):
    matrix = counted(CLASSES, *first)
    matrix.update(*second)
    both = [np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(first, second, strict=True)]
    np.testing.assert_array_equal(matrix.counts, counted(CLASSES, *both).counts)


def test_counts_are_target_by_prediction():
    assert counted(2, [[0, 1, 1]], [[0, 0, 1]]).counts.tolist() == [[1, 1], [0, 1]]


def test_ignored_pixels_may_be_predicted_as_anything():
    assert counted(2, [[0, 1, 7]], [[0, 1, 255]]).mean_iou() == 1


def test_another_ignore_index():
    matrix = ConfusionMatrix(2, ignore_index=9)
    matrix.update(np.array([0, 1]), np.array([0, 9]))
    assert matrix.counts.sum() == 1


def test_absent_classes_are_nan_and_left_out_of_the_mean():
    matrix = counted(4, [0, 0, 1, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(matrix.iou(), [2 / 3, 1 / 2, np.nan, np.nan])
    assert matrix.mean_iou() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    np.testing.assert_array_equal(counted(3, [0, 2], [0, 0]).iou(), [1 / 2, np.nan, 0])


@pytest.mark.filterwarnings("error")
def test_nothing_counted_is_nan_without_a_warning():
    assert math.isnan(ConfusionMatrix(3).mean_iou())


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([[3]], [[0]], "prediction has values outside 0..2"),
        ([[-1]], [[0]], "prediction has values"),
        ([[255]], [[0]], "prediction has values"),
        ([[0]], [[3]], "target has values outside 0..2"),
        ([[0]], [[-1]], "target has values"),
        ([[0, 0]], [[0]], r"\(1, 2\) and target \(1, 1\) differ in shape"),
    ],
)
def test_bad_masks_are_refused_and_not_counted(prediction, target, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(prediction), np.array(target))
    assert not matrix.counts.any()


def test_foreground_of_the_prediction_over_the_targets():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([1, 2, 1, 0, 0]), np.array([1, 1, 0, 0, 255]))
    assert matrix.foreground_ratio() == 3 / 2
    assert np.isnan(ConfusionMatrix(3).foreground_ratio())

"""The SSDD module: hand-worked cases, and eqs. 1, 3, 4 against a loop over the pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssdd import refine
from ssdd.config import BiasConfig

CLASSES = 4
EIGHTHS = st.integers(-8, 8).map(lambda n: n / 8)  # sums of these are exact, so that w = 0 does occur


def row(*values: int) -> torch.Tensor:
    """A mask of one image and one row."""
    return torch.tensor([[values]])


def present(*classes: int, of: int = CLASSES) -> torch.Tensor:
    return torch.tensor([[c in (0, *classes) for c in range(of)]])


@st.composite
def modules(draw):
    """Everything an SSDD module gets, for 1-3 images of at most 4x4 pixels."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    masks = arrays(np.uint8, shape, elements=st.sampled_from([*range(CLASSES), 255]))
    d = arrays(np.float64, shape, elements=st.integers(0, 8).map(lambda n: n / 8))
    presence = draw(arrays(bool, (shape[0], CLASSES)))
    presence[:, 0] = True
    return draw(d), draw(d), draw(masks), draw(masks), presence


def loop_vanished(knowledge, advice, presence, ratio):
    out = np.zeros(presence.shape, bool)
    for n in range(presence.shape[0]):
        for c in range(1, presence.shape[1]):
            before = sum(int(v == c) for v in knowledge[n].flat)
            after = sum(int(v == c) for v in advice[n].flat)
            out[n, c] = presence[n, c] and after < ratio * max(before, 1)
    return out


def loop_module(d_k, d_a, knowledge, advice, gone, bias, background):
    """Eqs. 1, 3 and 4, one pixel at a time."""
    differs, w, refined = np.zeros(d_k.shape, bool), np.zeros(d_k.shape), np.zeros(d_k.shape, int)
    for at in np.ndindex(d_k.shape):
        n, k, a = at[0], int(knowledge[at]), int(advice[at])
        differs[at] = k != a
        w[at] = d_k[at] - d_a[at] + bias
        w[at] += background * ((a == 0) - (k == 0))
        w[at] += float(a < CLASSES and gone[n, a]) - float(k < CLASSES and gone[n, k])
        refined[at] = a if w[at] >= 0 else k
    return differs, w, refined


@settings(max_examples=60)
@given(modules(), EIGHTHS, EIGHTHS)
def test_equations_equal_a_loop_over_the_pixels(module, bias, background):
    d_k, d_a, knowledge, advice, presence = module
    gone = loop_vanished(knowledge, advice, presence, 0.5)
    differs, w, refined = loop_module(d_k, d_a, knowledge, advice, gone, bias, background)
    got = refine.confidence(d_k, d_a, knowledge, advice, gone, bias, background)
    np.testing.assert_array_equal(refine.difference(knowledge, advice), differs)
    np.testing.assert_array_equal(got, w)
    np.testing.assert_array_equal(refine.integrate(knowledge, advice, got), refined)


@settings(max_examples=60)
@given(modules(), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_vanished_equals_a_loop(module, ratio):
    _, _, knowledge, advice, presence = module
    expected = loop_vanished(knowledge, advice, presence, ratio)
    np.testing.assert_array_equal(refine.vanished(knowledge, advice, presence, ratio), expected)


@settings(max_examples=40)
@given(modules(), EIGHTHS, EIGHTHS, st.booleans())
def test_module_equals_a_loop(module, bias, background, use_presence):
    d_k, d_a, knowledge, advice, presence = module
    gone = loop_vanished(knowledge, advice, presence, 0.5) & use_presence
    _, _, refined = loop_module(d_k, d_a, knowledge, advice, gone, bias, background)
    tensors = map(torch.from_numpy, (d_k, d_a, knowledge, advice, presence))
    got = refine.module(*tensors, BiasConfig(bias, background, use_presence))
    np.testing.assert_array_equal(got, refined)


def test_difference_is_true_where_masks_differ():
    assert refine.difference(row(0, 1, 2, 255), row(0, 2, 2, 255)).tolist() == [[[False, True, False, False]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_pixels_counts_per_image_and_skips_255(dtype):
    masks = torch.tensor([[[0, 0, 1, 255]], [[2, 2, 2, 255]]], dtype=dtype)
    assert refine.class_pixels(masks, 3).tolist() == [[2, 1, 0], [0, 0, 3]]


@pytest.mark.parametrize(
    ("knowledge", "advice", "gone"),
    [
        (row(1, 1, 1, 1), row(1, 1, 0, 0), False),  # exactly one half is left
        (row(1, 1, 1, 1), row(1, 0, 0, 0), True),
        (row(1, 1, 1, 0), row(1, 0, 0, 0), True),
        (row(1, 0, 0, 0), row(1, 1, 0, 0), False),  # grown
        (row(0, 0, 0, 0), row(0, 0, 0, 1), False),  # new: 1 / max(0, 1)
        (row(0, 0, 0, 0), row(0, 0, 0, 0), True),  # in neither: 0 / max(0, 1)
        (row(1, 1, 1, 255), row(1, 255, 255, 255), True),
    ],
)
def test_vanished_by_hand(knowledge, advice, gone):
    assert refine.vanished(knowledge, advice, present(1)).tolist() == [[False, gone, False, False]]


def test_background_and_absent_classes_never_vanish():
    assert not refine.vanished(row(0, 0, 0, 2), row(1, 1, 1, 1), present(1)).any()


def test_vanish_ratio_is_a_setting():
    knowledge, advice = row(1, 1, 1, 1), row(1, 1, 1, 0)
    assert refine.vanished(knowledge, advice, present(1), ratio=0.8)[0, 1]
    assert not refine.vanished(knowledge, advice, present(1), ratio=0.75)[0, 1]
    assert not refine.vanished(knowledge, row(0, 0, 0, 0), present(1), ratio=0)[0, 1]


def test_a_sample_is_bad_if_any_class_vanished():
    vanished = torch.tensor([[False, False, False], [False, True, False], [False, True, True]])
    assert refine.bad_samples(vanished).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("knowledge", "advice", "vanished", "expected"),
    [
        (1, 2, (), 0.5 - 0.25 + 0.125),  # the scalar alone
        (1, 1, (), 0.375),
        (0, 1, (), 0.375 - 0.5),  # knowledge is background
        (1, 0, (), 0.375 + 0.5),  # advice is
        (0, 0, (), 0.375),
        (1, 2, (1,), 0.375 - 1),  # knowledge shows the vanished class
        (2, 1, (1,), 0.375 + 1),  # advice does
        (1, 1, (1,), 0.375),
        (1, 2, (1, 2), 0.375),
        (1, 0, (1,), 0.375 + 0.5 - 1),
        (255, 2, (1, 2), 0.375 + 1),  # 255 adds nothing of its own
        (255, 0, (1,), 0.375 + 0.5),
        (1, 255, (1,), 0.375 - 1),
        (255, 255, (1, 2, 3), 0.375),
    ],
)
def test_confidence_by_hand(knowledge, advice, vanished, expected):
    gone = torch.tensor([[c in vanished for c in range(CLASSES)]])
    d_knowledge, d_advice = torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25)
    w = refine.confidence(d_knowledge, d_advice, row(knowledge), row(advice), gone, 0.125, 0.5)
    assert w.item() == expected


def test_integrate_takes_advice_from_zero_on():
    w = torch.tensor([[[-1e-6, -0.0, 0.0, 1.0]]])
    assert refine.integrate(row(1, 1, 1, 1), row(2, 2, 2, 2), w).tolist() == [[[1, 2, 2, 2]]]


def test_presence_argmax_and_softmax_never_give_an_absent_class():
    logits = torch.randn(3, CLASSES, 5, 6, generator=torch.Generator().manual_seed(0)) * 20
    presence = torch.tensor([[True, False, True, False], [True, False, False, False], [True] * 4])
    mask, probs = refine.presence_argmax(logits, presence), refine.presence_softmax(logits, presence)
    assert set(mask[0].unique().tolist()) <= {0, 2}
    assert set(mask[1].unique().tolist()) == {0}
    assert torch.equal(mask[2], logits[2].argmax(0))
    assert not probs.movedim(1, -1)[~presence[:, None, None].expand(3, 5, 6, CLASSES)].any()
    torch.testing.assert_close(probs.sum(1), torch.ones(3, 5, 6))
    torch.testing.assert_close(probs[0, [0, 2]], logits[0, [0, 2]].softmax(0))


def test_presence_argmax_of_probabilities_that_are_all_zero_is_a_present_class():
    assert not refine.presence_argmax(torch.zeros(1, CLASSES, 2, 2), present(3)).any()


def test_module_without_presence_part_lets_a_class_vanish():
    knowledge, advice = row(1, 1, 1, 1), row(0, 0, 0, 0)
    d_knowledge, d_advice = torch.full((1, 1, 4), 0.5), torch.full((1, 1, 4), 0.25)
    with_part, without = (
        refine.module(d_knowledge, d_advice, knowledge, advice, present(1), BiasConfig(0.1, 0.1, presence))
        for presence in (True, False)
    )
    assert torch.equal(with_part, knowledge)  # 0.25 + 0.1 + 0.1 - 1 < 0
    assert torch.equal(without, advice)


def test_module_uses_the_vanish_ratio():
    knowledge, advice = row(1, 1, 1, 1), row(1, 1, 1, 0)
    zero = torch.zeros(1, 1, 4)
    assert torch.equal(refine.module(zero, zero, knowledge, advice, present(1), BiasConfig(0.1, 0.1)), advice)
    strict = BiasConfig(0.1, 0.1, vanish_ratio=0.8)
    assert torch.equal(refine.module(zero, zero, knowledge, advice, present(1), strict), knowledge)

"""Arrays as table cells."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ssdd.storage import maps


@settings(max_examples=50)
@given(arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(0, 1, width=32)))
def test_pack_keeps_half_precision(values):
    back = maps.unpack(maps.pack(values))
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_pack_keeps_integers_as_they_are(dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    back = maps.unpack(maps.pack(values))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, values)


def test_unpack_refuses_pickled_arrays():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        maps.unpack(buffer.getvalue())


def test_pack_refuses_objects():
    with pytest.raises(ValueError, match="allow_pickle"):
        maps.pack(np.array([{"a": 1}], object))


@settings(max_examples=50)
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1, width=32)))
def test_pack_unit_errs_by_half_a_step(values):
    back = maps.unpack_unit(maps.pack_unit(values))
    assert back.dtype == np.float32
    assert back.shape == values.shape
    assert np.abs(back - values).max() <= 1 / 510 + 1e-6


def test_pack_unit_clips():
    assert maps.unpack_unit(maps.pack_unit(np.array([[-1.0, 0.0, 1.0, 2.0]]))).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("size", [(5, 4), (7, 9), (10, 8), (33, 50), (5, 13)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_resize_upscales_as_torch_does(size, lead):
    values = np.random.default_rng(0).random((*lead, 5, 4), np.float32)
    flat = torch.from_numpy(values.reshape(1, -1, 5, 4))
    expected = F.interpolate(flat, size, mode="bilinear", align_corners=False).numpy().reshape(*lead, *size)
    np.testing.assert_allclose(maps.resize(values, size), expected, atol=1e-5)


def test_resize_takes_half_precision_and_keeps_constants():
    out = maps.resize(np.full((2, 6, 8), 0.25, np.float16), (3, 5))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, np.full((2, 3, 5), 0.25), atol=1e-6)

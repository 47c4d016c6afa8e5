"""The static stage's biases: one pass over stored maps against integrating anew at each point."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd import refine
from ssdd.config import BiasConfig
from ssdd.data import codec
from ssdd.metrics import ConfusionMatrix
from ssdd.storage import maps
from ssdd.storage.tables import write_table
from ssdd.sweeps import bias

CLASSES = 4
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("presence", pa.list_(pa.uint8()))]
    + [(name, pa.binary()) for name in ("truth", "knowledge", "advice", "d_knowledge", "d_advice")]
)


def rows(seed, count=3):
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = (9 + i, 12)
        masks = {name: rng.integers(0, CLASSES, size, dtype=np.uint8) for name in ("truth", "knowledge", "advice")}
        masks["truth"][rng.random(size) < 0.1] = 255
        masks["advice"][rng.random(size) < 0.5] = 0
        d = {name: maps.pack_unit(rng.random((5, 6))) for name in ("d_knowledge", "d_advice")}
        encoded = {name: codec.encode_mask(mask) for name, mask in masks.items()}
        yield {"image_id": f"i{i}", "presence": [1, 2, 3], **encoded, **d}
    yield {"image_id": "unknown", "presence": [1], **encoded, "truth": None, **d}


def directly(found, own, bias, background):
    matrix = ConfusionMatrix(CLASSES)
    for row in found:
        if row["truth"] is None:
            continue
        truth, knowledge, advice = (codec.read_mask(row[n]) for n in ("truth", "knowledge", "advice"))
        d_k, d_a = (
            torch.from_numpy(maps.resize(maps.unpack_unit(row[n]), truth.shape))[None]
            for n in ("d_knowledge", "d_advice")
        )
        k, a = (torch.from_numpy(m.astype(np.int64))[None] for m in (knowledge, advice))
        presence = torch.from_numpy(codec.presence_vector(row["presence"], CLASSES))[None]
        at = BiasConfig(bias, background, own.presence, own.vanish_ratio)
        matrix.update(refine.module(d_k, d_a, k, a, presence, at)[0].numpy(), truth)
    return matrix.counts


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.lists(st.tuples(st.floats(-1.2, 1.2), st.floats(-0.6, 0.6)), min_size=1, max_size=6),
)
def test_counts_equal_an_integration_at_each_point(seed, presence, biases):
    own = BiasConfig(0.1, 0.1, presence, vanish_ratio=0.5)
    found = list(rows(seed))
    with tempfile.TemporaryDirectory() as folder:
        ids = tuple(r["image_id"] for r in found)
        table = write_table(Path(folder), (ids,), SCHEMA, iter(found))
        counts = bias.confusion_at_points([table], 0, CLASSES, own, biases)
    for made, point in zip(counts, biases, strict=True):
        expected = directly(found, own, *point)
        # Rounding may decide otherwise about a pixel that is exactly at the threshold.
        assert np.abs(made - expected).sum() <= 4
        assert made.sum() == expected.sum()


def test_the_ends_of_the_bias_are_knowledge_and_advice(tmp_path):
    found = list(rows(0))
    table = write_table(tmp_path, (tuple(r["image_id"] for r in found),), SCHEMA, iter(found))
    own = BiasConfig(0.1, 0.1, presence=False)
    counts = bias.confusion_at_points([table], 0, CLASSES, own, [(-2.0, 0.0), (2.0, 0.0)])
    for column, made in zip(("knowledge", "advice"), counts, strict=True):
        matrix = ConfusionMatrix(CLASSES)
        for row in found:
            if row["truth"] is not None:
                matrix.update(codec.read_mask(row[column]), codec.read_mask(row["truth"]))
        np.testing.assert_array_equal(made, matrix.counts)


def test_the_example_of_the_docstring():
    one = {"presence": [1, 2], "truth": np.array([[2]]), "knowledge": np.array([[1]]), "advice": np.array([[2]])}
    row = {"image_id": "a", **one} | {n: codec.encode_mask(one[n].astype(np.uint8)) for n in list(one)[1:]}
    row |= {"d_knowledge": maps.pack_unit(np.array([[0.3]])), "d_advice": maps.pack_unit(np.array([[0.45]]))}
    fixed = BiasConfig(bias=0.0, background=0.0, presence=False)
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder), (("a",),), SCHEMA, iter([row]))
        counts = bias.confusion_at_points([table], 0, CLASSES, fixed, [(0.0, 0.0), (0.2, 0.0), (0.1, 0.0)])
    assert [tuple(np.argwhere(c)[0]) for c in counts] == [(2, 1), (2, 2), (2, 1)]
    assert counts.sum((1, 2)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("stage", ["static", "dynamic"])
def test_each_stage_varies_its_own_fields(stage):
    kind = bias.bias_sweep(stage)
    assert kind.name == "sweep_bias"
    assert all(text.startswith(kind.allowed) for text in kind.space)

"""Processes that die on the same images again and again end a job, which names the images."""

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import ray
from small import ROOT, SMALL

from ssdd import cli
from ssdd.config import AugmentConfig
from ssdd.crf import CRFParams
from ssdd.data import codec
from ssdd.data.sampling import Sampling
from ssdd.runtime import cluster, crashes, pipelines
from ssdd.runtime.crashes import MOST_DEATHS, CrashError, noted
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.stages import method
from ssdd.storage.tables import cut, write_table
from ssdd.training import ingest

DIE = """
import os, signal, sys
from ssdd.runtime.crashes import noted
with noted(sys.argv[1], sys.argv[2], lambda: [sys.argv[2]]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(work, key):
    """A process that is killed while it works."""
    done = subprocess.run([sys.executable, "-c", DIE, work, key], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def try_(work, key):
    with noted(work, key, lambda: [key]):
        pass


@pytest.mark.usefixtures("own_folder")
def test_the_third_death_on_the_same_images_is_an_error():
    for _ in range(MOST_DEATHS):
        die("work", "huge")
        die("work", "other") if _ == 0 else None
    with pytest.raises(CrashError, match="3 processes died while they worked on huge: ") as error:
        try_("work", "huge")
    assert pickle.loads(pickle.dumps(error.value)).images == ("huge",)
    try_("work", "other")  # other images, or the same of another pipeline: deaths do not add up
    try_("elsewhere", "huge")


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("lazy", [True, False])
def test_deaths_are_counted_for_the_table_that_is_read(tmp_path, monkeypatch, lazy):
    monkeypatch.setattr(crashes, "_folder", lambda: tmp_path)
    table = pa.table({"image_id": ["a"]})

    def one_by_one(item):
        yield table
        os.kill(os.getpid(), signal.SIGKILL)

    def at_once(item):
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt():
        return list(pipelines._read_noted("work", one_by_one if lazy else at_once, lambda item: ["a", "b"], (7, None)))

    for _ in range(crashes.MOST_DEATHS):
        process = multiprocessing.get_context("fork").Process(target=attempt)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with pytest.raises(CrashError, match="a, b"):
        attempt()


@pytest.mark.usefixtures("own_folder")
def test_work_that_ends_is_forgotten(tmp_path):
    die("work", "a")
    die("work", "a")
    try_("work", "a")
    die("work", "a")
    for _ in range(5):  # an exception is no death
        with pytest.raises(ValueError, match="x"), noted("work", "b", list):
            raise ValueError("x")
    try_("work", "a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def kill_on(wanted, folder, rows):
    """A stage that is killed at one image, and at another one the first time."""
    for row in rows:
        if row["image_id"] == wanted:
            with open(folder / "deaths", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if row["image_id"] == "b":
            try:
                (folder / "once").mkdir()
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
    return rows


@pytest.mark.usefixtures("own_folder")
def test_a_reader_of_samples_names_the_images_that_it_dies_on(tmp_path, monkeypatch):
    """The task of Ray Data alone, in processes that are forked for it."""
    image = codec.encode_mask(np.zeros((40, 40), np.uint8))
    rows = [{"image_id": name, "image": image, "presence": [1]} for name in "abcd"]
    schema = pa.schema([("image_id", pa.string()), ("image", pa.binary()), ("presence", pa.list_(pa.uint8()))])
    (tmp_path / "table").mkdir()
    table = write_table(tmp_path / "table", cut(list("abcd"), 2), schema, rows)
    augment = AugmentConfig(crop=32, resize=(32, 40))
    sampling = Sampling(masks=(), mask_size=None, augment=augment, num_classes=2)
    read = partial(ingest._read_samples, "work", [table], sampling, ingest.Order(4, 2, seed=0), range(0, 4, 2))
    assert [block.num_rows for block in read()] == [2, 2]

    def first_block():
        monkeypatch.setattr(codec, "read_image_reduced", lambda data, side: os.kill(os.getpid(), signal.SIGKILL))
        next(read())

    for _ in range(MOST_DEATHS):
        process = multiprocessing.get_context("fork").Process(target=first_block)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with pytest.raises(CrashError) as error:
        next(read())
    order = [row for _, row in ingest.Order(4, 2, seed=0).rows(0, 2)]
    assert error.value.images == tuple("abcd"[row] for row in order)


@pytest.mark.ray
@pytest.mark.minutes
def test_a_training_whose_crf_kills_its_processes_names_the_images_of_the_step(places, tmp_path):
    folder, _ = places
    config = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(tmp_path / "w"), "--step.crf", "actors"])
    crashing = replace(config.dynamic.crf, bilateral_srgb=1e-9)  # which a configuration refuses
    config = replace(config, dynamic=replace(config.dynamic, crf=crashing))
    with Session(config, "crash") as session, pytest.raises(CrashError, match="3 processes died") as error:
        method.run(session)
    assert set(error.value.images) <= {f"train_{k:04}" for k in range(10)}
    assert len(error.value.images) == config.dynamic.train.batch_size


@pytest.mark.ray
@pytest.mark.minutes
@pytest.mark.parametrize("kind", ["network", "crf"])
def test_a_stage_that_kills_its_process_ends_the_pipeline_and_names_the_image(places, tmp_path, kind):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    schema = pa.schema([("image_id", pa.string()), ("number", pa.int64())])
    ids = list("abcd")
    rows = [{"image_id": image_id, "number": k} for k, image_id in enumerate(ids)]
    (tmp_path / "table").mkdir()
    table = write_table(tmp_path / "table", cut(ids, 2), schema, rows)
    plan = cluster.connect(cli.parse([*SMALL]))

    def run(wanted):
        stage = partial(kill_on, wanted, tmp_path)
        network, crf = (lambda: stage, None) if kind == "network" else (None, stage)
        return {row["image_id"] for row in pipelines.infer([table], ["number"], network, crf, 1, plan)}

    assert run(None) == set("abcd"), "one death is made good"
    with pytest.raises(CrashError, match="3 processes died while they worked on c: "):
        run("c")
    gc.collect()  # the traceback is a cycle that holds the pipeline, and so its actors
    assert (tmp_path / "deaths").read_text() == "x" * MOST_DEATHS


@pytest.mark.ray
def test_a_crf_that_kills_its_process_ends_the_request(places, monkeypatch):
    cluster.connect(cli.parse([*SMALL]))
    pool = CRFPool(cpu_nodes_first(cluster.nodes(), 1, 0.5), 0.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    probs = [np.full((2, 8, 8), 0.5, np.float32)] * 2
    labels = [np.array([0, 1], np.uint8)] * 2
    try:
        assert pool.request(images, probs, labels, CRFParams()).masks().shape == (2, 8, 8)
        crashing = CRFParams(bilateral_srgb=1e-9)  # which a configuration refuses
        with pytest.raises(CrashError):
            pool.request(images, probs, labels, crashing).masks()
        assert pool.request(images, probs, labels, CRFParams()).masks().shape == (2, 8, 8)
    finally:
        pool.close()

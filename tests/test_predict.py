"""predict.py: masks and rows of generated photographs, once more what was not finished, and what is refused."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import untrained
from PIL import Image
from small import ROOT, run_job
from untrained import CLASSES, CONFIG

import ssdd
from ssdd.config import ConfigError, PredictConfig
from ssdd.data import codec
from ssdd.nets import checkpoints
from ssdd.runtime import pipelines
from ssdd.stages import predict_rows
from ssdd.stages.predict import PredictNetwork
from ssdd.stages.predict_rows import Photograph
from ssdd.storage import maps, paths
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import RemoteError, to_path


def draw(path, seed, size=(24, 32)):
    """A photograph of a few coloured fields; the suffix says its format."""
    fields = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with an untrained network that is sure of something."""
    root = tmp_path_factory.mktemp("model")
    folder = root / "artifacts" / "dynamic-0123"
    folder.mkdir(parents=True)
    checkpoints.save(untrained.network().state_dict(), folder / checkpoints.MODEL)
    checkpoints.remember(root, CONFIG, CLASSES, {"dynamic": Artifact("dynamic", "0123", folder)})
    return root


def predict(*args):
    run_job("predict", *args)


def rows_of(output):
    table = pq.read_table(output / "predictions.parquet")
    rows = {row["path"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows, "no photograph twice"
    return rows


def masks_of(output):
    folder = output / "masks"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.ray
def test_three_hundred_photographs_and_then_those_that_are_new(places, workspace, tmp_path, capsys):
    source, output = tmp_path / "photographs", tmp_path / "out"
    for k in range(296):
        draw(source / f"{k % 3}" / f"{k:03d}.{('jpg', 'png', 'webp', 'tif')[k % 4]}", k)
    draw(source / "0" / "000.png", 1000)  # beside 000.jpg
    draw(source / "large.bmp", 1001, size=(70, 60))
    data = (source / "0" / "000.jpg").read_bytes()
    (source / "damaged.jpg").write_bytes(data[: len(data) // 2])
    (source / "text.jpg").write_text("no picture")
    command = ("--model", workspace, "--input", source, "--output", output, "--no-crf", "--max-pixels", "4000")
    predict(*command, "--num-cpus", "2")
    out = capsys.readouterr().out
    assert "297 new masks in" in out
    assert "3 photographs could not be used" in out
    rows, masks = rows_of(output), masks_of(output)
    assert len(rows) == 300
    assert len(masks) == 297
    assert not (output / ".unfinished").exists()
    assert {row["output"] for row in rows.values() if row["path"].startswith("0/000")} == {"0/000.jpg", "0/000.png"}
    errors = {path: row["error"] for path, row in rows.items() if row["error"]}
    assert set(errors) == {"large.bmp", "damaged.jpg", "text.jpg"}
    assert errors["large.bmp"] == "70x60 are more than 4000 pixels"
    assert errors["text.jpg"] == "not a JPEG, PNG, WebP, BMP or TIFF file, or its header is damaged"

    segmenter = ssdd.load(workspace)
    for path in sorted(set(rows) - set(errors))[::20]:
        mask = codec.read_mask(masks[f"{rows[path]['output']}.png"])
        np.testing.assert_array_equal(mask, segmenter.predict(source / path))
        shares = {CLASSES[value]: float((mask == value).mean()) for value in np.unique(mask)}
        assert dict(zip(rows[path]["classes"], rows[path]["shares"], strict=True)) == pytest.approx(shares)
        assert (rows[path]["height"], rows[path]["width"]) == mask.shape
        largest = segmenter.probabilities(source / path).max(0).mean()
        assert rows[path]["probability"] == pytest.approx(float(largest), abs=1e-4)

    draw(source / "new" / "a.jpg", 2000)
    draw(source / "damaged.jpg", 2001)
    (source / "0" / "003.tif").unlink()  # its row and its mask stay
    before = {path.name: path.stat().st_mtime_ns for path in (output / "masks" / "1").iterdir()}
    predict(*command, "--num-cpus", "2")
    assert "296 of 300 photographs are finished already" in capsys.readouterr().out
    assert set(masks_of(output)) - set(masks) == {"new/a.png", "damaged.png"}
    assert {path.name: path.stat().st_mtime_ns for path in (output / "masks" / "1").iterdir()} == before
    assert {path for path, row in rows_of(output).items() if row["error"]} == {"large.bmp", "text.jpg"}
    with pytest.raises(SystemExit, match=r"predict: --output .*: its masks were made with crf = None, now it is \{"):
        predict(*command[:6], "--max-pixels", "4000")


@pytest.mark.ray
def test_crf_labels_overlays_and_probabilities_in_a_bucket(places, bucket, workspace, tmp_path):
    root = to_path(f"{bucket}/predict")
    for k in range(5):
        draw(tmp_path / f"{k}.jpg", k)
        paths.copy(tmp_path / f"{k}.jpg", root / "photographs" / f"{k}.jpg")
    labels, output = tmp_path / "labels.csv", root / "out"
    labels.write_text("image_id,classes\n0.jpg,dog\n1,cat;cow\n2.jpg,\n3,dog;cat;cow\n")
    command = ("--model", workspace, "--input", root / "photographs", "--output", output, "--labels", labels)
    flags = ("--overlay", "--probabilities", "--below", "0.9", "--num-cpus", "2")
    with pytest.raises(SystemExit, match=r"predict: --labels .*\n.*\n  - .*no line for image_id '4'"):
        predict(*command, *flags)
    assert not output.exists()
    with labels.open("a") as lines:
        lines.write("4.jpg,cow\n")
    predict(*command, *flags)
    segmenter = ssdd.load(workspace)
    some_unsure = False
    for k, presence in enumerate((["dog"], ["cat", "cow"], [], ["dog", "cat", "cow"], ["cow"])):
        expected = segmenter.predict(tmp_path / f"{k}.jpg", presence=presence, crf=True)
        probs = segmenter.probabilities(tmp_path / f"{k}.jpg", presence=presence)
        expected[probs.max(0) < 0.9] = 255
        some_unsure |= bool((expected == 255).any())
        np.testing.assert_array_equal(codec.read_mask(output / "masks" / f"{k}.png"), expected)
        stored = np.load(io.BytesIO((output / "probabilities" / f"{k}.npy").read_bytes()))
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, probs, atol=1e-3)
        assert codec.read_image(output / "overlays" / f"{k}.jpg").shape == (*expected.shape, 3)
    assert some_unsure
    parts = list((output / "predictions.parquet").iterdir())
    rows = [row for part in parts for row in pq.read_table(io.BytesIO(part.read_bytes())).to_pylist()]
    assert sorted(row["path"] for row in rows) == [f"{k}.jpg" for k in range(5)]
    (first,) = (row for row in rows if row["path"] == "0.jpg")
    assert set(first["classes"]) <= {"background", "dog"}
    predict(*command, *flags)  # nothing is left to do
    assert len(list((output / "predictions.parquet").iterdir())) == len(parts)


def test_what_cannot_work_is_refused_before_ray_starts(workspace, tmp_path):
    source = tmp_path / "a.jpg"
    draw(source, 0)
    with pytest.raises(SystemExit, match=r"predict: .*nothing was trained there"):
        predict("--model", tmp_path, "--input", source, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"predict: --input .*absent"):
        predict("--model", workspace, "--input", tmp_path / "absent", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"predict: --output .*: holds other files \(a.jpg\)"):
        predict("--model", workspace, "--input", source, "--output", tmp_path)
    with pytest.raises(SystemExit, match="predict: --input: https:// is not supported"):
        predict("--model", workspace, "--input", "https://host/a.jpg", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"predict: --below 1\.5: must lie in 0..1"):
        predict("--model", workspace, "--input", source, "--output", tmp_path / "out", "--below", "1.5")
    assert not (tmp_path / "out").exists()


class Store:
    """A folder of a store that gives only some of its objects."""

    def __init__(self, there):
        self.there = there

    def __truediv__(self, name):
        return SimpleNamespace(open=lambda mode: io.BytesIO(self.read(name)))

    def read(self, name):
        if name not in self.there:
            raise RemoteError(f"{name}: access denied")
        return b"data"


def test_an_object_that_is_refused_is_a_row_and_a_store_that_is_away_an_error():
    item = [Photograph(f"{k}.jpg", str(k)) for k in range(3)]
    rows = [row for table in predict_rows.read(Store({"1.jpg"}), item) for row in table.to_pylist()]
    assert [row["error"] for row in rows] == ["0.jpg: access denied", "", "2.jpg: access denied"]
    with pytest.raises(RemoteError):
        list(predict_rows.read(Store(()), item))


def test_files_are_read_one_by_one_and_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "0.jpg").write_bytes(b"data")
    monkeypatch.setattr(predict_rows, "MOST_BYTES", 2**20)
    (tmp_path / "1.jpg").write_bytes(bytes(2**20 + 1))
    item = [Photograph(f"{k}.jpg", str(k)) for k in range(3)]
    tables = predict_rows.read(tmp_path, item)
    assert next(tables)["image"].to_pylist() == [b"data"]
    assert [table["error"][0].as_py() for table in tables] == [
        "the file has more than 1 MB",
        "No such file or directory",
    ]

    def stale(path, mode):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        list(predict_rows.read(tmp_path, [Photograph("0.jpg", "0")] * 2))
    gone = predict_rows.read(tmp_path, [Photograph("x.jpg", "x")] * 2)
    monkeypatch.undo()
    assert [table["error"][0].as_py() for table in gone] == ["No such file or directory"] * 2


def test_an_error_of_an_actors_start_is_raised_as_it_is(monkeypatch):
    def make():
        raise ConfigError("--model: is now another")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "actor"))
    actor = pipelines._NetworkActor("work", make, 1)
    with pytest.raises(ConfigError, match="is now another"):
        actor(None)


def test_what_goes_wrong_with_one_photograph_is_its_row(tmp_path):
    (tmp_path / predict_rows.ASIDE).mkdir()
    draw(tmp_path / "a.png", 0)
    finish = predict_rows.Finish(
        folder=tmp_path,
        classes=CLASSES,
        crf=None,
        min_probability=0,
        sharpen=0,
        below=0,
        overlay=True,
        probabilities=False,
        apply_exif=False,
    )
    probs = np.full((4, 3, 3), 0.25, np.float32)
    row = {"image": (tmp_path / "a.png").read_bytes(), "probs": maps.pack(probs), "absent": [], "error": ""}
    long, short = finish([row | {"image_id": f"{name}.png", "output": name} for name in ("x" * 254, "a")])
    assert "File name too long" in long["error"]
    assert short["error"] == ""
    assert (tmp_path / "masks" / "a.png").is_file()


@pytest.mark.parametrize(("apply_exif", "shape"), [(False, (60, 40)), (True, (40, 60))])
def test_photographs_are_turned_if_the_user_says_so(workspace, tmp_path, monkeypatch, apply_exif, shape):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "a.jpg", exif=exif)
    config = PredictConfig(model=workspace, input="", output=tmp_path, max_pixels=10_000, apply_exif=apply_exif)
    network, seen = PredictNetwork(config, "dynamic-0123"), []
    monkeypatch.setattr(network.segmenter, "packed", lambda images: seen.extend(images) or [b""])
    network([{"image": (tmp_path / "a.jpg").read_bytes(), "error": ""}])
    assert seen[0].shape[:2] == shape


def test_a_network_that_was_replaced_meanwhile_is_told(workspace, tmp_path):
    config = PredictConfig(model=workspace, input="", output=tmp_path, max_pixels=100, apply_exif=False)
    PredictNetwork(config, "dynamic-0123")
    with pytest.raises(ConfigError, match="is now dynamic-0123, but was dynamic-4567 at the start"):
        PredictNetwork(config, "dynamic-4567")


SCRIPT = """
import pathlib, re, runpy, sys, threading, time
sys.argv = ["predict", *sys.argv[1:]]
peak = 0


def watch():  # its own memory, without that of Ray's object store, which it shares
    global peak
    while True:
        status = pathlib.Path("/proc/self/status").read_text()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]))
        time.sleep(0.05)


threading.Thread(target=watch, daemon=True).start()
runpy.run_path({path!r}, run_name="__main__")
print("peak", peak)
"""


def subprocess_of(workspace, source, output):
    script = SCRIPT.format(path=str(ROOT / "ray_jobs" / "predict.py"))
    flags = ["--model", workspace, "--input", source, "--output", output, "--no-crf", "--num-cpus", "2"]
    command = [sys.executable, "-c", script, *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.minutes
@pytest.mark.ray
def test_ten_thousand_through_a_kill_in_constant_memory(workspace, tmp_path):
    source = tmp_path / "photographs"
    for k in range(10_000):
        draw(source / f"{k // 100:02d}" / f"{k:05d}.jpg", k)
    peaks = {}
    for count, folder in ((1_000, source / "0?" / "*.jpg"), (10_000, source)):
        process = subprocess_of(workspace, folder, tmp_path / str(count))
        out, _ = process.communicate()
        assert process.returncode == 0, out
        assert f"{count} new masks in" in out
        peaks[count] = int(out.rpartition("peak ")[2])
    print(f"\nthe driver's peak memory: {peaks[1_000] / 1024:.0f} MiB of 1,000, {peaks[10_000] / 1024:.0f} of 10,000")
    assert peaks[10_000] - peaks[1_000] <= 20 * 1024
    output = tmp_path / "killed"
    for share in (0.3, 0.7):
        process = subprocess_of(workspace, source, output)
        table, deadline = output / "predictions.parquet", time.monotonic() + 1800
        while not table.exists() or len(pq.read_table(table)) < share * 10_000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = len(rows_of(output))
    assert 7_000 <= finished < 10_000
    process = subprocess_of(workspace, source, output)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert f"{finished} of 10000 photographs are finished already" in out
    assert rows_of(output) == rows_of(tmp_path / "10000")
    assert masks_of(output) == masks_of(tmp_path / "10000")
    assert json.loads((output / "prediction.json").read_text())["model"] == "dynamic-0123"

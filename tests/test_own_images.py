"""docs/own-images.md: every command and every piece of Python in it, on drawn photographs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import ROOT, SMALL, run_job

from ssdd import cli
from ssdd.config import Config, PredictConfig
from ssdd.data import codec, drawn_scenes
from ssdd.data.drawn_objects import CLASSES

PAGE = (ROOT / "docs" / "own-images.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def photographs(folder):
    """A folder for each of two classes, of drawn photographs."""
    for number, name in enumerate(CLASSES[:2]):
        (folder / name).mkdir(parents=True)
        for k in range(5):
            image, _ = drawn_scenes.render(0, "train", 10 * number + k, (96, 80))
            Image.fromarray(image).save(folder / name / f"{k}.jpg")


def seeds(data):
    """Folders of knowledge and advice, in the place of PSA's, which take most of the time: flags of the jobs."""
    classes = (data / "classes.txt").read_text().split()
    lines = (data / "labels.csv").read_text().splitlines()[1:]
    for name, side in (("knowledge", 60), ("advice", 40)):
        Path(name).mkdir()
        for image_id, label in (line.split(",") for line in lines):
            mask = np.zeros((80, 96), np.uint8)
            mask[10:side, 10:side] = 1 + classes.index(label)
            Path(name, f"{image_id}.png").write_bytes(codec.encode_mask(mask))
    return ("--knowledge", "knowledge", "--advice", "advice")


@pytest.mark.ray
def test_the_commands_of_the_page_in_their_order(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    photographs(Path("photographs"))
    Path("new-photographs").mkdir()
    image, _ = drawn_scenes.render(0, "val", 0, (97, 81))
    Image.fromarray(image).save("new-photographs/a.jpg")
    jobs = []
    for line in "".join(text for kind, text in BLOCKS if kind != "python").splitlines():
        if line:
            program, job, *args = shlex.split(line)
            assert program == "ssdd"
            try:
                run_job(job, *args, *((*SMALL, *seeds(Path("mine"))) if job == "dynamic" else ()))
            except SystemExit as ended:
                if ended.code:
                    raise
            jobs.append(job)
    assert jobs == ["label", "check", "dynamic", "predict", "export", "export"]
    for name in ("sheet.png", "mine-ssdd/report.html", "masks/masks/a.png", "masks/overlays/a.jpg", "mine.onnx"):
        assert Path(name).stat().st_size > 0, name
    # In another process, as MLflow keeps what it is told in this one.
    python = "".join(text for kind, text in BLOCKS if kind == "python")
    python += "import json; print(json.dumps([mask.shape, names, table['mask'][0].hex()]))"
    done = subprocess.run([sys.executable, "-c", python], check=True, capture_output=True, text=True)
    shape, names, served = json.loads(done.stdout.splitlines()[-1])
    assert shape == [81, 97]
    assert set(names) <= {"background", *CLASSES[:2]}
    assert codec.read_mask(bytes.fromhex(served)).shape == (81, 97)


def test_every_option_that_the_page_names_is_one():
    """Beside those of the commands, which run."""
    fields = {**Config.__dataclass_fields__, **PredictConfig.__dataclass_fields__}
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    flags = re.findall(r"`(?:ssdd [^`]*)?--(?:no-)?([a-z-]+)", text)
    assert {"below", "labels", "register"} <= set(flags)
    assert {flag.replace("-", "_") for flag in flags} <= set(fields)


def test_every_option_of_predict_that_the_page_names_can_be_parsed():
    section = PAGE.partition("ssdd predict")[2].partition("ssdd export")[0]
    flags = re.findall(r"^- `(--[^`]+)`", section, re.MULTILINE)
    assert len(flags) >= 4
    for flag in flags:
        cli.options(PredictConfig, ["--model", "a", "--input", "b", "--output", "c", *shlex.split(flag)])

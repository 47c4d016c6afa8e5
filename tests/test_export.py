"""Trained networks as single files."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
import untrained
from small import NETWORK, ROOT, run_job
from untrained import CLASSES, photograph

import ssdd
from ssdd import export
from ssdd.config import ConfigError
from ssdd.data import transforms
from ssdd.nets import exported
from ssdd.nets.inference import PhotographNet
from ssdd.nets.networks import SegmentationNet
from ssdd.nets.weight_files import WeightsError
from ssdd.segmenter import Segmenter
from ssdd.storage import maps

CONFIG = replace(untrained.CONFIG, data=Path("/private/place"), num_cpus=3, apply_exif=True)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(untrained.network(), CONFIG, CLASSES)


def test_a_safetensors_file_is_the_network_with_its_configuration(segmenter, tmp_path):
    path = tmp_path / "net.safetensors"
    export.save(segmenter, path)
    loaded = ssdd.load(path)
    image = photograph()
    np.testing.assert_array_equal(loaded.probabilities(image), segmenter.probabilities(image))
    np.testing.assert_array_equal(loaded.predict(image, crf=True), segmenter.predict(image, crf=True))
    assert loaded.classes == CLASSES
    assert loaded.config.crf == CONFIG.crf
    assert loaded.config.evaluate == CONFIG.evaluate
    assert loaded.config.apply_exif
    assert loaded.config.data is None
    assert b"private" not in path.read_bytes()
    with safetensors.safe_open(path, framework="np") as stream:
        texts = {name: json.loads(text) for name, text in stream.metadata().items()}
    assert texts["ssdd.classes"] == list(CLASSES)
    assert texts["ssdd.palette"][1] == [128, 0, 0]
    assert texts["ssdd.versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.fixture(scope="module")
def onnx_file(segmenter, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    check = export.save(segmenter, path)
    assert check.equal >= 0.999
    assert check.difference < 0.001
    return path


@pytest.fixture(scope="module")
def torch_file(segmenter, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    assert export.save(segmenter, path).equal >= 0.999
    return path


def compared(loaded, segmenter, sizes):
    """The share of equal mask pixels and the largest difference of a probability."""
    images = [photograph(*size, seed=seed) for seed, size in enumerate(sizes)]
    pairs = list(zip(loaded.probabilities(images), segmenter.probabilities(images), strict=True))
    assert all((a.shape, a.dtype) == (b.shape, np.float32) for a, b in pairs)
    equal = np.concatenate([(a.argmax(0) == b.argmax(0)).ravel() for a, b in pairs])
    return equal.mean(), max(np.abs(a - b).max() for a, b in pairs)


ODD = ((40, 60), (1, 1), (1, 53), (50, 1), (333, 207))


def test_onnxruntime_runs_the_onnx_file_on_images_of_any_size(segmenter, onnx_file):
    session = onnxruntime.InferenceSession(onnx_file)
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["height", "width", 3], "tensor(uint8)")
    assert (output.name, output.shape, output.type) == ("probabilities", [4, "height", "width"], "tensor(float)")
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["ssdd.classes"]) == list(CLASSES)
    assert json.loads(texts["ssdd.palette"])[2] == [0, 128, 0]
    (probs,) = session.run(None, {"image": photograph()})
    np.testing.assert_allclose(probs, segmenter.probabilities(photograph()), atol=0.001)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-3)


def test_a_segmenter_of_an_onnx_file_is_like_any_other(segmenter, onnx_file):
    loaded = ssdd.load(onnx_file)
    equal, difference = compared(loaded, segmenter, ODD)
    assert equal > 0.999
    assert difference < 0.001
    image = photograph()
    assert (loaded.predict(image, crf=True) == segmenter.predict(image, crf=True)).mean() > 0.99
    assert set(np.unique(loaded.predict(image, presence=["dog"]))) <= {0, 2}
    mask = loaded.predict(image)
    np.testing.assert_array_equal(loaded.overlay(image, mask), segmenter.overlay(image, mask))
    with pytest.raises(ConfigError, match="cannot be exported again"):
        export.save(loaded, onnx_file.with_suffix(".pt2"))


def test_a_segmenter_of_a_torch_file_is_like_any_other(segmenter, torch_file):
    loaded = ssdd.load(torch_file)
    equal, difference = compared(loaded, segmenter, ODD)
    assert equal > 0.999
    assert difference < 0.001
    texts = {"ssdd.classes": ""}
    program = torch.export.load(torch_file, extra_files=texts)
    assert json.loads(texts["ssdd.classes"]) == list(CLASSES)
    assert program.module()(torch.zeros(33, 21, 3, dtype=torch.uint8)).shape == (4, 33, 21)


def test_what_is_exported_can_hold_all_scales(segmenter):
    evaluate = replace(CONFIG.evaluate, scales=(1.0, 1.5), mirror=True)
    config = replace(CONFIG, evaluate=evaluate)
    expected = Segmenter(segmenter.net, config, CLASSES).probabilities(photograph())
    with torch.inference_mode():
        probs = PhotographNet(segmenter.net, config)(torch.from_numpy(np.array(photograph())))
    np.testing.assert_allclose(probs, expected, atol=0.001)
    assert np.abs(segmenter.probabilities(photograph()) - expected).max() > 0.05, "the scales matter"
    single = export.one_scale(config)
    assert (single.evaluate.scales, single.evaluate.mirror) == ((1.0,), False)


@pytest.mark.parametrize("size", [(128, 160), (333, 501), (40, 5), (1, 37), (90, 1), (64, 64)])
def test_an_export_resizes_as_the_jobs_do(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    for side in (64, 160):
        np.testing.assert_array_equal(transforms.square_tensor(tensor, side)[0], transforms.square(image, side))
    values = np.random.default_rng(1).random((3, 64, 64), np.float32)
    resized = transforms.resized(torch.from_numpy(values)[None], size)[0]
    np.testing.assert_allclose(resized, maps.resize(values, size), atol=1e-5)


def test_a_file_that_computes_something_else_does_not_appear(segmenter, tmp_path, monkeypatch):
    def write(net, described, path):
        other = copy.deepcopy(net)
        torch.nn.init.normal_(other.main.conv2.weight)
        exported.write_safetensors(other, described, path)

    monkeypatch.setitem(exported.WRITERS, "safetensors", write)
    with pytest.raises(export.ExportError, match=r"only .*% of pixels have the network's class.* nothing was written"):
        export.save(segmenter, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_torch_cannot_export_is_named(segmenter, tmp_path, monkeypatch):
    class Branching(SegmentationNet):
        def forward(self, images, full_size=False):
            logits = super().forward(images, full_size)
            return logits if logits.sum() > 0 else -logits

    net = Branching(NETWORK, len(CLASSES)).eval()
    with pytest.raises(export.ExportError, match=r"net\.pt2: torch cannot export .*_lite0 .*safetensors"):
        export.save(Segmenter(net, CONFIG, CLASSES), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_absent(segmenter, onnx_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"ONNX needs onnxruntime: run pip install 'ssdd\[export\]'"):
        ssdd.load(onnx_file)
    with pytest.raises(ConfigError, match=r"ONNX needs onnxruntime"):  # before the network is traced
        export.save(segmenter, tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"ONNX needs onnxscript"):
        export.save(segmenter, tmp_path / "net.onnx")


LOAD = """
import sys
sys.modules.update(dict.fromkeys(["ray", "mlflow", "tyro"]))  # an import of them fails
import numpy as np, ssdd
for path in sys.argv[1:]:
    print(ssdd.load(path).predict(np.zeros((30, 20, 3), np.uint8)).shape)
"""


@pytest.mark.programs
def test_exported_files_need_neither_ray_nor_mlflow_nor_tyro(segmenter, onnx_file, torch_file, tmp_path):
    export.save(segmenter, tmp_path / "net.safetensors")
    files = [onnx_file, torch_file, tmp_path / "net.safetensors"]
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["(30, 20)"] * 3, done.stderr


def test_the_job_writes_what_it_says(segmenter, tmp_path, capsys):
    source, output = tmp_path / "net.safetensors", tmp_path / "again.safetensors"
    export.save(segmenter, source)
    run_job("export", "--model", source, "--format", "safetensors", "--output", output)
    assert "4 classes; on 5 photographs 100.000% of pixels have the network's class" in capsys.readouterr().out
    np.testing.assert_array_equal(ssdd.load(output).predict(photograph()), segmenter.predict(photograph()))
    with pytest.raises(SystemExit):
        run_job("export", "--model", source, "--format", "onnx", "--output", output)
    assert "use the suffix .onnx for --format onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"export: .*absent.*nothing was trained there"):
        run_job("export", "--model", tmp_path / "absent", "--format", "onnx", "--output", tmp_path / "net.onnx")


def test_an_exported_file_in_a_bucket(segmenter, remote):
    path = remote / "net.safetensors"
    export.save(segmenter, path)
    image = photograph()
    np.testing.assert_array_equal(ssdd.load(str(path)).predict(image), segmenter.predict(image))


def test_files_that_hold_no_network_are_named(segmenter, tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.safetensors: no such file"):
        ssdd.load(tmp_path / "absent.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match=r"other\.safetensors: contains no description .* `ssdd export`"):
        ssdd.load(other)
    export.save(segmenter, tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    other.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"other\.safetensors: not a whole \.safetensors file .* export .* again"):
        ssdd.load(other)
    with safetensors.safe_open(tmp_path / "net.safetensors", framework="pt") as stream:
        texts = stream.metadata()
    old = texts | {"ssdd.config": texts["ssdd.config"].replace('"apply_exif"', '"apply_turn"')}
    safetensors.torch.save_file({"a": torch.zeros(1)}, other, metadata=old)
    with pytest.raises(WeightsError, match=r"another version \(.*apply_turn.*; export the network again"):
        ssdd.load(other)
    safetensors.torch.save_file({"a": torch.zeros(1)}, other, metadata=texts)
    with pytest.raises(WeightsError, match=r"another version \(.*; export the network again"):
        ssdd.load(other)
    for suffix in (".onnx", ".pt2"):
        (tmp_path / f"other{suffix}").write_bytes(b"x" * 100)
        with pytest.raises(WeightsError, match=rf"other\{suffix}: not a whole \{suffix} file"):
            ssdd.load(tmp_path / f"other{suffix}")
    (tmp_path / "net.tflite").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"net\.tflite: .*workspace.*\.onnx, \.pt2, \.safetensors.*\.pth"):
        ssdd.load(tmp_path / "net.tflite")


def test_what_cannot_be_exported_is_refused(segmenter, tmp_path):
    with pytest.raises(ConfigError, match=r"net\.h5: the suffix must be one of \.onnx, \.pt2, \.safetensors"):
        export.save(segmenter, tmp_path / "net.h5")
    without = Segmenter(lambda decoded: [], CONFIG, CLASSES)
    with pytest.raises(ConfigError, match="cannot be exported again: give the workspace"):
        export.save(without, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []

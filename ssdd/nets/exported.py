"""Trained networks as single files that need no workspace: how they are written, and read again.

Each holds the network's configuration, its classes, their colours and the versions that wrote it, as texts of JSON.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from ssdd.config import Config, ConfigError
from ssdd.data import codec
from ssdd.fields import from_dict, to_dict
from ssdd.nets import checkpoints
from ssdd.nets.inference import PhotographNet
from ssdd.nets.networks import SegmentationNet
from ssdd.nets.weight_files import WeightsError
from ssdd.storage.paths import ABSENT, AnyPath, on_disk, stat
from ssdd.versions import version

Apply = Callable[[list[np.ndarray]], Iterable[np.ndarray]]
"""Photographs, uint8 (H, W, 3) each, to the probabilities of their classes, float32 (C, H, W) each."""
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""The formats, and how their files' names end."""
TEXTS = ("ssdd.config", "ssdd.classes", "ssdd.palette", "ssdd.versions")
_LIBRARIES = ("ssdd", "torch", "timm")


class Description(NamedTuple):
    """What a file says about its network."""

    config: Config
    classes: tuple[str, ...]
    """Names, background first."""

    def texts(self) -> dict[str, str]:
        """JSON by name, as all formats store it."""
        values = {
            "config": to_dict(_portable(self.config)),
            "classes": self.classes,
            "palette": codec.voc_palette()[: len(self.classes)].tolist(),
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        return {name: json.dumps(values[name.removeprefix("ssdd.")]) for name in TEXTS}


def write_safetensors(net: SegmentationNet, described: Description, path: Path) -> None:
    """The weights of a network, with its description as the metadata."""
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    # Its own `save_file` makes a file that other users cannot read.
    path.write_bytes(safetensors.torch.save(state, described.texts()))


def read_safetensors(path: AnyPath) -> tuple[SegmentationNet, Description]:
    """The network of a file, ready for inference on this process's device.

    Raises:
        WeightsError: the file is absent, not whole, or of another program or version.
    """
    with _reading(path) as file:
        try:
            with safetensors.safe_open(file, framework="pt") as stream:
                described = _described(stream.metadata() or {}, path)
                state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a whole .safetensors file ({error}); export the network again") from error
    net = SegmentationNet(described.config.network, len(described.classes))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise _other(path, str(error).split("\n")[-1].strip()) from error
    return checkpoints.ready(net), described


def write_torch(net: SegmentationNet, described: Description, path: Path) -> None:
    """The whole way from a photograph to its probabilities as a program of `torch.export`."""
    torch.export.save(_program(net, described.config), path, extra_files=described.texts())


def read_torch(path: AnyPath) -> tuple[Apply, Description]:
    """The function of a file of `write_torch`, on the CPU. As torch reads it, it can run what somebody put into it.

    Raises:
        WeightsError: the file is absent, not whole, or of another program or version.
    """
    texts = dict.fromkeys(TEXTS, "")
    with _reading(path) as file:
        try:
            program = torch.export.load(file, extra_files=texts)
        except Exception as error:  # torch refuses in many ways
            raise WeightsError(
                f"{path}: not a whole .pt2 file ({first_line(error)}); export the network again"
            ) from error
    described = _described(texts, path)
    function = program.module()

    def apply(decoded: list[np.ndarray]) -> Iterator[np.ndarray]:
        for image in decoded:
            with torch.inference_mode():
                yield function(torch.from_numpy(np.array(image))).numpy()

    return apply, described


def write_onnx(net: SegmentationNet, described: Description, path: Path) -> None:
    """The whole way from a photograph to its probabilities as an ONNX model: input `image`, output `probabilities`.

    Raises:
        ConfigError: a library is missing.
    """
    with _extra():
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401 (it checks the file)
        import onnxscript  # noqa: F401
    axes = {0: "height", 1: "width"}
    program = torch.onnx.export(
        _program(net, described.config),
        dynamo=True,
        opset_version=18,  # the first one whose Resize can antialias
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes=(axes,),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(described.texts())
    program.save(path, external_data=False)


def read_onnx(path: AnyPath) -> tuple[Apply, Description]:
    """The function of a file of `write_onnx`, run by onnxruntime on the CPU.

    Raises:
        ConfigError: onnxruntime is missing.
        WeightsError: the file is absent, not whole, or of another program or version.
    """
    with _extra():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _reading(path) as file:
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise WeightsError(
                f"{path}: not a whole .onnx file ({first_line(error)}); export the network again"
            ) from error
    described = _described(session.get_modelmeta().custom_metadata_map, path)

    def apply(decoded: list[np.ndarray]) -> Iterator[np.ndarray]:
        for image in decoded:
            yield session.run(["probabilities"], {"image": image})[0]

    return apply, described


WRITERS = {"onnx": write_onnx, "torch": write_torch, "safetensors": write_safetensors}


def read(path: AnyPath) -> tuple[SegmentationNet | Apply, Description]:
    """What a file holds, by its suffix: a network or a function that takes its place, and the description."""
    readers: dict[str, Callable[[AnyPath], tuple[SegmentationNet | Apply, Description]]]
    readers = {".onnx": read_onnx, ".pt2": read_torch, ".safetensors": read_safetensors}
    return readers[path.suffix](path)


def _program(net: SegmentationNet, config: Config) -> torch.export.ExportedProgram:
    """What is exported, for the CPU and images of any size."""
    # Torch warns about files with weights whose channels are last in memory.
    plain = copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    whole = PhotographNet(plain, config).eval()
    example = torch.zeros(75, 100, 3, dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    return torch.export.export(whole, (example,), dynamic_shapes=({0: dynamic, 1: dynamic},))


@contextmanager
def _extra() -> Iterator[None]:
    """Says where a missing library comes from."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}: pip install 'ssdd[export]'") from error


def first_line(error: Exception) -> str:
    """Of its message; torch and ONNX add whole programs."""
    return str(error).strip().split("\n")[0]


@contextmanager
def _reading(path: AnyPath) -> Iterator[Path]:
    """The file on a disk."""
    if stat(path) == ABSENT:
        raise WeightsError(f"{path}: no such file; check the path")
    with on_disk(path) as file:
        yield file


def _described(texts: dict[str, str], path: AnyPath) -> Description:
    if not texts.get("ssdd.config"):
        raise WeightsError(f"{path}: holds no description of a network; it must be a file of ray_jobs/export.py")
    try:
        config, classes = (json.loads(texts[f"ssdd.{name}"]) for name in ("config", "classes"))
        return Description(from_dict(config), tuple(classes))
    except (KeyError, TypeError, ValueError) as error:
        raise _other(path, f"{error}; {texts.get('ssdd.versions')}") from error


def _other(path: AnyPath, reason: str) -> WeightsError:
    return WeightsError(f"{path} was written by another version ({reason}); export the network again")


def _portable(config: Config) -> Config:
    """A configuration without the paths and the machine of the training."""
    network = replace(config.network, backbone=replace(config.network.backbone, weights="random"))
    return replace(
        checkpoints.portable(config), network=network, data=None, workspace=None, knowledge=None, advice=None
    )

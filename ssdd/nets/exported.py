"""Write trained networks as single files that need no workspace, and read such files.

Beside the network, each file contains JSON texts: the network's configuration, its classes, their colours, and the
versions of the libraries that wrote the file.
"""

import copy
import io
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
from ssdd.data.problems import first_line
from ssdd.fields import from_dict, to_dict
from ssdd.nets import checkpoints
from ssdd.nets.inference import PhotographNet
from ssdd.nets.networks import SegmentationNet
from ssdd.nets.weight_files import WeightsError
from ssdd.storage.paths import ABSENT, AnyPath, on_disk, stat
from ssdd.versions import version

Apply = Callable[[list[np.ndarray]], Iterable[np.ndarray]]
"""A function from photographs, uint8 (H, W, 3) each, to their class probabilities, float32 (C, H, W) each."""
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""The suffix of the file's name, by format."""
TEXTS = ("ssdd.config", "ssdd.classes", "ssdd.palette", "ssdd.versions")
"""Names of the JSON texts in every file."""
_LIBRARIES = ("ssdd", "torch", "timm")


class Description(NamedTuple):
    """What an exported file says about its network."""

    config: Config
    classes: tuple[str, ...]
    """Names, background first."""

    def texts(self) -> dict[str, str]:
        """The JSON texts that a file of any format contains, by the names in `TEXTS`."""
        values = {
            "config": to_dict(_portable(self.config)),
            "classes": self.classes,
            "palette": codec.voc_palette()[: len(self.classes)].tolist(),
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        return {name: json.dumps(values[name.removeprefix("ssdd.")]) for name in TEXTS}


def write_safetensors(net: SegmentationNet, described: Description, path: Path) -> None:
    """Write a network's weights, with its description as metadata."""
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    # Not safetensors' `save_file`, which creates a file that other users cannot read.
    path.write_bytes(safetensors.torch.save(state, described.texts()))


def read_safetensors(path: AnyPath) -> tuple[SegmentationNet, Description]:
    """Read a file's network, ready for inference on this process's device.

    Raises:
        WeightsError: the file is missing or damaged, or another program or version wrote it.
    """
    with _local_file(path) as file:
        try:
            with safetensors.safe_open(file, framework="pt") as stream:
                described = _description(stream.metadata() or {}, path)
                state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a whole .safetensors file ({error}); export the network again") from error
    net = SegmentationNet(described.config.network, len(described.classes))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise _version_error(path, str(error).split("\n")[-1].strip()) from error
    return checkpoints.ready(net), described


def write_torch(net: SegmentationNet, described: Description, path: Path) -> None:
    """Write all steps from a photograph to its class probabilities as a program of `torch.export`."""
    whole = io.BytesIO()  # on a full disk, torch's own writer would end the process without an error message
    torch.export.save(_program(net, described.config), whole, extra_files=described.texts())
    path.write_bytes(whole.getbuffer())


def read_torch(path: AnyPath) -> tuple[Apply, Description]:
    """Read a file that `write_torch` wrote, as a function that runs on the CPU.

    Torch can run code that the file contains: read only files that you trust.

    Raises:
        WeightsError: the file is missing or damaged, or another program or version wrote it.
    """
    texts = dict.fromkeys(TEXTS, "")
    with _local_file(path) as file:
        try:
            program = torch.export.load(file, extra_files=texts)
        except Exception as error:  # torch raises errors of many types
            raise WeightsError(
                f"{path}: not a whole .pt2 file ({first_line(error)}); export the network again"
            ) from error
    described = _description(texts, path)
    function = program.module()

    def apply(decoded: list[np.ndarray]) -> Iterator[np.ndarray]:
        for image in decoded:
            with torch.inference_mode():
                yield function(torch.from_numpy(np.array(image))).numpy()

    return apply, described


def write_onnx(net: SegmentationNet, described: Description, path: Path) -> None:
    """Write all steps from a photograph to its probabilities as an ONNX model: input `image`, output `probabilities`.

    Raises:
        ConfigError: a library is missing.
    """
    with _onnx_extra():
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401 (`export.save` checks the file with it)
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
    """Read a file that `write_onnx` wrote, as a function that onnxruntime runs on the CPU.

    Raises:
        ConfigError: onnxruntime is missing.
        WeightsError: the file is missing or damaged, or another program or version wrote it.
    """
    with _onnx_extra():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _local_file(path) as file:
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise WeightsError(
                f"{path}: not a whole .onnx file ({first_line(error)}); export the network again"
            ) from error
    described = _description(session.get_modelmeta().custom_metadata_map, path)

    def apply(decoded: list[np.ndarray]) -> Iterator[np.ndarray]:
        for image in decoded:
            yield session.run(["probabilities"], {"image": image})[0]

    return apply, described


WRITERS = {"onnx": write_onnx, "torch": write_torch, "safetensors": write_safetensors}


def read(path: AnyPath) -> tuple[SegmentationNet | Apply, Description]:
    """Read a file in the format of its suffix. The network of an .onnx or .pt2 file comes as an `Apply` function."""
    readers: dict[str, Callable[[AnyPath], tuple[SegmentationNet | Apply, Description]]]
    readers = {".onnx": read_onnx, ".pt2": read_torch, ".safetensors": read_safetensors}
    return readers[path.suffix](path)


def _program(net: SegmentationNet, config: Config) -> torch.export.ExportedProgram:
    """All steps from a photograph to its probabilities as a program, for the CPU and images of any size."""
    # Torch warns about exported weights in the channels-last memory format.
    plain = copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    whole = PhotographNet(plain, config).eval()
    example = torch.zeros(75, 100, 3, dtype=torch.uint8)
    dynamic = torch.export.Dim.DYNAMIC
    return torch.export.export(whole, (example,), dynamic_shapes=({0: dynamic, 1: dynamic},))


@contextmanager
def _onnx_extra() -> Iterator[None]:
    """Turn an ImportError into a ConfigError that says how to install the missing library."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"ONNX needs {error.name}: run pip install 'ssdd[export]'") from error


@contextmanager
def _local_file(path: AnyPath) -> Iterator[Path]:
    """The file, or a temporary copy on disk if it is in an object store; WeightsError if it is missing."""
    if stat(path) == ABSENT:
        raise WeightsError(f"{path}: no such file; check the path")
    with on_disk(path) as file:
        yield file


def _description(texts: dict[str, str], path: AnyPath) -> Description:
    if not texts.get("ssdd.config"):
        raise WeightsError(f"{path}: contains no description of a network; give a file that `ssdd export` wrote")
    try:
        config, classes = (json.loads(texts[f"ssdd.{name}"]) for name in ("config", "classes"))
        return Description(from_dict(config), tuple(classes))
    except (KeyError, TypeError, ValueError) as error:
        raise _version_error(path, f"{error}; {texts.get('ssdd.versions')}") from error


def _version_error(path: AnyPath, reason: str) -> WeightsError:
    return WeightsError(f"{path} was written by another version ({reason}); export the network again")


def _portable(config: Config) -> Config:
    """The configuration without the paths of the training and without the settings of its machine."""
    network = replace(config.network, backbone=replace(config.network.backbone, weights="random"))
    return replace(
        checkpoints.portable(config), network=network, data=None, workspace=None, knowledge=None, advice=None
    )

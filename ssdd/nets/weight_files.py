"""Read files of named tensors: torch's state dicts, `.safetensors`, and MXNet's `.params` files without MXNet."""

import math
import os
import pickle
import struct
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ssdd.storage.paths import ABSENT, AnyPath, stat

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # start of an array; arrays of the oldest files have no such number
_DTYPES = {0: torch.float32, 2: torch.float16}  # by MXNet's numbers
_MOST_DIMENSIONS = 32


class WeightsError(RuntimeError):
    """Weights are missing, cannot be read or do not fit a network; the message says what to do."""


def read(path: AnyPath) -> dict[str, Tensor]:
    """Read a file's tensors by name, on the CPU. Code in the file is not run.

    A `.params` file is MXNet's list of dense arrays, float32 or float16; a `.safetensors` file is in the format of
    that name; any other file is a state dict of torch.

    Raises:
        WeightsError: the file is missing, incomplete or in another format; the message names the file and the remedy.
    """
    try:
        absent = stat(path) == ABSENT
        denied = isinstance(path, Path) and not os.access(path, os.R_OK)
    except PermissionError:
        absent, denied = False, True
    if absent:
        raise WeightsError(f"{path}: no such file; check the path, or download the file")
    if denied:
        raise WeightsError(f"{path}: permission denied; give the user that runs the job the right to read it")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: not a whole .safetensors file ({error}); download it again") from error
    if path.suffix == ".params":
        try:
            with path.open("rb") as stream:
                return _read_params(_Reader(stream, path.stat().st_size))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path}: not a whole .params file of MXNet ({error}); download it again") from error
    try:
        with path.open("rb") as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types
        # Torch's own message about a pickle is long, and advises to run the pickle.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds something other than tensors" if unsafe else str(error).split("\n")[0]
        raise WeightsError(
            f"{path}: not a state dict that loads safely ({reason}); download it again, or save the model's "
            "state_dict() alone"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise WeightsError(f"{path}: not a state dict (names and tensors); save the model's state_dict() alone")
    return state


class _Reader:
    """Reads little-endian values of a stream. It allocates memory only for bytes that the file still has."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.left = stream, size

    def take(self, count: int) -> bytearray:
        if count > self.left:
            raise ValueError(f"it ends {count - self.left} bytes early")
        buffer = bytearray(count)
        self.left -= self.stream.readinto(buffer)  # type: ignore[attr-defined]
        return buffer

    def numbers(self, code: str, count: int = 1) -> tuple[int, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))


def _read_params(reader: _Reader) -> dict[str, Tensor]:
    """Read a header, the arrays, and then the arrays' names."""
    if reader.numbers("Q", 2)[0] != _LIST_MAGIC:
        raise ValueError("its first bytes are not those of such a file")
    (count,) = reader.numbers("Q")
    arrays = [_read_array(reader) for _ in range(count)]
    if reader.numbers("Q") != (count,):
        raise ValueError("not every array has a name")
    names = [reader.take(*reader.numbers("Q")).decode() for _ in arrays]
    if reader.left or len(set(names)) < count:
        raise ValueError("bytes follow after its last name" if reader.left else "a name occurs twice")
    return dict(zip(names, arrays, strict=True))


def _read_array(reader: _Reader) -> Tensor:
    (magic,) = reader.numbers("I")
    if magic in (_V2, _V3) and reader.numbers("i") != (0,):
        raise ValueError("it contains a sparse array, which cannot be read")
    if magic in (_V1, _V2, _V3):
        code, (dimensions,) = "q", reader.numbers("i")
    else:
        code, dimensions = "I", magic
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"an array has {dimensions} dimensions")
    shape = reader.numbers(code, dimensions)
    *_device, kind = reader.numbers("i", 3)
    if min(shape) < 1 or kind not in _DTYPES:
        raise ValueError(f"an array has shape {shape} and type {kind}; only float32 (0) and float16 (2) can be read")
    dtype = _DTYPES[kind]
    return torch.frombuffer(reader.take(math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)

"""Dictionaries that `np.save` pickled, numpy arrays and torch tensors in them, read without running what they name.

A pickle calls functions by their names. Here each name that such a file holds stands for a function of this module,
which builds arrays from raw bytes; any other name is refused. Neither numpy nor torch unpickles anything.
"""

import io
import math
import pickle
import pickletools
import re
import tokenize
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ssdd.data.problems import fault, permitted
from ssdd.storage.paths import AnyPath

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGED = (
    *(pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, ImportError),
    *(OverflowError, MemoryError, RecursionError, tokenize.TokenError, SyntaxError),
)
"""What the unpickler, and numpy's reader of the header, raise on damaged bytes."""
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "BoolStorage": np.dtype("?"),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "ShortStorage": np.dtype("<i2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
}


class _RefusedError(Exception):
    """The file holds what is not allowed; the message says what."""


def read(path: AnyPath) -> dict[Any, Any]:
    """The dictionary in a file that `np.save` wrote, by any version of numpy and torch.

    Its keys and values are numbers, texts, None, lists, tuples and dictionaries; arrays and tensors of numbers come as
    numpy arrays.

    Raises:
        problems.DataError: the file is damaged, holds no dictionary, or names anything else than what arrays, numbers
            and tensors need: nothing of the file has been run then.
    """
    with permitted(path):
        data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        read_header = _HEADERS.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise ValueError("has a version of the .npy format that is unknown")
        _, _, dtype = read_header(stream)
        content = _plain(_load(_ArrayUnpickler, stream)) if dtype.hasobject else None
    except _RefusedError as error:
        raise fault("refused pickle", f"{path}: {error}") from error
    except _DAMAGED as error:
        raise fault("unreadable maps", f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise fault("bad maps", f"{path}: holds no dictionary")
    return content


def _load(kind: type[pickle.Unpickler], stream: io.BytesIO) -> Any:
    """The next pickle of a stream, which is left at its end."""
    start, size = stream.tell(), len(stream.getbuffer())
    for opcode, argument, _ in pickletools.genops(stream):
        if "PUT" in opcode.name and (argument or 0) > size:  # the unpickler would fill so many places of a list
            raise ValueError(f"a memo of {argument} places in a file of {size} bytes")
    stream.seek(start)
    return kind(stream, encoding="latin1").load()  # as numpy reads files of Python 2


class _Array:
    """An array of a pickle: numpy pickles an empty one, and then what to fill it with."""

    __slots__ = ("content",)

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.is_object:
            if shape != () or len(raw) != 1:
                raise _RefusedError(f"an array of objects of shape {shape}, where only a dictionary is expected")
            self.content = raw[0]
        else:
            self.content = dtype.values(raw).reshape(shape, order="F" if fortran else "C")


class _Type:
    """A numpy type of numbers, or that of objects."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|O[48]?", name):
            raise _RefusedError(f"values of numpy's type {name!r}, where only numbers are expected")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.name.startswith("O")

    def values(self, raw: bytes | str) -> np.ndarray:
        """The numbers in some bytes, (N,)."""
        if self.is_object:
            raise _RefusedError("an object, where a number is expected")
        return np.frombuffer(_encode(raw) if isinstance(raw, str) else raw, np.dtype(self.order + self.name))


def _plain(content: Any) -> Any:
    """The same with arrays in the places of `_Array`."""
    if isinstance(content, _Array):
        return _plain(content.content)
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content


def _new_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Type, raw: bytes | str) -> int | float | bool:
    return dtype.values(raw).item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes, which Python 3 writes as text in the old protocols that old versions of numpy use."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How the same protocols write that there are none."""
    return b""


def _storage(data: bytes) -> _Array:
    """The numbers (N,) of a torch storage: five pickles, then their count in eight bytes and the numbers themselves."""
    stream = io.BytesIO(data)
    magic, _, _, (dtype, count), _ = (_load(_StorageUnpickler, stream) for _ in range(5))
    if magic != _TORCH_MAGIC or int.from_bytes(stream.read(8), "little") != count:
        raise ValueError("a torch storage of an unknown format")
    return _Array(np.frombuffer(data, dtype, count, stream.tell()))


def _tensor(storage: _Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Array:
    """A tensor: a view of a storage."""
    values = storage.content
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    beyond = 0 not in size and (last >= len(values) or math.prod(size) > len(values))
    if beyond or min(offset, *size, *stride, 0) < 0:
        raise ValueError("a tensor that is not within its storage")
    strides = [step * values.itemsize for step in stride]
    return _Array(np.lib.stride_tricks.as_strided(values[offset:], size, strides).copy())


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): _new_array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): dict,  # of a tensor's hooks
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        function = _GLOBALS.get((module, name))
        if function is None:
            raise _RefusedError(f"names {module}.{name}")
        return partial(function)  # a new object each time: a pickle may change what it was handed


class _StorageUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module not in ("torch", "torch.cuda") or name not in _STORAGES:
            raise _RefusedError(f"names {module}.{name}")
        return name

    def persistent_load(self, pid: Any) -> tuple[np.dtype, int]:
        """The type and the number of a storage's values."""
        word, name, _, _, count, part = pid
        if word != "storage" or part is not None:
            raise ValueError("a torch storage of an unknown format")
        return _STORAGES[name], count

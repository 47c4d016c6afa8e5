"""Read dictionaries of arrays and tensors that `np.save` pickled, without running the functions that a pickle names.

A pickle calls functions by name. Here each name that such a file needs stands for a function of this module, which
builds arrays from raw bytes; any other name raises DataError. Neither numpy nor torch unpickles anything.
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
"""The errors that the unpickler and numpy's header reader raise on damaged bytes."""
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
    """The file holds something that is not allowed; the message names it."""


def read(path: AnyPath) -> dict[Any, Any]:
    """Read the dictionary in a file that `np.save` wrote, with any version of numpy and torch.

    Its values may be numbers, texts, None, arrays, tensors, lists, tuples and dictionaries. Arrays and tensors are
    returned as numpy arrays, tuples as lists.

    Raises:
        problems.DataError: the file is damaged, holds no dictionary, or names a function or type that numbers, arrays
            and tensors do not need; such a function is never run.
    """
    with permitted(path):
        data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        read_header = _HEADERS.get(np.lib.format.read_magic(stream))
        if read_header is None:
            raise ValueError("its version of the .npy format is unknown")
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
    """Load the next pickle of a stream, and leave the stream at the end of that pickle."""
    start, size = stream.tell(), len(stream.getbuffer())
    for opcode, argument, _ in pickletools.genops(stream):
        if "PUT" in opcode.name and (argument or 0) > size:  # the unpickler would allocate that many entries
            raise ValueError(f"a memo entry has the number {argument}, but the file has only {size} bytes")
    stream.seek(start)
    return kind(stream, encoding="latin1").load()  # pickles of Python 2 need this encoding


class _Array:
    """Stands for an array in a pickle: numpy pickles an empty array, and then the state that fills it."""

    __slots__ = ("content",)

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.is_object:
            if shape != () or len(raw) != 1:
                raise _RefusedError(
                    f"holds an array of objects with shape {shape}, where only a dictionary is expected"
                )
            self.content = raw[0]
        else:
            self.content = dtype.values(raw).reshape(shape, order="F" if fortran else "C")


class _Type:
    """Stands for numpy's type of numbers or of objects in a pickle."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|O[48]?", name):
            raise _RefusedError(f"holds values of numpy's type {name!r}, where only numbers are expected")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    @property
    def is_object(self) -> bool:
        return self.name.startswith("O")

    def values(self, raw: bytes | str) -> np.ndarray:
        """The numbers in raw bytes, (N,)."""
        if self.is_object:
            raise _RefusedError("holds an object, where a number is expected")
        return np.frombuffer(_encode(raw) if isinstance(raw, str) else raw, np.dtype(self.order + self.name))


def _plain(content: Any) -> Any:
    """The content with numpy arrays in place of `_Array` objects, and lists in place of tuples."""
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
    """Turn text back into bytes. Old pickle protocols, which old versions of numpy use, store bytes as text."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"holds text in the encoding {encoding!r}, where only latin1 is expected")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands for `bytes()`: old pickle protocols store empty bytes as a call of it."""
    return b""


def _storage(data: bytes) -> _Array:
    """The numbers (N,) of a torch storage. `data` are five pickles, the count (eight bytes) and the numbers' bytes."""
    stream = io.BytesIO(data)
    magic, _, _, (dtype, count), _ = (_load(_StorageUnpickler, stream) for _ in range(5))
    if magic != _TORCH_MAGIC or int.from_bytes(stream.read(8), "little") != count:
        raise ValueError("the format of a torch storage is unknown")
    return _Array(np.frombuffer(data, dtype, count, stream.tell()))


def _tensor(storage: _Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Array:
    """A tensor: a part of a storage."""
    values = storage.content
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    beyond = 0 not in size and (last >= len(values) or math.prod(size) > len(values))
    if beyond or min(offset, *size, *stride, 0) < 0:
        raise ValueError("a tensor is not within its storage")
    strides = [step * values.itemsize for step in stride]
    return _Array(np.lib.stride_tricks.as_strided(values[offset:], size, strides).copy())


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): _new_array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,  # its name in Python 2, which the old protocols write
    ("collections", "OrderedDict"): dict,  # holds a tensor's hooks
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        function = _GLOBALS.get((module, name))
        if function is None:
            raise _RefusedError(f"refers to {module}.{name}")
        return partial(function)  # a new object each time, because a pickle may change the object that it gets


class _StorageUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module not in ("torch", "torch.cuda") or name not in _STORAGES:
            raise _RefusedError(f"refers to {module}.{name}")
        return name

    def persistent_load(self, pid: Any) -> tuple[np.dtype, int]:
        """The type of a storage's values, and their number."""
        tag, name, _, _, count, view = pid
        if tag != "storage" or view is not None:
            raise ValueError("the format of a torch storage is unknown")
        return _STORAGES[name], count

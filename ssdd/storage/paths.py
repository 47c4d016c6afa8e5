"""Paths on disks and in object stores, with the same methods.

A path on a disk is a pathlib.Path. `s3://BUCKET/KEY` and `gs://BUCKET/KEY` are a `RemotePath`, which has the methods of
pathlib that this package uses, and works with pyarrow's file systems. Access keys, region and endpoint come from the
environment of each process (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...) or from the
role of its machine.
"""

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple, TypeVar

from pyarrow import ArrowInvalid, NativeFile, fs

SCHEMES = ("s3", "gs")
PIECE = 8 * 2**20
"""Bytes in a piece: `open` reads larger objects in pieces, and `copy` moves data through this machine in pieces."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stat(NamedTuple):
    """A file's size in bytes and the time of its last change."""

    st_size: int
    st_mtime_ns: int


ABSENT = Stat(-1, -1)


class RemoteError(RuntimeError):
    """An object store refuses a request or does not answer, so it is not known whether the object exists."""


class RemotePath:
    """An object, or a folder: all objects whose keys begin with this key and a slash."""

    def __init__(self, scheme: str, key: str):
        self.scheme, self.key = scheme, key  # the key begins with the bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: "RemotePath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.scheme, str(PurePosixPath(self.key).parent))

    @property
    def filesystem(self) -> fs.FileSystem:
        return _file_system(self.scheme, self.key.partition("/")[0])

    def exists(self) -> bool:
        return self._info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        return self._info().type == fs.FileType.File

    def is_dir(self) -> bool:
        return self._info().type == fs.FileType.Directory

    def stat(self) -> Stat:
        info = self._info()
        if info.type != fs.FileType.File:  # a folder is no object
            raise FileNotFoundError(f"{self}: no such object")
        return Stat(info.size, info.mtime_ns)

    def entries(self, recursive: bool = False) -> list[fs.FileInfo]:
        """The entries of the folder; none if it does not exist."""
        with self._asking():
            return self.filesystem.get_file_info(fs.FileSelector(self.key, allow_not_found=True, recursive=recursive))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing: in an object store, a folder exists if it has objects."""

    def iterdir(self) -> Iterator["RemotePath"]:
        for info in self.entries():
            yield RemotePath(self.scheme, info.path)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        wanted = pattern.split("/")
        for info in self.entries(recursive=True):
            parts = PurePosixPath(info.path).relative_to(self.key).parts
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield RemotePath(self.scheme, info.path)

    @contextlib.contextmanager
    def open(self, mode: str = "rb") -> Iterator[Any]:
        """A binary stream for a `with` block. One for reading can seek; a written object appears when the block ends.

        An object of up to `PIECE` bytes is read at once, a larger one in pieces of this size when they are needed.
        """
        if mode == "rb":
            with self.open_ranges() as ranges:
                whole = ranges.size() <= PIECE
                yield io.BytesIO(ranges.read()) if whole else io.BufferedReader(ranges, PIECE)  # type: ignore[type-var]
            return
        with self._asking(), self.filesystem.open_output_stream(self.key) as stream:
            yield stream

    @contextlib.contextmanager
    def open_ranges(self) -> Iterator[NativeFile]:
        """A binary stream that sends one request for each range of bytes that is read, which suits Parquet's reader."""
        with self._asking(), self.filesystem.open_input_file(self.key) as stream:
            yield stream

    def read_bytes(self) -> bytes:
        with self.open_ranges() as stream:
            return stream.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode())

    def unlink(self) -> None:
        with self._asking():
            self.filesystem.delete_file(self.key)

    def remove(self) -> None:
        """Delete the folder, if it exists."""
        with self._asking(), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.key)

    def _info(self) -> fs.FileInfo:
        with self._asking():
            return self.filesystem.get_file_info(self.key)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is not None:  # an error of a disk: pyarrow's own errors have no errno
                raise
            raise self.error(error) from error

    def error(self, cause: OSError) -> RemoteError:
        """The RemoteError for an error of pyarrow, with this path and a remedy."""
        return RemoteError(f"{self}: {cause}; check the bucket and the access keys, or give the same command again")


AnyPath = Path | RemotePath


@functools.cache
def _file_system(scheme: str, bucket: str) -> fs.FileSystem:
    uri = f"{scheme}://{bucket}"
    try:  # with this option, writing a small object takes one request
        return fs.FileSystem.from_uri(f"{uri}?allow_delayed_open=true" if scheme == "s3" else uri)[0]
    except ArrowInvalid:  # an older pyarrow has no such option
        return fs.FileSystem.from_uri(uri)[0]


def to_path(text: "str | AnyPath") -> AnyPath:
    """The path for a text: a URL of an object store, or a path on a disk.

    Raises:
        ValueError: a URL with another scheme, or one with a password or options, which would be shown and stored.
    """
    if isinstance(text, AnyPath):
        return text
    match = re.fullmatch(r"(\w+)://(.*)", text)
    if not match:
        return Path(text)
    scheme, key = match[1], match[2].rstrip("/")
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme}:// is not supported; use {' or '.join(f'{name}://' for name in SCHEMES)}")
    # In a URL with access keys (ID:SECRET@BUCKET), SECRET may contain a slash, so "@" may come after the first slash.
    if "?" in key or "@" in key or ":" in key.partition("/")[0]:
        raise ValueError(
            f"{scheme}://: a URL must not contain access keys or options; set them in the environment "
            "(AWS_ACCESS_KEY_ID, ...)"
        )
    bucket, *rest = key.split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket) or any(part in ("", ".", "..") for part in rest):
        raise ValueError(f"write {scheme}://BUCKET/KEY")
    return RemotePath(scheme, key)


def path_flag(text: str) -> AnyPath:
    """`to_path` for argparse, which would otherwise show the text but not the reason of the error."""
    try:
        return to_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def relative(path: AnyPath, folder: AnyPath) -> str:
    """A path relative to a folder that contains it."""
    return str(PurePosixPath(str(path)).relative_to(str(folder)))


def make_writable(folder: AnyPath) -> None:
    """Create a folder; raise OSError or RemoteError if no file can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    probe.unlink()


def names_in(folder: AnyPath) -> list[str]:
    """The names of a folder's entries, sorted."""
    if isinstance(folder, Path):
        return sorted(os.listdir(folder))  # no Path objects: millions of them would take gigabytes
    return sorted(path.name for path in folder.iterdir())


class FilesIn:
    """The files of a folder. In an object store, the folder is listed only once, because a request takes milliseconds.

    The methods raise PermissionError if the disk denies access.
    """

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self.stats: dict[str, Stat] = {}
        if isinstance(folder, RemotePath):
            files = (info for info in folder.entries() if info.type == fs.FileType.File)
            self.stats = {info.base_name: Stat(info.size, info.mtime_ns) for info in files}

    def names(self) -> list[str]:
        """The sorted names of the files and, on a disk, of the subfolders; empty if the folder does not exist."""
        if not isinstance(self.folder, Path):
            return sorted(self.stats)
        try:
            return names_in(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, name: str) -> Stat:
        """The `Stat` of a file; ABSENT if it does not exist."""
        return stat(self.folder / name) if isinstance(self.folder, Path) else self.stats.get(name, ABSENT)


def stat(path: AnyPath) -> Stat:
    """The `Stat` of a file; ABSENT if it does not exist, which is not an error here.

    Raises:
        PermissionError: the disk denies access.
    """
    try:
        status = path.stat()
    except PermissionError:
        raise
    except OSError:
        return ABSENT
    if isinstance(path, Path) and not S_ISREG(status.st_mode):  # type: ignore[union-attr]
        return ABSENT
    return Stat(status.st_size, status.st_mtime_ns)


def is_folder(path: AnyPath) -> bool:
    """Whether a folder exists; PermissionError if the disk denies access (pathlib's own methods differ by version)."""
    if isinstance(path, RemotePath):
        return path.is_dir()
    try:
        return S_ISDIR(path.stat().st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def threaded(function: Callable[[Item], Result], items: Iterable[Item], root: AnyPath) -> Iterator[Result]:
    """Apply `function` to each item in threads, and yield the results in order; up to 64 are computed ahead.

    `function` reads files below `root`. For an object store there are more threads, because its answers take
    milliseconds. Threads also help with files on a disk, because Pillow releases the GIL.
    """
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(32 if isinstance(root, RemotePath) else 8)
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 64:  # at most this many results wait in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def remove(folder: AnyPath) -> None:
    """Delete a folder with its contents, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove()


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file or the contents of a folder; within an object store, the data do not pass through this machine.

    Raises:
        RemoteError: a file could not be copied.
    """
    if source == target:
        return
    if isinstance(source, RemotePath) and isinstance(target, RemotePath):
        with target._asking():
            fs.copy_files(source.key, target.key, source.filesystem, target.filesystem)
    elif isinstance(source, Path) and source.is_dir():
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            copy(file, target / file.relative_to(source).as_posix())
    else:  # without pyarrow's copy_files, which does not report an upload that fails at its end
        with source.open("rb") as data, _appearing(target) as stream:
            shutil.copyfileobj(data, stream, PIECE)


@contextlib.contextmanager
def _appearing(path: AnyPath) -> Iterator[Any]:
    """A binary stream to a file that appears when the block ends without an error."""
    if isinstance(path, RemotePath):
        failed = False
        try:
            with path.open("wb") as stream:
                try:
                    yield stream
                except BaseException:
                    failed = True
                    raise
        finally:
            if failed:  # the data that were written before the error may have become an object
                with contextlib.suppress(OSError, RemoteError):
                    path.unlink()
        return
    with replacing(path) as aside, aside.open("wb") as stream:
        yield stream


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or folder that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def on_disk(path: AnyPath) -> Iterator[Path]:
    """The file itself if it is on a disk, else a temporary copy, which is deleted when the block ends."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder, path.name)
        copy(path, copied)
        yield copied


def disk_beside(path: AnyPath) -> Path:
    """The folder for files that must be on a disk: the path itself, or for an object store one in ~/.cache/ssdd."""
    if isinstance(path, Path):
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "ssdd" / f"{path.name}-{digest}"

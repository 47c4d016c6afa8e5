"""Paths on disks and in object stores, used alike.

Those on disks are pathlib's. `s3://BUCKET/KEY` and `gs://BUCKET/KEY` are `RemotePath`, which has those of pathlib's
methods that are used here, over pyarrow's file systems. Keys, region and endpoint come from the environment of every
process (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...) or from its machine's role.
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
"""Bytes of a large object that are in memory at once, where it is read or copied."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stat(NamedTuple):
    """A file's size in bytes and time of its last change."""

    st_size: int
    st_mtime_ns: int


ABSENT = Stat(-1, -1)


class RemoteError(RuntimeError):
    """An object store refuses or does not answer; nothing is known of what was asked for."""


class RemotePath:
    """An object, or all objects whose keys begin with it and a slash, which are its folder."""

    def __init__(self, scheme: str, key: str):
        self.scheme, self.key = scheme, key  # the key with the bucket

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
        """What is in the folder; nothing if it is not there."""
        with self._asking():
            return self.filesystem.get_file_info(fs.FileSelector(self.key, allow_not_found=True, recursive=recursive))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: folders are where objects are."""

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
        """A binary stream for a `with` block, in which one can seek; what is written appears at its end.

        An object of up to `PIECE` bytes comes at once; a larger one in such pieces, as it is read.
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
        """A binary stream that sends a request for each range of bytes that is read, as Parquet's reader wants it."""
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
        """Delete the folder, if it is there."""
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
            if error.errno is not None:  # of a disk: pyarrow's own have no number
                raise
            raise self.error(error) from error

    def error(self, cause: OSError) -> RemoteError:
        """What pyarrow says, with the place and a remedy."""
        return RemoteError(f"{self}: {cause}; check the bucket and its keys, or give the same command again")


AnyPath = Path | RemotePath


@functools.cache
def _file_system(scheme: str, bucket: str) -> fs.FileSystem:
    uri = f"{scheme}://{bucket}"
    try:  # a small object with one request
        return fs.FileSystem.from_uri(f"{uri}?allow_delayed_open=true" if scheme == "s3" else uri)[0]
    except ArrowInvalid:  # an older pyarrow has no such option
        return fs.FileSystem.from_uri(uri)[0]


def to_path(text: "str | AnyPath") -> AnyPath:
    """The path that a text names.

    Raises:
        ValueError: a URL of another kind, or one with a password or options, which would be shown and stored.
    """
    if isinstance(text, AnyPath):
        return text
    found = re.fullmatch(r"(\w+)://(.*)", text)
    if not found:
        return Path(text)
    scheme, key = found[1], found[2].rstrip("/")
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme}:// is none of {', '.join(f'{known}://' for known in SCHEMES)}")
    if "?" in key or "@" in key or ":" in key.partition("/")[0]:  # a secret may hold a slash
        raise ValueError(f"{scheme}://: keys and options belong into the environment (AWS_ACCESS_KEY_ID, ...)")
    bucket, *rest = key.split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket) or any(part in ("", ".", "..") for part in rest):
        raise ValueError(f"write {scheme}://BUCKET/KEY")
    return RemotePath(scheme, key)


def path_flag(text: str) -> AnyPath:
    """`to_path` for argparse, which would else show the text and not the reason."""
    try:
        return to_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def relative(path: AnyPath, folder: AnyPath) -> str:
    """What follows a folder in a path that lies in it."""
    return str(PurePosixPath(str(path)).relative_to(str(folder)))


def make_writable(folder: AnyPath) -> None:
    """Make a folder; OSError or RemoteError where nothing can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    probe.unlink()


def names_in(folder: AnyPath) -> list[str]:
    """What is in a folder, sorted."""
    if isinstance(folder, Path):
        return sorted(os.listdir(folder))  # names, because millions of paths take gigabytes
    return sorted(path.name for path in folder.iterdir())


class FilesIn:
    """A folder's files. Of an object store it is listed once, as each question would take it milliseconds.

    PermissionError where the disk refuses to say what is there.
    """

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self.found: dict[str, Stat] = {}
        if isinstance(folder, RemotePath):
            files = (info for info in folder.entries() if info.type == fs.FileType.File)
            self.found = {info.base_name: Stat(info.size, info.mtime_ns) for info in files}

    def names(self) -> list[str]:
        """Sorted; on a disk those of folders, too. Empty where there is no such folder."""
        if not isinstance(self.folder, Path):
            return sorted(self.found)
        try:
            return names_in(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stat(self, name: str) -> Stat:
        """Of a file; ABSENT where there is none."""
        return stat(self.folder / name) if isinstance(self.folder, Path) else self.found.get(name, ABSENT)


def stat(path: AnyPath) -> Stat:
    """Of a file; ABSENT where there is none, which is a state like any other.

    PermissionError where the disk refuses to say whether there is one.
    """
    try:
        found = path.stat()
    except PermissionError:
        raise
    except OSError:
        return ABSENT
    if isinstance(path, Path) and not S_ISREG(found.st_mode):  # type: ignore[union-attr]
        return ABSENT
    return Stat(found.st_size, found.st_mtime_ns)


def is_folder(path: AnyPath) -> bool:
    """Whether a folder is there; PermissionError where the disk refuses to say (pathlib differs by version)."""
    if isinstance(path, RemotePath):
        return path.is_dir()
    try:
        return S_ISDIR(path.stat().st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def threaded(function: Callable[[Item], Result], items: Iterable[Item], root: AnyPath) -> Iterator[Result]:
    """`function` of each item, in their order; a few are ahead. It reads files of the disk or store of `root`.

    By threads: many for an object store, whose answers take milliseconds. Pillow, too, lets go of the GIL.
    """
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(32 if isinstance(root, RemotePath) else 8)
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 64:  # as many as may wait in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def remove(folder: AnyPath) -> None:
    """Delete a folder and all that it holds, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove()


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copy a file, or what a folder holds; within an object store the data stay there.

    Raises:
        RemoteError: something did not arrive.
    """
    if source == target:
        return
    if isinstance(source, RemotePath) and isinstance(target, RemotePath):
        with target._asking():
            fs.copy_files(source.key, target.key, source.filesystem, target.filesystem)
    elif isinstance(source, Path) and source.is_dir():
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            copy(file, target / file.relative_to(source).as_posix())
    else:  # not with pyarrow's copy_files: it does not say when an upload fails at its end
        with source.open("rb") as data, _appearing(target) as stream:
            shutil.copyfileobj(data, stream, PIECE)


@contextlib.contextmanager
def _appearing(path: AnyPath) -> Iterator[Any]:
    """A binary stream to a file that is there when the block ends without an error."""
    if isinstance(path, RemotePath):
        try:
            with path.open("wb") as stream:
                yield stream
        except BaseException:  # what was written by then has become an object
            with contextlib.suppress(OSError, RemoteError):
                path.unlink()
            raise
        return
    with replacing(path) as aside, aside.open("wb") as stream:
        yield stream


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside it for a file or folder, which takes the place of `path` when the block ends without an error."""
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
    """The file, or a copy of it for as long as the block lasts."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder, path.name)
        copy(path, copied)
        yield copied


def disk_beside(path: AnyPath) -> Path:
    """The folder for what belongs to a path but needs a disk: itself or, for an object store, one of this machine."""
    if isinstance(path, Path):
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "ssdd" / f"{path.name}-{digest}"

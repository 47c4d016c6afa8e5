"""Find photographs outside a data set (a file, a folder, a glob or an object store's prefix) and name their outputs."""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileType

from ssdd.data.codec import PHOTOGRAPH_SUFFIXES
from ssdd.data.problems import DataError, permitted
from ssdd.storage.paths import AnyPath, RemotePath, relative, to_path

RECORD, TABLE = "prediction.json", "predictions.parquet"
"""A file and a folder that each folder of predictions has."""
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Photographs:
    """Photographs below a folder."""

    root: AnyPath
    names: list[str]
    """Paths relative to `root`, with slashes, sorted."""
    others: int = 0
    """The number of files in the folder without the suffix of a photograph."""
    outputs: int = 0
    """The number of folders that were left out because they have the output of an earlier prediction."""


def find(text: str, output: AnyPath) -> Photographs:
    """Find the photographs that `--input` names.

    Args:
        text: a file; a folder, which is searched with its subfolders; a glob (`**` for any number of folders), whose
            fixed part becomes `Photographs.root`; or s3://BUCKET/KEY, a file or a folder. In a folder, the photographs
            are the files with a suffix of `PHOTOGRAPH_SUFFIXES`; hidden files and folders are left out, and on a disk
            also the folders of earlier outputs.
        output: the folder of the outputs; files in it are left out.

    Raises:
        problems.DataError: there is no photograph, or a file's name is not UTF-8.
        ValueError: the text is a URL of an unknown kind.
    """
    path = to_path(text)
    root: AnyPath
    outputs = 0
    with permitted(path):
        if isinstance(path, RemotePath):
            root, names, is_folder = _remote(path)
        elif path.is_file():
            root, names, is_folder = path.absolute().parent, [path.name], False
        elif path.is_dir():
            root, is_folder = path.absolute(), True
            names, outputs = _below(root)
        elif _GLOB.search(text):
            root, names = _matching(text)
            is_folder = False
        else:
            raise DataError(f"--input {text}: there is no such file or folder")
    names = _without(names, root, output)
    others = 0
    if is_folder:
        photographs = [name for name in names if PurePosixPath(name).suffix.lower() in PHOTOGRAPH_SUFFIXES]
        names, others = photographs, len(names) - len(photographs)
    if not names:
        suffixes = ", ".join(PHOTOGRAPH_SUFFIXES)
        raise DataError(f"--input {text}: no photograph ({suffixes}) was found; name a folder with photographs")
    for name in names:
        if not _is_text(name):
            raise DataError(f"--input {text}: the name {name!r} is not UTF-8; rename that file or folder")
    return Photographs(root, sorted(names), others, outputs)


def _without(names: list[str], root: AnyPath, folder: AnyPath) -> list[str]:
    """The names of the files below `root` that are not in `folder`."""
    if isinstance(root, Path) and isinstance(folder, Path):
        root, folder = root.resolve(), folder.resolve()
    try:
        prefix = relative(folder, root)
    except ValueError:  # the folder is not below the root
        return names
    return [name for name in names if not f"{name}/".startswith(f"{prefix}/")]


def _remote(path: RemotePath) -> tuple[RemotePath, list[str], bool]:
    """The root, the names of the files below it, and whether the path is a folder."""
    if _GLOB.search(path.key):
        raise DataError(f"--input {path}: a glob cannot name objects in an object store; give their folder")
    if path.is_file():
        return path.parent, [path.name], False
    files = (info.path for info in path.entries(recursive=True) if info.type == FileType.File)
    entries = (relative(RemotePath(path.scheme, file), path) for file in files)
    return path, [name for name in entries if not is_hidden(name)], True


def _below(root: Path) -> tuple[list[str], int]:
    """The files in a folder and in its subfolders, without hidden ones; links to folders are not followed.

    Subfolders with the output of an earlier prediction are left out; their number is returned as well.
    """
    names: list[str] = []
    outputs = 0
    for folder, subfolders, files in os.walk(root, onerror=_raise):
        if RECORD in files and TABLE in subfolders and Path(folder) != root:
            outputs += 1
            subfolders[:] = []
            continue
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        prefix = Path(folder).relative_to(root)
        names += [(prefix / name).as_posix() for name in files if name[0] != "."]
    return names, outputs


def _matching(text: str) -> tuple[Path, list[str]]:
    """The fixed part of a glob, and the files that match the rest."""
    parts = Path(text).expanduser().absolute().parts
    fixed = next(k for k, part in enumerate(parts) if _GLOB.search(part))
    root = Path(*parts[:fixed])
    matching = glob.iglob(str(Path(*parts[fixed:])), root_dir=root, recursive=True)
    return root, [Path(name).as_posix() for name in matching if (root / name).is_file()]


def _raise(error: OSError) -> None:
    raise error


def is_hidden(name: str) -> bool:
    """Whether a relative path, with slashes, has a hidden part."""
    return any(part.startswith(".") for part in name.split("/"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def output_names(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """A unique output name for each photograph: `a/b` for `a/b.jpg`, unless `a/b.png` is a photograph, too.

    Photographs whose names differ only in the suffix keep the suffix: `a/b.jpg` and `a/b.png`.

    Args:
        names: the names of the photographs, all different.
        taken: the names of earlier outputs, which must not be replaced. A photograph whose short name is taken keeps
            its suffix, too; DataError if the name with the suffix is also taken.
    """
    short = [str(PurePosixPath(name).with_suffix("")) for name in names]
    keeps = [False] * len(names)
    while True:
        results = [name if keep else stem for name, stem, keep in zip(names, short, keeps, strict=True)]
        count = Counter(results)
        clashing = [k for k, result in enumerate(results) if not keeps[k] and (count[result] > 1 or result in taken)]
        if not clashing:
            break
        for k in clashing:
            keeps[k] = True
    if clashes := sorted(result for result in results if result in taken):
        raise DataError(f"the output {clashes[0]} would replace an earlier output; name another --output")
    return results

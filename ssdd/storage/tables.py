"""Stage tables: folders of Parquet files with one row for each image.

Tables are cut into parts, one file each. In all tables of an image list, part k has the same images in the same order,
so that a stage can read several tables together.
"""

import errno
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssdd.storage.paths import AnyPath, RemoteError, RemotePath

IDS = "ids.json"
Row = dict[str, Any]


class TableError(RuntimeError):
    """A table lacks a row or a column, has a row too many, or does not match another table."""


class DamagedTableError(TableError):
    """A file of a finished table is missing or differs from what was written."""


@dataclass(frozen=True)
class Table:
    """A finished table folder."""

    path: AnyPath
    parts: tuple[tuple[str, ...], ...]
    """The image ids of each part."""

    @property
    def rows(self) -> int:
        return sum(map(len, self.parts))

    def read(self, part: int, columns: list[str] | None = None) -> list[Row]:
        """The rows of one part, as dicts."""
        with _opened(self.path, part) as file:
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise TableError(f"no column {', '.join(sorted(missing))} in {self.path.name}")
            return file.read(columns).to_pylist()

    def columns(self) -> list[str]:
        with _opened(self.path, 0) as file:
            return file.schema_arrow.names

    def __iter__(self) -> Iterator[Row]:
        for part in range(len(self.parts)):
            yield from self.read(part)


def open_table(path: AnyPath) -> Table:
    """Open a finished table; DamagedTableError if its file of image ids is missing or not valid JSON."""
    try:
        return Table(path, tuple(tuple(ids) for ids in json.loads((path / IDS).read_text())))
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(path / IDS, error) from error


def cut(image_ids: list[str], part_size: int) -> tuple[tuple[str, ...], ...]:
    """Cut image ids into parts of `part_size`; the last part may be shorter."""
    return tuple(tuple(image_ids[i : i + part_size]) for i in range(0, len(image_ids), part_size))


def write_table(path: AnyPath, parts: tuple[tuple[str, ...], ...], schema: pa.Schema, rows: Iterable[Row]) -> Table:
    """Write rows that arrive in any order; a part is written as soon as all its rows have arrived.

    Args:
        path: an empty folder (`artifacts.Store.build` renames it when it is complete).
        parts: the image ids of each part, in order.
        schema: the schema of the table, with `image_id`.
        rows: one row for every id.

    Raises:
        TableError: a row is missing, comes twice or has an unknown id.
    """
    part_of = {image_id: k for k, ids in enumerate(parts) for image_id in ids}
    waiting: list[dict[str, Row]] = [{} for _ in parts]
    missing = set(part_of)
    for row in rows:
        image_id = row["image_id"]
        if image_id not in missing:
            raise TableError(f"{path.name}: image {image_id} came twice or is not in the list")
        missing.remove(image_id)
        k = part_of[image_id]
        waiting[k][image_id] = row
        if len(waiting[k]) == len(parts[k]):
            ordered = [waiting[k].pop(i) for i in parts[k]]
            table = pa.Table.from_pylist([{n: r[n] for n in schema.names} for r in ordered], schema=schema)
            with _part_path(path, k).open("wb") as stream:
                pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
    if missing:
        raise TableError(f"{path.name}: no row for {len(missing)} images, first {sorted(missing)[:3]}")
    (path / IDS).write_text(json.dumps(parts))
    return Table(path, parts)


def read_joined(tables: list[Table], part: int, columns: list[str]) -> list[Row]:
    """One part of several tables, joined by row; each column comes from the first table that has it.

    Raises:
        TableError: no table has one of the columns, or the tables have different images in this part.
    """
    joined: list[Row] = []
    wanted = dict.fromkeys(columns)
    for table in tables:
        with _opened(table.path, part) as file:
            here = [c for c in file.schema_arrow.names if c in wanted]
            rows = file.read(["image_id", *here]).to_pylist()
        wanted = {c: None for c in wanted if c not in here}
        if joined and [r["image_id"] for r in rows] != [r["image_id"] for r in joined]:
            raise TableError(f"{table.path.name} and {tables[0].path.name} hold different images in part {part}")
        joined = [{**old, **new} for old, new in zip(joined, rows, strict=True)] if joined else rows
    if wanted:
        raise TableError(f"no column {', '.join(wanted)} in {', '.join(t.path.name for t in tables)}")
    return joined


def _part_path(path: AnyPath, part: int) -> AnyPath:
    return path / f"part-{part:05d}.parquet"


@contextmanager
def _opened(path: AnyPath, part: int) -> Iterator[pq.ParquetFile]:
    """Open a part for reading; from an object store, only those bytes of its file that are read are fetched."""
    file = _part_path(path, part)
    source = file.open_ranges() if isinstance(file, RemotePath) else nullcontext(file)
    try:
        with source as opened, _parquet(opened, pre_buffer=isinstance(file, RemotePath)) as parquet:
            yield parquet
    except RemoteError as error:
        if _is_sound(file):
            raise  # the file is sound, so this is an error of the object store
        raise _damaged(file, error.__cause__) from error
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise  # an error of the disk, not of the file
        raise _damaged(file, error) from error


def _parquet(source: Any, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def _is_sound(file: AnyPath) -> bool:
    """Whether the whole file can be decoded; RemoteError if its object store does not deliver it."""
    data = io.BytesIO(file.read_bytes())
    try:
        _parquet(data).read()
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def _damaged(file: AnyPath, reason: BaseException | None) -> DamagedTableError:
    return DamagedTableError(
        f"{file}: the file is missing or damaged ({reason}); delete its folder, and the same command makes it again"
    )

"""Segment any photographs with a trained network, through Ray Data. A run continues where it was interrupted."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ssdd import segmenter
from ssdd.config import Config, ConfigError, PredictConfig
from ssdd.data import photographs
from ssdd.data.class_names import normal_form
from ssdd.data.labels import Labels
from ssdd.data.photographs import RECORD, TABLE
from ssdd.data.problems import Problem, collecting, listing
from ssdd.nets.networks import SegmentationNet
from ssdd.runtime import cluster, pipelines
from ssdd.runtime.pipelines import Source
from ssdd.runtime.progress import Console
from ssdd.runtime.session import resolve
from ssdd.stages import predict_rows
from ssdd.stages.predict_rows import ASIDE, MASKS, Finish, Photograph
from ssdd.storage import paths
from ssdd.storage.artifacts import whole, write_text
from ssdd.storage.paths import AnyPath, disk_beside, is_folder, make_writable, names_in, to_path
from ssdd.storage.tables import DamagedTableError, Row

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("output", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("classes", pa.list_(pa.string())),
        ("shares", pa.list_(pa.float64())),
        ("probability", pa.float64()),
        ("error", pa.string()),
    ]
)
PART_ROWS = 1000
"""The largest number of rows in a part of the table."""
READ_AT_ONCE = 64
"""The largest number of photographs that one task reads."""


@dataclass(frozen=True)
class Model:
    """What the driver needs to know about a network."""

    identity: str
    config: Config
    classes: tuple[str, ...]
    takes_batches: bool
    """False for an ONNX or torch export: its probabilities have the photograph's size, so a batch takes much memory."""


@dataclass(frozen=True)
class Summary:
    """The result of a run."""

    predicted: int
    failed: list[str]
    """Up to ten photographs that could not be used, each with the reason."""
    failures: int
    """Number of photographs that could not be used."""
    folder: AnyPath

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [f"{self.predicted} new masks in {self.folder / MASKS}; table {self.folder / TABLE}"]
        if self.failures:
            lines.append(f"{self.failures} photographs could not be used; the table's column `error` has the reasons:")
            lines += [f"  {text}" for text in self.failed]
        return lines


def run(config: PredictConfig) -> Summary:
    """Write a mask for each photograph that has none yet, and a table of all photographs.

    Raises:
        ConfigError: there is no such model, or the output folder was made with another model or other options.
        problems.DataError: there are no photographs, or some have no line in the labels file.
        CrashError: processes die again and again on the same photographs.
    """
    _validate(config)
    config = replace(
        config,
        model=resolve(config.model, default="workspace", flag="--model"),
        output=resolve(config.output, default="masks", flag="--output"),
    )
    network = segmenter.load(config.model, config.network, config.preset)
    training = network.config
    config = replace(
        config,
        max_pixels=training.max_pixels if config.max_pixels is None else config.max_pixels,
        apply_exif=training.apply_exif if config.apply_exif is None else config.apply_exif,
    )
    training = replace(training, apply_exif=bool(config.apply_exif))
    model = Model(network.identity, training, network.classes, isinstance(network.net, SegmentationNet))
    del network  # the actors load their own
    try:
        source = str(resolve(to_path(config.input), default="input", flag="--input"))
    except ValueError as error:
        raise ConfigError(f"--input: {error}") from error
    listed = photographs.find(source, config.output)
    absent = _absent(listed.names, config.labels, model.classes)
    record = _record(config, model, str(listed.root))
    _check_record(config.output, record)
    make_writable(config.output)
    with _alone(config.output):
        write_text(config.output / RECORD, json.dumps(record, indent=1))
        console, table = Console(), _Table(config.output / TABLE)
        if listed.others:
            console.line(f"{listed.others} files in {listed.root} are left out: their suffix is not a photograph's")
        if listed.outputs:
            console.line(f"{listed.outputs} folders in {listed.root} are left out: they have earlier predictions")
        finished, taken = table.finished()
        names = pa.array(listed.names)
        unfinished = pc.filter(names, pc.invert(pc.is_in(names, finished))).to_pylist()
        if len(unfinished) < len(names):
            console.line(f"{len(names) - len(unfinished)} of {len(names)} photographs are finished already")
        # If `a/b.jpg` is finished, the name `a/b` counts as taken, even if the output is named `a/b.jpg`. So the output
        # of an unfinished `a/b.png` gets the name `a/b.png`, as it does in a run that is not interrupted.
        stems = {str(PurePosixPath(name).with_suffix("")) for name in finished.to_pylist()}
        outputs = photographs.output_names(unfinished, stems.union(taken.to_pylist()))
        pairs = zip(unfinished, outputs, strict=True)
        wanted = [Photograph(name, output, absent.get(name, ())) for name, output in pairs]
        if not wanted:
            return Summary(0, [], 0, config.output)
        return _predict(config, model, listed.root, wanted, table, console)


def _validate(config: PredictConfig) -> None:
    """Raise ConfigError for values that cannot work."""
    if not 0 <= config.below <= 1:
        raise ConfigError(f"--below {config.below}: must lie in 0..1")
    for name in ("batch", "max_pixels", "num_cpus", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")


def _predict(
    config: PredictConfig,
    model: Model,
    root: AnyPath,
    wanted: list[Photograph],
    table: "_Table",
    console: Console,
) -> Summary:
    training, count = model.config, len(wanted)
    plan = cluster.connect(
        replace(training, num_cpus=config.num_cpus, workers=config.workers, gpus=config.gpus), trains=False
    )
    cluster.check_writes(config.output, "--output")
    cluster.check_reads(config.model, f"--model {config.model}")
    if isinstance(root, Path):
        there = (root / photograph.name for photograph in wanted[:100] if os.path.exists(root / photograph.name))
        cluster.check_reads(next(there, root), f"--input {config.input}")
    aside = config.output / ASIDE
    paths.remove(aside)  # unfinished files of a run that was killed
    if isinstance(aside, Path):
        aside.mkdir()
    size = max(1, min(READ_AT_ONCE, -(-count // (4 * max(plan.workers, plan.data_tasks)))))
    finish = Finish(
        folder=config.output,
        classes=model.classes,
        crf=training.crf if config.crf else None,
        min_probability=training.evaluate.min_probability,
        sharpen=training.evaluate.sharpen,
        below=config.below,
        overlay=config.overlay,
        probabilities=config.probabilities,
        apply_exif=training.apply_exif,
    )
    source = Source(
        items=[wanted[first : first + size] for first in range(0, count, size)],
        read=partial(predict_rows.read, root),
        ids=lambda item: [photograph.name for photograph in item],
        rows=count,
    )
    console.line(f"{count} photographs; {plan.workers} process(es) run the network, {plan.crf_actors} write the masks")
    batch = config.batch if model.takes_batches else 1
    rows = pipelines.run(source, partial(PredictNetwork, config, model.identity), finish, batch, plan)
    failed: list[str] = []
    failures = 0
    report, begun = console.stage("predict"), 0.0
    for number, row in enumerate(table.written(rows), start=1):
        if row["error"]:
            failures += 1
            if len(failed) < 10:
                failed.append(f"{row['path']}: {row['error']}")
        begun = begun or time.monotonic()  # do not count the start of the processes
        rate = (number - 1) / max(time.monotonic() - begun, 1e-3)
        report(number, count, f"{rate:.1f} images/s")
    paths.remove(aside)
    return Summary(count - failures, failed, failures, config.output)


class PredictNetwork:
    """Network actor: file bytes of photographs -> `probs`, see `Segmenter.packed`."""

    def __init__(self, config: PredictConfig, identity: str):
        self.segmenter = segmenter.load(config.model, config.network, config.preset)
        if self.segmenter.identity != identity:
            raise ConfigError(
                f"--model {config.model}: is now {self.segmenter.identity}, but was {identity} at the start, because a "
                "job has trained there in the meantime; name another --output"
            )
        assert config.max_pixels is not None
        assert config.apply_exif is not None
        self.max_pixels, self.apply_exif = config.max_pixels, config.apply_exif

    def __call__(self, rows: list[Row]) -> list[Row]:
        decoded = predict_rows.decode(rows, self.apply_exif, self.max_pixels)
        usable = [k for k, image in enumerate(decoded) if image is not None]
        images: list[np.ndarray] = [image for image in decoded if image is not None]
        for row in rows:
            row["probs"] = b""
        if images:
            for k, probs in zip(usable, self.segmenter.packed(images), strict=True):
                rows[k]["probs"] = probs
        return rows


class _Table:
    """A folder of Parquet parts with a row for each photograph that was tried; a part appears when it is complete.

    A part is written when it has PART_ROWS rows, or when a fiftieth of the run's time so far (at least 10 seconds, at
    most 2 minutes) has passed since the previous part. So the first parts are short. After a kill, photographs that
    are in no part are predicted again.
    """

    def __init__(self, folder: AnyPath):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = [name for name in names_in(folder) if name.startswith("part-")]

    def finished(self) -> tuple[pa.Array, pa.Array]:
        """The names of the photographs that have a row without an error, and the names of their outputs.

        Rows with an error are deleted, so that their photographs are tried again. Raises DamagedTableError for a
        damaged part.
        """
        names, outputs = [], []
        for part in self.parts:
            try:
                table = pq.read_table(pa.BufferReader((self.folder / part).read_bytes()), schema=SCHEMA)
            except (pa.ArrowInvalid, OSError) as error:
                if getattr(error, "errno", None) is not None:
                    raise  # an error of the disk, not of the file
                where = self.folder / part
                raise DamagedTableError(f"{where}: {error}; delete it to predict its photographs again") from error
            usable = table.filter(pc.equal(table["error"], ""))
            if usable.num_rows < table.num_rows:
                self._write(part, usable)
            names.append(usable["path"])
            outputs.append(usable["output"])
        name_chunks = [chunk for column in names for chunk in column.chunks]
        output_chunks = [chunk for column in outputs for chunk in column.chunks]
        empty = pa.array([], pa.string())
        return pa.concat_arrays([empty, *name_chunks]), pa.concat_arrays([empty, *output_chunks])

    def written(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Pass the rows on, and write each part as soon as it is complete; the last part is written at the end."""
        number = 1 + max((int(name[5:-8]) for name in self.parts), default=-1)
        waiting: list[Row] = []
        start = last = 0.0
        for row in rows:
            waiting.append(row)
            now = time.monotonic()
            start, last = start or now, last or now  # time starts with the first row
            if len(waiting) >= PART_ROWS or now - last > min(120, max(10, (now - start) / 50)):
                self._write(f"part-{number:06d}.parquet", pa.Table.from_pylist(waiting, schema=SCHEMA))
                number, waiting, last = number + 1, [], now
            yield row
        if waiting:
            self._write(f"part-{number:06d}.parquet", pa.Table.from_pylist(waiting, schema=SCHEMA))

    def _write(self, name: str, table: pa.Table) -> None:
        with whole(self.folder / name) as aside:
            pq.write_table(table, aside, compression="zstd")


def _absent(names: list[str], path: AnyPath | None, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The foreground classes that each photograph does not have, from a labels file; empty without a file.

    A line of the file begins with the photograph's name, with or without suffix. DataError lists the photographs that
    have no line.
    """
    if path is None:
        return {}
    labels = Labels.read(path, classes)
    problems: list[Problem] = []
    absent = {}
    for name in names:
        normal_name = normal_form(name)  # as in `labels.rows`
        stem = str(PurePosixPath(normal_name).with_suffix(""))
        with collecting(problems):
            _, present = labels.of(normal_name if normal_name in (labels.rows or ()) else stem) or ("", [])
            absent[name] = tuple(sorted({*range(1, len(classes))} - {*present}))
    if problems:
        raise listing(f"--labels {path}", problems)
    return absent


def _record(config: PredictConfig, model: Model, root: str) -> dict[str, Any]:
    """The contents of `prediction.json`: the model, the input and the options that determine a folder's masks."""
    settings = segmenter.test_time(model.config)
    del settings["max_pixels"]  # it decides which photographs are used, but not their masks
    labels = None if config.labels is None else hashlib.sha256(config.labels.read_bytes()).hexdigest()
    return {
        "model": model.identity,
        "input": root,
        "classes": list(model.classes),
        **settings,
        "crf": settings["crf"] if config.crf else None,
        "overlay": config.overlay,
        "probabilities": config.probabilities,
        "labels": labels,
        "below": config.below,
    }


def _check_record(folder: AnyPath, record: dict[str, Any]) -> None:
    """Raise ConfigError if an output folder has masks that were made with other settings, or unrelated files."""
    path = folder / RECORD
    if not path.is_file():
        others = [name for name in names_in(folder) if not name.startswith(".")] if is_folder(folder) else []
        if others:
            raise ConfigError(f"--output {folder}: holds other files ({others[0]}); name a new folder")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in record.items() if before[name] != value]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged or from another version ({error!r}); name another --output") from error
    if different:
        name = different[0]
        raise ConfigError(
            f"--output {folder}: its masks were made with {name} = {before[name]}, now it is {record[name]}; name "
            "another folder"
        )


@contextlib.contextmanager
def _alone(folder: AnyPath) -> Iterator[None]:
    """Lock an output folder, so that only one run at a time writes into it."""
    place = disk_beside(folder)
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"--output {folder}: another run is writing there; wait until it ends") from None
    try:
        yield
    finally:
        lock.release()

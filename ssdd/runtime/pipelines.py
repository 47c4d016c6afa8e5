"""Ray Data pipelines over stage tables or files: rows go through network actors, then through CRF actors.

Only the tasks that need torch import it, so that CRF actors start quickly.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockMetadata

from ssdd.data.problems import first_line
from ssdd.runtime import cluster
from ssdd.runtime.crashes import new_work, noted
from ssdd.runtime.errors import GPUMemoryError
from ssdd.runtime.plan import Plan
from ssdd.storage import tables
from ssdd.storage.tables import Row, Table

Stage = Callable[[list[Row]], list[Row]]


class Parts(Datasource):
    """A data source with one read task for each item; `read(item)` returns the item's blocks."""

    def __init__(self, items: list[Any], read: Callable[[Any], Iterable[pa.Table]]):
        super().__init__()
        self._items, self._read = items, read

    def get_name(self) -> str:
        return "Parts"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(self._read, item), unknown) for item in self._items]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a pipeline's rows, which have a column `image_id`."""

    items: list[Any]
    """Each read task reads one item."""
    read: Callable[[Any], Iterable[pa.Table]]
    """Gives the rows of an item; an iterator that reads them one by one needs less memory."""
    ids: Callable[[Any], Sequence[str]]
    """Returns the image ids of an item."""
    rows: int
    """The number of rows of all items together."""


def infer(
    joined: list[Table],
    columns: list[str],
    network: Callable[[], Stage] | None,
    crf: Stage | None,
    batch: int,
    plan: Plan,
) -> Iterator[Row]:
    """Send rows of tables through a network, then through the CRF actors, see `run`.

    Args:
        joined: tables with the same parts; their columns are joined.
        columns: the columns to read; `image_id` is always read.
        network, crf, batch, plan: as in `run`.
    """
    light = [Table(t.path, ()) for t in joined]
    source = Source(
        items=list(range(len(joined[0].parts))),
        read=partial(read_rows, light, columns),
        ids=partial(_ids, light[0]),
        rows=joined[0].rows,
    )
    return run(source, network, crf, batch, plan)


def run(
    source: Source, network: Callable[[], Stage] | None, crf: Stage | None, batch: int, plan: Plan
) -> Iterator[Row]:
    """Send rows through a network, then through the CRF actors; yield them in the order in which they finish.

    Args:
        source: the source of the rows.
        network: called once in each network actor (on a GPU if the plan uses GPUs); returns the function that is
            applied to rows. None for no network.
        crf: applied to rows in a pool of CPU actors; it should not import torch. None for no CRF.
        batch: the most rows that the network gets at once.
        plan: the processes and their resources.

    Raises:
        CrashError: processes died again and again on the same images.
    """
    work, plan = new_work(), cluster.remaining(plan)
    off_gpus = cluster.off_gpus()
    stream = ray.data.read_datasource(
        Parts(list(enumerate(source.items)), partial(_read_noted, f"{work}-read", source.read, source.ids)),
        override_num_blocks=len(source.items),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
        **off_gpus,
    )
    # With few photographs, batches are smaller, so that each CRF actor gets some of them.
    batch = max(1, min(batch, source.rows // plan.crf_actors))
    # Blocks of a few photographs, so that any free CRF actor can take the next block. With Ray's default of 128 MB, one
    # actor would get a whole part of a table.
    stream.context.target_max_block_size = 2**18
    stream.context.raise_original_map_exception = True  # raise a CrashError itself, without Ray's error around it
    if network is not None:
        stream = stream.map_batches(
            _NetworkActor,
            fn_constructor_kwargs={"work": f"{work}-network", "make": network, "threads": plan.threads},
            compute=ActorPoolStrategy(size=min(plan.workers, len(source.items))),
            batch_size=batch,
            batch_format="pyarrow",
            num_cpus=plan.unit,
            num_gpus=plan.network_resources.get("GPU", 0),
            runtime_env=plan.network_environment,
        )
    if crf is not None:
        stream = stream.map_batches(
            _CRFActor,
            fn_constructor_kwargs={"work": f"{work}-crf", "stage": crf},
            compute=ActorPoolStrategy(size=min(plan.crf_actors, source.rows)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=plan.unit,
            runtime_env=plan.crf_environment,
            **off_gpus,
        )
    for block in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def read_rows(joined: list[Table], columns: list[str], part: int) -> list[pa.Table]:
    return [pa.Table.from_pylist(tables.read_joined(joined, part, columns))]


def _ids(table: Table, part: int) -> list[str]:
    return [row["image_id"] for row in tables.read_joined([table], part, [])]


def _read_noted(
    work: str,
    read: Callable[[Any], Iterable[pa.Table]],
    ids: Callable[[Any], Sequence[str]],
    numbered: tuple[int, Any],
) -> Iterator[pa.Table]:
    number, item = numbered
    rows: Iterator[pa.Table] | None = None
    for k in itertools.count():  # a note for each table, because the end of its block forgets earlier deaths
        with noted(work, f"{number} {k}", lambda: ids(item)):
            rows = iter(read(item)) if rows is None else rows
            table = next(rows, None)
        if table is None:
            return
        yield table  # outside of the block: Ray pauses here while the next stage is busy


class _NetworkActor:
    def __init__(self, work: str, make: Callable[[], Stage], threads: int):
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        # An actor keeps its id when Ray restarts it.
        key = f"start {ray.get_runtime_context().get_actor_id()}"
        self.work = work
        self.failure: Exception | None = None
        try:
            with noted(work, key, lambda: ["loading the network, before the first image"]):
                self.stage = make()
        except torch.cuda.OutOfMemoryError as error:
            self.failure = GPUMemoryError(f"the GPU has too little memory for the network: {first_line(error)}")
        except Exception as error:  # raised by the first call: Ray passes an error of a constructor on as a text only
            self.failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        import torch

        ids = rows["image_id"].to_pylist()
        try:
            with noted(self.work, "\n".join(ids), lambda: ids):
                return pa.Table.from_pylist(self.stage(rows.to_pylist()))
        except torch.cuda.OutOfMemoryError as error:
            remedy = "lower --inference-batch (of predict: --batch)"
            if len(ids) == 1:
                remedy = "shrink the image, lower --evaluate.size, or give --gpus False"
            raise GPUMemoryError(
                f"the GPU has too little memory for {len(ids)} images at once: {remedy} ({first_line(error)})"
            ) from error


class _CRFActor:
    def __init__(self, work: str, stage: Stage):
        self.work, self.stage = work, stage

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for i, image_id in enumerate(rows["image_id"].to_pylist()):  # one at a time, to pass each result on at once
            with noted(self.work, image_id, lambda name=image_id: [name]):  # type: ignore[misc]
                result = pa.Table.from_pylist(self.stage(rows.slice(i, 1).to_pylist()))
            yield result

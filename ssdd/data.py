"""Ray Data pipelines over stage tables: training samples for the trainer's workers, and inference as actor pools.

Imports torch only where a task needs it, so that CRF actors start quickly.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Datasource, ReadTask
from ray.data.block import BlockAccessor, BlockMetadata

from ssdd import cluster, tables, voc
from ssdd.cluster import Plan
from ssdd.config import AugmentConfig
from ssdd.tables import Row, Table

Stage = Callable[[list[Row]], list[Row]]


@dataclass(frozen=True)
class Sampling:
    """What a training sample is: the image and some mask columns, augmented together."""

    masks: tuple[str, ...]
    mask_size: int | None
    augment: AugmentConfig
    num_classes: int
    """Background included."""


class _Parts(Datasource):
    """One read task for each item; `read(item)` gives its block."""

    def __init__(self, items: list[Any], read: Callable[[Any], pa.Table]):
        super().__init__()
        self._items, self._read = items, read

    def get_name(self) -> str:
        return "Parts"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read_block, self._read, item), unknown) for item in self._items]


def _read_block(read: Callable, item: Any) -> Iterable:
    return [read(item)]


def samples(joined: list[Table], sampling: Sampling, epochs: range, seed: int, plan: Plan) -> ray.data.Dataset:
    """Augmented training samples of several epochs, as one stream without a pause between epochs.

    Columns: `image` uint8 (3, crop, crop), every mask column uint8 (mask_size, mask_size), `presence`
    bool (num_classes,). Which samples come, and how they are augmented, depends on `seed`, the epoch and the image
    alone; each epoch has every image once, its parts in a new order.
    """
    parts = len(joined[0].parts)
    items = [(epoch, int(k)) for epoch in epochs for k in np.random.default_rng([seed, epoch]).permutation(parts)]
    light = [Table(t.path, ()) for t in joined]  # without the id lists, which every task would carry
    return ray.data.read_datasource(
        _Parts(items, partial(_read_samples, light, sampling, seed)),
        override_num_blocks=len(items),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
    )


def warm_up(plan: Plan) -> None:
    """Start the processes that will read samples, and their imports, while a trainer still starts its workers."""
    for _ in range(plan.data_tasks):
        _import_transforms.options(runtime_env=cluster.training_environment()).remote()


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def _import_transforms() -> None:
    import ssdd.transforms  # noqa: F401


def _read_samples(joined: list[Table], sampling: Sampling, seed: int, item: tuple[int, int]) -> pa.Table:
    import torch

    from ssdd import transforms

    torch.set_num_threads(1)  # this is one of several tasks beside the training
    epoch, part = item
    transform = transforms.augmentation(sampling.augment)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "presence", *sampling.masks)}
    rows = tables.read_joined(joined, part, ["image", "presence", *sampling.masks])
    for i in np.random.default_rng([seed, epoch, part]).permutation(len(rows)):
        row = rows[i]
        image = voc.read_image(row["image"])
        masks = [voc.read_mask(row[name]) for name in sampling.masks]
        own_seed = int(np.random.default_rng([seed, epoch, part, i]).integers(2**31))
        image, masks = transforms.augment(transform, image, masks, own_seed, sampling.mask_size)
        columns["image"].append(image)
        columns["presence"].append(presence_vector(row["presence"], sampling.num_classes))
        for name, mask in zip(sampling.masks, masks, strict=True):
            columns[name].append(mask)
    return BlockAccessor.batch_to_arrow_block({name: np.stack(values) for name, values in columns.items()})


def presence_vector(foreground: Iterable[int], num_classes: int) -> np.ndarray:
    """Bool (num_classes,): an image's foreground classes and background."""
    vector = np.zeros(num_classes, bool)
    vector[[0, *foreground]] = True
    return vector


def infer(
    joined: list[Table],
    columns: list[str],
    network: Callable[[], Stage] | None,
    crf: Stage | None,
    batch: int,
    plan: Plan,
) -> Iterator[Row]:
    """Rows of tables through a network, then through the CRF pool, in the order in which they finish.

    Args:
        joined: tables with the same parts.
        columns: to read; `image_id` comes by itself.
        network: called once in each network actor (on a GPU where the plan has them); gives the function for rows.
            None for none.
        crf: applied to rows in a pool of CPU actors; None for none. Should import no torch.
        batch: rows that the network gets at once.
        plan: resources.
    """
    light = [Table(t.path, ()) for t in joined]
    parts = list(range(len(joined[0].parts)))
    stream = ray.data.read_datasource(
        _Parts(parts, partial(_read_rows, light, columns)),
        override_num_blocks=len(parts),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
    )
    # Blocks of a few photographs, so that any CRF actor takes the next ones; with the default, 128 MB, it gets a part.
    stream.context.target_max_block_size = 2**18
    if network is not None:
        stream = stream.map_batches(
            _NetworkActor,
            fn_constructor_kwargs={"make": network, "threads": plan.threads},
            compute=ActorPoolStrategy(size=min(plan.workers, len(parts))),
            batch_size=batch,
            batch_format="pyarrow",
            num_cpus=plan.unit,
            num_gpus=plan.network_resources.get("GPU", 0),
            runtime_env=plan.network_environment,
        )
    if crf is not None:
        stream = stream.map_batches(
            _CRFActor,
            fn_constructor_kwargs={"stage": crf},
            compute=ActorPoolStrategy(size=min(plan.crf_actors, joined[0].rows)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=plan.unit,
            runtime_env=plan.crf_environment,
        )
    for block in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def _read_rows(joined: list[Table], columns: list[str], part: int) -> pa.Table:
    return pa.Table.from_pylist(tables.read_joined(joined, part, columns))


class _NetworkActor:
    def __init__(self, make: Callable[[], Stage], threads: int):
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(threads)
        self.stage = make()

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(self.stage(rows.to_pylist()))


class _CRFActor:
    def __init__(self, stage: Stage):
        self.stage = stage

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():  # one at a time: its result leaves while the next is computed
            yield pa.Table.from_pylist(self.stage([row]))


def counted(rows: Iterator[Row], total: int, report: Callable[[int, int], None]) -> Iterator[Row]:
    """The same rows; `report(done, total)` is called after each."""
    for done, row in enumerate(rows, 1):
        yield row
        report(done, total)

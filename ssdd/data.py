"""Ray Data pipelines over stage tables: training samples for the trainer's workers, and inference as actor pools.

Imports torch only where a task needs it, so that CRF actors start quickly.
"""

import itertools
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
MOST_TASKS = 20_000
"""That read a training's samples. Each costs the driver half a millisecond before the first one runs; but where several
run at once, samples wait in memory for those before them, the more the longer a task is."""


@dataclass(frozen=True)
class Sampling:
    """What a training sample is: the image and some mask columns, augmented together."""

    masks: tuple[str, ...]
    mask_size: int | None
    augment: AugmentConfig
    num_classes: int
    """Background included."""

    @property
    def bytes_of_sample(self) -> int:
        """Of the columns that `samples` gives."""
        mask = (self.mask_size or self.augment.crop) ** 2
        return 3 * self.augment.crop**2 + len(self.masks) * mask + self.num_classes + 8


class _Parts(Datasource):
    """One read task for each item; `read(item)` gives its blocks."""

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


@dataclass(frozen=True)
class Order:
    """The order in which a training sees images: one stream of epochs, each of which has every image once.

    An epoch takes the parts of its tables in a random order, a few at a time, and those parts' images in a random
    order. It follows from the seed and the epoch alone, so that a training can go on anywhere in the stream.
    """

    images: int
    part_size: int
    seed: int
    together: int = 4
    """Parts whose images are shuffled together."""

    def rows(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Epoch and image, as its row in the tables, at each position of a piece of the stream."""
        parts = -(-self.images // self.part_size)
        for epoch in range(begin // self.images, -(-end // self.images)):
            starts = self.part_size * np.random.default_rng([self.seed, epoch]).permutation(parts)
            sizes = np.minimum(self.part_size, self.images - starts)
            bounds = np.append(0, np.add.reduceat(sizes, range(0, parts, self.together)).cumsum()) + epoch * self.images
            for group in np.flatnonzero((bounds[:-1] < end) & (bounds[1:] > begin)):
                k, first = int(group) * self.together, bounds[group]
                together = zip(starts[k : k + self.together], sizes[k : k + self.together], strict=True)
                rows = np.concatenate([np.arange(start, start + size) for start, size in together])
                shuffled = np.random.default_rng([self.seed, epoch, k]).permutation(rows)
                yield from ((epoch, int(row)) for row in shuffled[max(0, begin - first) : end - first])


def pieces(order: Order, stream: range) -> list[range]:
    """A stream of samples in pieces of whole blocks, one for each task that reads them; at most about MOST_TASKS."""
    block = stream.step
    piece = block * -(-max(order.part_size * order.together, len(stream) * block // MOST_TASKS) // block)
    return [range(k, min(k + piece, stream.stop), block) for k in range(stream.start, stream.stop, piece)]


def samples(joined: list[Table], sampling: Sampling, order: Order, stream: range, plan: Plan) -> ray.data.Dataset:
    """Augmented training samples, a piece of the stream of epochs without a pause between them.

    Columns: `image` uint8 (3, crop, crop), every mask column uint8 (mask_size, mask_size), `presence`
    bool (num_classes,), `row` int64, the image's row in the tables. How an image is augmented depends on the seed, the
    epoch and the image alone.

    Args:
        joined: tables with the same parts.
        sampling: what a sample is.
        order: the stream.
        stream: its positions; the step is the number of samples in a block. Workers that split the blocks take turns,
            so that a step of all of them has the same samples, however many they are.
        plan: resources.
    """
    items = pieces(order, stream)
    light = [Table(t.path, ()) for t in joined]  # without the id lists, which every task would carry
    dataset = ray.data.read_datasource(
        _Parts(items, partial(_read_samples, light, sampling, order)),
        override_num_blocks=len(items),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
        **cluster.off_gpus(),
    )
    # Ray Data joins blocks up to this size, and cuts them at one and a half of it: so they stay as they are.
    dataset.context.target_max_block_size = int(0.8 * stream.step * sampling.bytes_of_sample)
    return dataset


def warm_up(plan: Plan) -> None:
    """Start the processes that will read samples, and their imports, while a trainer still starts its workers."""
    options = dict(runtime_env=cluster.training_environment(), **cluster.off_gpus())
    for _ in range(plan.data_tasks):
        _import_transforms.options(**options).remote()


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def _import_transforms() -> None:
    import ssdd.transforms  # noqa: F401


def _read_samples(joined: list[Table], sampling: Sampling, order: Order, stream: range) -> Iterator[pa.Table]:
    import torch

    from ssdd import transforms

    torch.set_num_threads(1)  # this is one of several tasks beside the training
    transform = transforms.augmentation(sampling.augment)
    parts: dict[int, list[Row]] = {}

    def sample(epoch: int, number: int) -> Row:
        part, i = divmod(number, order.part_size)
        if part not in parts:
            if len(parts) == 2 * order.together:  # the oldest has been seen
                del parts[next(iter(parts))]
            parts[part] = tables.read_joined(joined, part, ["image", "presence", *sampling.masks])
        row = parts[part][i]
        image = voc.read_image(row["image"])
        masks = [voc.read_mask(row[name]) for name in sampling.masks]
        own_seed = int(np.random.default_rng([order.seed, epoch, part, i]).integers(2**31))
        image, masks = transforms.augment(transform, image, masks, own_seed, sampling.mask_size)
        presence = presence_vector(row["presence"], sampling.num_classes)
        return {"image": image, "presence": presence, "row": number, **dict(zip(sampling.masks, masks, strict=True))}

    wanted = order.rows(stream.start, stream.stop)
    while chosen := list(itertools.islice(wanted, stream.step)):
        taken = [sample(*one) for one in chosen]
        yield BlockAccessor.batch_to_arrow_block({name: np.stack([s[name] for s in taken]) for name in taken[0]})


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
    off_gpus = cluster.off_gpus()
    stream = ray.data.read_datasource(
        _Parts(parts, partial(_read_rows, light, columns)),
        override_num_blocks=len(parts),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
        **off_gpus,
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
            **off_gpus,
        )
    for block in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()


def _read_rows(joined: list[Table], columns: list[str], part: int) -> list[pa.Table]:
    return [pa.Table.from_pylist(tables.read_joined(joined, part, columns))]


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

"""Training samples: the order in which a training sees images, and the Ray Data tasks that read and augment them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockAccessor

from ssdd.data import codec
from ssdd.data.sampling import Sampling
from ssdd.runtime import cluster, ray_internals
from ssdd.runtime.crashes import new_work, noted
from ssdd.runtime.pipelines import Parts
from ssdd.runtime.plan import Plan
from ssdd.storage import tables
from ssdd.storage.tables import Row, Table

MOST_TASKS = 20_000
"""The most tasks that read a training's samples. Each task costs the driver half a millisecond before the first task
runs. Fewer, longer tasks need more memory: a task's samples wait in memory until all earlier samples are used."""


@dataclass(frozen=True)
class Order:
    """The order in which a training sees images: one stream of epochs, and every image once in each epoch.

    An epoch takes the parts of the tables in a random order, a few at a time, and the images of these parts in a random
    order. The order depends only on the random seed and the epoch, so a training can continue anywhere in the stream.
    """

    images: int
    part_size: int
    seed: int
    together: int = 4
    """The number of parts whose images are shuffled together."""

    def rows(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """For each stream position from `begin` up to `end`: its epoch, and its image as a row number of the tables."""
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
    """Cut a stream of samples into pieces of whole blocks, one for each read task; at most about MOST_TASKS pieces."""
    block = stream.step
    piece = block * -(-max(order.part_size * order.together, len(stream) * block // MOST_TASKS) // block)
    return [range(k, min(k + piece, stream.stop), block) for k in range(stream.start, stream.stop, piece)]


def samples(joined: list[Table], sampling: Sampling, order: Order, stream: range, plan: Plan) -> ray.data.Dataset:
    """Augmented training samples from a range of the stream of epochs, without a pause between epochs.

    Columns: `image` uint8 (3, crop, crop); every mask column uint8 (mask_size, mask_size); `presence`
    bool (num_classes,); `row` int64, the image's row number in the tables; and, if `sampling.plain` is true, `plain`
    uint8 (3, mask_size, mask_size), the image without colour jitter. The augmentation of an image depends only on the
    random seed, the epoch and the image.

    Args:
        joined: tables with the same parts; their columns are joined.
        sampling: the columns of a sample and their augmentation.
        order: the order of the images in the stream.
        stream: the positions in the stream; the range's step is the number of samples in a block. The workers get the
            blocks in turn, so that a training step has the same samples for any number of workers.
        plan: the processes and their resources.
    """
    items = pieces(order, stream)
    light = [Table(t.path, ()) for t in joined]  # without the id lists, which Ray would send to every task
    dataset = ray.data.read_datasource(
        Parts(items, partial(_read_samples, new_work(), light, sampling, order)),
        override_num_blocks=len(items),
        num_cpus=plan.unit,
        concurrency=plan.data_tasks,
        **cluster.off_gpus(),
    )
    # Ray Data merges blocks up to this size and splits blocks above 1.5 times this size. Our blocks are 1.25 times as
    # large, so they stay as they are.
    dataset.context.target_max_block_size = int(0.8 * stream.step * sampling.bytes_of_sample)
    return dataset


def warm_up(plan: Plan) -> None:
    """Start the processes that will read samples, and run their imports, while a trainer starts its workers."""
    options = dict(runtime_env=ray_internals.training_environment(), **cluster.off_gpus())
    for _ in range(plan.data_tasks):
        _import_transforms.options(**options).remote()


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def _import_transforms() -> None:
    import ssdd.data.transforms  # noqa: F401


def _read_samples(
    work: str, joined: list[Table], sampling: Sampling, order: Order, stream: range
) -> Iterator[pa.Table]:
    import torch

    from ssdd.data import transforms

    torch.set_num_threads(1)  # several such tasks run beside the training
    parts: dict[int, list[Row]] = {}

    def sample(epoch: int, number: int) -> Row:
        part, i = divmod(number, order.part_size)
        if part not in parts:
            if len(parts) == 2 * order.together:  # the oldest part is no longer needed
                del parts[next(iter(parts))]
            parts[part] = tables.read_joined(joined, part, ["image", "presence", *sampling.masks])
        row = parts[part][i]
        masks = [codec.read_mask(row[name]) for name in sampling.masks]
        sample_seed = int(np.random.default_rng([order.seed, epoch, part, i]).integers(2**31))
        augmented = transforms.augment(
            sampling.augment, row["image"], masks, sample_seed, sampling.mask_size, sampling.plain
        )
        presence = codec.presence_vector(row["presence"], sampling.num_classes)
        out = {"image": augmented.image, "presence": presence, "row": number}
        if augmented.plain is not None:
            out["plain"] = augmented.plain
        return out | dict(zip(sampling.masks, augmented.masks, strict=True))

    def names(chosen: list[tuple[int, int]]) -> list[str]:
        where = [divmod(number, order.part_size) for _, number in chosen]
        return [tables.read_joined(joined[:1], part, [])[i]["image_id"] for part, i in where]

    wanted = order.rows(stream.start, stream.stop)
    while chosen := list(itertools.islice(wanted, stream.step)):
        with noted(work, str(chosen), partial(names, chosen)):
            taken = [sample(*one) for one in chosen]
        yield BlockAccessor.batch_to_arrow_block({name: np.stack([s[name] for s in taken]) for name in taken[0]})

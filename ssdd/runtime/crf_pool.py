"""A pool of Ray CPU actors that compute the CRF of every training iteration (sec. 4.2). Imports no torch."""

import random
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from ssdd.crf import CRFParams, crf_masks
from ssdd.runtime.crashes import noted

SHARE = 96 * 96
"""Pixels that are worth a call: their CRF takes five to ten times what the call costs."""


def pack(image: np.ndarray, probs: np.ndarray, labels: np.ndarray) -> bytes:
    """One image's arguments of `crf_masks`.

    Ray sends bytes faster than arrays, and those of an image of 112 x 112 within the call, without the object store.
    """
    return b"".join((bytes([len(labels)]), labels.tobytes(), image.tobytes(), probs.astype(np.float16).tobytes()))


def unpack(packed: bytes, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `pack` got: image, probabilities, labels."""
    count, pixels = packed[0], height * width
    labels = np.frombuffer(packed, np.uint8, count, 1)
    image = np.frombuffer(packed, np.uint8, 3 * pixels, 1 + count).reshape(height, width, 3)
    probs = np.frombuffer(packed[1 + count + 3 * pixels :], np.float16).reshape(count, height, width)
    return image, probs, labels


@ray.remote
class _CRFActor:
    def refine(self, params: CRFParams, height: int, width: int, share: str, *packed: bytes) -> bytes:
        """Masks of some images; `share` names the call, and stays the same where it is tried again.

        Raises:
            CrashError: processes die on these images again and again; it cannot name them.
        """
        with noted(share, "", lambda: ["images of this step"]):
            images, probs, labels = zip(*(unpack(image, height, width) for image in packed), strict=True)
            return crf_masks(images, probs, labels, params).tobytes()

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


class Loads:
    """How many images of this process each actor has before it; one that is near goes before one that is not."""

    def __init__(self, near: Iterable[int], far: Iterable[int]):
        self.open = dict.fromkeys([*near, *far], 0)

    def take(self, images: int, together: int = 1) -> Counter[int]:
        """How many of some images each actor gets: `together` at a time go to the one with the fewest before it."""
        taken = Counter[int]()
        while images:
            actor, count = min(self.open, key=self.open.__getitem__), min(together, images)
            self.open[actor] += count
            taken[actor] += count
            images -= count
        return taken

    def done(self, actor: int, images: int) -> None:
        self.open[actor] -= images


@dataclass(frozen=True)
class Request:
    """Masks that the actors compute."""

    shares: list[ray.ObjectRef]
    """For each actor that works on it, the masks of some images, one group after the other."""
    height: int
    width: int

    def masks(self) -> np.ndarray:
        """Wait for them: uint8 (N, H, W)."""
        found = bytearray().join(ray.get(self.shares))  # writable, as torch wants it
        return np.frombuffer(found, np.uint8).reshape(-1, self.height, self.width)


class CRFPool:
    """Actors all over the cluster, CPU nodes included. It can be sent to a training worker."""

    def __init__(self, nodes: Iterable[str], num_cpus: float, environment: dict[str, Any] | None = None):
        """Start an actor on each of some nodes, or, where one has no room or is lost, on another one."""
        options: dict[str, Any] = dict(num_cpus=num_cpus, runtime_env=environment)
        options |= dict(max_restarts=-1, max_task_retries=-1)  # a lost actor only costs time; `noted` has a limit
        # DEFAULT: an actor need not fit into what a sweep's trial has reserved.
        options |= dict(scheduling_strategy="DEFAULT", fallback_strategy=[{"label_selector": {}}])
        selectors = [{"ray.io/node-id": node} for node in nodes]
        self.actors = [_CRFActor.options(label_selector=s, **options).remote() for s in selectors]  # type: ignore[attr-defined]
        self._loads: Loads | None = None
        self._open: dict[ray.ObjectRef, tuple[int, int]] = {}

    def request(
        self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams
    ) -> Request:
        """`crf_masks`, over the actors, without waiting for them."""
        if self._loads is None:
            here, nodes = ray.get_runtime_context().get_node_id(), ray.get([a.node.remote() for a in self.actors])
            order = random.sample(range(len(self.actors)), len(self.actors))  # several workers share the pool
            near, far = ([i for i in order if (nodes[i] == here) is local] for local in (True, False))
            self._loads = Loads(near, far)
        if self._open:
            ended, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=0, fetch_local=False)
            for call in ended:
                self._loads.done(*self._open.pop(call))
        height, width = images[0].shape[:2]
        packed = deque(pack(*image) for image in zip(images, probs, labels, strict=True))
        shares: list[ray.ObjectRef] = []
        work = uuid.uuid4().hex[:12]
        for actor, count in self._loads.take(len(images), -(-SHARE // (height * width))).items():
            share = [packed.popleft() for _ in range(count)]
            name = f"{work}-{len(shares)}"
            shares.append(self.actors[actor].refine.remote(params, height, width, name, *share))
            self._open[shares[-1]] = actor, count
        return Request(shares, height, width)

    def close(self) -> None:
        """End the actors and free their CPUs."""
        for actor in self.actors:
            ray.kill(actor)

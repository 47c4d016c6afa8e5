"""A pool of Ray CPU actors that compute the CRF of every training iteration (sec. 4.2). Imports no torch."""

import random
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from ssdd.crf import CRFParams, crf_masks
from ssdd.runtime.crashes import noted

SHARE = 96 * 96
"""The fewest pixels that are worth a call: their CRF takes five to ten times as long as the call itself."""

PATIENCE = 600
"""Seconds to wait for actors. If their node is lost and no other node has room for them, they never answer."""


def pack(image: np.ndarray, probs: np.ndarray, labels: np.ndarray) -> bytes:
    """One image's arguments of `crf_masks` as bytes.

    Ray sends bytes faster than arrays. Up to 100 KiB, for example a 112 x 112 image with two labels, it sends them
    within the call, without the object store.
    """
    return b"".join((bytes([len(labels)]), labels.tobytes(), image.tobytes(), probs.astype(np.float16).tobytes()))


def unpack(packed: bytes, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `pack`: image, probabilities, labels."""
    count, pixels = packed[0], height * width
    labels = np.frombuffer(packed, np.uint8, count, 1)
    image = np.frombuffer(packed, np.uint8, 3 * pixels, 1 + count).reshape(height, width, 3)
    probs = np.frombuffer(packed[1 + count + 3 * pixels :], np.float16).reshape(count, height, width)
    return image, probs, labels


@ray.remote
class _CRFActor:
    def refine(self, params: CRFParams, height: int, width: int, share: str, *packed: bytes) -> bytes:
        """The bytes of some images' masks. `share` identifies the call, and is the same when Ray retries the call.

        Raises:
            CrashError: several processes died on these images. Its message has no image ids: the actor has none.
        """
        with noted(share, "", lambda: ["images of this step"]):
            images, probs, labels = zip(*(unpack(image, height, width) for image in packed), strict=True)
            return crf_masks(images, probs, labels, params).tobytes()

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def _answers(calls: list[ray.ObjectRef]) -> list[Any]:
    try:
        return ray.get(calls, timeout=PATIENCE)
    except GetTimeoutError:
        raise GetTimeoutError(f"CRF actors have not answered for {PATIENCE} seconds; was their node lost?") from None


class Loads:
    """The number of this process's images in each actor's queue; of equal queues, those on this node are preferred."""

    def __init__(self, near: Iterable[int], far: Iterable[int]):
        self.open = dict.fromkeys([*near, *far], 0)

    def take(self, images: int, together: int = 1) -> Counter[int]:
        """Give `together` images at a time to the actor with the shortest queue; return the number for each actor."""
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
    """Masks that the actors are computing."""

    shares: list[ray.ObjectRef]
    """The results of the actors' calls: each has the masks of some images, in the order of the request."""
    height: int
    width: int

    def masks(self) -> np.ndarray:
        """Wait for the masks: uint8 (N, H, W). GetTimeoutError if they have not come after PATIENCE seconds."""
        labels = bytearray().join(_answers(self.shares))  # writable memory, as torch needs it
        return np.frombuffer(labels, np.uint8).reshape(-1, self.height, self.width)


class CRFPool:
    """CRF actors on any nodes of the cluster, CPU nodes included. The pool can be sent to a training worker."""

    def __init__(self, nodes: Iterable[str], num_cpus: float, environment: dict[str, Any] | None = None):
        """Start one actor for each entry of `nodes`: on that node or, if it has no room or is lost, on another node."""
        options: dict[str, Any] = dict(num_cpus=num_cpus, runtime_env=environment)
        options |= dict(max_restarts=-1, max_task_retries=-1)  # Ray restarts a lost actor; `noted` sets the limit
        # DEFAULT: an actor may run outside the resources that a sweep's trial has reserved.
        options |= dict(scheduling_strategy="DEFAULT", fallback_strategy=[{"label_selector": {}}])
        selectors = [{"ray.io/node-id": node} for node in nodes]
        self.actors = [_CRFActor.options(label_selector=s, **options).remote() for s in selectors]  # type: ignore[attr-defined]
        self._loads: Loads | None = None
        self._open: dict[ray.ObjectRef, tuple[int, int]] = {}

    def request(
        self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams
    ) -> Request:
        """Start `crf_masks` for some images on the actors, without waiting for the result."""
        if self._loads is None:
            here, nodes = ray.get_runtime_context().get_node_id(), _answers([a.node.remote() for a in self.actors])
            # In random order, because several workers share the pool.
            order = random.sample(range(len(self.actors)), len(self.actors))
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

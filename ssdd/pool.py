"""A pool of Ray CPU actors that compute the CRF of every training iteration (sec. 4.2)."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import ray

from ssdd.crf import CRFParams, dense_crf


def refine(
    images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams
) -> list[np.ndarray]:
    """CRF masks of a few images.

    Args:
        images: uint8 (N, H, W, 3).
        probs: for each image, probabilities of its presence labels, (n, H, W).
        labels: for each image, the class of each of them, uint8 (n,).
        params: of the CRF.

    Returns:
        for each image the class of the best label at each pixel, uint8 (H, W).
    """
    masks = []
    for image, prob, label in zip(images, probs, labels, strict=True):
        best = dense_crf(image, prob.astype(np.float32), params).argmax(0)
        masks.append(label[best])
    return masks


@ray.remote
class _CRFActor:
    def refine(self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams):
        return refine(images, probs, labels, params)

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


class Loads:
    """How many requests of this process each actor has before it; an actor that is near goes before one that is not."""

    def __init__(self, near: Iterable[int], far: Iterable[int]):
        self.open = dict.fromkeys([*near, *far], 0)

    def take(self, count: int) -> list[int]:
        """The actors with the fewest requests, with one more each."""
        taken = sorted(self.open, key=self.open.__getitem__)[:count]  # a stable sort
        for actor in taken:
            self.open[actor] += 1
        return taken

    def done(self, actors: list[int]) -> None:
        for actor in actors:
            self.open[actor] -= 1


@dataclass(frozen=True)
class Request:
    """Masks that the actors compute."""

    shares: list[ray.ObjectRef]
    """For each actor that works on it, the masks of every len(shares)-th image."""
    done: Callable[[], None]

    def masks(self) -> list[np.ndarray]:
        """Wait for them: uint8 (H, W) for each image. To be called once."""
        found = ray.get(self.shares)
        self.done()
        count = sum(map(len, found))
        return [found[i % len(found)][i // len(found)] for i in range(count)]


class CRFPool:
    """Actors all over the cluster, CPU nodes included. It can be sent to a training worker."""

    def __init__(self, actors: int, num_cpus: float):
        options = dict(num_cpus=num_cpus, max_restarts=-1, max_task_retries=-1)  # a lost actor only costs time
        self.actors = [_CRFActor.options(**options).remote() for _ in range(actors)]  # type: ignore[attr-defined]
        self._loads: Loads | None = None

    def request(
        self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams
    ) -> Request:
        """`refine`, over the actors, without waiting for them."""
        if self._loads is None:
            here, nodes = ray.get_runtime_context().get_node_id(), ray.get([a.node.remote() for a in self.actors])
            order = random.sample(range(len(self.actors)), len(self.actors))  # several workers share the pool
            near, far = ([i for i in order if (nodes[i] == here) is local] for local in (True, False))
            self._loads = Loads(near, far)
        loads = self._loads
        taken = loads.take(min(len(self.actors), len(images)))
        n = len(taken)
        shares = [
            self.actors[i].refine.remote(images[k::n], probs[k::n], labels[k::n], params) for k, i in enumerate(taken)
        ]
        return Request(shares, lambda: loads.done(taken))

    def close(self) -> None:
        """End the actors and free their CPUs."""
        for actor in self.actors:
            ray.kill(actor)

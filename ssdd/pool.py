"""A pool of Ray CPU actors that compute the CRF of every training iteration (sec. 4.2)."""

import random

import numpy as np
import ray

from ssdd.crf import CRFParams, dense_crf


@ray.remote
class _CRFActor:
    def refine(self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams):
        return refine(images, probs, labels, params)


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


class CRFPool:
    """Callable like `refine`, over a batch, on actors. It can be sent to a training worker."""

    def __init__(self, actors: int, num_cpus: float):
        options = dict(num_cpus=num_cpus, max_restarts=-1, max_task_retries=-1)  # a lost actor only costs time
        self.actors = [_CRFActor.options(**options).remote() for _ in range(actors)]  # type: ignore[attr-defined]

    def __call__(
        self, images: np.ndarray, probs: list[np.ndarray], labels: list[np.ndarray], params: CRFParams
    ) -> list[np.ndarray]:
        n = len(self.actors)
        first = random.randrange(n)  # several workers share the pool
        actors = self.actors[first:] + self.actors[:first]
        shares = [range(k, len(images), n) for k in range(min(n, len(images)))]
        futures = [
            actor.refine.remote(images[share.start :: n], [probs[i] for i in share], [labels[i] for i in share], params)
            for actor, share in zip(actors, shares, strict=False)
        ]
        masks: list[np.ndarray] = [np.empty(0)] * len(images)
        for share, result in zip(shares, ray.get(futures), strict=True):
            for i, mask in zip(share, result, strict=True):
                masks[i] = mask
        return masks

    def close(self) -> None:
        """End the actors and free their CPUs."""
        for actor in self.actors:
            ray.kill(actor)

"""Computes the CRF of a training step on the pool of Ray CPU actors, while this process runs the network."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ssdd.crf import CRFParams
from ssdd.objectives.crf import Inputs, Later, Masks, copied
from ssdd.runtime.crf_pool import CRFPool, Request


@dataclass(frozen=True)
class ActorCRF:
    """pydensecrf on a pool of Ray CPU actors; this process waits for them only when it needs the masks."""

    params: CRFParams
    pool: CRFPool
    runs_on_actors = True

    def request(self, images: Tensor, logits: Tensor, presence: Tensor) -> Masks:
        return self.send(copied(images, logits, presence), logits.device)

    def send(self, inputs: Callable[[], Inputs], device: torch.device) -> Masks:
        """Request the masks; `inputs` is the function that `copied` returned."""
        # The GPU may still be computing the inputs. Another thread waits for them and sends the request, so that this
        # thread can give the GPU more work.
        sent: Future[Request] = _sender().submit(lambda: self.pool.request(*inputs(), self.params))
        return Later(device, lambda: sent.result().masks())


@cache
def _sender() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "crf-requests")

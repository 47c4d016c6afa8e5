"""The first function of a training worker: it requests the samples, then imports the modules of the training."""

import pickle

import ray.train


def begin(packed: bytes) -> None:
    """Request the samples, then run `worker.train`.

    Args:
        packed: a pickled `worker.Loop`. Unpickling imports torch, timm and the networks, which takes seconds;
            meanwhile Ray Data starts the process that hands out the samples.
    """
    ray.train.get_dataset_shard("train")
    loop = pickle.loads(packed)
    from ssdd.training.worker import train

    train(loop)

"""Shared fixtures."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: beside other work on the machine, several are up to 100 times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A small data set and a workspace that tests fill in their order, on one local cluster."""
    import ray

    from ssdd import synthetic

    root = tmp_path_factory.mktemp("jobs")
    folder = synthetic.generate(root / "data", train=10, val=4)
    yield folder, root / "workspace"
    ray.shutdown()

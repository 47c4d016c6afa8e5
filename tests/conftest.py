"""Shared fixtures."""

import numpy as np
import pytest
from PIL import Image


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
    """A small data set, odd files in it, and a workspace that tests fill in their order, on one local cluster."""
    import ray

    from ssdd import synthetic

    root = tmp_path_factory.mktemp("jobs")
    folder = synthetic.generate(root / "data", train=10, val=4)
    make_odd(folder)
    yield folder, root / "workspace"
    ray.shutdown()


def make_odd(folder):
    """Three training images as users have them: of four inks, of 16 bits, of one pixel."""
    first, second, third = (folder / "JPEGImages" / f"train_000{k}.jpg" for k in range(3))
    Image.open(first).convert("CMYK").save(first)
    grey = np.asarray(Image.open(second).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(second.with_suffix(".png"))
    second.unlink()
    mask = folder / "SegmentationClass" / f"{third.stem}.png"
    values = np.asarray(Image.open(mask))
    y, x = np.argwhere((values > 0) & (values < 255))[0]
    for path in (third, mask):
        Image.open(path).crop((x, y, x + 1, y + 1)).save(path)

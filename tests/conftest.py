"""Shared fixtures."""

import os

# One thread for torch and numpy, also in processes that tests start: beside other work, several are up to 100 times
# slower.
os.environ["OMP_NUM_THREADS"] = "1"

# isort: split
import logging

import hypothesis
import numpy as np
import pytest
from PIL import Image

from ssdd.runtime import environment  # noqa: F401 (before any test imports Ray)
from ssdd.storage.paths import to_path

hypothesis.settings.register_profile("ssdd", deadline=None)  # an example may take long beside other work
hypothesis.settings.load_profile("ssdd")


@pytest.fixture(scope="session")
def bucket():
    """The URL of a bucket of an S3 server on loopback, which every process that is started later can use."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION", "ENDPOINT_URL", "EC2_METADATA_DISABLED")
    values = ("key", "a-secret-key", "us-east-1", f"http://{host}:{port}", "true")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, values, strict=True):
            patch.setenv(f"AWS_{name}", value)
        system, _ = fs.FileSystem.from_uri("s3://made-by-tests?allow_bucket_creation=true")
        system.create_dir("made-by-tests")
        yield "s3://made-by-tests"
    server.stop()


@pytest.fixture
def remote(bucket, request):
    """A folder in the bucket."""
    return to_path(f"{bucket}/{request.node.name.partition('[')[0]}")


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    """What a workspace in a bucket needs: a store for MLflow."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).create_experiment("ssdd-mini", (tmp_path / "mlartifacts").as_uri())


@pytest.fixture(scope="session")
def places(tmp_path_factory, bucket):
    """A small data set, odd files in it, and a workspace that tests fill in their order, on one local cluster."""
    import ray

    from ssdd.data import synthetic

    root = tmp_path_factory.mktemp("jobs")
    folder = synthetic.generate(root / "data", train=10, val=4)
    make_odd(folder)
    yield folder, root / "work%20 ?#space"  # whatever a user calls it
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

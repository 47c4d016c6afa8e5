"""A small network, and for tests that run jobs through Ray a configuration of seconds and a way to run them."""

import contextlib
import runpy
import sys
import threading
from pathlib import Path

import psutil

from ssdd.config import BackboneConfig, NetworkConfig

ROOT = Path(__file__).parent.parent
NETWORK = NetworkConfig(
    backbone=BackboneConfig("tf_efficientnet_lite0", 16, "random"),
    head_channels=16,
    head_dilation=2,
    upsample=4,
    ddnet_channels=8,
)
"""Of the tests that build networks without a job."""


def _crop(stage):
    return (f"--{stage}.augment.crop", "96", f"--{stage}.augment.resize", "96", "112")


SMALL = [
    *("--num-cpus", "2", "--workers", "1", "--part-size", "4", "--inference-batch", "4"),
    *("--network.head-channels", "16", "--network.ddnet-channels", "16", "--static.size", "96"),
    *("--seeds.classifier.epochs", "1", "--seeds.affinity.epochs", "1", "--seeds.cam-size", "96"),
    *("--static.train.epochs", "1", "--dynamic.train.epochs", "2", "--dynamic.train.batch-size", "4"),
    *("--seeds.cam-scales", "1", "--seeds.walk-steps", "4"),
    *("--evaluate.size", "96", "--evaluate.scales", "1", "--evaluate.panels", "2", "--evaluate.train-images", "0"),
    *_crop("seeds.classifier"),
    *_crop("seeds.affinity"),
    *_crop("static.train"),
    *_crop("dynamic.train"),
]


def run_job(name, *args):
    """A script of ray_jobs/ in this process, so that all share one Ray."""
    before = sys.argv
    sys.argv = [name, *map(str, args)]
    try:
        runpy.run_path(str(ROOT / "ray_jobs" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


@contextlib.contextmanager
def listening():
    """What listens among this process's descendants, now or at any time in the block: names, ids, addresses, ports."""
    found, ended = set(), threading.Event()

    def look():
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        address = connection.laddr.ip.removeprefix("::ffff:")
                        found.add((process.name().split(".")[0], process.pid, address, connection.laddr.port))

    def watch():
        while not ended.wait(1.5):
            look()

    look()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()

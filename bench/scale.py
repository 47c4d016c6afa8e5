"""Measures how the driver's time and memory grow with the number of images.

python bench/scale.py [--images 100000 1000000]

The steps are: list the images, compute the fingerprint, read the labels, write and open a table, plan a training. No
image is decoded: the files are empty, and an image in the table is a few bytes. For each number of images, each step
runs in a new process. The results are printed and written to bench/scale.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

RESULT = Path(__file__).with_name("scale.json")


def draw(root: Path, count: int) -> list[str]:
    """Write a folder in VOC's layout with `count` empty images, their list and their labels; return the image ids."""
    for name in ("JPEGImages", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    ids = [f"{k:09d}" for k in range(count)]
    for image_id in ids:
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids))
    (root / "labels.csv").write_text("\n".join(f"{i},cat;dog" for i in ids))
    return ids


def measure(step: str, root: Path, count: int) -> None:
    """Run one step; print its seconds, and this process's peak memory (MiB) before and after it, as a JSON list."""
    from ssdd.data import voc
    from ssdd.data.labels import Labels
    from ssdd.runtime.pipelines import Parts
    from ssdd.storage import tables
    from ssdd.training import ingest

    folder = voc.open_folder(root / "data")
    base = peak()
    begun = time.perf_counter()
    if step == "listing":
        assert len(voc.read_split(folder, "train")) == len(folder.images().names()) == count
    elif step == "fingerprint":
        voc.fingerprint(folder, "train")
    elif step == "labels":
        assert len(Labels.open(folder).rows or ()) == count
    elif step == "write table":
        ids = voc.read_split(folder, "train")
        order = np.random.default_rng(0).permutation(count)
        parts = tables.cut([ids[i] for i in order], 32)
        schema = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
        tables.write_table(root / "table", parts, schema, ({"image_id": i, "image": b"pixels"} for i in ids))
    elif step == "open table":
        assert tables.open_table(root / "table").rows == count
    elif step == "plan of 15 epochs":
        order = ingest.Order(count, 32, 0)
        items = ingest.pieces(order, range(0, 15 * count, 16))
        tasks = Parts(items, print).get_read_tasks(len(items))
        assert len(tasks) <= ingest.MOST_TASKS + 1
        for item in (items[0], items[len(items) // 2]):
            assert len(list(order.rows(item.start, item.stop))) == item.stop - item.start
    print(json.dumps([time.perf_counter() - begun, base, peak()]))


def peak() -> float:
    """The most memory that this process has used so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


STEPS = ("listing", "fingerprint", "labels", "write table", "open table", "plan of 15 epochs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--step", nargs=3, metavar=("STEP", "FOLDER", "IMAGES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step, root, count = args.step
        measure(step, Path(root), int(count))
        return
    rows = []
    for count in args.images:
        with tempfile.TemporaryDirectory() as root:
            (Path(root) / "table").mkdir()
            draw(Path(root) / "data", count)
            for step in STEPS:
                command = [sys.executable, __file__, "--step", step, root, str(count)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, base, most = json.loads(done.stdout.splitlines()[-1])
                rows.append({"images": count, "step": step, "seconds": seconds, "base_mib": base, "peak_mib": most})
                print(f"{count:>9} {step:<18} {seconds:8.1f} s   {most - base:8.0f} MiB over {base:.0f}", flush=True)
    if args.images == parser.get_default("images"):
        RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

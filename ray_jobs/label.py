"""Make a data folder, which the other jobs read, from photographs and labels in one of several common forms.

    python ray_jobs/label.py SOURCE --output DATA [--val 0.1] [--images DIR] [--copy]

SOURCE is a folder with a subfolder of photographs for each class (a photograph in two subfolders has both classes), a
folder of VOC's XML files, COCO's instances.json, or a CSV with lines `FILE,CLASS`. DATA gets the photographs under
unique ids (as hard links if the disk allows it; --copy copies them), classes.txt, labels.csv, and the image lists train
and val.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ssdd.data import label_folder
from ssdd.data.problems import DataError
from ssdd.storage.paths import RemotePath, path_flag


def share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("must be at least 0 and below 1")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument(
        "--output", type=path_flag, required=True, help="the data folder to make; it must not exist yet"
    )
    parser.add_argument("--images", type=Path, help="the folder of the photographs that SOURCE names")
    parser.add_argument("--val", type=share, default=0.1, help="share of the images in the list val (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="random seed for the choice of the images in val")
    parser.add_argument("--copy", action="store_true", help="copy the photographs instead of linking them")
    chosen = parser.parse_args()
    if isinstance(chosen.output, RemotePath):
        parser.error("--output: must be a folder on a disk, not in an object store")
    labels = label_folder.read(chosen.source, chosen.images)
    report = label_folder.write(
        labels,
        chosen.output,
        val=chosen.val,
        copy=chosen.copy,
        seed=chosen.seed,
        progress=lambda items: tqdm(items, leave=False),
    )
    for line in report.lines():
        print(line)
    print(f"data folder {chosen.output}; check it with: ssdd check --data {chosen.output} --sheet sheet.png")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"label: {error}")

"""Check a data set as the jobs would read it, without Ray and without training.

    python ray_jobs/check.py --data DIR [--train-split NAME] [--split NAME] [--json FILE] [--sheet FILE.png]
    python ray_jobs/check.py --data DIR --knowledge DIR --advice DIR

Prints for each image list the number of images, their sizes, and the images and pixels of each class; then warnings,
and errors with their remedies. --json writes the same to a JSON file; --sheet draws up to twelve photographs with their
masks and the names of their classes. The exit code is 2 if there are errors.
"""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from ssdd import cli
from ssdd.config import ConfigError
from ssdd.reports import data_check, figures
from ssdd.storage.artifacts import whole
from ssdd.storage.paths import RemoteError


def main():
    flags, rest = cli.script_flags(json=dict(type=Path), sheet=dict(type=Path))
    config = cli.parse(rest, description=__doc__)
    check = data_check.run(config, lambda name, items, count: tqdm(items, f"list {name}", count, leave=False))
    for line in check.lines():
        print(line)
    if flags.json:
        with whole(flags.json) as aside:
            aside.write_text(json.dumps(check.as_dict(), indent=2, ensure_ascii=False))
    samples = data_check.samples(check, config) if flags.sheet else []
    if samples:
        with whole(flags.sheet) as aside:
            figures.data_sheet(samples, check.classes).savefig(aside, dpi=100, format="png")
        print(f"picture {flags.sheet}")
    elif flags.sheet:
        print("no picture: no image could be read")
    return 2 if check.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ConfigError, OSError, RemoteError) as error:
        print(f"check: {error}", file=sys.stderr)
        sys.exit(2)

"""Score a workspace's models on an image list, of the data they were trained on or of another VOC-layout folder.

    python ray_jobs/evaluate.py [--workspace DIR] [--data DIR] [--split val] [--FIELD VALUE ...]

Every field defaults to its value in the training. A workspace without trained models gets them first.
"""

import argparse
from pathlib import Path

from ssdd import config, evaluate
from ssdd.jobs import job
from ssdd.session import resolve


def read_config():
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--workspace", type=Path)
    known, _ = first.parse_known_args()
    trained = evaluate.recall(resolve(known.workspace, default="workspace", flag="--workspace"))
    if trained is None:
        return config.parse(description=__doc__)
    return config.override(config.from_dict(trained.config), description=__doc__)


if __name__ == "__main__":
    job("evaluate", evaluate.rescore, __doc__, read_config)

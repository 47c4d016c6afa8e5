"""Score a workspace's models on an image list, of the data they were trained on or of another VOC-layout folder.

    python ray_jobs/evaluate.py [--workspace DIR] [--data DIR] [--split val] [--submission FILE] [--FIELD VALUE ...]
    python ray_jobs/evaluate.py --preset paper --data DIR --dynamic.weights SEGMENTATION.pth

Every field defaults to its value in the training, unless --preset says otherwise. A workspace without trained models
gets them first; the second form scores SSDD's published weights instead. --submission writes the masks with CRF as
VOC's test server takes them, results.tgz.
"""

import argparse
from functools import partial

from ssdd import config, evaluate
from ssdd.jobs import job, own_flag
from ssdd.paths import path_flag
from ssdd.session import resolve


def read_config(args):
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--workspace", type=path_flag)
    first.add_argument("--preset")
    known, _ = first.parse_known_args(args)
    if known.preset:
        return config.parse(args, description=__doc__)
    trained = evaluate.recall(resolve(known.workspace, default="workspace", flag="--workspace"))
    if trained is None:
        return config.parse(args, description=__doc__)
    return config.override(config.from_dict(trained.config), args, description=__doc__)


if __name__ == "__main__":
    submission, rest = own_flag("--submission")
    job("evaluate", partial(evaluate.rescore, submission=submission), __doc__, partial(read_config, rest))

"""Score a workspace's networks on an image list of the data that they were trained with, or of other data.

    python ray_jobs/evaluate.py [--workspace DIR] [--data DIR] [--split val] [--submission FILE] [--FIELD VALUE ...]
    python ray_jobs/evaluate.py --preset paper --data DIR --dynamic.weights SEGMENTATION.pth

Every field defaults to its value in the workspace's training or, with --preset (or a --config file that names one), in
the preset. The second form scores SSDD's published weights instead of a workspace's networks. --submission writes the
masks of SSDD's network after the CRF as the archive that VOC's test server takes (results.tgz). --train trains the
networks first if the workspace has none.
"""

from dataclasses import replace
from functools import partial

from ssdd import cli
from ssdd.fields import from_dict
from ssdd.jobs import job
from ssdd.nets import checkpoints
from ssdd.presets import mini
from ssdd.runtime.session import resolve
from ssdd.stages import method
from ssdd.storage.paths import path_flag


def read_config(args, train):
    chosen, _ = cli.script_flags(args, workspace=dict(type=path_flag), preset={}, config=dict(type=path_flag))
    fields = cli.read_fields(chosen.config) if chosen.config else {}
    named = cli.with_fields(mini(), {"workspace": fields.get("workspace")}, chosen.config).workspace
    workspace = resolve(chosen.workspace or named, default="workspace", flag="--workspace")
    trained = None if chosen.preset or "preset" in fields else checkpoints.recall(workspace)
    if trained is not None:
        return cli.parse(args, __doc__, default=replace(from_dict(trained.config), workspace=workspace))
    config = cli.parse(args, description=__doc__)
    if not (train or config.dynamic.weights):
        where = resolve(config.workspace, default="workspace", flag="--workspace")
        method.find_trained(where)  # raises its error before anything is written there
    return config


if __name__ == "__main__":
    flags, rest = cli.script_flags(submission=dict(type=path_flag), train=dict(action="store_true"))
    run = partial(method.rescore, submission=flags.submission, train=flags.train)
    job("evaluate", run, __doc__, partial(read_config, rest, flags.train))

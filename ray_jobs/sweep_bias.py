"""Sweep the biases of eq. 3: hundreds of points on stored difference maps, or trainings of the dynamic stage.

python ray_jobs/sweep_bias.py [--sweep.stage static|dynamic] [--sweep.space static.bias.bias=0,0.1,0.2 ...]
"""

from functools import partial

from ssdd import sweep, sweep_bias
from ssdd.jobs import job


def run(session):
    return sweep_bias.run(session, sweep_bias.kind(session.config.sweep.stage))


if __name__ == "__main__":
    job("sweep_bias", run, __doc__, partial(sweep_bias.read_config, None, __doc__), sweep.lines)

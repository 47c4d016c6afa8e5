"""Sweep the biases of eq. 3.

Stage static: hundreds of points, scored on stored difference maps. Stage dynamic: each point is a training.

python ray_jobs/sweep_bias.py [--sweep.stage static|dynamic] [--sweep.space static.bias.bias=0,0.1,0.2 ...]
"""

from ssdd import jobs
from ssdd.sweeps import bias

if __name__ == "__main__":
    jobs.sweep("sweep_bias", __doc__, lambda config: bias.bias_sweep(config.sweep.stage), bias.run)

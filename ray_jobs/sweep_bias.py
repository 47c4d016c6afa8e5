"""Sweep the biases of eq. 3: hundreds of points on stored difference maps, or trainings of the dynamic stage.

python ray_jobs/sweep_bias.py [--sweep.stage static|dynamic] [--sweep.space static.bias.bias=0,0.1,0.2 ...]
"""

from ssdd import jobs
from ssdd.sweeps import bias

if __name__ == "__main__":
    jobs.sweep("sweep_bias", __doc__, lambda config: bias.bias_sweep(config.sweep.stage), bias.run)

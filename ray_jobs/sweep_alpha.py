"""Sweep alpha, biases or learning rate of the dynamic stage. Each trial is a training; ASHA stops the poor ones.

python ray_jobs/sweep_alpha.py [--sweep.space dynamic.alpha=0:1] [--sweep.search random|optuna] [--FIELD VALUE ...]
"""

from ssdd import jobs
from ssdd.sweeps.alpha import ALPHA_SWEEP

if __name__ == "__main__":
    jobs.sweep("sweep_alpha", __doc__, lambda config: ALPHA_SWEEP)

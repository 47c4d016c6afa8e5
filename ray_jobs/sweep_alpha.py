"""Sweep the dynamic stage: alpha, its biases, its learning rate. Trainings, the poor ones of which are stopped (ASHA).

python ray_jobs/sweep_alpha.py [--sweep.space dynamic.alpha=0:1] [--sweep.search random|optuna] [--FIELD VALUE ...]
"""

from functools import partial

from ssdd import sweep
from ssdd.jobs import job
from ssdd.sweep_alpha import KIND

if __name__ == "__main__":
    job(KIND.name, partial(sweep.run, kind=KIND), __doc__, partial(sweep.read_config, KIND, None, __doc__), sweep.lines)

"""Sweep the CRF that makes advice: mean IoU of knowledge, CRF alone and SSDD + CRF (Fig. 6).

python ray_jobs/sweep_crf.py [--sweep.space crf.bilateral-weight=1,3,5,10,20 ...] [--FIELD VALUE ...]
"""

from functools import partial

from ssdd import sweep
from ssdd.jobs import job
from ssdd.sweep_crf import KIND

if __name__ == "__main__":
    job(KIND.name, partial(sweep.run, kind=KIND), __doc__, partial(sweep.read_config, KIND, None, __doc__), sweep.lines)

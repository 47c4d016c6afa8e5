"""Sweep the CRF that makes the advice: mean IoU of knowledge, of the CRF alone and of SSDD with the CRF (Fig. 6).

python ray_jobs/sweep_crf.py [--sweep.space crf.bilateral-weight=1,3,5,10,20 ...] [--FIELD VALUE ...]
"""

from ssdd import jobs
from ssdd.sweeps.crf import CRF_SWEEP

if __name__ == "__main__":
    jobs.sweep("sweep_crf", __doc__, lambda config: CRF_SWEEP)

"""The paper's comparison: SSDD's network, and the same network trained on fixed masks without SSDD.

    python ray_jobs/compare.py [--compare.random-seeds 0 1] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]

The fixed masks are knowledge, advice (the paper calls this baseline "PSA retrained"), the advice of a CRF that changes
masks less (`gentle_crf`), or the static stage's refined masks m^D0; `--compare.rows` names the networks to train.
Prints the mean and the standard deviation of each mean IoU over the random seeds; writes `compare.json` into the
workspace.
"""

from ssdd.jobs import job
from ssdd.stages import compare

if __name__ == "__main__":
    job("compare", compare.run, __doc__, report=compare.lines)

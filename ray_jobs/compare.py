"""The paper's comparison: the same network, trained on knowledge, on advice (PSA retrained), on m^D0, and with SSDD.

    python ray_jobs/compare.py [--compare.random-seeds 0 1] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]

Prints the mean and the standard deviation of each mean IoU over the random seeds; writes `compare.json` into the
workspace.
"""

from ssdd.jobs import job
from ssdd.stages import compare

if __name__ == "__main__":
    job("compare", compare.run, __doc__, report=compare.lines)

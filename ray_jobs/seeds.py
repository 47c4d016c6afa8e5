"""Make PSA's seeds, the masks knowledge and advice, with a classifier, CAMs, AffinityNet, a random walk and a CRF.

    python ray_jobs/seeds.py [--preset NAME] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]

Writes `metrics-seeds.json` and `report-seeds.html` into the workspace.
"""

from ssdd.jobs import job
from ssdd.stages import evaluate, report, seeds


def run(session):
    return report.write(session, evaluate.score_seeds(session, seeds.run(session)), "seeds")


if __name__ == "__main__":
    job("seeds", run, __doc__)

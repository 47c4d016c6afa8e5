"""PSA's seeds (classifier, CAM, AffinityNet, random walk, CRF): knowledge and advice of the training list.

python ray_jobs/seeds.py [--preset NAME] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]
"""

from ssdd.jobs import job
from ssdd.stages import evaluate, seeds


def run(session):
    return evaluate.score_seeds(session, seeds.run(session))


if __name__ == "__main__":
    job("seeds", run, __doc__)

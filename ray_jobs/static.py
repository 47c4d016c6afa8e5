"""Seeds and their static refinement (sec. 4.1): knowledge, advice and the refined masks m^D0 of the training list.

    python ray_jobs/static.py [--preset NAME] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]
    python ray_jobs/static.py --data DIR --knowledge DIR --advice DIR

The second refines any two folders of masks of the same images, without PSA's seeds.
"""

from ssdd import evaluate, knowledge, static
from ssdd.jobs import job


def run(session):
    return evaluate.score_refined(session, static.run(session, knowledge.run(session)))


if __name__ == "__main__":
    job("static", run, __doc__)

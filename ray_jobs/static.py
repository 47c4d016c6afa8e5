"""Seeds and their static refinement (sec. 4.1): knowledge, advice and the refined masks m^D0 of the training list.

python ray_jobs/static.py [--preset mini|paper] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]
"""

from ssdd import evaluate, static
from ssdd.jobs import job


def run(session):
    return evaluate.score_refined(session, static.run(session))


if __name__ == "__main__":
    job("static", run, __doc__)

"""The whole method, from image labels to a trained network: seeds, static and dynamic refinement, evaluation.

python ray_jobs/dynamic.py [--preset NAME] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]
ray job submit --working-dir . -- python ray_jobs/dynamic.py ...
"""

from ssdd.jobs import job
from ssdd.stages import method

if __name__ == "__main__":
    job("dynamic", method.run, __doc__)

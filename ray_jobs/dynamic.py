"""Image labels in, masks and a trained segmentation model out: seeds, static and dynamic refinement, evaluation.

python ray_jobs/dynamic.py [--preset NAME] [--data DIR] [--workspace DIR] [--FIELD VALUE ...]
ray job submit --working-dir . -- python ray_jobs/dynamic.py ...
"""

from ssdd import evaluate
from ssdd.jobs import job

if __name__ == "__main__":
    job("dynamic", evaluate.run, __doc__)

"""Segment one photograph or millions with a trained network; an interrupted run continues where it stopped.

    python ray_jobs/predict.py --model WORKSPACE --input PHOTOGRAPHS --output DIR [--no-crf] [--overlay] ...

DIR/masks gets a palette PNG for each photograph. DIR/predictions.parquet gets a row for each: the classes, each class's
share of the pixels, and the mean over the pixels of the highest class probability. For a photograph that could not be
used, the row has the reason.
"""

from ssdd import cli
from ssdd.config import PredictConfig
from ssdd.jobs import plain
from ssdd.stages import predict

if __name__ == "__main__":
    plain("predict", lambda: predict.run(cli.options(PredictConfig, description=__doc__)).lines())

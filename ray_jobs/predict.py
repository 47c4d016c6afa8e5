"""Masks of photographs by a trained network: of one, of a folder or of millions; a run goes on where it was killed.

    python ray_jobs/predict.py --model WORKSPACE --input PHOTOGRAPHS --output DIR [--no-crf] [--overlay] ...

DIR/masks gets a palette PNG for each photograph, DIR/predictions.parquet a row: its classes, their shares of the
pixels, the mean of the largest probability, and why a photograph could not be used.
"""

from ssdd import cli
from ssdd.config import PredictConfig
from ssdd.jobs import plain
from ssdd.stages import predict

if __name__ == "__main__":
    plain("predict", lambda: predict.run(cli.options(PredictConfig, description=__doc__)).lines())

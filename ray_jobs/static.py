"""Make the seeds (knowledge, advice) of the training images and refine them into m^D0: static refinement (sec. 4.1).

    python ray_jobs/static.py [--preset NAME] [--data DIR] [--workspace DIR] [--output DIR] [--FIELD VALUE ...]
    python ray_jobs/static.py --data DIR --knowledge DIR --advice DIR --output DIR

The second form refines two folders with masks or class maps of another method (docs/other-methods.md) instead of PSA's
seeds. --output writes the refined masks as ID.png into a new folder. `metrics-static.json` and `report-static.html` in
the workspace have the scores.
"""

from functools import partial

from ssdd import cli
from ssdd.config import ConfigError
from ssdd.jobs import job
from ssdd.runtime.session import resolve
from ssdd.stages import evaluate, knowledge, report, static, weight_import
from ssdd.storage.paths import path_flag


def run(output, session):
    folder = output and resolve(output, default="refined", flag="--output")
    if folder and folder.exists():
        raise ConfigError(f"--output {folder}: already exists; name a new folder")
    weight_import.convert_all(session)
    refined = static.run(session, knowledge.run(session))
    scores = evaluate.score_refined(session, refined)
    if folder:
        evaluate.export_refined(refined, folder)
        session.console.line(f"refined masks {folder}")
    return report.write(session, scores, "static")


if __name__ == "__main__":
    flags, rest = cli.script_flags(output=dict(type=path_flag))
    job("static", partial(run, flags.output), __doc__, partial(cli.parse, rest, __doc__))

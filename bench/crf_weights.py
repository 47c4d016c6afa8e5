"""Fig. 6 in small: mean IoU of advice and of the refined masks over the weight of the CRF's appearance kernel.

    python bench/crf_weights.py [--preset NAME] [--data DIR] [--workspace DIR] [--parts 10] [--FIELD VALUE ...]

Takes a workspace's knowledge and its DD-Net, which was trained with the configuration's own weight, and computes the
advice of the first `--parts` parts of the training list anew for each weight. Draws `figures/crf-weights.png`.
"""

from dataclasses import replace
from functools import partial

import ray
from matplotlib.figure import Figure

from ssdd import config, crf_rows, knowledge, static, tables, voc
from ssdd.config import ConfigError
from ssdd.jobs import job, own_flag
from ssdd.metrics import ConfusionMatrix

WEIGHTS = (1, 3, 5, 10, 20)
NAMES = ("knowledge", "advice", "refined")


def run(parts, session):
    chosen = session.config
    if chosen.knowledge is not None:
        raise ConfigError("--knowledge: this measures PSA's seeds, whose probabilities the CRF needs; leave it out")
    made = knowledge.run(session)
    seed = chosen.compare.random_seeds[0]  # as in a comparison, whose workspace it can be
    with session.child(replace(chosen, seed=seed), f"seed {seed}", session.plan) as own:
        refined = static.run(own, made)
    classes = len(made.images.classes)
    stage = static.RefineStage(chosen.network, chosen.static, classes, refined.net.path)
    advise = ray.remote(num_cpus=1)(crf_rows.advise)
    scores = {weight: {name: ConfusionMatrix(classes) for name in NAMES} for weight in WEIGHTS}
    for part in range(min(parts, len(made.table.parts))):
        columns = ["image", "presence", "truth", "probs", "knowledge"]
        rows = tables.read_joined([made.images.table, made.table], part, columns)
        rows = [row for row in rows if row["truth"] is not None]
        groups = [rows[k : k + 4] for k in range(0, len(rows), 4)]
        for weight in WEIGHTS:
            crf = replace(chosen.crf, bilateral_weight=weight)
            for group, advised in zip(groups, ray.get([advise.remote(crf, g) for g in groups]), strict=True):
                both = [row | {"advice": new["advice"]} for row, new in zip(group, advised, strict=True)]
                for row, out in zip(both, stage(both), strict=True):
                    for name, matrix in scores[weight].items():
                        matrix.update(voc.read_mask((row | out)[name]), voc.read_mask(row["truth"]))
        session.console.line(f"part {part + 1}")
    means = {weight: {name: 100 * m.mean_iou() for name, m in of.items()} for weight, of in scores.items()}
    draw(means, session.workspace / "figures" / "crf-weights.png")
    return means


def draw(means, path):
    figure = Figure(figsize=(4, 3), layout="constrained")
    axis = figure.subplots()
    for name in NAMES:
        axis.plot(range(len(means)), [of[name] for of in means.values()], marker="o", label=name)
    axis.set(xlabel="$w_{rgb}$", ylabel="mean IoU (%)", xticks=range(len(means)), xticklabels=list(means))
    axis.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def lines(means):
    return [f"w_rgb {w:>2}  " + "  ".join(f"{name} {of[name]:.1f}" for name in NAMES) for w, of in means.items()]


if __name__ == "__main__":
    parts, rest = own_flag("--parts", int, 10)
    job("crf-weights", partial(run, parts), __doc__, partial(config.parse, rest, __doc__), lines)

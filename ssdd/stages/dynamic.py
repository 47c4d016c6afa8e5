"""Stage 3: dynamic region refinement (sec. 4.2), and the baselines that it must beat."""

from dataclasses import dataclass, replace
from functools import partial

from ssdd.nets.inference import PredictStage
from ssdd.objectives.crf import BatchCRF, ExactCRF, InlineCRF
from ssdd.objectives.dynamic import DynamicTask
from ssdd.objectives.fixed import FixedTask
from ssdd.runtime import cluster, pipelines
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.stages import crf_rows, seeds, weight_import
from ssdd.stages.seeds import SEED_SCHEMA, Seeds
from ssdd.stages.static import Refined
from ssdd.stages.validation import Validation
from ssdd.storage.artifacts import Artifact
from ssdd.training import trainer


def start_of(session: Session, refined: Refined) -> Artifact:
    """The initial weights: the static network's if `dynamic.init` is `static`, else the classifier's or ImageNet's."""
    return refined.net if session.config.dynamic.init == "static" else seeds.start_of(session, refined.seeds)


@dataclass(frozen=True)
class Models:
    """The networks `dynamic` and `baseline`, each with a `SegmentationNet`'s weights, and the masks m^D0 (`refined`).

    The artifact `dynamic` also has the weights of the DD-Nets and the sub branch, unless it was made from the
    published segmentation checkpoint alone.
    """

    refined: Refined
    dynamic: Artifact
    baseline: Artifact


def run(session: Session, refined: Refined, validate: Validation | None = None) -> Artifact:
    """Train SSDD's segmentation network, with a CRF in every iteration; `step.crf` chooses where the CRF runs.

    Args:
        session: cluster, workspace, tracking.
        refined: the static stage's masks m^D0.
        validate: scores the network after every epoch.
    """
    config, seed_masks = session.config, refined.seeds
    if config.dynamic.weights:
        return weight_import.dynamic(session, seed_masks.images.classes)
    start = start_of(session, refined)
    recipe = {
        "refined": refined.artifact,
        "start": start,
        "network": config.network.architecture,
        # The baselines' fields do not change this training.
        "dynamic": replace(config.dynamic, baseline="advice", baseline_epochs=None, baseline_lr=None),
        "seed": config.seed,
    }
    crf = config.step.crf_of(session.plan.threads, session.plan.use_gpu)
    if crf == "exact":
        recipe["crf"] = "exact"
    plan, needed = cluster.remaining(session.plan), 0
    if crf == "actors" and not session.has("dynamic", recipe):
        needed = min(plan.crf_actors, config.dynamic.train.batch_size)
    nodes = cpu_nodes_first(cluster.nodes(), needed, plan.unit, plan.workers)
    pool = CRFPool(nodes, plan.unit, plan.crf_environment)
    params = config.dynamic.crf
    backends: dict[str, BatchCRF] = {
        "actors": ActorCRF(params, pool),
        "inline": InlineCRF(params),
        "exact": ExactCRF(params),
    }
    try:
        task = DynamicTask(
            network=config.network,
            dynamic=config.dynamic,
            classes=len(seed_masks.images.classes),
            start=start,
            crf=backends[crf],
        )
        tables = [seed_masks.images.table, refined.table]
        return trainer.run(session, "dynamic", recipe, task, tables, validate, len(pool.actors))  # type: ignore[arg-type]
    finally:
        pool.close()


def run_fixed(session: Session, refined: Refined, column: str, name: str | None = None) -> Artifact:
    """Train the same network on fixed masks.

    Args:
        session: cluster, workspace, tracking.
        refined: m^D0, with the knowledge and advice that it was made from.
        column: the masks: `knowledge`, `advice` (PSA retrained) or `refined`.
        name: the artifact's name. Default: `baseline` for advice, `baseline_COLUMN` for the others.
    """
    config, seed_masks = session.config, refined.seeds
    start = start_of(session, refined)
    task = FixedTask(
        network=config.network,
        train=config.dynamic.baseline_train,
        classes=len(seed_masks.images.classes),
        start=start,
        column=column,
    )
    table, masks = (refined.table, refined.artifact) if column == "refined" else (seed_masks.table, seed_masks.artifact)
    recipe = {
        "masks": masks,
        "column": column,
        "start": start,
        "network": config.network.architecture,
        "train": config.dynamic.baseline_train,
        "seed": config.seed,
    }
    default = "baseline" if column == "advice" else f"baseline_{column}"
    return trainer.run(session, name or default, recipe, task, [seed_masks.images.table, table])


def relabel(session: Session, models: Models) -> Seeds:
    """The next round's knowledge and advice: the dynamic network's masks of the training list, without and with CRF."""
    config, seed_masks = session.config, models.refined.seeds
    recipe = {
        "images": seed_masks.images.artifact,
        "model": models.dynamic,
        "evaluate": (config.evaluate.size, config.evaluate.scales, config.evaluate.mirror, config.evaluate.full_size),
        "crf": config.crf,
    }
    model = {"probs": models.dynamic.path}
    infer = partial(
        pipelines.infer,
        [seed_masks.images.table],
        ["image", "presence"],
        partial(
            PredictStage,
            network=config.network,
            evaluate=config.evaluate,
            classes=len(seed_masks.images.classes),
            models=model,
            present_only=True,
        ),
        partial(crf_rows.advise, config.crf),
        config.inference_batch,
        session.plan,
    )
    table, artifact = session.build_table("relabelled", recipe, seed_masks.images.table.parts, SEED_SCHEMA, infer)
    return Seeds(seed_masks.images, table, artifact, seed_masks.classifier)

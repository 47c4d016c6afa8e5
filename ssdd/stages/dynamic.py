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
    """Where the trainings start, as `dynamic.init` says: the classifier's backbone or the static stage's network."""
    return refined.net if session.config.dynamic.init == "static" else seeds.start_of(session, refined.seeds)


@dataclass(frozen=True)
class Models:
    """The trained segmentation networks, `SegmentationNet` state dicts (the dynamic one has more beside it)."""

    refined: Refined
    dynamic: Artifact
    baseline: Artifact


def run(session: Session, refined: Refined, validate: Validation | None = None) -> Artifact:
    """Train SSDD's segmentation network, with a CRF in every iteration, as `step.crf` says where.

    Args:
        session: cluster, workspace, tracking.
        refined: m^D0.
        validate: scores the network after every epoch.
    """
    config, made = session.config, refined.seeds
    if config.dynamic.weights:
        return weight_import.dynamic(session, made.images.classes)
    start = start_of(session, refined)
    recipe = {
        "refined": refined.artifact,
        "start": start,
        "network": config.network,
        # The fields of the baselines change nothing here.
        "dynamic": replace(config.dynamic, baseline="advice", baseline_epochs=None, baseline_lr=None),
        "seed": config.seed,
    }
    crf = config.step.crf_of(session.plan.threads, session.plan.use_gpu)
    if crf == "exact":
        recipe["crf"] = "exact"
    needed = 0
    if crf == "actors" and not session.has("dynamic", recipe):
        needed = min(session.plan.crf_actors, config.dynamic.train.batch_size)
    unit = session.plan.unit
    pool = CRFPool(cpu_nodes_first(cluster.nodes(), needed, unit), unit, session.plan.crf_environment)
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
            classes=len(made.images.classes),
            start=start,
            crf=backends[crf],
        )
        tables = [made.images.table, refined.table]
        return trainer.run(session, "dynamic", recipe, task, tables, validate)  # type: ignore[arg-type]
    finally:
        pool.close()


def run_fixed(session: Session, refined: Refined, column: str, name: str | None = None) -> Artifact:
    """The same network, trained on fixed masks.

    Args:
        session: cluster, workspace, tracking.
        refined: m^D0 and its seeds.
        column: the masks: `knowledge`, `advice` (PSA retrained) or `refined`.
        name: of the artifact. Default: `baseline` for advice, `baseline_COLUMN` for the others.
    """
    config, made = session.config, refined.seeds
    start = start_of(session, refined)
    task = FixedTask(
        network=config.network,
        train=config.dynamic.baseline_train,
        classes=len(made.images.classes),
        start=start,
        column=column,
    )
    table, masks = (refined.table, refined.artifact) if column == "refined" else (made.table, made.artifact)
    recipe = {
        "masks": masks,
        "column": column,
        "start": start,
        "network": config.network,
        "train": config.dynamic.baseline_train,
        "seed": config.seed,
    }
    default = "baseline" if column == "advice" else f"baseline_{column}"
    return trainer.run(session, name or default, recipe, task, [made.images.table, table])


def relabel(session: Session, models: Models) -> Seeds:
    """Another round's knowledge and advice: the dynamic network's masks of the training images, and their CRF."""
    config, made = session.config, models.refined.seeds
    recipe = {
        "images": made.images.artifact,
        "model": models.dynamic,
        "evaluate": (config.evaluate.size, config.evaluate.scales, config.evaluate.mirror, config.evaluate.full_size),
        "crf": config.crf,
    }
    model = {"probs": models.dynamic.path}
    infer = partial(
        pipelines.infer,
        [made.images.table],
        ["image", "presence"],
        partial(
            PredictStage,
            network=config.network,
            evaluate=config.evaluate,
            classes=len(made.images.classes),
            models=model,
            present_only=True,
        ),
        partial(crf_rows.advise, config.crf),
        config.inference_batch,
        session.plan,
    )
    table, artifact = session.build_table("relabelled", recipe, made.images.table.parts, SEED_SCHEMA, infer)
    return Seeds(made.images, table, artifact, made.classifier)

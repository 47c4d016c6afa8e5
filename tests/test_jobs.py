"""Each job once, small, through Ray, on one shared local cluster; then faults, and what users get wrong."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from mlflow import MlflowClient
from PIL import Image
from small import ROOT, SMALL, listening, run_job

import ssdd
from ssdd import cli
from ssdd.config import AugmentConfig, ConfigError
from ssdd.crf import CRFParams, crf_masks
from ssdd.data import codec, synthetic, voc
from ssdd.data.drawn_objects import CLASSES
from ssdd.data.problems import DataError
from ssdd.data.sampling import Sampling
from ssdd.nets import checkpoints
from ssdd.objectives.classifier import ClassifierTask
from ssdd.objectives.dynamic import DynamicTask
from ssdd.runtime import cluster
from ssdd.runtime.actor_crf import ActorCRF
from ssdd.runtime.crf_pool import CRFPool
from ssdd.runtime.plan import cpu_nodes_first
from ssdd.runtime.session import Session
from ssdd.runtime.tracking import sqlite_uri
from ssdd.stages import images
from ssdd.storage import paths
from ssdd.storage.artifacts import Artifact
from ssdd.storage.paths import RemotePath
from ssdd.storage.tables import open_table
from ssdd.training import ingest, trainer
from ssdd.training.ingest import Order

pytestmark = pytest.mark.ray


def artifacts(workspace):
    return {p.name: p.stat().st_mtime_ns for p in (workspace / "artifacts").iterdir()}


def first_round(workspace):
    """Folders of images, seeds, refined masks, static and dynamic network that belong together, among others."""

    def recipe(folder):
        return json.loads((folder / "recipe.json").read_text())

    folder = workspace / "artifacts"
    (images,) = folder.glob("images-train-*")
    for dynamic in folder.glob("dynamic-*"):
        refined, static = (folder / recipe(dynamic)[name] for name in ("refined", "start"))
        made = folder / recipe(refined)["seeds"]
        if made.name.startswith("seeds-"):  # a further round has the masks of a network there
            return images, made, refined, static, dynamic
    raise AssertionError("no dynamic network of the first round")


def test_seeds_job(places, capsys):
    folder, workspace = places
    with listening() as found:
        run_job("seeds", *SMALL, "--data", folder, "--workspace", workspace)
    assert "ray::RayTrainWorker" in {name for name, *_ in found}
    assert {address for _, _, address, _ in found} == {"127.0.0.1"}
    out = capsys.readouterr().out
    assert "train.knowledge" in out
    assert "[classifier] 1/1  epoch 1/1  loss.class" in out
    assert "train.refined" not in out
    assert not any(name.startswith("static") for name in artifacts(workspace))


def test_static_job_reuses_the_seeds(places, capsys):
    folder, workspace = places
    before = artifacts(workspace)
    run_job("static", *SMALL, "--data", folder, "--workspace", workspace)
    assert "[seeds] unchanged" in capsys.readouterr().out
    after = artifacts(workspace)
    assert before.items() <= after.items()
    assert any(name.startswith("refined") for name in set(after) - set(before))
    assert (workspace / "figures" / "refinement.png").is_file()


REPORTS = ("--evaluate.train-images", "5")


def test_dynamic_job_ends_with_the_table(places, capsys):
    folder, workspace = places
    run_job("dynamic", *SMALL, *REPORTS, "--data", folder, "--workspace", workspace)
    metrics = json.loads((workspace / "metrics.json").read_text())
    names = {"train.knowledge", "train.advice", "train.refined", "val.baseline", "val.dynamic", "val.dynamic_crf"}
    names |= {"gated.baseline", "gated.dynamic", "dynamic1.refined", "dynamic2.refined"}
    assert names <= set(metrics)
    assert names <= set(metrics["foreground"])
    for stage in ("train", "dynamic1", "dynamic2"):
        assert {f"{stage}.differing", f"{stage}.advice_true", f"{stage}.oracle"} <= set(metrics["difference"])
    assert all(0 <= metrics[name] <= 100 for name in names)
    assert set(metrics["per_class"]["val.dynamic"]) == {"background", *CLASSES}
    (decisions,) = (open_table(path) for path in (workspace / "artifacts").glob("decisions-*"))
    assert decisions.rows == 8, "two whole parts"
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert not list((workspace / "runs").iterdir()), "finished trainings leave no checkpoints"
    report = (workspace / "report.html").read_text()
    assert re.search(r"dynamic\.py --num-cpus 2 .* --evaluate.train-images 5", re.sub("</?span>", "", report))
    for name in names:
        assert f'<th scope="row">{name}</th><td><data value="{metrics[name]}">' in report
    for name, made in (("classifier", "reused"), ("static", "reused"), ("dynamic", "made by this job")):
        assert re.search(rf'<h3>{name} <span class="quiet">{made}, \d+.*s</span></h3>', report), "with curves"
    assert report.count('aria-label="losses of') == report.count('aria-label="learning rate of') == 5
    pictures = ("refinement.png", "reliability.png", "training-masks.png", "predictions-val.png")
    assert all(f"<code>figures/{name}</code>" in report for name in pictures)
    assert "not stored" not in report
    for job in ("seeds", "static"):
        scores = json.loads((workspace / f"metrics-{job}.json").read_text())
        assert f'{scores["train.advice"]}">' in (workspace / f"report-{job}.html").read_text()


def test_mlflow_serves_the_network_that_was_logged(places, tmp_path):
    folder, workspace = places
    client = MlflowClient(sqlite_uri(workspace / "mlflow.db"))
    (model,) = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    assert {"val.dynamic", "val.dynamic_crf"} <= {metric.key for metric in model.metrics}
    photograph = folder / "JPEGImages" / "val_0000.jpg"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # MLflow's server cannot read a model below a folder with such a name.
    shutil.copytree(workspace / "mlartifacts" / "models" / model.model_id / "artifacts", tmp_path / "model")
    program = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(tmp_path / "model"), *flags]
    server = subprocess.Popen(
        program,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        data = base64.b64encode(photograph.read_bytes()).decode()
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[data]]}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "the server does not answer"
            assert server.poll() is None, server.stdout.read().decode()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    (row,) = json.load(answer)["predictions"]
                break
            except urllib.error.HTTPError as error:
                pytest.fail(error.read().decode())
            except (ConnectionError, TimeoutError, urllib.error.URLError):  # it starts
                time.sleep(0.5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    mask = codec.read_mask(base64.b64decode(row["mask"]))
    np.testing.assert_array_equal(mask, ssdd.load(workspace).predict(photograph))


def test_the_same_command_runs_nothing_again(places, capsys):
    folder, workspace = places
    before = artifacts(workspace)
    run_job("dynamic", *SMALL, *REPORTS, "--data", folder, "--workspace", workspace)
    assert artifacts(workspace) == before
    assert "starts" not in capsys.readouterr().out


def test_a_changed_bias_refines_again_without_training_again(places):
    folder, workspace = places
    before = artifacts(workspace)
    changed = ["--static.bias.bias", "0.3", "--static.bias.vanish-ratio", "0.4"]
    run_job("static", *SMALL, *changed, "--data", folder, "--workspace", workspace)
    (new,) = set(artifacts(workspace)) - set(before)
    assert new.startswith("refined-")


def test_another_baseline_leaves_ssdds_training_alone(places):
    folder, workspace = places
    before = artifacts(workspace)
    run_job("dynamic", *SMALL, "--dynamic.baseline", "advice", "--data", folder, "--workspace", workspace)
    new = sorted(name.rsplit("-", 1)[0] for name in set(artifacts(workspace)) - set(before))
    assert new == ["baseline", "predictions"]


def test_evaluate_of_a_workspace_that_is_not_there_makes_nothing(tmp_path):
    with pytest.raises(SystemExit, match=r"evaluate: --workspace .*/typo: nothing was trained there.*give --train to"):
        run_job("evaluate", "--workspace", tmp_path / "typo")
    (tmp_path / "file.yaml").write_text(f"workspace: {tmp_path / 'typo'}")
    with pytest.raises(SystemExit, match=r"evaluate: --workspace .*/typo: nothing was trained there"):
        run_job("evaluate", "--config", tmp_path / "file.yaml")
    assert not (tmp_path / "typo").exists()


def test_evaluate_job_scores_another_folder(places, tmp_path):
    _, workspace = places
    other = synthetic.generate(tmp_path / "other", train=1, val=3, seed=7)
    kept = [workspace / "metrics.json", workspace / "figures" / "predictions-val.png"]
    before = [path.read_bytes() for path in kept]
    run_job("evaluate", "--workspace", workspace, "--data", other, "--split", "val")
    scores = json.loads((workspace / "metrics-other-val.json").read_text())
    assert 0 <= scores["val.dynamic"] <= 100
    assert (workspace / "figures" / "predictions-other-val.png").is_file()
    report = (workspace / "report-other-val.html").read_text()
    assert f'<data value="{scores["val.dynamic"]}">' in report
    assert 'aria-label="losses of dynamic"' in report, "of the training behind the scores"
    assert [path.read_bytes() for path in kept] == before


def test_a_loaded_network_gives_the_masks_that_are_scored(places):
    folder, workspace = places
    ids = voc.read_split(voc.open_folder(folder), "val")
    models = {name: Path(folder).name for name, folder in checkpoints.recall(workspace).models.items()}
    predictions, *_ = [
        path
        for path in (workspace / "artifacts").glob("predictions-*")
        if open_table(path).rows == len(ids) and json.loads((path / "recipe.json").read_text())["models"] == models
    ]
    rows = {row["image_id"]: row for row in open_table(predictions)}
    files = [folder / "JPEGImages" / f"{image_id}.jpg" for image_id in ids]
    for name in ("dynamic", "baseline"):
        segmenter = ssdd.load(workspace, name)
        for column, crf in ((name, False), (f"{name}_crf", True)):
            masks = segmenter.predict(files, crf=crf)
            scored = [codec.read_mask(rows[image_id][column]) for image_id in ids]
            same = [(mask == other).mean() for mask, other in zip(masks, scored, strict=True)]
            assert min(same) > 0.999, "rounding aside, which the number of threads and images at once decide"
    np.testing.assert_array_equal(
        ssdd.load(str(workspace)).predict(files[0]), ssdd.load(workspace, "dynamic").predict(files[0])
    )
    with pytest.raises(ConfigError, match="has no network 'best'; it has baseline, dynamic"):
        ssdd.load(workspace, "best")


def test_evaluate_writes_the_archive_of_vocs_test_server(places, tmp_path):
    folder, workspace = places
    run_job("evaluate", "--workspace", workspace, "--submission", tmp_path / "out" / "results.tgz")
    ids = voc.read_split(voc.open_folder(folder), "val")
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert set(members) == {f"results/VOC2012/Segmentation/comp6_test_cls/{i}.png" for i in ids}
    # Of SSDD's network beside either baseline: its masks are the same.
    predictions, *_ = [p for p in (workspace / "artifacts").glob("predictions-*") if open_table(p).rows == len(ids)]
    rows = {row["image_id"]: row["dynamic_crf"] for row in open_table(predictions)}
    for name, mask in members.items():
        np.testing.assert_array_equal(codec.read_mask(mask), codec.read_mask(rows[Path(name).stem]))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["results.tgz"]
    assert "<code>figures/training-masks.png</code>" in (workspace / "report.html").read_text(), "of the same network"


def test_compare_job_repeats_what_differs_and_prints_means_and_spread(places, capsys):
    folder, workspace = places
    before = artifacts(workspace)
    rows = ["--compare.rows", "baseline"]
    args = [*SMALL, "--workers", "2", "--compare.random-seeds", "0", "1", *rows]
    run_job("compare", *args, "--data", folder, "--workspace", workspace)
    new = sorted(name.rsplit("-", 1)[0] for name in set(artifacts(workspace)) - set(before))
    made = ["static", "refined", "baseline", "predictions", "predictions"]
    assert new == sorted(made), "of seed 0 only the predictions are new: of one model, not of two"
    record = json.loads((workspace / "compare.json").read_text())
    assert record["random_seeds"] == [0, 1]
    for name in ("train.refined", "val.baseline", "val.baseline_crf"):
        score = record["scores"][name]
        assert score["mean"] == pytest.approx(sum(score["values"]) / 2)
        assert all(0 <= value <= 100 for value in score["values"])
    report = (workspace / "report-compare.html").read_text()
    values = [score["mean"], score["std"], *score["values"]]
    cells = "".join(f'<td><data value="{value}">[^<]*</data></td>' for value in values)
    assert re.search(rf'<th scope="row">val.baseline_crf</th>{cells}', report)
    assert "<h3>seed 1: static " in report
    assert all(f"<code>figures/predictions-val-seed{seed}.png</code>" in report for seed in (0, 1))
    out = capsys.readouterr().out
    assert "2 random seeds, 2 at a time" in out
    assert "seed 1: [static] done" in out
    assert re.search(r"advice m\^A0 \(PSA retrained\) \+ CRF +\d+\.\d \+- \d", out)
    assert {p.stem for p in (workspace / "figures").glob("predictions-val-*")} == {
        "predictions-val-seed0",
        "predictions-val-seed1",
    }


def test_the_gentle_crf_makes_a_baseline_and_another_score(places):
    folder, workspace = places
    before = artifacts(workspace)
    args = ["--compare.random-seeds", "1", "--compare.rows", "gentle_baseline", "baseline", "--evaluate.gentle"]
    run_job("compare", *SMALL, *args, "--data", folder, "--workspace", workspace)
    new = sorted(name.rsplit("-", 1)[0] for name in set(artifacts(workspace)) - set(before))
    made = ["gentle_baseline", "predictions", "seeds"]
    assert new == made, "with the classifier, the AffinityNet and the CAMs of --seed, and the static network of before"
    record = json.loads((workspace / "compare.json").read_text())
    for ending in ("", "_crf", "_gentle"):
        assert {f"val.baseline{ending}", f"val.gentle_baseline{ending}"} <= set(record["scores"])


def test_the_gentle_baseline_needs_psas_probabilities(two_methods, tmp_path):
    masks = ["--knowledge", tmp_path / "before", "--advice", tmp_path / "after"]
    rows = ["--compare.rows", "gentle_baseline", "dynamic"]
    with pytest.raises(SystemExit, match=r"--compare.rows: gentle_baseline needs PSA's probabilities.*leave that row"):
        run_job("compare", *SMALL, *masks, *rows, "--workspace", tmp_path / "w")


def test_a_second_round_starts_from_the_first_ones_masks(places, capsys):
    folder, workspace = places
    run_job("dynamic", *SMALL, "--rounds", "2", "--data", folder, "--workspace", workspace)
    metrics = json.loads((workspace / "metrics.json").read_text())
    assert {"round1.train.refined", "train.knowledge", "train.refined", "val.dynamic"} <= set(metrics)
    assert "round 2: [relabelled] done" in capsys.readouterr().out
    (made,) = [open_table(p) for p in (workspace / "artifacts").glob("relabelled-*")]
    images = {row["image_id"]: row for row in open_table(next((workspace / "artifacts").glob("images-train-*")))}
    for row in made:
        image = images[row["image_id"]]
        for name in ("knowledge", "advice"):
            assert set(np.unique(codec.read_mask(row[name]))) <= {0, *image["presence"]}


def eaten(mask):
    """A mask whose classes have lost an edge."""
    return np.where(np.roll(mask, 5, axis=1) == mask, mask, 0).astype(np.uint8)


@pytest.fixture
def two_methods(places, tmp_path):
    """The truth with a class's edge eaten away, as PSA's class maps, and the truth itself, as masks."""
    folder, _ = places
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    for image_id in voc.read_split(voc.open_folder(folder), "train"):
        truth = codec.read_mask(folder / "SegmentationClass" / f"{image_id}.png")
        after = np.where(truth == 255, 0, truth).astype(np.uint8)
        before = eaten(after)
        (tmp_path / "after" / f"{image_id}.png").write_bytes(codec.encode_mask(after))
        maps = {int(value) - 1: np.float32(before == value) for value in np.unique(before) if value}
        np.save(tmp_path / "before" / f"{image_id}.npy", maps)
    return "--knowledge", tmp_path / "before", "--advice", tmp_path / "after"


def test_static_job_refines_class_maps_and_masks_without_seeds_all_in_a_bucket(
    places, two_methods, remote, tracking, tmp_path, capsys
):
    folder, _ = places
    workspace = remote / "w"
    paths.copy(folder, remote / "data")
    for name in ("before", "after"):
        paths.copy(tmp_path / name, remote / name)
    masks = ["--knowledge", remote / "before", "--advice", remote / "after", "--output", remote / "out"]
    where = ["--data", remote / "data", "--workspace", workspace]
    run_job("static", *SMALL, *masks, *where, "--evaluate.panels", "0")
    assert not (workspace / "figures" / "refinement.png").exists()
    assert not list(workspace.glob("runs/*/*")), "finished trainings leave no checkpoints"
    made = {name.rsplit("-", 1)[0] for name in paths.names_in(workspace / "artifacts")}
    assert made == {"images-train", "backbone", "masks", "static", "refined"}
    out = capsys.readouterr().out
    assert f"workspace {workspace}" in out
    assert re.search(r"advice is true there \(%\), \|S\^A,T\| +100\n", out)
    assert "train.refined" in out
    ids = voc.read_split(voc.open_folder(remote / "data"), "train")
    assert paths.names_in(remote / "out") == sorted(f"{i}.png" for i in ids)
    for image_id in ids:
        after, refined = (codec.read_mask(remote / d / f"{image_id}.png") for d in ("after", "out"))
        assert ((refined == eaten(after)) | (refined == after)).all()
    masks_made = next((workspace / "artifacts").glob("masks-*"))
    assert json.loads((masks_made / "recipe.json").read_text())["background"] == 16
    for row in open_table(masks_made):
        np.testing.assert_array_equal(codec.read_mask(row["knowledge"]), eaten(codec.read_mask(row["advice"])))
    run_job("static", *SMALL, *masks[:4], *where)
    out = capsys.readouterr().out
    assert "[refined] unchanged" in out
    assert "starts" not in out
    assert (workspace / "figures" / "refinement.png").is_file()


def test_a_workspace_in_a_bucket_needs_a_tracking_server(places, remote):
    with pytest.raises(SystemExit, match="name it in MLFLOW_TRACKING_URI"):
        run_job("static", *SMALL, "--workspace", remote)


def test_masks_that_do_not_fit_are_listed_before_anything_is_trained(places, two_methods, tmp_path):
    folder, _ = places
    first, second, *_ = voc.read_split(voc.open_folder(folder), "train")
    (tmp_path / "after" / f"{first}.png").unlink()
    (tmp_path / "after" / f"{second}.png").write_bytes(codec.encode_mask(np.full((3, 3), 200, np.uint8)))
    with pytest.raises(SystemExit) as error:
        run_job("static", *SMALL, *two_methods, "--data", folder, "--workspace", tmp_path / "w")
    assert f"{first}.png" in str(error.value)
    assert f"{second}.png: size 3x3, but the image has" in str(error.value)
    assert not list((tmp_path / "w" / "artifacts").glob("static-*"))


def test_broken_images_are_refused_or_with_a_flag_left_out_and_listed(places, tmp_path, capsys):
    folder = synthetic.generate(tmp_path / "data", train=6, val=2, seed=3)
    (folder / "JPEGImages" / "train_0001.jpg").write_bytes(
        (folder / "JPEGImages" / "train_0000.jpg").read_bytes()[:-90]
    )
    (folder / "SegmentationClass" / "train_0004.png").write_bytes(codec.encode_mask(np.full((3, 3), 200, np.uint8)))
    args = [*SMALL, "--data", str(folder), "--workspace", str(tmp_path / "w")]
    with Session(cli.parse(args), "refused") as session, pytest.raises(DataError, match="2 problems"):
        images.run(session, "train")
    assert not list((tmp_path / "w" / "artifacts").glob("images-*"))
    with Session(cli.parse([*args, "--skip-broken"]), "skipping") as session:
        found = images.run(session, "train")
        images.run(session, "train")
    assert sorted(row["image_id"] for row in found.table) == [f"train_000{k}" for k in (0, 2, 3, 5)]
    text = (found.artifact.path / images.SKIPPED).read_text()
    assert "train_0001.jpg: image file is truncated" in text
    assert "train_0004.png: size 3x3" in text
    assert capsys.readouterr().out.count("[images-train] 2 images left out, 4 remain") == 2
    with Session(cli.parse(args), "without problems") as session:
        whole = images.run(session, "val")
    with Session(cli.parse([*args, "--skip-broken"]), "the same images") as session:
        assert images.run(session, "val").artifact == whole.artifact
    with Session(cli.parse([*args, "--max-pixels", "1000000"]), "another limit") as session:
        assert images.run(session, "val").artifact == whole.artifact
    keys = []
    for flags in (["--skip-broken"], [], ["--skip-broken"]):
        with Session(cli.parse([*args[:-1], str(tmp_path / "another"), *flags]), "skipping first") as session:
            keys.append(images.run(session, "val").artifact.key)
    assert keys[0] == keys[2] != keys[1], "what another job makes later does not change what a job uses"
    for path in (folder / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with Session(cli.parse([*args, "--skip-broken"]), "nothing") as session, pytest.raises(DataError):
        images.run(session, "train")


def test_a_rotated_photograph_and_a_mask_against_its_label_are_told(places, tmp_path, capsys):
    folder = synthetic.generate(tmp_path / "data", train=4, val=2, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "JPEGImages" / "train_0000.jpg"
    with Image.open(path) as image:
        wide = image.resize((96, 64))
    wide.save(path, exif=exif)
    (folder / "SegmentationClass" / "train_0000.png").unlink()
    lines = (folder / "labels.csv").read_text().splitlines()
    other = next(name for name in CLASSES if name not in next(line for line in lines if "train_0001" in line))
    (folder / "labels.csv").write_text(
        "".join(f"{line};{other}\n" if line.startswith("train_0001") else f"{line}\n" for line in lines)
    )
    args = [*SMALL, "--data", str(folder), "--workspace", str(tmp_path / "w")]
    shapes = []
    for flags in ([], ["--apply-exif"]):
        with Session(cli.parse([*args, *flags]), "images") as session:
            (row,) = [r for r in images.run(session, "train").table if r["image_id"] == "train_0000"]
        shapes.append(codec.read_image(row["image"]).shape)
    assert shapes == [(64, 96, 3), (96, 64, 3)]
    out = capsys.readouterr().out
    assert out.count("[images-train] warning: 1 of 4 photographs have an EXIF rotation, which is ignored") == 1
    assert out.count("[images-train] warning: 1 of 3 masks hold other classes than the image-level labels: ") == 2
    with Session(cli.parse([*args, "--max-pixels", "6143"]), "images") as session, pytest.raises(DataError) as error:
        images.run(session, "train")
    assert "train_0000.jpg: 96x64 are more than 6143 pixels" in str(error.value)


@pytest.mark.parametrize("flag", ["--static.weights", "--dynamic.weights"])
def test_a_wrong_weight_file_ends_the_job_before_any_work(places, tmp_path, flag):
    folder, _ = places
    wrong = tmp_path / "ssdd.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    with pytest.raises(SystemExit, match=r"ssdd\.pth: the published weights are for VOC's 20 classes"):
        run_job("dynamic", *SMALL, flag, wrong, "--data", folder, "--workspace", tmp_path / "w")
    assert {name.rsplit("-", 1)[0] for name in artifacts(tmp_path / "w")} == {"images-train", "images-val"}


def test_evaluate_refuses_other_classes(places, tmp_path, capsys):
    _, workspace = places
    other = synthetic.generate(tmp_path / "other", train=1, val=3, seed=7)
    (other / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(SystemExit, match="classes"):
        run_job("evaluate", "--workspace", workspace, "--data", other, "--split", "val")


def test_tables_hold_what_they_promise(places):
    _, workspace = places
    images, made, refined = (
        {row["image_id"]: row for row in open_table(folder)} for folder in first_round(workspace)[:3]
    )
    for image_id, row in images.items():
        height, width = codec.read_image(row["image"]).shape[:2]
        allowed = {0, *row["presence"]}
        for mask in (made[image_id]["knowledge"], made[image_id]["advice"], refined[image_id]["refined"]):
            values = codec.read_mask(mask)
            assert values.shape == (height, width)
            assert set(np.unique(values)) <= allowed
        knowledge, advice = (codec.read_mask(made[image_id][name]) for name in ("knowledge", "advice"))
        out = codec.read_mask(refined[image_id]["refined"])
        assert ((out == knowledge) | (out == advice)).all(), "eq. 4 takes each pixel from one of the two masks"


def test_mlflow_has_configuration_metrics_over_time_and_pictures(places):
    import mlflow

    _, workspace = places
    client = mlflow.MlflowClient(sqlite_uri(workspace / "mlflow.db"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "ssdd-mini"]
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time"])
    run = next(r for r in runs if r.data.tags["job"] == "dynamic" and "dynamic.loss.main" in r.data.metrics)
    assert run.info.status == "FINISHED"
    assert run.data.params["dynamic.train.epochs"] == "2"
    assert {"val.dynamic", "train.refined", "dynamic.lr", "dynamic.loss.diff2"} <= set(run.data.metrics)
    assert client.get_metric_history(run.info.run_id, "dynamic.loss.main")[-1].step == 2 * (10 // 4)
    assert {"refinement.png", "predictions-val.png", "report.html"} <= {
        a.path for a in client.list_artifacts(run.info.run_id)
    }


@dataclass(frozen=True)
class FailingTask(ClassifierTask):
    """Its process is killed in its fourth step; the next one's task fails there; the next one loses the bucket."""

    folder: Path = Path()

    def losses(self, net, batch):
        object.__setattr__(self, "steps", getattr(self, "steps", 0) + 1)
        if self.steps == 4 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.steps == 4 and not (self.folder / "failed").exists():
            (self.folder / "failed").touch()
            raise RuntimeError("a fault in the third epoch")
        if self.steps == 2 and (self.folder / "failed").exists() and not (self.folder / "lost").exists():
            (self.folder / "lost").touch()
            RemotePath.filesystem = property(no_answer)
        return super().losses(net, batch)


def no_answer(path):
    raise OSError("AWS Error NETWORK_CONNECTION")


@pytest.mark.minutes
def test_a_training_through_faults_with_its_checkpoints_in_a_bucket_ends_like_one_without(
    places, remote, tracking, tmp_path, capsys, monkeypatch
):
    folder, workspace = places
    small = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(workspace)])
    train = replace(small.seeds.classifier, epochs=3, batch_size=4)
    images = open_table(next((workspace / "artifacts").glob("images-train-*")))
    pretrained = next((workspace / "artifacts").glob("backbone-*"))
    arguments = (small.network, train, 1 + len(CLASSES), pretrained)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with Session(replace(small, workspace=remote), "faults") as session:
        task = FailingTask(*arguments, tmp_path)
        with pytest.raises(ray.train.TrainingFailedError, match="a fault in the third epoch"):
            trainer.run(session, "failing", {"a": 1}, task, [images])
        out = capsys.readouterr().out
        assert "[failing] interrupted (The actor died" in out
        assert "goes on after epoch 1 of 3" in out
        assert not paths.names_in(remote / "artifacts")
        resumed = trainer.run(session, "failing", {"a": 1}, task, [images])
        out = capsys.readouterr().out
        assert out.count("goes on after epoch 2 of 3") == 2
        assert re.search(r"interrupted \(s3://.*/epoch-3/state\.pt: AWS Error NETWORK_CONNECTION; check the", out)
    monkeypatch.setattr(trainer, "remove", lambda folder: None)
    with Session(small, "no faults") as session:
        undisturbed = trainer.run(session, "undisturbed", {"a": 1}, ClassifierTask(*arguments), [images])
    kept = [path.parent.name for path in workspace.glob("runs/undisturbed-*/*/*/meta.json")]
    assert sorted(kept) == ["epoch-2", "epoch-3"], "one more than the last, should that be damaged"
    states = [checkpoints.read(made.path / checkpoints.MODEL) for made in (resumed, undisturbed)]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-3, atol=1e-4)


def test_every_epoch_has_every_image_once(places):
    folder, workspace = places
    small = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(workspace)])
    images = open_table(next((workspace / "artifacts").glob("images-train-*")))
    sampling = Sampling(
        masks=(), mask_size=8, augment=AugmentConfig(32, (32, 40)), num_classes=1 + len(CLASSES), plain=True
    )
    plan = cluster.connect(small)

    def stream(seed, begin):
        order = Order(images.rows, 4, seed)
        found = ingest.samples([images], sampling, order, range(begin, 20, 2), plan)
        blocks = list(found.iter_batches(batch_size=None, batch_format="numpy"))
        assert {len(block["row"]) for block in blocks} == {2}
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    first, other, late = stream(0, 0), stream(1, 0), stream(0, 6)
    assert first["image"].shape == (20, 3, 32, 32)
    assert first["plain"].shape == (20, 3, 8, 8)
    for epoch in (first["row"][:10], first["row"][10:], other["row"][:10]):
        assert sorted(epoch) == list(range(10))
    assert first["row"].tolist() != other["row"].tolist()
    assert len({image.tobytes() for image in first["image"]}) == 20, "the second epoch is augmented anew"
    for name in first:
        np.testing.assert_array_equal(late[name], first[name][6:])
    presence = [codec.presence_vector(row["presence"], 1 + len(CLASSES)) for row in images]
    np.testing.assert_array_equal(first["presence"], np.stack(presence)[first["row"]])


def test_crf_pool_agrees_with_the_plain_function_and_survives_a_lost_actor(places):
    folder, workspace = places
    plan = cluster.connect(cli.parse([*SMALL, "--data", str(folder), "--workspace", str(workspace)]))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, 24, 24, 3), dtype=np.uint8)
    probs = [rng.dirichlet(np.ones(2 + i % 2), (24, 24)).transpose(2, 0, 1).astype(np.float16) for i in range(5)]
    labels = [np.array([0, 3, 5][: len(p)], np.uint8) for p in probs]
    params = CRFParams(iterations=3)
    expected = crf_masks(images, probs, labels, params)
    actors = CRFPool(cpu_nodes_first(cluster.nodes(), plan.crf_actors, plan.unit), plan.unit)
    assert len(actors.actors) == plan.crf_actors
    np.testing.assert_array_equal(actors.request(images, probs, labels, params).masks(), expected)
    ray.kill(actors.actors[0], no_restart=False)
    np.testing.assert_array_equal(actors.request(images, probs, labels, params).masks(), expected)
    actors.close()


@dataclass(frozen=True)
class KillingCRF(ActorCRF):
    """Kills one of its actors with its third request, in the middle of the first epoch."""

    def request(self, images, logits, presence):
        asked = super().request(images, logits, presence)
        object.__setattr__(self, "requests", getattr(self, "requests", 0) + 1)
        if self.requests == 3:
            ray.kill(self.pool.actors[0], no_restart=False)
        return asked


def test_a_crf_actor_that_is_lost_in_an_epoch_changes_nothing(places):
    folder, workspace = places
    small = cli.parse([*SMALL, "--data", str(folder), "--workspace", str(workspace)])
    images, _, refined, static_net, undisturbed = first_round(workspace)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Session(small, "loss") as session:
        crfs = CRFPool(cpu_nodes_first(cluster.nodes(), 2, session.plan.unit), session.plan.unit)
        start = Artifact("static", "", static_net)
        crf = KillingCRF(small.dynamic.crf, crfs)
        task = DynamicTask(network=small.network, dynamic=small.dynamic, classes=1 + len(CLASSES), start=start, crf=crf)
        made = trainer.run(session, "disturbed", {"a": 2}, task, [open_table(images), open_table(refined)])
        crfs.close()
    weights, expected = (torch.load(p / checkpoints.MODEL, weights_only=True) for p in (made.path, undisturbed))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [  # a flag given twice counts as given last
        (["--dynamic.train.epochs", "0"], "dynamic.train.epochs"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--workers", "9"], "--workers 9"),
        (["--gpus", "True"], "--gpus"),
        (["--workspace", "/dev/null/w"], "--workspace /dev/null/w"),
        (["--network.backbone.name", "resnet38"], "resnet38"),
        (["--step.bf16", "True"], "--step.bf16 True: on some CPUs torch computes wrong gradients"),
    ],
)
def test_a_users_mistake_ends_with_one_message(places, tmp_path, args, message):
    folder, _ = places
    rest = [] if "--data" in args else ["--data", folder]
    with pytest.raises(SystemExit) as error:
        run_job("seeds", *SMALL, *rest, "--workspace", tmp_path / "w", *args)
    assert message in str(error.value)


def test_a_training_that_diverges_ends_with_one_message(places, tmp_path):
    folder, _ = places
    wild = ["--seeds.classifier.lr", "1e30", "--seeds.classifier.epochs", "4"]
    with pytest.raises(SystemExit) as error:
        run_job("seeds", *SMALL, *wild, "--data", folder, "--workspace", tmp_path)
    found = re.search(r"\[classifier\] loss.class is (nan|inf) at step (\d): lower the .*: (.*)$", str(error.value))
    assert found, error.value
    names = found[3].split(", ")
    assert set(names) <= set(voc.read_split(voc.open_folder(folder), "train"))
    assert len(set(names)) == len(names) == 10, "a step of the whole list"
    assert not list((tmp_path / "artifacts").glob("classifier-*"))
    kept = [json.loads(path.read_text())["epoch"] for path in tmp_path.glob("runs/*/*/*/meta.json")]
    assert max(kept, default=0) < int(found[2]), "nothing was kept of that epoch"


def test_a_relative_workspace_is_refused_in_a_submitted_job(tmp_path):
    env = {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    command = [sys.executable, "ray_jobs/seeds.py", "--workspace", "here"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--workspace here" in done.stderr
    assert "absolute" in done.stderr

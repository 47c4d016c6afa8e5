"""The files in cluster/: by the strictest validators that need no cluster."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import kubernetes_validate
import pathspec
import pytest
import yaml
from small import ROOT, SMALL

from ssdd import cli
from ssdd.data import synthetic
from ssdd.presets import PRESETS

FOLDER = ROOT / "cluster"
KUBERNETES = kubernetes_validate.latest_version()
CONTAINERS = ("ray-head", "ray-worker")
# Fields of KubeRay's custom resources, and of which kind they are.
GROUP = {
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), int),
    **dict(groupName=str, suspend=bool, rayStartParams=dict, template=dict, resources=dict, labels=dict),
}
CLUSTER = dict(
    rayVersion=str,
    authOptions=dict,
    enableInTreeAutoscaling=bool,
    autoscalerOptions=dict,
    suspend=bool,
    gcsFaultToleranceOptions=dict,
    headServiceAnnotations=dict,
    headGroupSpec=dict,
    workerGroupSpecs=list,
)
JOB = dict(
    clusterSelector=dict,
    entrypoint=str,
    backoffLimit=int,
    submissionMode=str,
    runtimeEnvYAML=str,
    shutdownAfterJobFinishes=bool,
    ttlSecondsAfterFinished=int,
    activeDeadlineSeconds=int,
    entrypointNumCpus=float,
    entrypointNumGpus=float,
    metadata=dict,
    jobId=str,
    suspend=bool,
)


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def of_kind(name, kind):
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def check(spec, known):
    for name, value in spec.items():
        assert name in known, f"unknown field {name}"
        assert isinstance(value, known[name]), f"{name}: {value!r}"


@pytest.mark.parametrize("name", ["kuberay.yaml", "mlflow.yaml"])
def test_standard_kinds_are_valid(name):
    standard = [document for document in documents(name) if not document["apiVersion"].startswith("ray.io")]
    assert standard
    for document in standard:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_mlflow_server_has_a_fixed_version():
    text = (FOLDER / "mlflow.yaml").read_text()
    assert re.search(r"pip install mlflow==3\.\d+\.\d+ ", text), "a later one refuses the database"


def test_a_submitted_job_uploads_the_code_only():
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", (ROOT / ".rayignore").read_text().splitlines())
    sent = [".", "ssdd", "ssdd/stages/seeds.py", "ssdd/reports/page.html", "ray_jobs", "ray_jobs/dynamic.py"]
    assert list(ignored.match_files(sent)) == []
    others = ["mine", "mine/JPEGImages/a.jpg", "mine-ssdd/artifacts/x/model.pt", "workspace", "README.md", ".venv"]
    assert set(ignored.match_files(others)) == set(others)


def test_the_ray_cluster_is_valid():
    cluster = of_kind("kuberay.yaml", "RayCluster")
    spec = cluster["spec"]
    check(spec, CLUSTER)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == version("ray")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        check(group, GROUP)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        (container,) = pod["spec"]["containers"]
        assert container["name"] in CONTAINERS
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/shared"]
    gpus = ["nvidia.com/gpu" in str(group["template"]) for group in spec["workerGroupSpecs"]]
    assert gpus == [True, False], "one group trains, the other one has the CRF actors"


def test_the_job_runs_on_that_cluster_with_flags_that_exist():
    job = of_kind("rayjob.yaml", "RayJob")
    check(job["spec"], JOB)
    assert job["spec"]["clusterSelector"] == {
        "ray.io/cluster": of_kind("kuberay.yaml", "RayCluster")["metadata"]["name"]
    }
    python, script, *args = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    root = "/home/ray/ssdd/"
    assert script.startswith(root)
    assert (FOLDER.parent / script.removeprefix(root)).is_file()
    chosen = cli.override(PRESETS[args[1]](), args[2:])
    assert args[0] == "--preset"
    assert chosen.data == Path("/shared/VOC2012")


def test_the_image_has_everything_and_the_ray_of_this_package():
    text = (FOLDER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{version('ray')}-py311" in text
    sources = [line.split()[2:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((FOLDER.parent / source).exists() for line in sources for source in line)
    run_validator("hadolint", "--failure-threshold", "warning", FOLDER / "Dockerfile")


def test_ray_up_takes_the_aws_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    (aws,) = documents("aws.yaml")
    validate_config(prepare_config(copy.deepcopy(aws)))
    types = aws["available_node_types"]
    assert types[aws["head_node_type"]]["resources"] == {"CPU": 0}
    with pytest.raises(Exception, match="cluster_nam"):
        validate_config(prepare_config({**copy.deepcopy(aws), "cluster_nam": "x"}))


def test_the_slurm_script_is_sound():
    run_validator("shellcheck", FOLDER / "slurm.sh")
    lines = (FOLDER / "slurm.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    begun = [k for k, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert begun == list(range(1, 1 + len(begun))), "Slurm reads no option after the first other line"
    assert {line.split("=")[0].split()[1] for line in lines if line.startswith("#SBATCH")} >= {
        "--nodes",
        "--gpus-per-node",
    }


@pytest.mark.ray
@pytest.mark.minutes
def test_the_slurm_script_runs_a_job(tmp_path):
    """On one node, with `srun` and `scontrol` of our own. It stops all Rays of this machine at its end."""
    ours = {"scontrol": "echo 127.0.0.1", "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"'}
    for name, text in ours.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(ROOT), "JOB_NODELIST": "node", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "2"}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {f"SLURM_{name}": value for name, value in slurm.items()}
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)  # of these tests' local Ray
    synthetic.generate(tmp_path / "data", train=10, val=2)
    args = [*SMALL[2:], "--data", tmp_path / "data", "--workspace", tmp_path / "w"]
    command = ["bash", "cluster/slurm.sh", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "val.dynamic" in json.loads((tmp_path / "w" / "metrics.json").read_text())


def run_validator(name, *args):
    done = subprocess.run([Path(sys.executable).parent / name, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

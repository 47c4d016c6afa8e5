"""The command `ssdd`: its jobs are the scripts of ray_jobs/, from an installed package as well."""

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from small import ROOT

from ssdd import command
from ssdd.config import ConfigError
from ssdd.nets import checkpoints
from ssdd.presets import mini
from ssdd.storage.artifacts import Artifact

SCRIPTS = sorted((ROOT / "ray_jobs").glob("*.py"))


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["ssdd", *args])
    command.main()


def test_without_a_job_every_script_is_listed_with_its_first_line(monkeypatch, capsys):
    call(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    for script in SCRIPTS:
        (line,) = (line for line in lines if line.split()[:1] == [script.stem])
        assert line.strip().removeprefix(script.stem).strip() == command.summary(script)
        assert command.summary(script).endswith(".")


def test_a_job_that_is_none_is_refused_with_the_nearest_name(monkeypatch):
    with pytest.raises(SystemExit, match=r"ssdd: 'predikt' is not a job; did you mean 'predict'\?"):
        call(monkeypatch, "predikt")
    with pytest.raises(SystemExit, match="the jobs are check, "):
        call(monkeypatch, "xyz")


def test_a_job_runs_as_its_script_does(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit, match=r"evaluate: --workspace .*/typo: nothing was trained there"):
        call(monkeypatch, "evaluate", "--workspace", str(tmp_path / "typo"))
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "predict", "--help")
    assert ended.value.code == 0
    assert "usage: ssdd predict" in capsys.readouterr().out


def test_evaluate_takes_the_fields_of_the_training_in_the_workspace_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = replace(mini(), workspace=tmp_path / "before", seed=7)
    model = Artifact("dynamic", "0123", tmp_path / "workspace" / "artifacts" / "dynamic-0123")
    checkpoints.remember(tmp_path / "workspace", before, ("background", "cat"), {"dynamic": model})
    read_config = runpy.run_path(str(ROOT / "ray_jobs" / "evaluate.py"))["read_config"]
    assert read_config([], False) == replace(before, workspace=tmp_path / "workspace"), "it was renamed"
    (tmp_path / "c.yaml").write_text("split: other\nseed: 8\n")
    found = read_config(["--config", "c.yaml", "--seed", "9"], True)
    assert (found.workspace, found.split, found.seed, found.preset) == (tmp_path / "workspace", "other", 9, "mini")
    (tmp_path / "null.yaml").write_text("workspace: null\n")
    (tmp_path / "number.yaml").write_text("workspace: [1]\n")
    (tmp_path / "c.yaml").write_text(f"preset: photographs\nworkspace: {tmp_path / 'workspace'}\n")
    found = read_config(["--config", "c.yaml"], False)
    assert read_config(["--config", "null.yaml"], False).seed == 7
    with pytest.raises(ConfigError, match=r"number\.yaml: workspace"):
        read_config(["--config", "number.yaml"], False)
    assert (found.preset, found.evaluate.size, found.seed) == ("photographs", 320, 0)


@pytest.mark.programs
def test_a_shell_completes_jobs_and_fields(monkeypatch, tmp_path):
    program = Path(sysconfig.get_path("scripts"), "ssdd")
    (tmp_path / "completion.bash").write_bytes(
        subprocess.run([program, "--tyro-print-completion", "bash"], check=True, capture_output=True).stdout
    )
    lines = """
        source completion.bash
        COMP_WORDS=(ssdd predict --ov) COMP_CWORD=2 COMP_LINE="${COMP_WORDS[*]}"
        $(complete -p ssdd | sed 's/.*-F \\([^ ]*\\).*/\\1/') ssdd --ov predict
        echo "${COMPREPLY[@]}"
    """
    out = subprocess.run(["bash", "-c", lines], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.split() == ["--overlay"]


@pytest.mark.programs
def test_an_installed_package_is_whole_and_has_the_command(tmp_path):
    """As `pip install .` copies it, away from the checkout."""
    source, site = tmp_path / "source", tmp_path / "site"  # a build leaves files beside what it builds
    for name in ("ssdd", "ray_jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, source], check=True)
    for name in ("ssdd", "ray_jobs"):
        assert files_of(site / name) == files_of(ROOT / name)
    env = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}
    program = (sys.executable, site / "bin" / "ssdd")
    out = subprocess.run(program, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout
    assert all(re.search(rf"^  {script.stem} ", out, re.MULTILINE) for script in SCRIPTS)
    code = "import ssdd.stages.method; print(ssdd.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(site / "ssdd" / "__init__.py"), done.stderr


def files_of(folder):
    return {path.relative_to(folder) for path in folder.rglob("*.*") if path.suffix != ".pyc"}

"""What parts of a job share with it, and what a trial's process gets."""

import pickle
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssdd import cli
from ssdd.config import ConfigError
from ssdd.presets import mini
from ssdd.runtime import session
from ssdd.runtime.progress import Console
from ssdd.runtime.session import Session, located


def bare():
    session = object.__new__(Session)
    session.stop, session.in_trial, session.config = threading.Event(), False, mini()
    return session


def test_parts_of_a_job_stop_together():
    session = bare()
    session.console, session.tracker = Console(), SimpleNamespace(child=lambda config, name: f"run {name}")
    child = session.child(mini(), "seed 3", "its plan")
    for part in (child, session.with_config(mini())):
        assert part.stop is session.stop
        assert not part.in_trial
    assert (child.part, child.plan, child.tracker) == ("-seed3", "its plan", "run seed 3")
    names = [" ".join(f"dynamic.bias1.bias={k / 1000} dynamic.bias2.background={n}" for k in range(9)) for n in (0, 1)]
    long = {session.child(mini(), name, None).part for name in names}
    assert len(long) == 2
    assert max(map(len, long)) < 64, "pictures are named after the part"


def test_a_session_for_trials_can_be_sent_and_is_stopped_by_nobody():
    session = bare()
    session.plan, session.console = "of the job", Console()
    mailbox = SimpleNamespace(actor="an actor")
    sent = pickle.loads(pickle.dumps(session.for_trial("a trial's", mailbox)))
    assert sent.in_trial
    assert sent.stop is None
    assert (sent.plan, sent.config) == ("a trial's", session.config)
    assert sent.console.mailbox.actor == "an actor"
    assert not session.in_trial
    assert session.plan == "of the job"


def test_a_session_of_the_driver_stays_there():
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(bare())


def test_inputs_have_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = cli.parse(["--data", "mine", "--knowledge", "s3://b/k", "--advice", "a"])
    start = replace(config.network.backbone, weights="w.pth")
    config = replace(config, network=replace(config.network, backbone=start))
    config = replace(config, static=replace(config.static, weights=(Path("x.pth"), Path("y.pth"))))
    found = located(config)
    assert (found.data, str(found.knowledge), found.advice) == (tmp_path / "mine", "s3://b/k", tmp_path / "a")
    assert found.network.backbone.weights == str(tmp_path / "w.pth")
    assert found.static.weights == (tmp_path / "x.pth", tmp_path / "y.pth")
    assert found.workspace is None
    assert located(mini()) == mini()
    monkeypatch.setattr(session, "in_job", lambda: True)
    with pytest.raises(
        ConfigError, match=r"--network\.backbone\.weights w\.pth: a submitted Ray job needs an absolute path"
    ):
        located(config)

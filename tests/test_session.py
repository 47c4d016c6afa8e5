"""What parts of a job share with it, and what a trial's process gets."""

import copy
import pickle
import threading
from types import SimpleNamespace

import pytest

from ssdd.presets import mini
from ssdd.runtime.progress import Console
from ssdd.runtime.session import Session


def bare():
    session = object.__new__(Session)
    session.stop, session.in_trial, session.config = threading.Event(), False, mini()
    return session


def test_parts_of_a_job_stop_together():
    session = bare()
    for part in (copy.copy(session), session.with_config(mini())):
        assert part.stop is session.stop
        assert not part.in_trial


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

"""What parts of a job share with it, and what a trial's process gets."""

import copy
import pickle
import threading

from ssdd.config import mini
from ssdd.session import Session


def bare():
    session = object.__new__(Session)
    session.stop, session.in_trial, session.config = threading.Event(), False, mini()
    return session


def test_parts_of_a_job_stop_together():
    session = bare()
    for part in (copy.copy(session), session.with_config(mini())):
        assert part.stop is session.stop
        assert not part.in_trial


def test_a_session_can_be_sent_to_a_trial():
    session = bare()
    session.stop.set()
    sent = pickle.loads(pickle.dumps(session))
    assert sent.in_trial
    assert not sent.stop.is_set()
    assert sent.config == session.config

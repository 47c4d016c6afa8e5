"""The soak test, in a process of its own."""

import subprocess
import sys

import pytest
from small import ROOT


@pytest.mark.ray
@pytest.mark.minutes
def test_a_thousand_steps_through_kills(tmp_path):
    command = [sys.executable, ROOT / "tests" / "soak.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400, start_new_session=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout.splitlines()[-1])

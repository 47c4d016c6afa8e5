"""What the terminal shows of a stage."""

import time

from ssdd.runtime.progress import Console


def test_time_to_go_is_extrapolated_from_the_first_report(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    show = Console().stage("cams")
    show(1, 61)
    now += 30
    show(21, 61, "fast")
    now += 4
    show(23, 61, "too soon for another line")
    now -= 4
    now += 60
    show(61, 61)
    assert capsys.readouterr().out.splitlines() == [
        "  0:00  [cams] 1/61",
        "  0:30  [cams] 21/61  fast  ETA 1:00",
        "  1:30  [cams] 61/61",
    ]

"""Search spaces of sweeps: what their texts mean, and which are refused."""

from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ssdd import jobs
from ssdd.cli import parse
from ssdd.config import ConfigError
from ssdd.presets import changes, mini
from ssdd.sweeps import base, bias, space, trials
from ssdd.sweeps.alpha import ALPHA_SWEEP
from ssdd.sweeps.crf import CRF_SWEEP
from ssdd.sweeps.space import Range
from ssdd.sweeps.trials import Trial


def test_values_have_their_fields_types():
    found = space.read(mini(), ("crf.bilateral-weight=1, 5,10", "crf.iterations=5,5,10"), ("crf.",))
    assert found == {"crf.bilateral_weight": (1.0, 5.0, 10.0), "crf.iterations": (5, 10)}
    assert isinstance(found["crf.iterations"][0], int)
    assert space.read(mini(), ("dynamic.bias1.presence=True,False",), ("dynamic.",)) == {
        "dynamic.bias1.presence": (True, False)
    }
    assert space.read(mini(), ("dynamic.target=d1,d2",), ("dynamic.",)) == {"dynamic.target": ("d1", "d2")}


def test_ranges():
    found = space.read(mini(), ("dynamic.alpha=0:1", "dynamic.train.lr=1e-4:1e-2:log"), ("dynamic.",))
    assert found["dynamic.alpha"] == Range(0, 1, False, False)
    assert found["dynamic.train.lr"].at(0.5) == pytest.approx(1e-3)
    assert space.read(mini(), ("crf.iterations=1:9",), ("crf.",))["crf.iterations"].at(0.3) == 3


def test_a_grid_is_every_combination():
    points = space.grid({"a.x": (1, 2), "b.x": ("u", "v")})
    assert points == [{"a.x": x, "b.x": y} for x in (1, 2) for y in ("u", "v")]
    assert [space.label(p) for p in points[:1]] == ["a.x=1 b.x=u"]
    assert space.label({"dynamic.train.lr": 0.00012345, "dynamic.alpha": 1}) == "lr=0.0001234 alpha=1"


def test_a_point_as_flags_is_what_the_jobs_take():
    point = {"static.bias.presence": False, "crf.bilateral_weight": 4.0, "dynamic.bias1.presence": True}
    flags = " ".join(space.flag(*item) for item in point.items())
    assert flags == "--static.bias.no-presence --crf.bilateral-weight 4.0 --dynamic.bias1.presence"
    assert parse(flags.split()) == space.checked(mini(), point)


def test_no_trial_is_stopped_after_its_last_epoch():
    scheduler = trials.StopEarly(
        3, time_attr="epoch", metric="iou", mode="max", max_t=2, reduction_factor=2, stop_last_trials=False
    )
    decisions = []
    for epoch, iou in ((1, 50.0), (1, 10.0), (2, 50.0), (3, 10.0), (3, 70.0), (2, 60.0)):
        trial, result = SimpleNamespace(trial_id=f"{epoch}-{iou}"), {"epoch": epoch, "iou": iou}
        scheduler.on_trial_add(None, trial)
        decisions.append(scheduler.on_trial_result(None, trial, result))
        if epoch == 3:
            scheduler.on_trial_complete(None, trial, result)
    assert decisions == ["CONTINUE", "STOP", "CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE"], (
        "60 is the best at epoch 2"
    )


@given(st.integers(0, 99), st.integers(1, 20))
def test_random_points_lie_in_the_space_and_come_again(seed, count):
    chosen = {"a": Range(0.1, 10, True, False), "b": ("x", "y"), "c": Range(2, 5, False, True)}
    points = space.random(chosen, count, seed)
    assert points == space.random(chosen, count, seed)
    assert len(points) == count
    assert len({tuple(p.items()) for p in points}) == count
    for point in points:
        assert 0.1 <= point["a"] <= 10
        assert point["b"] in ("x", "y")
        assert point["c"] in (2, 3, 4, 5)


BAD = [
    (CRF_SWEEP, ["crf.bilateral-weigh=1"], "did you mean crf.bilateral_weight"),
    (CRF_SWEEP, ["crf.bilateral-weight="], "at least one value"),
    (CRF_SWEEP, ["crf.bilateral-weight"], "is not of the form FIELD=VALUES"),
    (CRF_SWEEP, ["crf.bilateral-weight=-1,3"], "must not be negative"),
    (CRF_SWEEP, ["crf.iterations=2.5"], "not a valid value"),
    (CRF_SWEEP, ["crf.iterations=1,2", "crf.iterations=3"], "second time"),
    (CRF_SWEEP, ["seeds.alpha-low=1,2"], "does not vary this field; it varies crf, static"),
    (CRF_SWEEP, ["crf.gaussian-weight=1:3"], "a grid needs values"),
    (ALPHA_SWEEP, ["dynamic.train.epochs=1,2"], "epoch by epoch"),
    (ALPHA_SWEEP, ["dynamic.alpha=0,1.5"], "must lie in 0..1"),
    (ALPHA_SWEEP, ["dynamic.baseline-lr=0.1,0.2"], "do not change SSDD's training"),
    (ALPHA_SWEEP, ["dynamic.train.augment.resize=160,200"], "of several values"),
    (ALPHA_SWEEP, ["dynamic.alpha=0.7:0.2"], "LOW < HIGH"),
    (ALPHA_SWEEP, ["dynamic.alpha=0:1:log"], "LOW > 0"),
    (ALPHA_SWEEP, ["dynamic.target=d1:d2"], "field of numbers"),
    (bias.bias_sweep("static"), ["static.bias.vanish-ratio=0.1"], "does not vary this field"),
]


@pytest.mark.parametrize(("kind", "texts", "message"), BAD)
def test_a_bad_space_is_refused_before_anything_runs(kind, texts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        jobs.sweep_config(lambda config: kind, ["--sweep.space", *texts])
    assert texts[-1].partition("=")[0] in str(caught.value).replace("_", "-")


def test_a_metric_that_no_trial_gives_is_refused():
    with pytest.raises(ConfigError, match=r"val\.dynamic.*train\.refined, train\.advice"):
        jobs.sweep_config(lambda config: CRF_SWEEP, ["--sweep.metric", "val.dynamic"])
    assert jobs.sweep_config(lambda config: CRF_SWEEP, []).sweep.metric == "train.refined"


def test_the_reported_split_is_not_what_trials_are_chosen_by():
    with pytest.raises(ConfigError, match=r"sweep\.split: val is the list whose scores are reported"):
        jobs.sweep_config(lambda config: ALPHA_SWEEP, ["--sweep.split", "val"])


def test_the_best_configuration_is_read_as_it_is(tmp_path):
    config = parse(["--crf.bilateral-weight", "5", "--evaluate.no-mirror", "--compare.random-seeds", "3", "4"])
    best = space.checked(config, {"dynamic.alpha": 0.25, "static.bias.presence": False})
    path = tmp_path / "best.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(changes(best)))
    assert parse(["--config", str(path)]) == best
    assert parse(["--config", str(path), "--dynamic.alpha", "1"]).dynamic.alpha == 1
    path.write_text("dynamic: {alpha: 0.1}\npreset: photographs\n")
    assert parse(["--config", str(path)]).dynamic.alpha == 0.1
    assert parse(["--config", str(path)]).preset == "photographs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dynamic.alhpa: 1", "did you mean dynamic.alpha"),
        ("dynamic.alpha: high", "not a valid value"),
        ("preset: huge", "unknown preset .huge.; choose one of mini"),
        ("[1, 2]", "must map fields to values"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_configuration_file_is_named(tmp_path, text, message):
    path = tmp_path / "best.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        parse(["--config", str(path)])
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        parse(["--config", str(tmp_path / "none.yaml")])


def test_optuna_proposes_what_it_does_not_know_yet():
    config = jobs.sweep_config(
        lambda config: ALPHA_SWEEP,
        ["--sweep.search", "optuna", "--sweep.space", "dynamic.alpha=0:1", "dynamic.train.batch-size=2:8"],
    )
    chosen = base.space_of(ALPHA_SWEEP, config)
    first = base._searcher(config, chosen, [])
    points = [first.suggest(str(k)) for k in range(3)]
    for point in points:
        assert 0 <= point["dynamic.alpha"] <= 1
        assert point["dynamic.train.batch_size"] in range(2, 9)
        space.checked(config, point)
    kept = [Trial(point, {"dynamic.iou": float(k)}) for k, point in enumerate(points)]
    kept.append(Trial({"dynamic.alpha": 0.5, "dynamic.train.batch_size": 2}, {"dynamic.iou": float("nan")}))
    again = base._searcher(config, chosen, kept)
    assert all(again.suggest(str(k)) not in points for k in range(3))


def test_a_sweep_without_a_finished_trial_names_the_first_error(tmp_path):
    session = SimpleNamespace(config=mini())
    stopped = Trial({"dynamic.alpha": 0.1}, {"val.dynamic": 3.0}, "stopped", "after epoch 3")
    trials = [stopped, Trial({"dynamic.alpha": 0.2}, {}, "failed", "loss.main is nan at step 20")]
    with pytest.raises(base.SweepError, match=r"none of 2 trials has finished; first error: loss\.main is nan"):
        base.finish(session, "sweep_alpha", tmp_path, trials, ALPHA_SWEEP.figure)
    assert not list(tmp_path.iterdir())


def test_a_sweep_can_be_resumed_with_other_fields_of_speed(tmp_path):
    def key(*args):
        return base._identify(SimpleNamespace(config=parse([*args]), workspace=tmp_path), "sweep_crf")[2]

    speed = ("--step.micro-batch", "2", "--inference-batch", "4", "--workers", "1", "--sweep.gpu", "0.5")
    assert key(*speed, "--sweep.resume") == key()
    assert key("--step.crf", "exact") != key()
    assert key("--seed", "1") != key()

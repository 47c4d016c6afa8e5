"""Search spaces of sweeps: what their texts mean, and which are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdd import space, sweep, sweep_alpha, sweep_bias, sweep_crf
from ssdd.config import ConfigError, changes, mini, parse
from ssdd.space import Range


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
    (sweep_crf.KIND, ["crf.bilateral-weigh=1"], "did you mean crf.bilateral_weight"),
    (sweep_crf.KIND, ["crf.bilateral-weight="], "at least one value"),
    (sweep_crf.KIND, ["crf.bilateral-weight"], "is no FIELD=VALUES"),
    (sweep_crf.KIND, ["crf.bilateral-weight=-1,3"], "must not be negative"),
    (sweep_crf.KIND, ["crf.iterations=2.5"], "not of its field's type"),
    (sweep_crf.KIND, ["crf.iterations=1,2", "crf.iterations=3"], "second time"),
    (sweep_crf.KIND, ["seeds.alpha-low=1,2"], "is not what this sweep varies: crf, static"),
    (sweep_crf.KIND, ["crf.gaussian-weight=1:3"], "a grid needs values"),
    (sweep_alpha.KIND, ["dynamic.train.epochs=1,2"], "epoch by epoch"),
    (sweep_alpha.KIND, ["dynamic.alpha=0,1.5"], "must lie in 0..1"),
    (sweep_alpha.KIND, ["dynamic.train.augment.resize=160,200"], "of several values"),
    (sweep_alpha.KIND, ["dynamic.alpha=0.7:0.2"], "LOW < HIGH"),
    (sweep_alpha.KIND, ["dynamic.alpha=0:1:log"], "LOW > 0"),
    (sweep_alpha.KIND, ["dynamic.target=d1:d2"], "field of numbers"),
    (sweep_bias.kind("static"), ["static.bias.vanish-ratio=0.1"], "is not what this sweep varies"),
]


@pytest.mark.parametrize(("kind", "texts", "message"), BAD)
def test_a_bad_space_is_refused_before_anything_runs(kind, texts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        sweep.read_config(kind, ["--sweep.space", *texts])
    assert texts[-1].partition("=")[0] in str(caught.value).replace("_", "-")


def test_a_metric_that_no_trial_gives_is_refused():
    with pytest.raises(ConfigError, match=r"val\.dynamic.*train\.refined, train\.advice"):
        sweep.read_config(sweep_crf.KIND, ["--sweep.metric", "val.dynamic"])
    assert sweep.read_config(sweep_crf.KIND, []).sweep.metric == "train.refined"


def test_the_reported_split_is_not_what_trials_are_chosen_by():
    with pytest.raises(ConfigError, match=r"sweep\.split: val is what is reported"):
        sweep.read_config(sweep_alpha.KIND, ["--sweep.split", "val"])


def test_the_best_configuration_is_read_as_it_is(tmp_path):
    config = parse(["--crf.bilateral-weight", "5", "--evaluate.no-mirror", "--compare.random-seeds", "3", "4"])
    best = space.checked(config, {"dynamic.alpha": 0.25, "static.bias.presence": False})
    path = tmp_path / "best.yaml"
    path.write_text("# a comment\n" + sweep.yaml.safe_dump(changes(best)))
    assert parse(["--config", str(path)]) == best
    assert parse(["--config", str(path), "--dynamic.alpha", "1"]).dynamic.alpha == 1
    path.write_text("dynamic: {alpha: 0.1}\npreset: photographs\n")
    assert parse(["--config", str(path)]).dynamic.alpha == 0.1
    assert parse(["--config", str(path)]).preset == "photographs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dynamic.alhpa: 1", "did you mean dynamic.alpha"),
        ("dynamic.alpha: high", "not of its field's type"),
        ("preset: huge", "none of mini"),
        ("[1, 2]", "fields and values"),
        ("a: [", "no YAML"),
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
    config = sweep.read_config(
        sweep_alpha.KIND,
        ["--sweep.search", "optuna", "--sweep.space", "dynamic.alpha=0:1", "dynamic.train.batch-size=2:8"],
    )
    chosen = sweep.space_of(sweep_alpha.KIND, config)
    first = sweep._searcher(config, chosen, [])
    points = [first.suggest(str(k)) for k in range(3)]
    for point in points:
        assert 0 <= point["dynamic.alpha"] <= 1
        assert point["dynamic.train.batch_size"] in range(2, 9)
        space.checked(config, point)
    kept = [sweep.Trial(point, {"dynamic.iou": float(k)}) for k, point in enumerate(points)]
    kept.append(sweep.Trial({"dynamic.alpha": 0.5, "dynamic.train.batch_size": 2}, {"dynamic.iou": float("nan")}))
    again = sweep._searcher(config, chosen, kept)
    assert all(again.suggest(str(k)) not in points for k in range(3))

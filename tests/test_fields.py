"""Fields by their dotted names: values and texts of the declared types, and what is refused."""

from pathlib import Path

import pytest

from ssdd.config import Config, ConfigError
from ssdd.fields import _names, changed, flatten, to_dict
from ssdd.presets import PRESETS, mini
from ssdd.storage.paths import to_path


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_set_to_its_value_or_its_text_changes_nothing(preset):
    config = PRESETS[preset]()
    values = flatten(to_dict(config))
    assert set(values) == set(_names(Config))
    assert changed(config, values) == config
    texts = {name: list(map(str, v)) if isinstance(v, list) else str(v) for name, v in values.items()}
    assert changed(config, texts) == config


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dynamic.alpha", "0.25", 0.25),
        ("dynamic.alpha", 1, 1.0),
        ("dynamic.train.epochs", "3", 3),
        ("static.bias.vanish-ratio", 0.4, 0.4),
        ("evaluate.mirror", False, False),
        ("evaluate.mirror", "False", False),
        ("gpus", None, None),
        ("gpus", "None", None),
        ("gpus", "True", True),
        ("workers", "2", 2),
        ("dynamic.target", "d2", "d2"),
        ("train_split", 2012, "2012"),
        ("evaluate.scales", [1, "0.5"], (1.0, 0.5)),
        ("evaluate.scales", 1, (1.0,)),
        ("static.train.augment.resize", (160, 200), (160, 200)),
        ("compare.rows", ["dynamic"], ("dynamic",)),
        ("data", "/some/where", Path("/some/where")),
        ("data", "s3://bucket/key", to_path("s3://bucket/key")),
    ],
)
def test_a_value_becomes_one_of_its_fields_type(name, value, expected):
    config = changed(mini(), {name: value})
    for word in name.replace("-", "_").split("."):
        config = getattr(config, word)
    assert config == expected
    assert type(config) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dynamic.alpah", 1, r"there is no field dynamic\.alpah; did you mean dynamic\.alpha"),
        ("dynamic", 1, "there is no field dynamic"),
        ("dynamic.alpha.x", 1, "there is no field"),
        ("dynamic.alpha", "much", r"dynamic\.alpha: 'much' is not a valid value; expected float"),
        ("dynamic.alpha", True, "not a valid value"),
        ("crf.iterations", 2.5, r"crf\.iterations: 2\.5 is not a valid value; expected int"),
        ("crf.iterations", None, "not a valid value"),
        ("crf.iterations", [3], "not a valid value"),
        ("evaluate.mirror", "yes", "not a valid value"),
        ("dynamic.target", "d3", "not a valid value"),
        ("static.train.augment.resize", [160], "not a valid value"),
        ("compare.rows", ["dynamic", "static"], "not a valid value"),
        ("dynamic.alpha", 1.5, r"--dynamic\.alpha: must lie in 0\.\.1"),
        ("data", "http://x", r"data: http:// is not supported; use s3://"),
    ],
)
def test_what_is_of_another_type_is_refused_by_name(name, value, message):
    with pytest.raises(ConfigError, match=message):
        changed(mini(), {name: value})


@pytest.mark.parametrize("name", ["data", "dynamic.alpha", "crf.iterations", "preset", "evaluate.scales"])
def test_a_url_with_a_password_is_not_repeated(name):
    with pytest.raises(ConfigError) as error:
        changed(mini(), {name: "s3://key:secret@bucket"})
    assert "secret" not in str(error.value)

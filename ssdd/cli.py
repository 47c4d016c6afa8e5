"""Reading a configuration from a command line and a YAML file, with tyro."""

import argparse
from pathlib import Path
from typing import Any, TypeVar, get_args

import tyro
import yaml

from ssdd.checks import validate
from ssdd.config import Config, ConfigError
from ssdd.fields import changed, flatten
from ssdd.presets import PRESETS
from ssdd.storage.paths import AnyPath, RemotePath, path_flag, to_path


def parse(args: list[str] | None = None, description: str | None = None, default: Config | None = None) -> Config:
    """The configuration of a command line: `--preset` chooses the defaults, every other flag sets one field.

    `--config FILE` names a YAML file (see `presets.changes`) whose values replace the preset's; flags replace both.
    With `default`, the values of this configuration take the place of the preset's.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=PRESETS)
    first.add_argument("--config", type=path_flag)
    chosen, _ = first.parse_known_args(args)
    rest = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    rest.add_argument("--config")
    _, flags = rest.parse_known_args(args)
    if chosen.config is None:
        return override(default or PRESETS[chosen.preset or "mini"](), flags, description)
    fields = read_fields(chosen.config)
    preset = chosen.preset or fields.pop("preset", default.preset if default else "mini")
    if preset not in PRESETS:
        raise ConfigError(f"{chosen.config}: unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    base = with_fields(default or PRESETS[preset](), fields | {"preset": preset}, chosen.config)
    return override(base, flags, description)


def with_fields(base: Config, fields: dict[str, Any], path: AnyPath | None) -> Config:
    """A copy of `base` with fields from the YAML file `path`. Raises ConfigError, which names the file."""
    try:
        return changed(base, fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def override(default: Config, args: list[str] | None = None, description: str | None = None) -> Config:
    """A copy of `default` with the fields that a command line sets, after `validate`.

    Raises:
        SystemExit: the command line cannot be parsed (a message was printed).
        ConfigError: values cannot work, see `validate`.
    """
    config = tyro.cli(Config, args=args, default=default, description=description, registry=TYPES)
    validate(config)
    return config


Options = TypeVar("Options")


def options(kind: type[Options], args: list[str] | None = None, description: str | None = None) -> Options:
    """A dataclass with its fields from a command line. SystemExit if it cannot be parsed (a message was printed)."""
    return tyro.cli(kind, args=args, description=description, registry=TYPES)


def script_flags(args: list[str] | None = None, **flags: dict[str, Any]) -> tuple[argparse.Namespace, list[str]]:
    """The values of a script's own flags, which are not fields of the configuration, and the other arguments.

    Args:
        args: the command line; None for the command line of this process.
        flags: argparse's options for each flag, by the flag's name with underscores.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, options in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser.parse_known_args(args)


def read_fields(path: AnyPath) -> dict[str, Any]:
    """The fields in a YAML file, by dotted name, with their values as in the file. Raises ConfigError."""
    try:
        fields = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is not valid YAML: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ConfigError(f"--config {path}: must map fields to values, for example `dynamic.alpha: 0.5`")
    return flatten(fields)


TYPES = tyro.constructors.ConstructorRegistry()


@TYPES.primitive_rule
def _path_rule(field: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """How tyro reads a field whose value is a path on a disk or in an object store; None for other fields."""
    kinds = set(get_args(field.type))
    if kinds - {type(None)} != {Path, RemotePath}:
        return None
    may_be_none = type(None) in kinds
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}|DIR|s3://BUCKET/KEY" if may_be_none else "PATH|s3://BUCKET/KEY",
        instance_from_str=lambda args: None if may_be_none and args[0] == "None" else to_path(args[0]),
        is_instance=lambda value: (value is None and may_be_none) or isinstance(value, AnyPath),
        str_from_instance=lambda value: [str(value)],
    )

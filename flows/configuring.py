"""The verb `init`: a configuration file that explains every key."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from core.config import RunConfig, config_path, parse_config, read_toml
from core.errors import ConfigError


def write_config(file: Path, preset: str) -> int:
    """Write `file` from a preset, every key with its meaning. Raises ConfigError if it exists, or no folder for it."""
    if file.exists():
        raise ConfigError(f"{file} exists already: give another name, or delete it first")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent} to write {file.name} to: make it first")
    path = config_path(preset)
    file.write_text("\n".join(commented(parse_config(read_toml(path), str(path)))) + "\n")
    Console(stderr=True).print(Text(f"wrote {file}: redraft run --config {shlex.quote(str(file))}"), soft_wrap=True)
    return 0


def commented(config: RunConfig) -> Iterator[str]:
    """The lines of a TOML file with every key of `config`, its value and its meaning."""
    yield "# Redraft: what a run needs to know. Every key may also be given on the command line, e.g. --rounds.n 3."
    yield from _keys(config)
    yield from _tables(config, ())


def _keys(model: BaseModel) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            continue
        yield from (f"# {line.strip()}" for line in (field.description or "").splitlines())
        yield f"# {name} =  (left out)" if value is None else f"{name} = {_toml(value)}"


def _tables(model: BaseModel, prefix: tuple[str, ...]) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield ""
            yield from (f"# {line.strip()}" for line in (field.description or type(value).__doc__ or "").splitlines())
            yield f"[{'.'.join((*prefix, name))}]"
            yield from _keys(value)
            yield from _tables(value, (*prefix, name))


def _toml(value: object) -> str:
    """A string, number, boolean or list of strings: all that a configuration holds. Their JSON is valid TOML."""
    return orjson.dumps(value).decode().replace('","', '", "')

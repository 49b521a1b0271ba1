"""Configurations as TOML files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from onnxq.config.choices import choice_of, unknown_key
from onnxq.config.config import Config
from onnxq.config.rules import Rule
from onnxq.errors import ConfigError, one_line
from onnxq.files.opening import read_text


def config_text(config: Config) -> str:
    """``config`` as TOML that ``load_config`` reads back: what differs from the defaults.

    What names code is left out, and what may be lost by that.
    """
    unnamed = {entry.name for entry in fields(Config) if choice_of(entry).code}
    if config.metric:
        unnamed.add("max_drop")
    lines = []
    for entry in fields(Config):
        value = getattr(config, entry.name)
        if entry.name not in ("rules", "judge", *unnamed) and value != entry.default and value is not None:
            lines.append(f"{entry.name} = {json.dumps(value)}")
    for rule in config.rules:
        lines += ["", "[[rules]]", f"match = {json.dumps(rule.match)}", f'precision = "{rule.precision}"']
        lines += [f'weights = "{rule.weights}"'] if rule.weights else []
    if config.judge:
        lines += ["", "[judge]", *(f"{json.dumps(name)} = {json.dumps(kind)}" for name, kind in config.judge)]
    return "\n".join(lines) + "\n"


def load_config(path: Path | str) -> Config:
    """The ``Config`` in a TOML file: its fields as keys, ``[[rules]]`` with ``match`` and ``precision``, ``[judge]``.

    Raises ``ConfigError`` naming the file and the key.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table = tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"cannot read configuration {path}: {error.strerror}",
            hint="check its name, or write one with --save-config",
        ) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number without end, nested too deeply
        raise ConfigError(
            f"{path} is not valid TOML: {one_line(error)}", hint="mend it, or write one with --save-config"
        ) from error
    return config_from(table, where=str(path))


def config_from(table: Mapping[str, Any], *, where: str = "config") -> Config:
    """The ``Config`` of a plain mapping; unknown keys and wrong values raise ``ConfigError`` naming ``where``."""
    known = {entry.name: entry for entry in fields(Config)}
    try:
        for key in table:
            if key not in known:
                raise unknown_key(key, known)
            if choice_of(known[key]).code:
                raise ConfigError(
                    f"{key} names code, which no file may", hint=f"give it as {choice_of(known[key]).flag}"
                )
        values: dict[str, Any] = {k: _rules(v) if k == "rules" else v for k, v in table.items()}
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", hint=error.hint) from None


def _rules(value: Any) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not all(isinstance(r, Mapping) and "match" in r for r in value):
        raise ConfigError("rules is a list of tables with 'match' and 'precision' or 'weights'")
    unknown = {k for r in value for k in r} - {f.name for f in fields(Rule)}
    if unknown:
        raise ConfigError(
            f"a rule has no key {', '.join(sorted(unknown))}", hint="only 'match', 'precision' and 'weights'"
        )
    for key, text in ((k, v) for r in value for k, v in r.items()):
        if not isinstance(text, str):
            raise ConfigError(f"'{key}' of a rule must be str, not {text!r}")
    return tuple(Rule(**r) for r in value)

"""The user's choices, as one frozen value; read from keyword arguments or from a TOML file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from onnxq.errors import ConfigError, one_line

# What ``ranges.layer`` knows; importing that would cost numpy, which ``onnxq --help`` does without.
OBJECTIVES = ("auto", "tensor", "diagonal", "output")
RESTORE = ("none", "mean", "gain", "mean+gain")
OPERATORS = ("onnxruntime", "standard")
PLACEMENTS = ("cost", "all")


PRECISIONS = ("int8", "int8-gemm", "stored", "float")


@dataclass(frozen=True)
class Rule:
    """How nodes run whose name or operator type matches ``match`` (shell wildcards).

    ``int8``: on integers, whatever that costs. ``int8-gemm``: the same, a convolution by matrix products. ``stored``:
    in float, weights stored as int8. ``float``: as in the float model.
    """

    match: str
    precision: str = "float"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"rule '{self.match}': precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'"
            )

    def matches(self, name: str, op_type: str) -> bool:
        """Whether the rule speaks of a node called ``name`` of type ``op_type``."""
        return fnmatchcase(name, self.match) or fnmatchcase(op_type, self.match)


@dataclass(frozen=True)
class Config:
    """How to quantize. Every default of onnxq is written here and nowhere else.

    | field               | meaning                                                                              |
    |---------------------|--------------------------------------------------------------------------------------|
    | `weight_range`      | method for weight scales, see ``onnxq.ranges``                                       |
    | `activation_range`  | method for activation scales and zero points                                         |
    | `objective`         | what ``mse`` minimises for weights: ``auto``, or one of ``ranges.layer``               |
    | `restore`           | what is put right after rounding weights: ``none``, ``mean``, ``gain``, ``mean+gain`` |
    | `target`            | ``auto``, ``x86-vnni``, ``x86-avx2``, ``arm64``                                      |
    | `operators`         | ``onnxruntime``: its own where they are faster; ``standard``: ONNX's only            |
    | `placement`         | ``cost``: integers where they pay; ``all``: wherever there is an integer kernel      |
    | `rules`             | ordered; for each node the first match wins                                          |
    | `samples`           | at most so many calibration samples are used, evenly spaced                          |
    | `held_out`          | share of the samples kept back from calibration, to judge the result (0 to 0.5)      |
    | `min_agreement`     | layers are given back to float until held-out agreement reaches it (0: never)        |
    | `guard_sqnr`        | layers are given back to float until every output reaches it, dB (or no gain is left) |
    | `min_sqnr`          | dB; a result below it is reported as failed                                          |
    | `tune_seconds`      | time given to finding the fastest placement by measuring on this machine (0: none)   |
    | `latency_seconds`   | time given to measuring latency for the report (0: none)                             |
    | `seed`              | of everything random                                                                 |
    """

    weight_range: str = "mse"
    activation_range: str = "mse"
    objective: str = "auto"
    restore: str = "mean+gain"
    target: str = "auto"
    operators: str = "onnxruntime"
    placement: str = "cost"
    rules: tuple[Rule, ...] = ()
    samples: int = 512
    held_out: float = 0.125
    min_agreement: float = 0.99
    guard_sqnr: float = 10.0
    min_sqnr: float | None = None
    tune_seconds: float = 0.0
    latency_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (("objective", OBJECTIVES), ("restore", RESTORE), ("operators", OPERATORS), ("placement", PLACEMENTS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, not {self.samples}")
        if not 0.0 <= self.held_out <= 0.5:
            raise ConfigError(f"held_out is a share from 0 to 0.5, not {self.held_out}")
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ConfigError(f"min_agreement is a share from 0 to 1, not {self.min_agreement}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")

    def precision_of(self, name: str, op_type: str) -> str | None:
        """What the first rule that matches a node says of it; None where none does."""
        return next((r.precision for r in self.rules if r.matches(name, op_type)), None)

    def with_excluded(self, patterns: tuple[str, ...]) -> Config:
        """This configuration with ``patterns`` kept float, before all other rules."""
        return replace(self, rules=tuple(Rule(p, "float") for p in patterns) + self.rules)

    def with_range(self, text: str) -> Config:
        """This configuration with ranges from ``METHOD`` or ``weights=METHOD,activations=METHOD``."""
        changed = self
        for part in text.split(","):
            role, _, method = part.rpartition("=")
            if role not in ("", "weights", "activations"):
                raise ConfigError(f"--range {text}: write METHOD, weights=METHOD or activations=METHOD, not '{role}='")
            if role in ("", "weights"):
                changed = replace(changed, weight_range=method)
            if role in ("", "activations"):
                changed = replace(changed, activation_range=method)
        return changed


def config_text(config: Config) -> str:
    """``config`` as TOML that ``load_config`` reads back: what differs from the defaults."""
    lines = []
    for entry in fields(Config):
        value = getattr(config, entry.name)
        if entry.name != "rules" and value != entry.default and value is not None:
            lines.append(f"{entry.name} = {json.dumps(value)}")
    for rule in config.rules:
        lines += ["", "[[rules]]", f"match = {json.dumps(rule.match)}", f'precision = "{rule.precision}"']
    return "\n".join(lines) + "\n"


def load_config(path: Path | str) -> Config:
    """The ``Config`` in a TOML file: its fields as keys, ``[[rules]]`` tables with ``match`` and ``precision``.

    Raises ``ConfigError`` naming the file and the key.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {one_line(error)}") from error
    return config_from(table, where=str(path))


def config_from(table: Mapping[str, Any], *, where: str = "config") -> Config:
    """The ``Config`` of a plain mapping; unknown keys and wrong types raise ``ConfigError`` naming ``where``."""
    types = {f.name: str(f.type) for f in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            raise ConfigError(f"{where}: unknown key '{key}'; known are {', '.join(types)}")
        values[key] = _rules(value, where) if key == "rules" else _plain(key, value, types[key], where)
    return Config(**values)


def _rules(value: Any, where: str) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not all(isinstance(r, Mapping) and "match" in r for r in value):
        raise ConfigError(f"{where}: rules is a list of tables with 'match' and 'precision'")
    unknown = {k for r in value for k in r} - {f.name for f in fields(Rule)}
    if unknown:
        raise ConfigError(f"{where}: a rule has no key {', '.join(sorted(unknown))}; only 'match' and 'precision'")
    for key, text in ((k, v) for r in value for k, v in r.items()):
        if not isinstance(text, str):
            raise ConfigError(f"{where}: '{key}' of a rule must be str, not {text!r}")
    return tuple(Rule(**r) for r in value)


def _plain(key: str, value: Any, type_name: str, where: str) -> Any:
    if "float" in type_name and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    wanted = str if type_name == "str" else int
    if "float" in type_name or not isinstance(value, wanted) or isinstance(value, bool):
        raise ConfigError(f"{where}: {key} must be {type_name}, not {value!r}")
    return value

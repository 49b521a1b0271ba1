"""The user's choices, as one frozen value; read from keyword arguments or from a TOML file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from onnxq.config.formats import format_name
from onnxq.errors import ConfigError, one_line

# What ``ranges.layer`` knows; importing that would cost numpy, which ``onnxq --help`` does without.
OBJECTIVES = ("auto", "tensor", "diagonal", "output")
RESTORE = ("none", "mean", "gain", "mean+gain")
OPERATORS = ("onnxruntime", "standard")
PLACEMENTS = ("cost", "all")
ACTIVATIONS = ("uint8", "uint6", "uint4", "none")
ROUNDINGS = ("auto", "nearest", "compensated")
EQUALIZE = ("auto", "none", "all")
INT4_STORAGES = ("packed", "native")
ADAPTATIONS = ("none", "fast", "iterative", "full")


# Bits of each layer's weight by sensitivity.
AUTO = "auto"

# What a preset changes of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "int8": {},
    "w4a8": {"weights": "int4"},
    "w4": {"weights": "int4:32", "activations": "none"},
    "w4a4": {"weights": "int4", "activations": "uint4"},
    "w6a6": {"weights": "int6", "activations": "uint6"},
}

PRECISIONS = ("auto", "int8", "int8-gemm", "stored", "float")


@dataclass(frozen=True)
class Rule:
    """How nodes run whose name or operator type matches ``match`` (shell wildcards).

    ``int8``: on integers, whatever that costs. ``int8-gemm``: the same, a convolution by matrix products. ``stored``:
    in float, weights stored as integers. ``float``: as in the float model. ``weights`` names a weight format (see
    ``onnxq.config.formats``) instead of ``Config.weights``; a rule that gives one and no precision leaves where things
    run to the placement.
    """

    match: str
    precision: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", "auto" if self.weights else "float")
        if self.weights:
            format_name(self.weights)
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
    | `weights`           | weight format: ``int8``, ``int4``, ``int4:32``, ``codebook4``, ...: ``config.formats``    |
    | `size_budget`       | with ``weights = "auto"``: bits by sensitivity, so that the file is at most this share |
    | `first_last`        | that of the first and the last layers where ``weights`` has 4 bits or fewer          |
    | `int4_storage`      | ``packed``: opset 13 operators unpack 4 bits at load; ``native``: int4 tensors, opset 21 |
    | `activations`       | ``uint8``; ``uint6``, ``uint4``: simulated; ``none``: weights only                   |
    | `rounding`          | of weights: ``nearest``, ``compensated``, ``auto``: the latter below 7 bits, and of  |
    |                     | layers with few inputs                                                               |
    | `weight_range`      | method for weight scales, see ``onnxq.ranges``                                       |
    | `activation_range`  | method for activation scales and zero points                                         |
    | `objective`         | what ``mse`` minimises for weights: ``auto``, or one of ``ranges.layer``               |
    | `restore`           | what is put right after rounding weights: ``none``, ``mean``, ``gain``, ``mean+gain`` |
    | `equalize`          | ``auto``: channels are made alike where that makes less noise and costs nothing, and  |
    |                     | at the price of a pass before layers would be given back to float; ``all``: at that   |
    |                     | price wherever it halves the noise; ``none``                                          |
    | `target`            | ``auto``, ``x86-vnni``, ``x86-amx``, ``x86-avx2``, ``arm64``                         |
    | `operators`         | ``onnxruntime``: its own where they are faster; ``standard``: ONNX's only            |
    | `placement`         | ``cost``: integers where they pay; ``all``: wherever there is an integer kernel      |
    | `rules`             | ordered; for each node the first match wins                                          |
    | `samples`           | at most so many calibration samples are used, evenly spaced                          |
    | `held_out`          | share of the samples kept back from calibration, to judge the result (0 to 0.5)      |
    | `min_agreement`     | layers are given back to float until held-out agreement reaches it (0: never)        |
    | `guard_sqnr`        | layers are given back to float until every output reaches it, dB (or no gain is left) |
    | `min_sqnr`          | dB; a result below it is reported as failed; with ``weights = "auto"`` bits are given |
    |                     | by sensitivity, so that it is reached                                                |
    | `adapt`             | weights adapted to the noise before them: ``none``, ``fast``, ``iterative``, ``full``  |
    | `adapt_seconds`     | its longest time (0: seven minutes for ``iterative``, no limit for ``full``)         |
    | `labels`            | name of the array in the data that holds class indices; then ``full`` trains on them  |
    | `resume`            | goes on with an adaptation that was interrupted                                      |
    | `tune_seconds`      | time given to finding the fastest placement by measuring on this machine (0: none)   |
    | `accuracy_level`    | of MatMulNBits: 4 rounds its inputs to 8 bits for each block, 1 computes in float32   |
    | `latency_seconds`   | time given to measuring latency for the report (0: none)                             |
    | `seed`              | of everything random                                                                 |
    """

    weights: str = "int8"
    size_budget: float | None = None
    first_last: str = "int8"
    int4_storage: str = "packed"
    activations: str = "uint8"
    rounding: str = "auto"
    weight_range: str = "mse"
    activation_range: str = "mse"
    objective: str = "auto"
    restore: str = "mean+gain"
    equalize: str = "auto"
    target: str = "auto"
    operators: str = "onnxruntime"
    placement: str = "cost"
    rules: tuple[Rule, ...] = ()
    samples: int = 512
    held_out: float = 0.125
    min_agreement: float = 0.99
    guard_sqnr: float = 10.0
    min_sqnr: float | None = None
    adapt: str = "none"
    adapt_seconds: float = 0.0
    labels: str = ""
    resume: bool = False
    tune_seconds: float = 0.0
    accuracy_level: int = 4
    latency_seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (
            ("objective", OBJECTIVES),
            ("restore", RESTORE),
            ("equalize", EQUALIZE),
            ("operators", OPERATORS),
            ("placement", PLACEMENTS),
            ("activations", ACTIVATIONS),
            ("rounding", ROUNDINGS),
            ("adapt", ADAPTATIONS),
            ("int4_storage", INT4_STORAGES),
        )
        if self.size_budget is not None and (self.weights != AUTO or not 0.0 < self.size_budget < 1.0):
            raise ConfigError("size_budget is a share of the float file, from 0 to 1, and goes with weights = 'auto'")
        if self.weights == AUTO and self.activations != "uint8":
            raise ConfigError("weights = 'auto' goes with activations = 'uint8'")
        for text in (self.usual_weights, self.first_last, *(r.weights for r in self.rules if r.weights)):
            why = format_name(text).weights_only
            if why and self.activations != "none":
                raise ConfigError(f"weight format '{text}' {why}: it goes with activations = 'none' only")
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, not '{getattr(self, name)}'")
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, not {self.samples}")
        if not 0.0 <= self.held_out <= 0.5:
            raise ConfigError(f"held_out is a share from 0 to 0.5, not {self.held_out}")
        if not 0.0 <= self.min_agreement <= 1.0:
            raise ConfigError(f"min_agreement is a share from 0 to 1, not {self.min_agreement}")
        if self.accuracy_level not in (0, 1, 4):
            raise ConfigError(f"accuracy_level is 1 (float32) or 4 (int8), not {self.accuracy_level}")
        if self.adapt_seconds < 0.0:
            raise ConfigError(f"adapt_seconds must be at least 0, not {self.adapt_seconds}")
        if self.resume and self.adapt == "none":
            raise ConfigError("resume goes with adapt: there is no adaptation to go on with")
        if self.labels and self.adapt != "full":
            raise ConfigError("labels go with adapt = 'full': the other levels need none")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")

    @property
    def usual_weights(self) -> str:
        """The format of weights that nothing else is said of: ``int8`` where bits are found by sensitivity."""
        return "int8" if self.weights == AUTO else self.weights

    @property
    def native(self) -> bool:
        """Whether any weight may become an int4 tensor, which needs opset 21."""
        formats = (self.usual_weights, self.first_last, *(r.weights for r in self.rules if r.weights))
        return self.int4_storage == "native" and (self.weights == AUTO or any(format_name(f).native for f in formats))

    @property
    def guarded(self) -> bool:
        """Whether layers are given back to float for accuracy: 8 bits promise it, fewer are the user's wish."""
        return self.weights == "int8" and not self.simulated

    @property
    def activation_bits(self) -> int:
        """Bits of quantized activations; 8 where none is quantized."""
        return 8 if self.activations == "none" else int(self.activations.removeprefix("uint"))

    @property
    def simulated(self) -> bool:
        """Whether activations have fewer bits than the integer kernels compute with: nothing gets faster by that."""
        return self.activation_bits < 8

    def precision_of(self, name: str, op_type: str) -> str | None:
        """What the first rule that matches a node says of it; None where none does."""
        return next((r.precision for r in self.rules if r.precision != "auto" and r.matches(name, op_type)), None)

    def weights_of(self, name: str, op_type: str) -> str | None:
        """The weight format that the first rule with one gives a node; None where none does."""
        return next((r.weights for r in self.rules if r.weights and r.matches(name, op_type)), None)

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


def preset(name: str) -> Config:
    """The defaults as the preset ``name`` changes them. Raises ``ConfigError`` listing the presets for another name."""
    if name not in PRESETS:
        raise ConfigError(f"no preset '{name}'; choose one of {', '.join(PRESETS)}")
    return Config(**PRESETS[name])


def config_text(config: Config) -> str:
    """``config`` as TOML that ``load_config`` reads back: what differs from the defaults."""
    lines = []
    for entry in fields(Config):
        value = getattr(config, entry.name)
        if entry.name != "rules" and value != entry.default and value is not None:
            lines.append(f"{entry.name} = {json.dumps(value)}")
    for rule in config.rules:
        lines += ["", "[[rules]]", f"match = {json.dumps(rule.match)}", f'precision = "{rule.precision}"']
        lines += [f'weights = "{rule.weights}"'] if rule.weights else []
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
        raise ConfigError(f"{where}: rules is a list of tables with 'match' and 'precision' or 'weights'")
    unknown = {k for r in value for k in r} - {f.name for f in fields(Rule)}
    if unknown:
        raise ConfigError(
            f"{where}: a rule has no key {', '.join(sorted(unknown))}; only 'match', 'precision' and 'weights'"
        )
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

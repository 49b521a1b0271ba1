"""All choices as one frozen value."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace

from onnxq.config.choices import checked, choice_of, described
from onnxq.config.formats import format_name
from onnxq.config.groups import (
    AUTO,
    GROUPS,
    ActivationChoices,
    AdaptChoices,
    RunChoices,
    SearchChoices,
    WeightChoices,
)
from onnxq.config.judged import judged, judged_text
from onnxq.config.rules import Rule
from onnxq.errors import ConfigError

# The share of the loss that ``min_agreement`` allows.
_STRICTNESS = {"strict": 0.1, "default": 1.0, "fast": 3.0}


@dataclass(frozen=True)
class Config(RunChoices, AdaptChoices, SearchChoices, ActivationChoices, WeightChoices):
    """How to quantize: the choices of all groups, each by its name.

    ``choice_table()`` prints them with their meaning, bounds and defaults. Values are checked when a ``Config`` is
    made: ``ConfigError`` names the choice and what it takes.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name not in ("rules", "judge"):
                value = checked(entry.name, getattr(self, entry.name), str(entry.type), choice_of(entry))
                object.__setattr__(self, entry.name, value)
        self._check_rules()
        object.__setattr__(self, "judge", judged(self.judge))
        self._check_together()

    def _check_rules(self) -> None:
        if not isinstance(self.rules, (tuple, list)) or not all(isinstance(r, Rule) for r in self.rules):
            raise ConfigError(f"rules is a tuple of Rule, not {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))

    def _check_together(self) -> None:
        """What single choices allow and their combination does not."""
        if self.size_budget is not None and self.weights != AUTO:
            raise ConfigError(
                "size_budget is a share of the float file, from 0 to 1, and goes with weights = 'auto'",
                hint="add --weights auto",
            )
        if self.weights == AUTO and self.activations != "uint8":
            raise ConfigError("weights = 'auto' goes with activations = 'uint8'", hint="leave out --activations")
        for text in self._named_formats:
            why = format_name(text).weights_only
            if why and self.activations != "none":
                raise ConfigError(
                    f"weight format '{text}' {why}: it goes with activations = 'none' only",
                    hint="add --activations none",
                )
        if self.resume and self.adapt == "none":
            raise ConfigError("resume goes with adapt: there is no adaptation to go on with")

    @property
    def _named_formats(self) -> tuple[str, ...]:
        """Every weight format that is named anywhere."""
        return (self.usual_weights, self.first_last, *(r.weights for r in self.rules if r.weights))

    @property
    def usual_weights(self) -> str:
        """The format of weights that nothing else is said of: ``int8`` where bits are found by sensitivity."""
        return "int8" if self.weights == AUTO else self.weights

    @property
    def native(self) -> bool:
        """Whether any weight may become an int4 tensor, which needs opset 21."""
        named = any(format_name(text).native for text in self._named_formats)
        return self.int4_storage == "native" and (self.weights == AUTO or named)

    @property
    def guarded(self) -> bool:
        """Whether layers are kept float for accuracy: 8 bits promise it, fewer are the user's wish."""
        return self.weights == "int8" and not self.simulated

    @property
    def promised_agreement(self) -> float:
        """The share of decisions that is promised to stay: ``min_agreement``, as strictly as ``keep_accuracy`` says."""
        lost = _STRICTNESS[self.keep_accuracy] * (1.0 - self.min_agreement)
        return max(0.0, 1.0 - lost) if self.min_agreement > 0.0 else 0.0

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

    def with_judged(self, words: tuple[str, ...]) -> Config:
        """This configuration with outputs judged as ``words`` say, ``NAME=KIND`` each, whatever it said of them."""
        return replace(self, judge=tuple({**dict(self.judge), **dict(judged_text(words))}.items()))

    def with_range(self, text: str) -> Config:
        """This configuration with ranges from ``METHOD`` or ``weights=METHOD,activations=METHOD``."""
        changed = self
        for part in text.split(","):
            role, _, method = part.rpartition("=")
            if role not in ("", "weights", "activations"):
                raise ConfigError(
                    f"--range {text} names no range method",
                    hint=f"write METHOD, weights=METHOD or activations=METHOD, not '{role}='",
                )
            if role in ("", "weights"):
                changed = replace(changed, weight_range=method)
            if role in ("", "activations"):
                changed = replace(changed, activation_range=method)
        return changed


_TABLES = {"rules": "list of tables", "judge": "table"}
_WORDS = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}


def choice_table() -> str:
    """Every choice by group, with its default, type and meaning, as Markdown tables: the reference of the TOML file."""
    lines = []
    for title, group in GROUPS:
        lines += [f"### {title}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for entry in fields(group):
            written = "" if entry.default in (None, ()) else f"`{json.dumps(entry.default)}`"
            kind = _WORDS.get(str(entry.type).removesuffix(" | None")) or _TABLES[entry.name]
            lines.append(f"| `{entry.name}` | {kind} | {written} | {described(choice_of(entry), None)} |")
        lines.append("")
    return "\n".join(lines).rstrip()

"""What outputs are for, where the user says so: pairs of the name of an output and that of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxq.errors import ConfigError

# What ``measure.kinds`` knows; importing that would cost numpy, which ``onnxq --help`` does without.
JUDGE_KINDS = (
    "classes",
    "labels",
    "pixels",
    "tokens",
    "ctc",
    "next-token",
    "boxes",
    "embedding",
    "map",
    "regression",
    "image",
    "audio",
    "ids",
    "features",
)


def judged(value: Any) -> tuple[tuple[str, str], ...]:
    """``value``, a mapping or pairs, as pairs of the name of an output and a kind. Raises ``ConfigError``."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    form = "judge is a table of kinds by the name of an output"
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise ConfigError(f"{form}, not {value!r}")
    for name, kind in pairs:
        if not isinstance(name, str) or not isinstance(kind, str) or not name:
            raise ConfigError(f"{form}, not {value!r}")
        if kind not in JUDGE_KINDS:
            raise ConfigError(
                f"judge: there is no kind of outputs called '{kind}'", hint=f"give one of {', '.join(JUDGE_KINDS)}"
            )
    return tuple(dict(pairs).items())


def judged_text(words: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """That of ``words`` as ``NAME=KIND``; names may hold ``=`` themselves. Raises ``ConfigError``."""
    pairs = []
    for word in words:
        name, separator, kind = word.rpartition("=")
        if not separator or not name:
            raise ConfigError(f"--judge {word} names no kind", hint="write NAME=KIND, as in --judge scores=labels")
        pairs.append((name, kind))
    return judged(pairs)

"""The user's measure, from the function or the two that were given, or their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from onnxq.calibrate.callables import load_reference, parse_reference
from onnxq.errors import ConfigError
from onnxq.measure.metric import Metric, SampleMetric, ScoreMetric, Top1

MetricSource: TypeAlias = "str | Callable[..., Any] | Sequence[Callable[..., Any]]"

_FORMS = "give package.module:function or file.py:function, or two of them (predict and score) with a comma between"


def open_metric(given: MetricSource | None, *, labelled: bool) -> Metric | None:
    """The ``Metric`` of ``given``; None where that is None or an empty text.

    ``labelled``: whether there are labels. Names are imported, which runs code: they must come from whoever makes the
    call, never out of a file. Raises ``ConfigError`` for what is no function, ``DataError`` where it cannot be loaded.
    """
    if given is None or given == "":
        return None
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        found: list[Any] = [_loaded(part, given) for part in parts]
        name = ",".join(parts)
    else:
        found = [given] if callable(given) else list(given) if isinstance(given, Sequence) else []
        name = ",".join(_name_of(function) for function in found)
    if len(found) not in (1, 2) or not all(callable(function) for function in found):
        raise ConfigError(f"the metric is {given!r}: not one function, and not two", hint=_FORMS)
    if len(found) == 2:
        return ScoreMetric(name, found[0], found[1])
    return SampleMetric(name, found[0], labelled=labelled)


def metric_asked_for(given: MetricSource | None, *, labels: bool, max_drop: float | None) -> Metric | None:
    """The ``Metric`` that decides: ``given`` or, where only labels and ``max_drop`` are, top-1; None: there is none."""
    found = open_metric(given, labelled=labels)
    if found is None and max_drop is not None:
        if not labels:
            raise ConfigError(
                "max_drop says how much a metric may lose, and there is none", hint="give --metric, --labels, or both"
            )
        return Top1()
    return found


def _loaded(text: str, whole: str) -> object:
    reference = parse_reference(text)
    if reference is None:
        raise ConfigError(f"--metric {whole} names no function", hint=_FORMS)
    target = load_reference(*reference)
    if not callable(target):
        raise ConfigError(f"metric {text} is {type(target).__name__}, not a function", hint=_FORMS)
    return target


def _name_of(function: object) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", type(function).__name__)
    return f"{module}:{name}" if module else name

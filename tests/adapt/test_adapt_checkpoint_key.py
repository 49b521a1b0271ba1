"""Where a checkpoint lies: other parameters and other choices elsewhere, another budget in the same place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxq import Config
from onnxq.adapt.checkpoint import Checkpoint
from onnxq.emit import WeightKey
from onnxq.numerics import INT8_NARROW, UINT8, PerAxis, params
from onnxq.parameters.choose import Parameters
from onnxq.weights import Plain, StoredWeight, weight_format

CONFIG = Config(weights="int4", adapt="iterative")


def parameters(*, code: int = 3, scale: float = 0.5, zero: int = 7, bias: float = 0.25) -> Parameters:
    """Of one tensor, one weight and one bias."""
    weight = params(INT8_NARROW, np.asarray([scale, 1.0], np.float32), granularity=PerAxis(0))
    codes = np.asarray([[1, code], [0, -2]], np.int8)
    key = WeightKey("w", PerAxis(0), weight_format("int8"))
    return Parameters(
        {"x": params(UINT8, 0.1, zero)},
        {key: StoredWeight(codes, weight, Plain())},
        {("fc", 2): np.float32([bias, 1.0])},
    )


@pytest.mark.parametrize(
    "choice",
    [
        {"seed": 1},
        {"weights": "int3"},
        {"activations": "uint6"},
        {"adapt": "full"},
        {"samples": 77},
        {"held_out": 0.3},
        {"rounding": "nearest"},
        {"restore": "none"},
        {"objective": "diagonal"},
    ],
    ids=str,
)
def test_other_choices_are_another_adaptation(choice: dict[str, Any]) -> None:
    base = parameters()
    assert Checkpoint(base, replace(CONFIG, **choice)).path != Checkpoint(base, CONFIG).path


@pytest.mark.parametrize("budget", [{"adapt_seconds": 9.0}, {"latency_seconds": 3.0}, {"resume": True}], ids=str)
def test_how_long_it_may_take_is_no_choice_of_what_is_found(budget: dict[str, Any]) -> None:
    base = parameters()
    assert Checkpoint(base, replace(CONFIG, **budget)).path == Checkpoint(base, CONFIG).path


@pytest.mark.parametrize("other", [{"code": 4}, {"scale": 0.25}, {"zero": 8}, {"bias": 0.5}], ids=str)
def test_another_start_is_another_adaptation(other: dict[str, Any]) -> None:
    assert Checkpoint(parameters(**other), CONFIG).path != Checkpoint(parameters(), CONFIG).path
    assert Checkpoint(parameters(), CONFIG).path == Checkpoint(parameters(), CONFIG).path

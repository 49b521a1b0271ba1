"""What is remembered of chosen parameters changes none of them."""

from __future__ import annotations

import numpy as np
import pytest
from zoo import feeds, gemm, prepared

from onnxq.build.statistics import fitted_layers, wanted_tensors
from onnxq.calibrate.runner import Statistics, run_observers
from onnxq.config import Config
from onnxq.kernels.targets import TARGETS
from onnxq.parameters.cache import ParameterCache
from onnxq.parameters.choose import Parameters, choose
from onnxq.plan import make_plan

MODEL, CONFIG = prepared(gemm()), Config(weights="int4", first_last="int4")
PLAN = make_plan(MODEL, CONFIG, TARGETS["x86-vnni"])


def seen(seed: int) -> Statistics:
    layers = fitted_layers(MODEL, PLAN, CONFIG)
    return run_observers(MODEL, wanted_tensors(MODEL, PLAN), feeds(gemm(), 8, seed=seed), layers=layers)


def equal(one: Parameters, other: Parameters) -> bool:
    codes = [
        np.array_equal(found.codes, other.weights[key].codes) and found.params == other.weights[key].params
        for key, found in one.weights.items()
    ]
    biases = [np.array_equal(found, other.biases[place]) for place, found in one.biases.items()]
    return one.tensors == other.tensors and all(codes) and all(biases)


@pytest.mark.parametrize("extrapolated", [False, True])
def test_other_statistics_are_other_parameters(extrapolated: bool) -> None:
    cache, first, second = ParameterCache(), seen(1), seen(2)
    choose(MODEL, PLAN, first, CONFIG, cache=cache)
    found = choose(MODEL, PLAN, second, CONFIG, extrapolated=extrapolated, cache=cache)
    fresh = choose(MODEL, PLAN, second, CONFIG, extrapolated=extrapolated)
    assert equal(found, fresh)
    assert not equal(found, choose(MODEL, PLAN, first, CONFIG, cache=cache))


def test_other_moments_alone_are_other_codes() -> None:
    cache, first, second = ParameterCache(), seen(1), seen(2)
    choose(MODEL, PLAN, first, CONFIG, cache=cache)
    mixed = Statistics(first.histograms, second.moments)
    assert equal(choose(MODEL, PLAN, mixed, CONFIG, cache=cache), choose(MODEL, PLAN, mixed, CONFIG))


def test_what_was_chosen_is_found_again() -> None:
    cache, statistics = ParameterCache(), seen(1)
    first, second = (choose(MODEL, PLAN, statistics, CONFIG, cache=cache) for _ in range(2))
    assert all(second.weights[key] is found for key, found in first.weights.items())
    assert all(second.tensors[name] is found for name, found in first.tensors.items())
    assert all(second.biases[place] is found for place, found in first.biases.items())

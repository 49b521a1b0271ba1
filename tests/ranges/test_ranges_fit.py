"""Which step a weight gets that is rounded together with others: that of its diagonal, below seven bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sums import moments_of

from onnxq.numerics import INT8_NARROW
from onnxq.ranges import Moments
from onnxq.ranges.fit import Fit, Fitted, fitted
from onnxq.ranges.samples import F64
from onnxq.weights import GridFormat, weight_format

INPUTS = 48


def layer() -> tuple[npt.NDArray[np.float32], Moments]:
    """Inputs of very different energy, the large ones read by small weights."""
    rng = np.random.default_rng(41)
    size = np.geomspace(0.02, 3.0, INPUTS)
    x = rng.standard_normal((1, 4000, INPUTS)) * size
    weight = rng.standard_normal((1, 32, INPUTS)) / np.sqrt(size)
    return weight.astype(np.float32), moments_of(x.astype(np.float32), full=True)


def fit(text: str, objective: str, rounding: str) -> Fitted:
    weight, moments = layer()
    how = Fit(method="mse", objective=objective, restore="none", rounding=rounding)
    grids = weight_format(text)
    assert isinstance(grids, GridFormat)
    return fitted(weight, moments, grids, qtype=INT8_NARROW, how=how, least=np.zeros(()))


def lost(found: Fitted) -> F64:
    """``[C]`` the mean square of what the outputs lose."""
    weight, moments = layer()
    off = (weight - found.codes * found.scale[:, :, None])[0]
    result: F64 = np.einsum("cn,nm,cm->c", off, moments.matrix(centred=False)[0], off)
    return result


@pytest.mark.parametrize("text", ["int2", "int3", "int4"])
def test_weights_that_are_rounded_together_have_the_step_of_the_diagonal(text: str) -> None:
    auto, diagonal, tensor = (fit(text, objective, "auto") for objective in ("auto", "diagonal", "tensor"))
    np.testing.assert_array_equal(auto.codes, diagonal.codes)
    np.testing.assert_array_equal(auto.scale, diagonal.scale)
    assert not np.allclose(auto.scale, tensor.scale, rtol=0.05)


@pytest.mark.parametrize("text", ["int3", "int4"])
def test_that_step_loses_less_of_the_outputs_than_the_tensors_own(text: str) -> None:
    """What the weights themselves lose is the wrong measure where inputs differ."""
    assert lost(fit(text, "auto", "auto")).sum() < 0.9 * lost(fit(text, "tensor", "auto")).sum()


def test_rounding_to_nearest_looks_at_the_outputs_themselves() -> None:
    auto, output = (fit("int4", objective, "nearest") for objective in ("auto", "output"))
    np.testing.assert_array_equal(auto.scale, output.scale)

"""Layers with many inputs: worked on in float32 and in pieces, with results as those of float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.adapt.closed_form import PairSums, pairs, together
from onnxq.calibrate.layer_inputs import LayerInput, LayerInputs
from onnxq.files.scratch import Scratch, in_file, let_go
from onnxq.graph.geometry import Geometry
from onnxq.ranges import moments as of_moments
from onnxq.ranges.cholesky import reversed_cholesky, solved
from onnxq.ranges.moments import LARGE_INPUTS, Moments, add_to_diagonal, added, diagonal, times
from onnxq.ranges.rounding import Grid, Metric

F32 = npt.NDArray[np.float32]
RNG = np.random.default_rng(23)
# Float32 products of some thousand rows.
CLOSE = 1e-4


def rows(count: int, n: int) -> F32:
    common = RNG.standard_normal((count, 1))
    return np.maximum(RNG.standard_normal((count, n)) + common + 0.3, 0.0).astype(np.float32)


def definite(n: int) -> F32:
    x = rows(2 * n, n).astype(np.float64)
    return (x.T @ x / len(x) + 0.05 * np.eye(n))[None].astype(np.float32)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 700])
def test_the_factor_makes_the_matrix_again(n: int) -> None:
    h = definite(n)
    ratios = reversed_cholesky(h)[0].astype(np.float64)
    assert np.array_equal(ratios, np.tril(ratios))
    assert np.allclose(np.diagonal(ratios), 1.0)
    exact = np.linalg.cholesky(h[0, ::-1, ::-1].astype(np.float64))[::-1, ::-1].T
    assert np.allclose(ratios, exact / np.diagonal(exact)[:, None], atol=CLOSE)


@pytest.mark.parametrize("n", [1, 256, 700])
def test_equations_are_solved(n: int) -> None:
    h, right = definite(n), RNG.standard_normal((1, n, 3)).astype(np.float32)
    found = solved(h.copy(), right.copy()).astype(np.float64)
    assert np.allclose(np.matmul(h.astype(np.float64), found), right, atol=10 * CLOSE)


def test_what_is_not_definite_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        reversed_cholesky(-definite(4))


@pytest.mark.parametrize("centred", [True, False])
def test_rounding_in_float32_is_as_good_as_in_float64(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost by float32: nothing that the error of the layer's output shows."""
    n = 300
    x = rows(900, n).astype(np.float64)
    seen = Moments(len(x), x.sum(axis=0)[None], (x.T @ x)[None])
    weight = RNG.standard_normal((1, 16, n))
    grid = Grid(np.full((1, 16), 0.4), np.arange(-8.0, 8.0))
    exact = Metric.of_moments(seen, centred=centred)
    monkeypatch.setattr(of_moments, "LARGE_INPUTS", 100)
    single = Metric.of_moments(seen, centred=centred)
    assert np.array_equal(single.order, exact.order)
    errors = []
    for metric in (exact, single):
        lost = weight - metric.rounded(weight, grid) * 0.4
        errors.append(float(np.einsum("gcn,gcn->", np.matmul(lost, seen.matrix(centred=centred)), lost)))
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("samples", [9, 60])
def test_rows_that_wait_in_a_file_make_the_same_moments(tmp_path: Path, samples: int) -> None:
    """To the last bit, whether they are added up at the end or as they outweigh the matrix."""
    layer = Geometry((400, 8), transposed=False)
    found = []
    arrays = [rows(32, 400)[None] for _ in range(samples)]
    for scratch in (Scratch(), Scratch(tmp_path, budget=0)):
        sums = LayerInputs(LayerInput("x", layer, True), scratch)
        for array in arrays:
            sums.add(array)
        found.append(sums.moments())
    assert [isinstance(one.second, np.memmap) for one in found] == [False, True]
    assert np.array_equal(found[0].second, found[1].second)
    assert np.array_equal(found[0].total, found[1].total)
    assert not list(tmp_path.glob("arrays_*"))


def test_pairs_of_many_inputs_add_up_in_files(tmp_path: Path) -> None:
    n = LARGE_INPUTS + 1
    scratch, parts = Scratch(tmp_path, budget=0), [(rows(40, n)[None], rows(40, 3)[None]) for _ in range(3)]
    fit, check = PairSums(scratch.zeros), PairSums(scratch.zeros)
    for x, t in parts[:2]:
        fit.add(x, t)
    check.add(*parts[2])
    assert fit.found is not None
    assert isinstance(fit.found.xx, np.memmap)
    every = together(fit.found, check.found)
    whole = pairs(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
    assert every.count == whole.count == 120
    for name in ("x", "t", "xx", "xt", "tt"):
        assert np.allclose(getattr(every, name), getattr(whole, name), rtol=CLOSE, atol=CLOSE), name


def test_large_moments_add_up_in_a_file(tmp_path: Path) -> None:
    n = LARGE_INPUTS + 1
    one, other = (Moments(k, RNG.standard_normal((1, n)), RNG.standard_normal((1, n, n))) for k in (2, 3))
    found = added(one, other, zeros=lambda shape: Scratch(tmp_path, budget=0).zeros(shape, np.float64))
    assert isinstance(found.second, np.memmap)
    assert np.array_equal(found.second, (one + other).second)
    assert (found.count, found.total.tolist()) == (5, (one + other).total.tolist())


@pytest.mark.parametrize("n", [5, LARGE_INPUTS + 700])
def test_matrices_in_files_are_worked_on_as_others(n: int) -> None:
    plain = RNG.standard_normal((2, n, n)).astype(np.float32)
    filed = in_file(plain.shape, np.float32)
    assert not filed.any()
    filed[...] = plain
    let_go(filed)
    left, right = RNG.standard_normal((2, 3, n)).astype(np.float32), RNG.standard_normal((2, n, 3)).astype(np.float32)
    assert np.allclose(times(filed, right), np.matmul(plain, right), atol=1e-2)
    assert np.allclose(times(left, filed), np.matmul(left, plain), atol=1e-2)
    add_to_diagonal(filed, np.array([[1.0], [2.0]], np.float32))
    plain[:, np.arange(n), np.arange(n)] += np.array([[1.0], [2.0]], np.float32)
    assert np.array_equal(filed, plain)
    assert np.array_equal(diagonal(filed), np.diagonal(plain, axis1=1, axis2=2))

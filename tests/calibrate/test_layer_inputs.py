"""Moments of layers' inputs against those of all their rows: exact for few rows a sample, near for many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from onnxq.calibrate.layer_inputs import LayerInput, LayerInputs
from onnxq.files.scratch import Scratch
from onnxq.graph.geometry import Geometry
from onnxq.ranges import Moments

F32 = npt.NDArray[np.float32]


def moments(layer: Geometry, arrays: list[F32], *, full: bool) -> Moments:
    sums = LayerInputs(LayerInput("x", layer, full), Scratch())
    for array in arrays:
        sums.add(array)
    return sums.moments()


@pytest.mark.parametrize("full", [True, False])
def test_every_row_of_short_sequences_counts(full: bool) -> None:
    """20 rows a sample are fewer than are taken of one: nothing is left out, however the samples come."""
    rng = np.random.default_rng(31)
    arrays = [rng.standard_normal((count, 20, 6)).astype(np.float32) + 0.5 for count in (1, 3, 2, 9)]
    found = moments(Geometry((6, 5), transposed=False), arrays, full=full)
    rows = np.concatenate([a.reshape(-1, 6) for a in arrays]).astype(np.float64)
    assert found.count == len(rows) == 15 * 20
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.squares(centred=False)[0], np.square(rows).mean(axis=0), rtol=1e-5)
    if full:
        np.testing.assert_allclose(found.matrix(centred=True)[0], np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-5)


def test_every_position_of_small_maps_counts() -> None:
    """A convolution over 5 by 5: its patches, zeros around the map among them, by plain loops."""
    rng = np.random.default_rng(32)
    layer = Geometry((4, 2, 3, 3), True, 1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    arrays = [rng.standard_normal((2, 2, 5, 5)).astype(np.float32) for _ in range(3)]
    padded = np.pad(np.concatenate(arrays).astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.stack([x[:, i : i + 3, j : j + 3].ravel() for x in padded for i in range(5) for j in range(5)])
    found = moments(layer, arrays, full=True)
    assert found.count == len(rows) == 6 * 25
    np.testing.assert_allclose(found.matrix(centred=False)[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_some_rows_of_each_sample_tell_of_all_of_them() -> None:
    """Rows that have nothing to do with each other: of 12 samples enough are taken for their covariance to show."""
    rng = np.random.default_rng(33)
    mix = rng.standard_normal((4, 4))
    arrays = [(rng.standard_normal((1, 900, 4)) @ mix).astype(np.float32) for _ in range(12)]
    found = moments(Geometry((4, 3), transposed=False), arrays, full=True)
    true = mix.T @ mix
    # Of R rows an entry of the covariance is off by about 1 / sqrt(R) of its size: 0.05 of 384, 0.3 of 12.
    off = np.linalg.norm(found.matrix(centred=True)[0] - true) / np.linalg.norm(true)
    assert found.count < 12 * 900
    assert off < 0.15

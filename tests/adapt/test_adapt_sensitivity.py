"""What errors of layers cost, exactly: gradients by finite differences for every unit vector of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq.adapt.engine import Engine
from onnxq.adapt.samples import Samples
from onnxq.adapt.sensitivity import output_costs
from onnxq.graph.io import serialize
from onnxq.graph.linear import geometry_of
from onnxq.runtime.session import open_session

F64 = npt.NDArray[np.float64]
HIDDEN, ENDS = 5, {"y": 4, "z": 3}


class Differences(Engine):
    """Moments of gradients by differences of the loss, exact for what is linear.

    In place of random combinations of the outputs, every unit vector in turn, less its mean where rows are centred:
    their outer products add up to what those of random ones have as their mean.
    """

    def curvature(
        self,
        model: ir.Model,
        data: Mapping[str, Any],
        tensors: Mapping[str, tuple[int, int]],
        outputs: Sequence[tuple[tuple[int, ...], bool]],
        **_: object,
    ) -> dict[str, F64]:
        noises = [v.name or "" for v in model.graph.inputs if v.name not in data]
        found = {}
        for name, (axis, groups) in tensors.items():
            assert (axis, groups) == (1, 1)
            start = np.asarray(model.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
            ends = []
            for move in (1.0, -1.0):
                sessions = []
                for place in np.ndindex(start.shape):
                    at = start.copy()
                    at[place] += move
                    model.graph.initializers[name].const_value = ir.tensor(at)
                    sessions.append(open_session(serialize(model)))
                ends.append(sessions)
            model.graph.initializers[name].const_value = ir.tensor(start)
            total = np.zeros((start.shape[1],) * 2)
            batch = {key: array[: len(start)] for key, array in data.items()}
            for which, (shape, centred) in enumerate(outputs):
                for unit in np.eye(shape[0], dtype=np.float32):
                    feed = dict(batch)
                    for other, (size, _centred) in zip(noises, outputs, strict=True):
                        feed[other] = np.zeros((len(start), *size), np.float32)
                    feed[noises[which]][:] = unit - unit.mean() if centred else unit
                    up, down = (np.asarray([float(s.run(None, feed)[0]) for s in part]) for part in ends)
                    slopes = ((up - down) / 2).reshape(start.shape)
                    total += slopes.T @ slopes
            found[name] = total[None] / len(start)
        return found


@pytest.mark.parametrize("louder", [1.0, 30.0])
def test_each_output_counts_by_its_own_energy(louder: float, tmp_path: Path) -> None:
    """``y = B A x``, ``z = C A x``: an error of A x costs the sum of ``B P B^T / E[(P y)^2]``, however loud z is."""
    n = Net(4)
    hidden = n.linear("x", 6, HIDDEN, name="a", bias=False)
    for name, width in ENDS.items():
        n.linear(hidden, HIDDEN, width, name=f"to_{name}", bias=False, out=name)
    n.constants["to_z_w"] *= np.float32(louder)
    model = prepared(n.model({"x": ["n", 6]}, {name: ["n", width] for name, width in ENDS.items()}))
    x = {"x": np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)}
    session = open_session(serialize(model))
    answers = dict(zip(ENDS, session.run(list(ENDS), x), strict=True))
    layers = {node.name or "": found for node in model.graph if (found := geometry_of(node)) is not None}
    costs = output_costs(model, {"a": layers["a"]}, Samples(x, answers), Differences(tmp_path, tmp_path))
    expected = np.zeros((HIDDEN, HIDDEN))
    for name, width in ENDS.items():
        away = np.eye(width) - 1 / width
        weight = n.constants[f"to_{name}_w"].astype(np.float64)
        energy = np.square(answers[name].astype(np.float64) @ away).mean()
        expected += weight @ away @ weight.T / energy
    np.testing.assert_allclose(costs["a"][0], expected, rtol=1e-2, atol=1e-3 * expected.max())

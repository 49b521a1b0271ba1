"""Where the noise of a candidate comes from, measured with few passes, and what its nodes can become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from zoo import Net, prepared

from onnxq import quantize
from onnxq.build.candidate import Built
from onnxq.config import Config
from onnxq.kernels.costs import cost_table
from onnxq.kernels.targets import TARGETS
from onnxq.measure.kernels import KernelMap
from onnxq.numerics import UINT8, QuantParams
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, Point, ReasonCode, Storage, make_plan
from onnxq.plan.tradeoff import Step, Way
from onnxq.search.climb import kept_float
from onnxq.search.readings import Readings
from onnxq.search.rungs import Rungs, Scene

VNNI = TARGETS["x86-vnni"]


def stream(blocks: int) -> onnx.ModelProto:
    """A residual stream with one channel of large numbers, to which every block adds small ones; outputs read those."""
    n = Net(11)
    x = n.conv("x", 3, 8, k=1, name="stem")
    n.constants["stem_w"][0] *= 10.0
    for i in range(blocks):
        y = n("Relu", n.conv(x, 8, 16, k=1, name=f"in{i}"), name=f"relu{i}")
        n.constants[f"in{i}_w"][:, 0] *= 0.05
        x = n("Add", x, n.conv(y, 16, 8, k=1, name=f"out{i}"), name=f"add{i}")
        n.constants[f"out{i}_w"] *= 0.3
    n.conv(x, 8, 4, k=1, name="head", out="y")
    n.constants["head_w"][:, 0] *= 0.05
    return n.model({"x": ["n", 3, 6, 6]}, {"y": ["n", 4, 6, 6]})


def layers(count: int, inputs: int = 8) -> onnx.ModelProto:
    n, x = Net(5), "x"
    for i in range(count):
        x = n.linear(x, inputs, inputs, name=f"l{i}", out="y" if i == count - 1 else None)
        x = n("Tanh", x, name=f"t{i}") if i < count - 1 else x
    return n.model({"x": ["n", inputs]}, {"y": ["n", inputs]})


@dataclass
class Meter:
    """Noise by tensor that is rounded, by reader if that counts, and by layer that is kept with such a weight."""

    tensors: Mapping[str, float]
    stored: Mapping[str, float] = field(default_factory=dict)
    dynamic: Mapping[str, float] = field(default_factory=dict)
    twice: Mapping[str, float] = field(default_factory=dict)
    passes: list[list[Point]] = field(default_factory=list)

    def noises(self, kept: Mapping[str, KeptFloat]) -> tuple[float, ...]:
        by = {Storage.PACKED: self.stored, Storage.DYNAMIC: self.dynamic, Storage.TWO_PARTS: self.twice}
        return (sum(by[k.weight].get(name, 0.0) for name, k in kept.items() if k.weight is not None),)

    def rounded(self, _: Built, points: Sequence[Point], tensors: Any = None) -> tuple[float, ...]:
        """Nothing where that does not run: a tensor of infinite noise is among them."""
        self.passes.append(list(points))
        total = sum(self.tensors.get(p.tensor, 0.0) for p in points)
        return (total,) if math.isfinite(total) else ()


def rungs(
    proto: onnx.ModelProto, meter: Any, *, shapes: Mapping[str, Any] | None = None, own: bool = False, **how: Any
) -> Rungs:
    model: ir.Model = prepared(proto)
    plan = make_plan(model, Config(), VNNI)
    built = Built(plan, Parameters({}, {}, {}), model, b"", KernelMap("m", "extended", "0", ()), (), {})
    table = cost_table("x86-vnni")
    assert table is not None
    scene = Scene(model, shapes or {}, table, VNNI, bool(shapes), own)
    return Rungs(built, Readings(built, meter, model), scene, **how)


def test_what_makes_little_noise_is_measured_together() -> None:
    """Of sixteen layers the inputs of two make nearly all noise: those are measured by themselves, and their group."""
    proto = layers(16)
    quiet = Meter({})
    points = rungs(proto, quiet).sources().readings
    assert len(points) == 16
    loud = points[5].tensor
    meter = Meter({p.tensor: 1.0 if p.tensor == loud else 0.001 for p in points})
    found = {r.tensor: r.noise[0] for r in rungs(proto, meter).sources().readings}
    assert found == pytest.approx({p.tensor: 1.0 if p.tensor == loud else 0.001 for p in points})
    assert sorted(len(one) for one in meter.passes) == [1] * 4 + [4] * 4


def test_a_tensor_is_read_by_layers_and_by_others() -> None:
    meter = Meter({})
    found = rungs(stream(2), meter).sources().readings
    assert ("in1",) in [r.readers for r in found if r.tensor == "add0_out"]
    assert ("add1",) in [r.readers for r in found if r.tensor == "add0_out"]
    alone = [p.consumers for one in meter.passes for p in one if p.tensor == "add0_out"]
    assert set(alone) == {("in1",), ("add1",)}


def test_a_pass_that_does_not_run_counts_as_all_noise() -> None:
    meter = Meter({"x": float("inf")})
    found = {r.tensor: r.noise[0] for r in rungs(layers(2), meter).sources().readings}
    assert found["x"] >= 0.5


def test_ranges_of_the_run_are_a_way_where_an_input_makes_much_noise() -> None:
    proto = layers(3, 256)
    model = prepared(proto).graph
    shapes = {v.name: (128, 256) for node in model for v in (*node.inputs, *node.outputs) if v is not None and v.name}
    meter = Meter({"x": 1.0}, dynamic={"l0": 0.1, "l1": 0.3})
    ways = rungs(proto, meter, shapes=shapes).sources().ways
    assert {w.weight for w in ways["l0"]} == {Storage.PACKED, Storage.DYNAMIC, None}
    assert next(w.noise for w in ways["l0"] if w.weight is Storage.DYNAMIC) == (0.1,)
    assert Storage.DYNAMIC not in {w.weight for w in ways["l2"]}


def test_so_is_an_input_in_two_parts_where_onnxruntime_s_own_operators_may_be_used() -> None:
    proto = layers(3, 768)
    model = prepared(proto).graph
    shapes = {v.name: (128, 768) for node in model for v in (*node.inputs, *node.outputs) if v is not None and v.name}
    meter = Meter({"x": 1.0}, dynamic={"l0": 0.1}, twice={"l0": 0.001})
    ways = {w.weight: w for w in rungs(proto, meter, shapes=shapes, own=True).sources().ways["l0"]}
    assert ways.keys() == {None, Storage.PACKED, Storage.DYNAMIC, Storage.TWO_PARTS}
    assert ways[Storage.TWO_PARTS].noise == (0.001,)
    assert ways[Storage.DYNAMIC].time < ways[Storage.TWO_PARTS].time < ways[Storage.PACKED].time
    kept = kept_float(Step({"l0": ways[Storage.TWO_PARTS], "l1": Way(Storage.PACKED, 1.0)}, 1.0, (1.0,)))
    assert {name: (k.weight, k.code) for name, k in kept.items()} == {
        "l0": (Storage.TWO_PARTS, ReasonCode.TWO_PARTS),
        "l1": (Storage.PACKED, ReasonCode.ACCURACY),
    }


def test_float_weights_cost_their_bytes() -> None:
    """The noise of a weight goes only with its bytes; the layer is float for the noise of what it reads."""
    meter = Meter({"x": 1.0}, stored={"l0": 0.5, "l1": 0.25})
    found = rungs(layers(2), meter)
    ways = found.sources().ways["l0"]
    assert [(w.weight, w.integer, w.noise) for w in ways] == [
        (None, True, (0.5,)),
        (Storage.PACKED, False, (0.5,)),
        (None, False, ()),
    ]
    assert [w.price > 0.0 for w in ways] == [False, False, True]
    (steps,) = found.stages()
    assert steps[0].noise == pytest.approx(1.75)
    assert steps[-1].noise == pytest.approx(0.0)
    assert {w.weight for w in steps[-1].ways.values()} == {None}
    assert steps[-1].microseconds == pytest.approx(2.0)
    assert steps[-1].time == pytest.approx(3.0)
    assert any(s.ways and all(w.weight is Storage.PACKED for w in s.ways.values()) for s in steps)


def test_what_depends_on_a_layer_goes_with_it() -> None:
    meter = Meter({"x": 1.0, "t0_out": 0.1})
    found = rungs(layers(3), meter, depends_on={"l2": "l0"})
    for steps in found.stages():
        assert all(("l0" in s.ways) == ("l2" in s.ways) for s in steps)


@dataclass
class Clipped(Meter):
    """Noise of ``x`` by how many times as wide its range is."""

    by_width: Mapping[float, float] = field(default_factory=dict)

    def rounded(self, _: Built, points: Sequence[Point], tensors: Any = None) -> tuple[float, ...]:
        width = round(float(tensors["x"].scale), 2) if tensors else 1.0
        return (sum(self.by_width[width] if p.tensor == "x" else 1e-4 for p in points),)


@pytest.mark.parametrize(
    ("by_width", "expected"),
    [
        ({1.0: 1.0, 1.25: 0.5, 1.6: 0.2}, 1.6),
        ({1.0: 1.0, 1.25: 0.5, 1.6: 0.6}, 1.25),
        ({1.0: 1.0, 1.25: 0.95, 1.6: 0.1}, None),  # what is hardly better is not gone on with
    ],
)
def test_ranges_are_as_wide_as_leaves_least_noise(by_width: dict[float, float], expected: float | None) -> None:
    found = rungs(layers(2), Clipped({}, by_width=by_width)).readings
    one = QuantParams(UINT8, np.float32(1.0), np.uint8(128))
    found.first.parameters.tensors.update({"x": one, "t0_out": one})
    assert {tensor: round(float(wide.scale), 2) for tensor, wide in found.wider().items()} == (
        {} if expected is None else {"x": expected}
    )
    left = {r.tensor: r.noise[0] for r in found.found}
    assert left == pytest.approx({"x": by_width[expected or 1.0], "t0_out": 1e-4})


# -- from end to end ---------------------------------------------------------------------------------------------------


def test_a_noisy_stream_is_float_while_its_layers_stay_on_integers() -> None:
    proto = stream(6)
    rng = np.random.default_rng(1)
    data = {"x": rng.standard_normal((64, 3, 6, 6)).astype(np.float32)}
    plain = Config(placement="all", equalize="none", rounding="nearest", guard_sqnr=-100.0, min_agreement=0.0)
    before = quantize(proto, data, config=plain)
    assert before.report.curve == ()
    level = before.report.sqnr_db
    assert level is not None
    asked = Config(placement="all", equalize="none", guard_sqnr=level + 2.0, min_agreement=0.5)
    found = quantize(proto, data, config=asked)
    assert found.good
    assert any("between layers" in note for note in found.report.notes)
    sums = [n for n in before.plan.integer if n.startswith("add")]
    assert sums
    assert len([n for n in found.plan.integer if n.startswith("add")]) < len(sums)
    assert len(found.plan.anchors) > 0.75 * len(before.plan.anchors)
    curve = found.report.curve
    assert [one.taken for one in curve].count(True) == 1
    assert found.report.to_dict()["curve"][0]["what"] == "as planned"

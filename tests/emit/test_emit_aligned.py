"""Steps that divide constants: codes that are passed on or clipped, against the same computed in float."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from emitting import HERE, Emitted, session, simulate, sqnr
from zoo import Net, feeds, prepared

from onnxq.adapt.joint import _learned
from onnxq.calibrate.runner import Statistics, run_observers
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.emit.gates import gate_params
from onnxq.measure.kernels import kernel_map
from onnxq.numerics import UINT8, QuantParams, moved, params, whole_steps
from onnxq.parameters.align import aligned, tied
from onnxq.parameters.choose import choose
from onnxq.plan import make_plan
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram

CODES = np.arange(256, dtype=np.uint8)


def chosen(scale: float, zero: int) -> QuantParams:
    return params(UINT8, np.float32(scale), zero)


@pytest.mark.parametrize(("zero", "steps"), [(100, 30), (100, -30), (0, -255), (255, 255), (7, 0)])
def test_another_zero_point_adds_a_constant(zero: int, steps: int) -> None:
    before = chosen(0.037, zero)
    shift = steps * float(before.scale)
    after = moved(before, shift)
    assert after is not None
    expected = before.dequantize(CODES).astype(np.float64) + shift
    assert np.allclose(after.dequantize(CODES), expected, rtol=1e-6, atol=1e-6)
    assert moved(before, shift + 0.4 * float(before.scale)) is None


def test_no_zero_point_lies_beyond_the_codes() -> None:
    before = chosen(0.5, 20)
    assert moved(before, 10.5) is None
    assert moved(before, -118.0) is None
    assert whole_steps(1.0, 0.3) is None
    assert whole_steps(-0.9, 0.3) == -3


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.25, 0.25)])
def test_codes_of_a_gate_are_those_of_its_input_clipped(alpha: float, beta: float) -> None:
    before = chosen(beta / alpha / 40, 90)
    gate = gate_params(before, alpha, beta)
    assert gate is not None
    expected = np.clip(alpha * before.dequantize(CODES).astype(np.float64) + beta, 0.0, 1.0)
    top = int(gate.zero_point) + round(1 / float(gate.scale))
    clipped = np.clip(CODES, int(gate.zero_point), min(top, 255)).astype(np.uint8)
    assert np.allclose(gate.dequantize(clipped), expected, atol=1e-6)
    assert np.array_equal(gate.quantize(expected), clipped)


def network(shift: float | None = -0.75, *, bias: float = 0.0, act: str = "HardSwish") -> onnx.ModelProto:
    """conv -> activation [-> + shift] -> padded conv."""
    n = Net(5)
    x = n("Conv", "x", n.weight("w1", 8, 3, 3, 3, fan=6), n.const("b1", np.full(8, bias)), name="one")
    y = n(act, x, name="act")
    if shift is not None:
        y = n("Add", y, n.const("shift", np.array([shift])), name="moved")
    n.conv(y, 8, 4, name="two", out="y")
    return n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 7, 7]})


def made(proto: onnx.ModelProto, scale: float = 3.0) -> tuple[Emitted, Emitted, Statistics]:
    """Emitted without and with steps that divide, and what was seen."""
    model, config, data = prepared(proto), Config(placement="all"), feeds(proto, 8, scale=scale)
    plan = make_plan(model, config, HERE)
    seen = run_observers(model, plan.observed, data)
    plain = choose(model, plan, seen, config)
    better = replace(plain, tensors=aligned(model, plan, plain.tensors, seen.histograms))
    one, two = (Emitted(model, plan, p, emit(model, plan, **vars(p))) for p in (plain, better))
    return one, two, seen


def ran(e: Emitted) -> list[str]:
    return [k.op for k in kernel_map(e.content).nodes]


@pytest.mark.parametrize("shift", [None, -0.75, 0.31])
def test_sums_go_and_gates_clip(shift: float | None) -> None:
    proto = network(shift)
    plain, better, _ = made(proto)
    assert ran(plain).count("QLinearAdd") == 1 + (shift is not None)
    kernels = ran(better)
    assert "QLinearAdd" not in kernels
    assert kernels.count("Clip") == 1
    assert kernels.count("QLinearMul") == 1
    assert kernels.count("QLinearConv") == 2
    floats = session(emit_bytes(better, steer=False), optimized=False)
    reference = session(proto)
    lost: dict[str, list[float]] = {"plain": [], "better": []}
    for feed in feeds(proto, 8, seed=9, scale=3.0):
        expected = simulate(better, feed)
        exact = session(better.content, optimized=False).run(None, feed)
        # The parameters tell the same as quantizers in float do, one operator after another.
        assert sqnr(expected, exact) >= 60.0
        assert sqnr(floats.run(None, feed), exact) >= 60.0
        assert sqnr(expected, session(better.content).run(None, feed)) >= 35.0
        for name, e in (("plain", plain), ("better", better)):
            lost[name].append(sqnr(reference.run(None, feed), session(e.content).run(None, feed)))
    assert np.mean(lost["better"]) > np.mean(lost["plain"]) - 0.3


def emit_bytes(e: Emitted, **how: Any) -> bytes:
    from onnxq.graph.io import serialize

    return serialize(emit(e.prepared, e.plan, **vars(e.parameters), **how))


def test_steps_stay_near_the_best_ones() -> None:
    for scale in (1.0, 2.0, 3.0, 5.0):
        plain, better, seen = made(network(), scale)
        ties = tied(better.prepared, better.plan, better.parameters.tensors)
        assert len(ties) == 4
        assert not tied(plain.prepared, plain.plan, plain.parameters.tensors)
        for name, same in plain.parameters.tensors.items():
            assert name in ties or better.parameters.tensors[name] == same
        nodes = {n.name: n for n in better.prepared.graph}
        gate_input = next(n for n in nodes.values() if n.op_type == "HardSigmoid").inputs[0].name  # type: ignore[union-attr]
        operand, total = (v.name for v in (nodes["moved"].inputs[0], nodes["moved"].outputs[0]))  # type: ignore[union-attr]
        old, new = (
            {t: tensor_error(of_histogram(seen.histograms[t]), e.parameters.tensors[t]) for t in seen.histograms}
            for e in (plain, better)
        )
        assert new[gate_input] <= 1.05 * old[gate_input]
        assert new[total] <= old[total] + old[operand]


def test_what_cannot_divide_is_computed() -> None:
    """An input that never comes near -3 has no code for the gate's 0; ranges far wider than a shift no step for it."""
    proto = network(None, bias=40.0)
    plain, better, _ = made(proto)
    assert ran(better) == ran(plain)
    assert "QLinearAdd" in ran(better)
    assert better.parameters.tensors == plain.parameters.tensors
    proto = network(1e-3, act="Relu")
    plain, better, _ = made(proto)
    assert ran(better) == ran(plain)
    assert "QLinearAdd" in ran(better)


def test_what_others_read_keeps_its_step() -> None:
    n = Net(5)
    x = n("HardSwish", n.conv("x", 3, 8, name="one"), name="act")
    y = n("Add", x, n.const("shift", np.array([-0.75])), name="moved")
    n("Concat", n.conv(y, 8, 4, name="two"), n.conv(x, 8, 4, name="three"), name="both", axis=1, out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 8, 9, 9]})
    _, better, _ = made(proto)
    assert ran(better).count("QLinearAdd") == 1  # the shift; the gate has gone


@pytest.mark.parametrize("shown", ["gate_out", "act_out", "moved_out"])
def test_what_the_outside_reads_is_still_there(shown: str) -> None:
    """A gate, a product and a sum that are outputs of the model too."""
    n = Net(5)
    x = n.conv("x", 3, 8, name="one")
    names = {"gate_out": "g", "act_out": "a", "moved_out": "m"}
    g = n("HardSigmoid", x, name="gate", out="g", alpha=1 / 6, beta=0.5)
    y = n("Add", n("Mul", x, g, name="act", out="a"), n.const("shift", np.array([-0.75])), name="moved", out="m")
    n.conv(y, 8, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 9, 9], names[shown]: [1, 8, 9, 9]})
    plain, better, _ = made(proto)
    assert "QLinearAdd" in ran(plain)
    for feed in feeds(proto, 3, seed=9, scale=3.0):
        expected = simulate(better, feed)
        assert sqnr(expected, session(better.content, optimized=False).run(None, feed)) >= 60.0
        assert sqnr(expected, session(better.content).run(None, feed)) >= 33.0
        assert sqnr(session(proto).run(None, feed), session(better.content).run(None, feed)) >= 25.0


def test_training_does_not_pull_apart_what_is_tied() -> None:
    plain, better, _ = made(network())
    names = tied(better.prepared, better.plan, better.parameters.tensors)
    before, after = (set(_learned(e.prepared, e.plan, e.parameters).values()) for e in (plain, better))
    assert names & before
    assert not names & after


@pytest.mark.parametrize("first", [True, False])
def test_a_product_with_one_number_is_another_scale(first: bool) -> None:
    """Also where others read the operand; not with a number below 0."""
    n = Net(5)
    x = n("Relu", n.conv("x", 3, 8, name="one"), name="act")
    factor, below = n.const("factor", np.array([0.3])), n.const("below", np.array([-0.3]))
    y = n("Mul", *((factor, x) if first else (x, factor)), name="scaled")
    z = n("Mul", x, below, name="turned")
    y = n("Add", n("Add", y, n.conv(x, 8, 8, k=1, name="beside"), name="sum"), z, name="total")
    n.conv(y, 8, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 9, 9]})
    plain, better, _ = made(proto)
    assert ran(plain).count("QLinearMul") == 2
    assert ran(better).count("QLinearMul") == 1
    for feed in feeds(proto, 3, seed=9, scale=3.0):
        assert sqnr(simulate(better, feed), session(better.content, optimized=False).run(None, feed)) >= 60.0

"""What the step of a gate's input may cost: a twentieth more error for a pass less, not more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from emitting import HERE
from zoo import Net, feeds, prepared

from onnxq.calibrate.runner import run_observers
from onnxq.config import Config
from onnxq.parameters.align import aligned
from onnxq.parameters.choose import choose
from onnxq.plan import make_plan
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram


def test_a_gate_keeps_its_step_where_another_one_would_lose_more_than_a_twentieth() -> None:
    """Steps that go into 3 between 3 and 30 times: where 8 bits are just enough a coarser one rounds more."""
    n = Net(5)
    n.conv(n("HardSwish", n.conv("x", 3, 8, name="one"), name="act"), 8, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 9, 9]})
    model, config, unit = prepared(proto), Config(placement="all"), 3.0  # 0.5 / (1 / 6)
    plan = make_plan(model, config, HERE)
    gate = next(node for node in model.graph if node.op_type == "HardSigmoid")
    tensor = gate.inputs[0].name
    taken, left = [], []
    for scale in np.geomspace(6.0, 120.0, 16):
        seen = run_observers(model, plan.observed, feeds(proto, 4, scale=float(scale)))
        tensors = choose(model, plan, seen, config).tensors
        samples, own = of_histogram(seen.histograms[tensor]), tensors[tensor]
        before = tensor_error(samples, own)
        found = aligned(model, plan, tensors, seen.histograms)[tensor]
        if found != own:
            taken.append(tensor_error(samples, found) / before)
            continue
        count, zero = unit / float(own.scale), int(own.zero_point) * float(own.scale)
        scales = [np.asarray(unit / steps, np.float32) for steps in (np.floor(count), np.ceil(count)) if steps]
        codes = [(s, code) for s in scales for code in (np.floor(zero / s), np.ceil(zero / s))]
        others = [replace(own, scale=s, zero_point=np.asarray(min(max(c, 0), 255), np.uint8)) for s, c in codes]
        left.append(min(tensor_error(samples, other) for other in others) / before)
    assert taken
    assert max(taken) <= 1.05
    assert left
    assert min(left) > 1.05

"""What the step of a gate's input may cost: a twentieth more error for a pass less, not more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from emitting import HERE
from zoo import Net, feeds, prepared

from onnxq.aligning import aligned
from onnxq.calibrate.runner import run_observers
from onnxq.choose import choose
from onnxq.config import Config
from onnxq.plan import make_plan
from onnxq.ranges.error import tensor_error
from onnxq.ranges.samples import of_histogram


def test_a_gate_keeps_its_step_where_another_one_would_lose_more_than_a_twentieth() -> None:
    """Steps of every size between a 100th and a 20th of what they must divide: some are near enough, some are not."""
    n = Net(5)
    n.conv(n("HardSwish", n.conv("x", 3, 8, name="one"), name="act"), 8, 4, name="two", out="y")
    proto = n.model({"x": [1, 3, 9, 9]}, {"y": [1, 4, 9, 9]})
    model, config = prepared(proto), Config(placement="all")
    plan = make_plan(model, config, HERE)
    seen = run_observers(model, plan.observed, feeds(proto, 8, scale=3.0))
    tensors = choose(model, plan, seen, config).tensors
    gate = next(node for node in model.graph if node.op_type == "HardSigmoid")
    tensor = gate.inputs[0].name
    samples, own = of_histogram(seen.histograms[tensor]), tensors[tensor]
    unit = 3.0  # 0.5 / (1 / 6)
    taken, left = [], []
    for steps in np.arange(20.0, 100.0, 0.37):
        start = replace(own, scale=np.asarray(unit / steps, np.float32))
        found = aligned(model, plan, {**tensors, tensor: start}, seen.histograms)[tensor]
        before = tensor_error(samples, start)
        if found != start:
            taken.append(tensor_error(samples, found) / before)
            continue
        zero = int(start.zero_point) * float(start.scale)
        scales = [np.asarray(unit / count, np.float32) for count in (np.floor(steps), np.ceil(steps))]
        codes = [(s, code) for s in scales for code in (np.floor(zero / s), np.ceil(zero / s))]
        others = [replace(start, scale=s, zero_point=np.asarray(min(max(c, 0), 255), np.uint8)) for s, c in codes]
        left.append(min(tensor_error(samples, other) for other in others) / before)
    assert taken
    assert max(taken) <= 1.05
    assert left
    assert min(left) > 1.05
    print(sorted(taken)[-4:], sorted(left)[:4], sorted(left)[-4:], len(taken), len(left))

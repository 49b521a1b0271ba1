"""Operands of Concat with the parameters of its result: who takes them, what that does to noise and to kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from adapting import built, correlated, runtime
from zoo import Net, feeds, prepared

from onnxq.adapt import joint
from onnxq.adapt.engine import Engine
from onnxq.adapt.samples import Split, stacked
from onnxq.adapt.simulation import Simulation
from onnxq.adapt.trainer import Schedule
from onnxq.build.build import chosen
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.graph.io import serialize
from onnxq.numerics import noise
from onnxq.query import nodes
from onnxq.runtime.session import open_session, run


def network(*, scale: float = 1.0, first: str = "Relu", second: str = "Relu", shared: bool = False) -> onnx.ModelProto:
    """Two convolutions, the second of results ``scale`` times as large, joined; ``shared``: the first is read twice."""
    n = Net(4)
    ends = {"Clip": (n.const("zero", 0.0), n.const("six", 1.0)), "Identity": ()}
    a, b = n.conv("x", 3, 8, name="one"), n.conv("x", 3, 8, name="two")
    n.constants["two_w"] *= np.float32(scale)
    a = n(first, a, *ends.get(first, ()), name="act1")
    b = n(second, b, *ends.get(second, ()), name="act2")
    c = n("Concat", a, b, name="joined", axis=1)
    y = n.conv(c, 16, 4, name="last", out=None if shared else "y")
    if shared:
        n("Add", y, n.conv(a, 8, 4, name="other"), name="sum", out="y")
    return n.model({"x": [1, 3, 12, 12]}, {"y": [1, 4, 12, 12]})


def agree(proto: onnx.ModelProto, folder) -> dict[str, bool]:
    """For both operands whether they have the parameters of the result, in the model that was built."""
    _, result, _ = built(proto, feeds(proto, 16, seed=3), folder, Config(equalize="none", placement="all"))
    tensors, roots = result.parameters.tensors, result.plan.roots
    (concat,) = (node for node in nodes(prepared(proto)) if node.op_type == "Concat")
    of = [tensors[roots[v.name or ""]] for v in (*concat.inputs, *concat.outputs) if v is not None]
    return {name: found is of[2] for name, found in zip(("first", "second"), of, strict=False)}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, (True, True)),
        ({"scale": 8.0}, (True, True)),  # nothing else reads the small one: rounded once instead of twice
        ({"scale": 8.0, "shared": True}, (False, True)),  # eight times the step would hurt the other reader
        ({"scale": 1.1, "shared": True}, (True, True)),
        ({"first": "LeakyRelu"}, (True, False)),  # a Relu is absorbed only where no code lies below 0
        ({"first": "Clip", "scale": 4.0}, (False, True)),  # and a Clip where none lies above its end
        ({"first": "Identity", "second": "Identity"}, (True, True)),
    ],
    ids=["alike", "larger", "read by others", "alike and read by others", "Relu", "Clip", "none"],
)
def test_who_takes_the_parameters_of_the_result(how, expected: tuple[bool, bool], tmp_path) -> None:
    assert tuple(agree(network(**how), tmp_path).values()) == expected


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_there_is_less_noise_and_codes_are_copied(scale: float, tmp_path) -> None:
    proto = network(scale=scale)
    builder, result, _ = built(proto, feeds(proto, 16, seed=3), tmp_path, Config(equalize="none", placement="all"))
    one_by_one = chosen(builder.candidate, builder.context, result.plan)
    apart = emit(builder.prepared, result.plan, **vars(one_by_one))
    whole, *rough = (
        seen(model, tensor)
        for model, tensor in (
            (builder.prepared, "joined_out"),
            (apart, "joined_out_dequantized"),
            (result.model, "joined_out_dequantized"),
        )
    )
    errors = [0.0, 0.0]
    for feed in feeds(proto, 8, seed=5):
        (wanted,) = run(whole, feed)[1:]
        for i, session in enumerate(rough):
            errors[i] += noise(wanted, run(session, feed)[1]).error
    assert errors[1] < 0.95 * errors[0]


def seen(model: ir.Model, tensor: str) -> ort.InferenceSession:
    """``model`` as it stands, unoptimised, with ``tensor`` as its second output."""
    proto = onnx.load_model_from_string(serialize(model))
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    return open_session(proto.SerializeToString(), optimize="none")


@pytest.mark.network
def test_what_agrees_goes_on_agreeing_when_it_is_trained(tmp_path) -> None:
    proto = network()
    config = Config(weights="int4", activations="uint4", equalize="none", placement="all")
    builder, result, feed = built(proto, {"x": correlated(64, 432, 1).reshape(64, 3, 12, 12)}, tmp_path, config)
    batches = list(feed.batches(1))
    session = open_session(serialize(builder.prepared))
    samples = stacked(batches, [{"y": run(session, f)[0]} for f in batches], rows=1)
    engine = Engine(runtime(), tmp_path / "training")
    schedule = Schedule(8, (1e-2,), batch=1, every=4)
    start = Simulation(builder.prepared, result.plan, result.parameters)
    split = Split(samples, fit=range(16, 64), check=range(16))
    found, trained = joint.adapt_jointly(start, split, schedule, engine)
    assert trained is not None
    before, after = result.parameters.tensors, found.tensors
    changed = [t for t in before if after[t] is not before[t]]
    assert {"act1_out", "act2_out", "joined_out"} <= set(changed)
    assert after["act1_out"] is after["act2_out"] is after["joined_out"]

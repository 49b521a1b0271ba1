"""Raising and lowering the opset keeps what a model computes."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from equivalence import equivalent
from graph_helpers import check, make, node, ops, rand
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.graph.passes.adapters import ADAPTERS
from onnxq.graph.passes.opset import raise_opset
from onnxq.graph.passes.shapes import infer_shapes
from onnxq.graph.prepare import prepare
from onnxq.kernels.targets import USUAL
from onnxq.runtime.session import has_codes

X = rand(2, 3, 4, 6)

# name: (opsets, nodes, dtype of the output)
CASES = {
    "softmax_default": ((7, 11, 12), [node("Softmax", "x", "y")]),
    "softmax_0": ((9, 11), [node("Softmax", "x", "y", axis=0)]),
    "softmax_last": ((11, 12), [node("Softmax", "x", "y", axis=-1)]),
    "softmax_minus2": ((11, 12), [node("Softmax", "x", "y", axis=-2)]),
    "logsoftmax": ((8, 12), [node("LogSoftmax", "x", "y", axis=2)]),
    "hardmax": ((7, 12), [node("Hardmax", "x", "y", axis=1)]),
    "squeeze": ((7, 12), [node("ReduceMean", "x", "m", axes=[2], keepdims=1), node("Squeeze", "m", "y", axes=[2])]),
    "unsqueeze": ((7, 11), [node("Unsqueeze", "x", "y", axes=[0, 3])]),
    "reduce_sum": ((7, 12), [node("ReduceSum", "x", "y", axes=[1, 3], keepdims=0)]),
    "reduce_sum_all": ((8,), [node("ReduceSum", "x", "y")]),
    "reduce_max": ((7, 12), [node("ReduceMax", "x", "y", axes=[3], keepdims=0)]),
    "split": ((7, 12), [node("Split", "x", "a b", axis=3, split=[2, 4]), node("Concat", "b a", "y", axis=3)]),
    "split_equal": ((7, 12), [node("Split", "x", "a b", axis=3), node("Sub", "b a", "y")]),
    "dropout": ((7, 10, 12), [node("Dropout", "x", "d"), node("Relu", "d", "y")]),
    "dropout_ratio": ((7, 10), [node("Dropout", "x", "d mask", ratio=0.3), node("Relu", "d", "y")]),
    "clip": ((7, 10), [node("Clip", "x", "y", min=-0.5, max=0.25)]),
    "clip_max": ((7,), [node("Clip", "x", "y", max=0.25)]),
    "clip_default": ((7,), [node("Clip", "x", "y")]),
    "pad": ((7, 10), [node("Pad", "x", "y", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=1.5)]),
    "pad_reflect": ((7, 10), [node("Pad", "x", "y", mode="reflect", pads=[0, 0, 1, 2, 0, 0, 0, 1])]),
    "slice": ((7, 9), [node("Slice", "x", "y", starts=[1, -3], ends=[3, 100], axes=[2, 3])]),
    "slice_no_axes": ((7,), [node("Slice", "x", "y", starts=[0, 1], ends=[1, 3])]),
    "topk": ((7, 9), [node("TopK", "x", "y i", k=2, axis=3)]),
    "upsample_nearest": ((7, 8), [node("Upsample", "x", "y", scales=[1.0, 1.0, 2.0, 3.0])]),
    "upsample_linear": ((7,), [node("Upsample", "x", "y", mode="linear", scales=[1.0, 1.0, 2.0, 2.0])]),
    "maxpool": ((7, 10, 12), [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])]),
    "avgpool": ((7, 10), [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
    "flatten": ((7, 9), [node("Flatten", "x", "y", axis=2)]),
    "depth_to_space": ((7,), [node("Reshape", "x s", "r"), node("DepthToSpace", "r", "y", blocksize=2)]),
}


@pytest.mark.parametrize(("case", "opset"), [(name, o) for name, (opsets, _) in CASES.items() for o in opsets])
def test_old_operators_mean_the_same_at_13(case, opset):
    constants = {"s": np.array([2, 12, 2, 3], dtype=np.int64)} if case == "depth_to_space" else {}
    proto = make(CASES[case][1], {"x": ("N", 3, "H", 6)}, ["y"], constants, opset=opset)
    prepared = check(proto, {"x": X}, tolerance=1e-6)
    assert prepared.model.opset_imports[""] == 13
    assert any(f"opset {opset} raised to 13" in note for note in prepared.notes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("op", ["Upsample", "Resize"])
def test_resize_of_opset_9_and_10(op, mode):
    constants = {"s": np.array([1, 1, 2.5, 0.5], dtype=np.float32)}
    proto = make([node(op, "x s", "y", mode=mode)], {"x": (1, 2, 4, 6)}, ["y"], constants, opset=9 + (op == "Resize"))
    if op == "Upsample":
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 2, 3], dtype=np.float32), "s"))
    check(proto, {"x": rand(1, 2, 4, 6)}, tolerance=1e-6)


def test_scatter_becomes_scatter_elements():
    constants = {"i": np.array([[0, 2, 1]]), "u": np.array([[9, 8, 7]], np.float32)}
    proto = make([node("Scatter", "x i u", "y", axis=1)], {"x": (2, 4)}, ["y"], constants, opset=9)
    assert ops(check(proto, {"x": rand(2, 4)}).model) == ["ScatterElements"]


def test_batchnorm_of_opset_7():
    constants = {k: np.abs(rand(3, seed=i)) + 0.5 for i, k in enumerate("gbmv")}
    proto = make(
        [node("BatchNormalization", "x g b m v", "y", epsilon=1e-3)], {"x": (2, 3, 4)}, ["y"], constants, opset=7
    )
    check(proto, {"x": rand(2, 3, 4)})
    proto.graph.node[0].attribute.append(helper.make_attribute("spatial", 0))
    with pytest.raises(ModelError, match=r"spatial=0.*opset 13 or newer"):
        prepare(ir.from_proto(proto), target=USUAL)


def test_softmax_inside_an_if_body():
    then = helper.make_graph(
        [node("Softmax", "x", "t", axis=1)], "then", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph([node("Elu", "x", "e")], "else", [], [helper.make_tensor_value_info("e", 1, None)])
    proto = make(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        {"x": (2, 3, 4), "c": ()},
        ["y"],
        opset=11,
        types={"c": TensorProto.BOOL},
    )
    for flag in (True, False):
        check(proto, {"x": rand(2, 3, 4), "c": np.array(flag)}, tolerance=1e-6)


def test_a_node_without_equivalent_is_named():
    attributes = {"name": "scaler", "scale": 0.5}
    scaler = make([helper.make_node("ImageScaler", ["x"], ["y"], **attributes)], {"x": (1, 3, 2, 2)}, ["y"], opset=9)
    with pytest.raises(ModelError, match=r"'scaler' \(ImageScaler\).*opset 13"):
        prepare(ir.from_proto(scaler), target=USUAL)
    scan = make(
        [node("BatchNormalization", "x g g g g", "y a b", momentum=0.5)],
        {"x": (2, 3)},
        ["y", "a"],
        {"g": np.ones(3, np.float32)},
        opset=9,
    )
    raise_opset(ir.from_proto(scan), 13)
    with pytest.raises(ModelError, match="training"):
        raise_opset(ir.from_proto(scan), 14)


def test_every_breaking_change_of_an_operator_has_an_adapter():
    """What the installed onnx knows of history: attributes gone, inputs renamed, defaults changed, deprecated."""
    # Breaking in the schema and harmless here: BatchNormalization only renames inputs.
    history: dict[str, dict[int, onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, {})[schema.since_version] = schema
    missing = []
    for name, versions in history.items():
        ordered = sorted(versions)
        for old, new in itertools.pairwise(ordered):
            if not 7 < new <= 21:
                continue
            a, b = versions[old], versions[new]
            gone = set(a.attributes) - set(b.attributes)
            defaults = [
                k
                for k in set(a.attributes) & set(b.attributes)
                if a.attributes[k].default_value.SerializeToString()
                != b.attributes[k].default_value.SerializeToString()
            ]
            moved = [i.name for i in a.inputs] != [i.name for i in b.inputs][: len(a.inputs)]
            if (gone or defaults or moved or b.deprecated) and (name, new) not in ADAPTERS:
                missing.append((name, new))
    assert missing == []


@pytest.mark.parametrize("opset", [14, 18, 20, 21])
def test_raising_to_newer_opsets(opset):
    nodes = [
        node("ReduceMean", "x", "m", axes=[2], keepdims=1),
        node("Split", "m", "a b c", axis=1),
        node("Sum", "a b c", "s"),
        node("BatchNormalization", "s g g g g", "y"),
    ]
    source = ir.from_proto(make(nodes, {"x": (2, 3, 4, 6)}, ["y"], {"g": np.ones(1, np.float32)}, opset=13))
    raised = source.clone()
    infer_shapes(raised)
    raise_opset(raised, opset)
    assert equivalent(source, raised, {"x": X}) <= 1e-6


@pytest.mark.parametrize("opset", [21, 22, 23, 24, 25, 26])
def test_newer_opsets_come_down_to_20(opset):
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("MaxPool", "c", "p", kernel_shape=[2, 2]),
        node("Reshape", "p s", "r"),
        node("Cast", "r", "f", to=1),
        node("Softplus", "f", "y"),
    ]
    constants = {"w": rand(4, 3, 3, 3), "s": np.array([0, -1])}
    proto = make(nodes, {"x": ("N", 3, 4, 6)}, ["y"], constants, opset=opset, ir_version=10)
    prepared = check(proto, {"x": X})
    assert prepared.model.opset_imports[""] == 20


def test_a_model_that_needs_its_opset_keeps_it():
    proto = make(
        [node("RMSNormalization", "x w", "y")],
        {"x": (2, 8)},
        ["y"],
        {"w": np.ones(8, np.float32)},
        opset=23,
        ir_version=10,
    )
    prepared = check(proto, {"x": rand(2, 8)})
    assert prepared.model.opset_imports[""] == 23
    assert "RMSNormalization" in prepared.notes[0]
    assert "kept" in prepared.notes[0]


def test_a_new_attribute_or_type_keeps_the_opset():
    group = make(
        [node("GroupNormalization", "x w w", "y", num_groups=2)],
        {"x": (1, 4, 3)},
        ["y"],
        {"w": rand(4)},
        opset=21,
        ir_version=10,
    )
    assert prepare(ir.from_proto(group), target=USUAL).model.opset_imports[""] == 21
    # A block in a model of float32, which keeps its type.
    half = make(
        [node("Conv", "x w", "y"), node("Conv", "u v", "z")],
        {"x": (1, 1, 4), "u": (1, 1, 4), "v": (1, 1, 3)},
        ["y", "z"],
        opset=22,
        types={"x": TensorProto.BFLOAT16, "y": TensorProto.BFLOAT16},
        ir_version=10,
    )
    half.graph.input.append(helper.make_tensor_value_info("w", TensorProto.BFLOAT16, (1, 1, 3)))
    assert prepare(ir.from_proto(half), target=USUAL).model.opset_imports[""] == 22


def pooled(op: str, **how: object) -> onnx.ModelProto:
    """One pool of opset 22 over maps of 14 x 14, with kernels of 2 unless ``how`` says otherwise."""
    how = {"kernel_shape": [2, 2], **how}
    return make([node(op, "x", "y", **how)], {"x": (1, 2, 14, 14)}, ["y"], opset=22, ir_version=10)


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool", "LpPool"])
@pytest.mark.parametrize(
    ("how", "opset"),
    [
        ({"strides": [3, 3]}, 20),
        ({"strides": [3, 3], "ceil_mode": 1}, 20),  # the last window begins inside
        ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}, 20),
        ({"strides": [3, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]}, 22),  # in the padding, at 15
        ({"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1}, 22),
        ({"strides": [5, 5], "ceil_mode": 1, "pads": [1, 1, 1, 1]}, 22),  # it would begin at 15, in the padding
        ({"strides": [3, 3], "ceil_mode": 1, "auto_pad": "VALID"}, 22),  # not worked out
    ],
)
def test_pools_that_round_up_are_lowered_only_where_they_mean_the_same(op, how, opset):
    prepared = check(pooled(op, **how), {"x": np.abs(rand(1, 2, 14, 14))})
    assert prepared.model.opset_imports[""] == opset


@pytest.mark.parametrize(
    ("op", "opset", "fitted"),
    [
        ("LayerNormalization", 9, 13),
        ("LayerNormalization", 12, 13),
        ("LayerNormalization", 13, 13),
        ("SimplifiedLayerNormalization", 11, 13),
        ("SimplifiedLayerNormalization", 21, 20),
    ],
)
def test_normalisations_of_the_runtime_are_taken_at_every_opset(op, opset, fitted):
    inputs = "x scale bias" if op.startswith("Layer") else "x scale"
    constants = {name: rand(6, seed=i) for i, name in enumerate(inputs.split()[1:])}
    proto = make([node(op, inputs, "y", axis=-1)], {"x": X.shape}, ["y"], constants, opset=opset, ir_version=8)
    assert check(proto, {"x": X}).model.opset_imports[""] == fitted


def test_an_opset_without_kernels_for_codes_is_lowered_as_far_as_it_goes(monkeypatch):
    monkeypatch.setattr("onnxq.graph.passes.opset.has_codes", lambda opset: opset < 23)
    kept = make([node("Swish", "x", "y")], {"x": X.shape}, ["y"], opset=24, ir_version=10)
    with pytest.raises(ModelError, match=r"needs opset 24.*no QuantizeLinear") as caught:
        prepare(ir.from_proto(kept), target=USUAL)
    assert "export the model again" in caught.value.hint
    round_up = pooled("MaxPool", strides=[5, 5], ceil_mode=1, pads=[1, 1, 1, 1])
    round_up.opset_import[0].version = 24
    assert prepare(ir.from_proto(round_up), target=USUAL).model.opset_imports[""] == 22


def test_the_runtime_has_kernels_for_codes_at_usual_opsets():
    assert has_codes(13)
    assert has_codes(21)
    assert not has_codes(9)

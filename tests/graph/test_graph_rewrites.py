"""Float rewrites that make integers cheap: pointwise convolutions, global pooling, and fusions that must survive."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_helpers import check, make, node, ops_in_order, rand

from onnxq.graph.io import serialize

# -- pointwise --------------------------------------------------------------------------------------------------------


def head(*, mode: str = "linear", tokens: bool = False, **how: object):
    """Two maps, one enlarged by 4, joined, mixed by a pointwise convolution."""
    constants = {"w": rand(5, 14, 1, 1), "b": rand(5, seed=1), "scales": np.float32([1, 1, 4, 4])}
    nodes = []
    if tokens:
        constants |= {"p": rand(6, 8, seed=2), "q": rand(8, seed=3), "to_map": np.array([0, 2, 3, 8])}
        nodes += [
            node("MatMul", "x p", "m"),
            node("Add", "q m", "a"),
            node("Reshape", "a to_map", "r"),
            node("Transpose", "r", "small", perm=[0, 3, 1, 2]),
        ]
    nodes += [
        node("Resize", f"{'small' if tokens else 'x'} - scales", "large", mode=mode, **how),
        node("Concat", "large z", "joined", axis=1),
        node("Conv", "joined w b", "c"),
        node("Relu", "c", "y"),
    ]
    x = ("batch", 6, 6) if tokens else ("batch", 8, 2, 3)
    return make(nodes, {"x": x, "z": ("batch", 6, 8, 12)}, ["y"], constants)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_pointwise_convolution_moves_before_joining_and_enlarging(mode: str) -> None:
    feeds = {"x": rand(2, 8, 2, 3), "z": rand(2, 6, 8, 12)}
    model = check(head(mode=mode), feeds).model
    assert ops_in_order(model) == ["Conv", "Resize", "Conv", "Add", "Relu"]
    widths = [n.inputs[1].const_value.shape.numpy()[1] for n in model.graph if n.op_type == "Conv"]
    assert sorted(widths) == [6, 8]


def test_and_into_the_product_of_tokens() -> None:
    model = check(head(tokens=True), {"x": rand(2, 6, 6), "z": rand(2, 6, 8, 12)}).model
    assert ops_in_order(model).count("Conv") == 1  # the part that is not enlarged
    (matmul,) = (n for n in model.graph if n.op_type == "MatMul")
    assert tuple(matmul.inputs[1].const_value.shape.numpy()) == (6, 5)


@pytest.mark.parametrize(
    "how", [{"mode": "cubic"}, {"coordinate_transformation_mode": "tf_crop_and_resize"}], ids=lambda h: next(iter(h))
)
def test_other_enlargements_stay(how) -> None:
    proto = head(**how)
    if "coordinate_transformation_mode" in how:  # it needs a region
        proto.graph.node[0].input[1] = "roi"
        proto.graph.initializer.append(_float("roi", [0, 0, 0, 0, 1, 1, 1, 1]))
    assert "Concat" in ops_in_order(check(proto, {"x": rand(1, 8, 2, 3), "z": rand(1, 6, 8, 12)}).model)


def _float(name: str, values: list[float]):
    from onnx import numpy_helper

    return numpy_helper.from_array(np.float32(values), name)


def test_nothing_moves_where_little_is_saved() -> None:
    proto = head()
    proto.graph.initializer[2].CopyFrom(_float("scales", [1, 1, 1, 2]))
    proto.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 2
    proto.graph.input[1].type.tensor_type.shape.dim[3].dim_value = 6
    assert "Concat" in ops_in_order(check(proto, {"x": rand(1, 8, 2, 3), "z": rand(1, 6, 2, 6)}).model)


# -- global pooling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "gone"),
    [
        (node("AveragePool", "x", "y", kernel_shape=[4, 5]), True),
        (node("AveragePool", "x", "y", kernel_shape=[4, 4]), False),
        (node("AveragePool", "x", "y", kernel_shape=[4, 5], pads=[1, 1, 1, 1]), False),
        (node("AveragePool", "x", "y", kernel_shape=[9, 9], strides=[9, 9], ceil_mode=1), True),
        (
            node("AveragePool", "x", "y", kernel_shape=[9, 9], strides=[9, 9], ceil_mode=1, count_include_pad=1),
            True,
        ),
        (node("AveragePool", "x", "y", kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1), False),
        (node("ReduceMean", "x", "y", axes=[2, 3]), True),
        (node("ReduceMean", "x", "y", axes=[-1, -2]), True),
        (node("ReduceMean", "x", "y", axes=[2, 3], keepdims=0), False),
        (node("ReduceMean", "x", "y", axes=[1, 2]), False),
    ],
    ids=lambda p: p if isinstance(p, bool) else f"{p.op_type} {[a.name for a in p.attribute]}",
)
def test_means_over_the_whole_map(pool, gone: bool) -> None:
    model = check(make([pool], {"x": ("b", 3, 4, 5)}, ["y"]), {"x": rand(2, 3, 4, 5)}).model
    assert (ops_in_order(model) == ["GlobalAveragePool"]) == gone


# -- fusions of the runtime -------------------------------------------------------------------------------------------


def kernels(model, tmp_path) -> list[str]:
    import onnx

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_the_last_factor_of_a_gelu_stays_so_that_it_is_one_kernel(tmp_path) -> None:
    nodes = [
        node("MatMul", "x u", "h"),
        node("Div", "h root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "o"),
        node("Mul", "h o", "p"),
        node("Mul", "p half", "g"),
        node("MatMul", "g v", "y"),
    ]
    constants = {"u": rand(6, 8), "v": rand(8, 4), "root": np.float32(np.sqrt(2)), "one": np.float32(1)}
    constants["half"] = np.float32(0.5)
    model = check(make(nodes, {"x": ("b", 5, 6)}, ["y"], constants), {"x": rand(2, 5, 6)}).model
    assert "Gelu" in kernels(model, tmp_path)


def test_a_factor_that_is_no_part_of_a_gelu_is_folded() -> None:
    nodes = [node("Relu", "x", "r"), node("Mul", "r half", "g"), node("MatMul", "g v", "y")]
    proto = make(nodes, {"x": ("b", 5, 8)}, ["y"], {"half": np.float32(0.5), "v": rand(8, 4)})
    assert ops_in_order(check(proto, {"x": rand(2, 5, 8)}).model) == ["Relu", "MatMul"]


def test_gain_and_offset_of_a_layer_normalisation_stay(tmp_path) -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[-1]),
        node("Sub", "x mean", "d"),
        node("Pow", "d two", "s"),
        node("ReduceMean", "s", "v", axes=[-1]),
        node("Add", "v epsilon", "ve"),
        node("Sqrt", "ve", "r"),
        node("Div", "d r", "n"),
        node("Mul", "n gain", "m"),
        node("Add", "m offset", "o"),
        node("MatMul", "o w", "y"),
    ]
    constants = {"two": np.float32(2), "epsilon": np.float32(1e-5), "gain": rand(8), "offset": rand(8, seed=1)}
    constants["w"] = rand(8, 4)
    model = check(make(nodes, {"x": ("b", 5, 8)}, ["y"], constants), {"x": rand(2, 5, 8)}).model
    assert "LayerNormalization" in kernels(model, tmp_path)


# -- masks ------------------------------------------------------------------------------------------------------------


def masked(mask: np.ndarray, *, computed: bool = False, lifted: float = 0.0, axis: int = -1):
    """Softmax of scores [batch, 2, 4, 4] with a mask added, spelled as an array or chosen by Where as Swin does."""
    constants = {"keep": mask == 0, "hide": np.float32(mask.min()), "none": np.float32(0), "mask": mask}
    nodes = []
    if computed:
        constants |= {"axes": np.array([0, 1]), "bias": rand(1, 2, 4, 4), "lift": np.float32(lifted)}
        nodes += [
            node("Where", "keep none hide", "chosen"),
            node("Unsqueeze", "chosen axes", "u"),
            node("Add", "u lift", "l"),
            node("Add", "bias l", "mask_"),
        ]
    nodes += [
        node("Add", f"x {'mask_' if computed else 'mask'}", "scores"),
        node("Softmax", "scores", "p", axis=axis),
        node("MatMul", "p v", "y"),
        node("Mul", "x hide", "z"),  # the number of the mask, read for something else
    ]
    shape = ("batch", 2, 4, 4)
    return make(nodes, {"x": shape, "v": shape}, ["y", "z"], constants)


CAUSAL = np.triu(np.full((4, 4), -100, np.float32), 1)


def floats(model) -> set[float]:
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
    return {float(number) for array in arrays if array.dtype == np.float32 for number in array.reshape(-1)}


@pytest.mark.parametrize("computed", [False, True])
def test_a_mask_leaves_no_subnormal_attention_weights(computed: bool) -> None:
    feeds = {"x": rand(3, 2, 4, 4), "v": rand(3, 2, 4, 4, seed=1)}
    proto = masked(CAUSAL, computed=computed)
    model = check(proto, feeds, tolerance=0.0).model  # not a bit of the outputs differs
    assert {-1e4, -100.0} <= floats(model)  # the other reader keeps its number
    proto = onnx.load_from_string(serialize(model))
    proto.graph.output.append(onnx.ValueInfoProto(name="p"))
    weights = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(["p"], feeds)[0]
    assert (weights == 0).sum() == 3 * 2 * 6
    assert weights[weights > 0].min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    "how",
    [
        {"mask": np.where(np.eye(4) > 1, 0, -100).astype(np.float32)},  # rows without a number to keep
        {"mask": CAUSAL / 2},  # weights of exp(-50) are ordinary numbers
        {"mask": CAUSAL, "computed": True, "lifted": 100.0},  # brings the masked back
        {"mask": CAUSAL, "axis": 2},
    ],
    ids=["all masked", "shallow", "lifted", "other axis"],
)
def test_masks_that_must_keep_their_numbers(how) -> None:
    model = check(masked(**how), {"x": rand(3, 2, 4, 4), "v": rand(3, 2, 4, 4, seed=1)}).model
    assert -1e4 not in floats(model)


# -- hard sigmoid -----------------------------------------------------------------------------------------------------

NUMBERS = {"c": np.float32(3), "zero": np.float32(0), "d": np.float32(6), "sixth": np.float32(1 / 6)}
SWISH = [node("Add", "x c", "a"), node("Clip", "a zero d", "k")]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("HardSwish", "x", "y")], ["HardSigmoid", "Mul"]),
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m d", "y")], ["HardSigmoid", "Mul"]),
        ([*SWISH, node("Mul", "k x", "m"), node("Mul", "sixth m", "y")], ["HardSigmoid", "Mul"]),
        ([*SWISH, node("Div", "k d", "g"), node("Mul", "g z", "y")], ["HardSigmoid", "Mul"]),
        ([*SWISH, node("Mul", "k z", "m"), node("Div", "m d", "y")], ["HardSigmoid", "Mul"]),
    ],
    ids=["operator", "divided", "multiplied", "gate", "gate of another"],
)
def test_hard_swish_in_every_spelling(nodes, expected: list[str]) -> None:
    opset = 14 if nodes[0].op_type == "HardSwish" else 13
    proto = make(nodes, {"x": ("b", 3, 4), "z": ("b", 3, 4)}, ["y"], NUMBERS, opset=opset)
    feed = {"x": 4 * rand(2, 3, 4), "z": rand(2, 3, 4, seed=1)}
    model = check(proto, feed, tolerance=2e-6).model
    assert ops_in_order(model) == expected


@pytest.mark.parametrize(
    ("nodes", "changed"),
    [
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m c", "y")], {}),  # by another number
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "d m", "y")], {}),  # the other way round
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m d", "t"), node("Add", "t k", "y")], {}),  # read twice
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m d", "y")], {"zero": np.float32(-1)}),
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m d", "y")], {"c": rand(1, 1, 3, 4)}),  # one each
        ([*SWISH, node("Mul", "x k", "m"), node("Div", "m d", "y")], {"c": np.full((1, 1, 1, 1), 3, np.float32)}),
    ],
    ids=["other divisor", "reciprocal", "read twice", "lower end", "array", "rank"],
)
def test_what_only_looks_like_it_stays(nodes, changed) -> None:
    proto = make(nodes, {"x": ("b", 3, 4)}, ["y"], NUMBERS | changed)
    assert "HardSigmoid" not in ops_in_order(check(proto, {"x": 4 * rand(2, 3, 4)}).model)


# -- channels of depthwise convolutions -------------------------------------------------------------------------------


def inverted(*middle, channels: int = 40, tail=None, **more: np.ndarray):
    """Conv, ``middle`` (from ``e`` to ``m``), depthwise Conv, Conv or ``tail`` (from ``d`` to ``y``)."""
    c = channels
    constants = {
        "we": rand(c, 5, 1, 1),
        "be": rand(c, seed=1),
        "wd": rand(c, 1, 3, 3, seed=2),
        "bd": rand(c, seed=3),
        "wp": rand(6, c, 1, 1, seed=4),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    nodes = [node("Conv", "x we be", "e"), *(middle or [node("Relu", "e", "m")])]
    nodes += [node("Conv", "m wd bd", "d", group=c, pads=[1, 1, 1, 1])]
    nodes += tail or [node("Conv", "d wp", "y")]
    return make(nodes, {"x": ("b", 5, 6, 6), "z": ("b", 1, 6, 6), "s": ("b", 40, 6, 6)}, ["y"], constants | more)


def groups(model) -> list[int]:
    return [n.attributes["group"].as_int() for n in model.graph if "group" in n.attributes]


def inverted_feeds() -> dict[str, np.ndarray]:
    return {"x": rand(2, 5, 6, 6), "z": rand(2, 1, 6, 6, seed=1), "s": rand(2, 40, 6, 6, seed=2)}


EXCITE = [
    node("Relu", "e", "r"),
    node("GlobalAveragePool", "r", "q"),
    node("Conv", "q wq bq", "u"),
    node("HardSigmoid", "u", "g"),
    node("Mul", "r g", "m"),
]


@pytest.mark.parametrize(
    "middle",
    [
        [node("Clip", "e zero six", "m")],
        [node("HardSwish", "e", "m")],
        [node("Sigmoid", "e", "t"), node("Mul", "e t", "m")],
        [node("Mul", "e z", "m")],  # one factor for each pixel
        [node("MaxPool", "e", "t", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Add", "t e", "m")],
        EXCITE,
    ],
    ids=["clip", "hard swish", "silu", "pixels", "pool and sum", "squeeze and excite"],
)
def test_depthwise_channels_become_a_multiple_of_16(middle) -> None:
    proto = inverted(*middle, wq=rand(40, 40, 1, 1, seed=6), bq=rand(40, seed=7))
    proto.opset_import[0].version = 14
    model = check(proto, inverted_feeds(), tolerance=1e-6).model
    assert groups(model) == [48]
    shapes = {tuple(n.inputs[1].shape.numpy()) for n in model.graph if n.op_type == "Conv"}
    assert {(48, 5, 1, 1), (48, 1, 3, 3), (6, 48, 1, 1)} <= shapes


@pytest.mark.parametrize("shape", [(40, 1, 1), (1, 40, 1, 1)])
def test_constants_for_each_channel_grow_with_them(shape) -> None:
    # behind an activation, where nothing folds them
    proto = inverted(node("Relu", "e", "r"), node("Mul", "r f", "t"), node("Sigmoid", "t", "m"), f=rand(*shape, seed=9))
    model = check(proto, inverted_feeds(), tolerance=1e-6).model
    assert groups(model) == [48]


@pytest.mark.parametrize(
    "how",
    [
        {"channels": 48},
        {"channels": 24},  # a third more
        {"tail": [node("Identity", "d", "y")]},
        {"tail": [node("Softmax", "d", "t", axis=1), node("Conv", "t wp", "y")]},
        {"tail": [node("Add", "d s", "t"), node("Conv", "t wp", "y")]},  # another tensor's channels
        {"tail": [node("Conv", "d wp", "t"), node("Concat", "d t", "y", axis=1)]},
        {"tail": [node("Add", "d e", "t"), node("Add", "t f", "u"), node("Conv", "u wp", "y")], "f": rand(6, 6)},
        {"tail": [node("Conv", "d wg", "y", group=2)], "wg": rand(6, 20, 1, 1)},
    ],
    ids=["16 divides them", "few", "output", "across channels", "input", "concat", "constant map", "grouped"],
)
def test_channels_that_stay(how) -> None:
    model = check(inverted(**how), inverted_feeds()).model
    assert not {g for g in groups(model) if g % 16 == 0} - {48}
    assert how.get("channels", 40) in groups(model)


def test_what_costs_more_than_it_saves_stays() -> None:
    """One cheap depthwise convolution on a wide residual stream."""
    c = 40
    constants = {"wd": rand(c, 1, 1, 1), "we": rand(c, 3, 1, 1, seed=2)}
    nodes = [node("Conv", "x we", "v0")]
    for i in range(8):
        constants |= {f"a{i}": rand(400, c, 1, 1, seed=i), f"b{i}": rand(c, 400, 1, 1, seed=i)}
        nodes += [node("Conv", f"v{i} a{i}", f"h{i}"), node("Relu", f"h{i}", f"r{i}")]
        nodes += [node("Conv", f"r{i} b{i}", f"o{i}"), node("Add", f"v{i} o{i}", f"v{i + 1}")]
    nodes += [node("Conv", "v8 wd", "d", group=c), node("Conv", "d a0", "y")]
    model = check(make(nodes, {"x": (1, 3, 4, 4)}, ["y"], constants), {"x": rand(1, 3, 4, 4)}, tolerance=1e-4).model
    assert groups(model) == [40]

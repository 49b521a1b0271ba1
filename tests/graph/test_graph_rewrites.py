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

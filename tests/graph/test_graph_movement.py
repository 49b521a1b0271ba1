"""Shapes in symbols, constant reshapes, and chains of Reshape and Transpose: the same numbers, fewer moves."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import check, make, node, ops_in_order, rand
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.graph.passes.symbolic import Product, put, read_dim, reshaped

# -- products ---------------------------------------------------------------------------------------------------------

BATCH, SEQUENCE = Product(1, ("batch",)), Product(1, ("sequence",))


@pytest.mark.parametrize(
    "product", [Product(7), BATCH, Product(4) * BATCH, Product(6) * BATCH * SEQUENCE * BATCH], ids=str
)
def test_a_product_reads_back_from_a_dimension(product: Product) -> None:
    assert read_dim(product.dim) == product


def test_names_that_are_arithmetic_already_stay_names() -> None:
    assert read_dim("floor(s0/2) + 1") == Product(1, ("floor(s0/2) + 1",))
    assert read_dim(None) is None


def test_division_is_exact_or_nothing() -> None:
    assert (Product(12) * BATCH).divided_by(Product(4)) == Product(3) * BATCH
    assert (Product(12) * BATCH).divided_by(Product(5)) is None
    assert Product(12).divided_by(BATCH) is None
    assert Product(12).divided_by(Product(0)) is None
    assert put(Product(2, ("a", "b")), {"a": Product(3) * BATCH}) == Product(6, ("b", "batch"))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0, -1], [BATCH, Product(24)]),
        ([-1, 6], [Product(4) * BATCH, Product(6)]),
        ([0, 0, 2, 2], [BATCH, Product(6), Product(2), Product(2)]),
        ([-1, 5], None),
        ([-1, -1], None),
        ([0, 0, 0, 0], None),
    ],
)
def test_reshape_in_symbols(target, expected) -> None:
    assert reshaped([BATCH, Product(6), Product(4)], [Product(t) for t in target]) == expected


# -- computed shapes --------------------------------------------------------------------------------------------------


def split_heads(heads: int, width: int):
    """``x.view(b, n, heads, -1)`` and back, spelled as exporters do."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "b"),
        node("Unsqueeze", "b zeros", "b1"),
        node("Concat", "b1 five heads minus", "t", axis=0),
        node("Reshape", "x t", "h"),
        node("Mul", "b heads0", "bh"),
        node("Unsqueeze", "bh zeros", "bh1"),
        node("Concat", "bh1 minus width", "u", axis=0),
        node("Reshape", "h u", "r"),
        node("Relu", "r", "y"),
    ]
    constants = {
        "zero": np.array(0),
        "zeros": np.array([0]),
        "five": np.array([5]),
        "heads": np.array([heads]),
        "heads0": np.array(heads),
        "minus": np.array([-1]),
        "width": np.array([width]),
    }
    return make(nodes, {"x": ("batch", 5, heads * width)}, ["y"], constants)


def test_shapes_that_only_the_batch_leaves_open_become_constants() -> None:
    proto = split_heads(4, 3)
    for batch in (1, 3):
        model = check(proto, {"x": rand(batch, 5, 12)}).model
    reshapes = [n for n in model.graph if n.op_type == "Reshape"]
    assert [n.inputs[1].const_value.numpy().tolist() for n in reshapes] == [[0, 5, 4, 3], [-1, 5, 3]]
    assert set(ops_in_order(model)) == {"Reshape", "Relu"}
    assert [d if isinstance(d, int) else d.value for d in reshapes[1].outputs[0].shape] == ["4*batch", 5, 3]


def test_two_open_dimensions_stay_computed() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s swapped", "t"),
        node("Reshape", "x t", "y"),
    ]
    proto = make(nodes, {"x": ("n", "m", 3)}, ["y"], {"swapped": np.array([1, 0, 2])})
    assert "Shape" in ops_in_order(check(proto, {"x": rand(2, 5, 3)}).model)


def resize(sizes: list[int], mode: str, spatial: tuple[int, int]):
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", "r", "s"),
        node("Slice", "s from to", "head"),
        node("Concat", "head sizes", "t", axis=0),
        node("Resize", "r - - t", "y", mode=mode, coordinate_transformation_mode="half_pixel"),
    ]
    constants = {"from": np.array([0]), "to": np.array([2]), "sizes": np.array(sizes)}
    return make(nodes, {"x": ("batch", 3, *spatial)}, ["y"], constants)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("sizes", "scales"), [([8, 12], [1, 1, 2, 3]), ([7, 12], None), ([2, 2], None)])
def test_enlarging_by_whole_numbers_needs_no_computed_size(mode, sizes, scales) -> None:
    model = check(resize(sizes, mode, (4, 4)), {"x": rand(2, 3, 4, 4)}).model
    (found,) = (n for n in model.graph if n.op_type == "Resize")
    if scales is None:
        assert len(found.inputs) == 4
    else:
        assert found.inputs[2].const_value.numpy().tolist() == scales


def test_what_changes_no_size_goes() -> None:
    assert ops_in_order(check(resize([4, 4], "linear", (4, 4)), {"x": rand(2, 3, 4, 4)}).model) == ["Relu"]
    nothing = make(
        [node("Relu", "x", "r"), node("Pad", "r p", "y")], {"x": (1, 3, 4, 4)}, ["y"], {"p": np.zeros(8, int)}
    )
    assert ops_in_order(check(nothing, {"x": rand(1, 3, 4, 4)}).model) == ["Relu"]
    more = make([node("Relu", "x", "r"), node("Pad", "r p", "y")], {"x": (1, 3, 4, 4)}, ["y"], {"p": np.ones(8, int)})
    assert ops_in_order(check(more, {"x": rand(1, 3, 4, 4)}).model) == ["Relu", "Pad"]


# -- chains -----------------------------------------------------------------------------------------------------------


def moves(steps, shape, *, ends: bool = True):
    """Relu, a chain of ("Transpose", perm) and ("Reshape", target), Relu."""
    nodes, constants, value = [node("Relu", "x", "v0")], {}, "v0"
    for i, (op, numbers) in enumerate(steps):
        out = f"v{i + 1}"
        if op == "Transpose":
            nodes.append(node("Transpose", value, out, perm=list(numbers)))
        else:
            constants[f"t{i}"] = np.asarray(numbers, np.int64)
            nodes.append(node("Reshape", f"{value} t{i}", out))
        value = out
    if ends:
        nodes.append(node("Abs", value, "y"))
    return make(nodes, {"x": shape}, ["y" if ends else value], constants)


def spelled(model) -> list[tuple[str, list[int]]]:
    found = []
    for n in model.graph:
        if n.op_type == "Transpose":
            found.append(("T", list(n.attributes["perm"].as_ints())))
        elif n.op_type == "Reshape":
            found.append(("R", n.inputs[1].const_value.numpy().tolist()))
    return found


@pytest.mark.parametrize("ends", [True, False])
def test_tokens_become_a_map_with_its_channels_last_first(ends: bool) -> None:
    proto = moves([("Transpose", (0, 2, 1)), ("Reshape", (0, 6, 4, 5))], ("batch", 20, 6), ends=ends)
    model = check(proto, {"x": rand(2, 20, 6)}).model
    assert spelled(model) == [("R", [-1, 4, 5, 6]), ("T", [0, 3, 1, 2])]


def test_a_map_becomes_tokens_the_same_way() -> None:
    proto = moves([("Reshape", (0, 6, -1)), ("Transpose", (0, 2, 1))], ("batch", 6, 4, 5))
    assert spelled(check(proto, {"x": rand(2, 6, 4, 5)}).model) == [("T", [0, 2, 3, 1]), ("R", [-1, 20, 6])]


def test_patches_are_unfolded_with_all_channels_of_a_pixel_together() -> None:
    steps = [("Reshape", (-1, 2, 3, 2)), ("Transpose", (0, 2, 1, 3)), ("Reshape", (-1, 8, 6, 4))]
    steps += [("Transpose", (0, 3, 2, 1)), ("Reshape", (-1, 6, 8))]
    model = check(moves(steps, ("batch", 8, 4, 6)), {"x": rand(3, 8, 4, 6)}).model
    assert spelled(model) == [
        ("T", [0, 2, 3, 1]),
        ("R", [-1, 2, 2, 3, 2, 8]),
        ("T", [0, 2, 4, 1, 3, 5]),
        ("R", [-1, 6, 8]),
    ]


def test_two_transpositions_that_undo_each_other_go() -> None:
    proto = moves([("Transpose", (0, 2, 1)), ("Transpose", (0, 2, 1))], ("batch", 3, 4))
    assert spelled(check(proto, {"x": rand(2, 3, 4)}).model) == []


def test_a_lone_transposition_stays_as_it_is() -> None:
    for perm in ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3)):
        assert spelled(check(moves([("Transpose", perm)], (2, 3, 4, 5)), {"x": rand(2, 3, 4, 5)}).model) == [
            ("T", list(perm))
        ]


def test_a_value_that_others_read_ends_a_chain() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("Reshape", "t s", "m"),
        node("Relu", "t", "z"),
        node("Relu", "m", "y"),
    ]
    proto = make(nodes, {"x": ("b", 20, 6)}, ["y", "z"], {"s": np.array([0, 6, 4, 5])})
    assert spelled(check(proto, {"x": rand(2, 20, 6)}).model) == [("T", [0, 2, 1]), ("R", [0, 6, 4, 5])]


@st.composite
def chains(draw):
    """A shape and a random chain of reshapes (all factors of the sizes) and transpositions on it."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
    steps, now = [], list(shape)
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            perm = draw(st.permutations(range(len(now))))
            steps.append(("Transpose", tuple(perm)))
            now = [now[p] for p in perm]
        else:
            total, target = int(np.prod(now)), []
            while len(target) < 4 and total > 1 and draw(st.booleans()):
                size = draw(st.sampled_from([d for d in (2, 3, 4, 6) if total % d == 0] or [total]))
                target.append(size)
                total //= size
            target.append(total)
            steps.append(("Reshape", tuple(target)))
            now = target
    return shape, steps


@settings(max_examples=120, deadline=None)
@given(chains())
def test_any_chain_computes_the_same(case) -> None:
    shape, steps = case
    proto = moves(steps, tuple(shape))
    model = check(proto, {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}, tolerance=0.0).model
    before = sum(op == "Transpose" for op, _ in steps)
    assert sum(op == "T" for op, _ in spelled(model)) <= before

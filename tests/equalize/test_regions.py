"""Channels followed from all layers that write them to all that read them, and what they are held down by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from equalizing import RNG, TARGET, model, node, rand, spread
from equivalence import equivalent

from onnxq import Config, quantize
from onnxq.equalize import equalized
from onnxq.equalize.arranged import OTHER, Marks, reshaped
from onnxq.equalize.factors import best_factors
from onnxq.equalize.objective import Objective
from onnxq.equalize.reads import Read, gathered
from onnxq.equalize.reads import spread as spread_over
from onnxq.equalize.seen import Seen, stays_below
from onnxq.equalize.sites import find_sites
from onnxq.plan import Storage, make_plan

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = pytest.mark.parametrize("kind", GATES)


@dataclass
class Graph:
    """A prepared ``model`` whose input has a ``shape``, 1 for what is open."""

    model: ir.Model
    shape: tuple[int, ...]

    @classmethod
    def of(cls, nodes: list, shape: tuple, constants: dict, outputs: tuple[str, ...] = ("y",)) -> Graph:
        return cls(model(nodes, shape, constants, outputs), tuple(d if isinstance(d, int) else 1 for d in shape))

    def feed(self) -> dict[str, np.ndarray]:
        return {"x": rand(*self.shape)}


def recurrent(kind: str, inputs: int, units: int = 8, directions: int = 1) -> dict[str, np.ndarray]:
    rows = GATES[kind] * units
    return {
        "W": rand(directions, rows, inputs),
        "R": 0.3 * rand(directions, rows, units),
        "B": rand(directions, 2 * rows),
    }


def last(kind: str, reads: str, units: int = 8, **attributes: object) -> object:
    return node(kind, f"{reads} W R B", "y", hidden_size=units, **attributes)


def behind_product(kind: str) -> Graph:
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), last(kind, "r")]
    return Graph.of(nodes, (5, "batch", 6), {"w": rand(6, 16), **recurrent(kind, 16)})


def behind_normalisation(kind: str, *, batch_first: bool = False) -> Graph:
    many = {"direction": "bidirectional", "layout": int(batch_first)}
    nodes = [node("LayerNormalization", "x g b", "n"), last(kind, "n", **many)]
    shape = (1, 5, 16) if batch_first else (5, "batch", 16)
    return Graph.of(nodes, shape, {"g": rand(16), "b": rand(16), **recurrent(kind, 16, directions=2)})


def turned(kind: str) -> Graph:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1]),
        node("LeakyRelu", "c", "r"),
        node("Transpose", "r", "t", perm=[2, 0, 1]),
        last(kind, "t"),
    ]
    return Graph.of(nodes, ("batch", 6, 7), {"w": rand(16, 6, 3), **recurrent(kind, 16)})


def squeezed(kind: str) -> Graph:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[1, 2]),
        node("Squeeze", "p axes", "s"),
        node("Transpose", "s", "t", perm=[2, 0, 1]),
        last(kind, "t"),
    ]
    constants = {"w": rand(16, 6, 4, 3), "axes": np.array([2]), **recurrent(kind, 16)}
    return Graph.of(nodes, ("batch", 6, 4, 9), constants)


def rows_of_maps(kind: str) -> Graph:
    """Two rows of each channel are features of one step."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("Reshape", "r shape", "s"),
        node("Transpose", "s", "t", perm=[2, 0, 1]),
        last(kind, "t"),
    ]
    constants = {"w": rand(16, 6, 3, 3), "shape": np.array([0, 32, -1]), **recurrent(kind, 32)}
    return Graph.of(nodes, (1, 6, 4, 9), constants)


def beside_others(kind: str) -> Graph:
    nodes = [
        node("Conv", "x w1", "c1", pads=[1, 1]),
        node("Relu", "c1", "r"),
        node("Conv", "x w2", "c2", pads=[1, 1]),
        node("Tanh", "c2", "t2"),
        node("Concat", "t2 r", "both", axis=1),
        node("Transpose", "both", "t", perm=[2, 0, 1]),
        last(kind, "t"),
    ]
    constants = {"w1": rand(16, 6, 3), "w2": rand(8, 6, 3), **recurrent(kind, 24)}
    return Graph.of(nodes, ("batch", 6, 7), constants)


def mobile(middle: str) -> Graph:
    """Conv, ``middle``, depthwise Conv, ``middle``, Conv."""
    nodes = [
        node("Conv", "x w1 b1", "c"),
        node(middle.split()[0], " ".join(["c", *middle.split()[1:]]), "p"),
        node("Conv", "p w2 b2", "d", group=8, pads=[1, 1, 1, 1]),
        node(middle.split()[0], " ".join(["d", *middle.split()[1:]]), "q"),
        node("Conv", "q w3", "y"),
    ]
    constants = {"w1": rand(8, 3, 1, 1), "b1": rand(8), "w2": rand(8, 1, 3, 3), "b2": rand(8), "w3": rand(4, 8, 1, 1)}
    constants |= {"slope": np.abs(rand(8, 1, 1)), "zero": np.float32(0), "top": np.float32(6)}
    return Graph.of(nodes, ("batch", 3, 8, 8), constants)


def stream() -> Graph:
    """A residual stream: two blocks of linear layers, what they add up, and three that read it."""
    nodes = [node("Conv", "x w0 b0", "s0")]
    constants = {"w0": rand(8, 3, 1, 1) * spread(8)[:, None, None, None], "b0": rand(8)}
    size = np.abs(constants["w0"]).max((1, 2, 3))
    for block in (1, 2):
        nodes += [
            node("Conv", f"s{block - 1} e{block}", f"h{block}"),
            node("Relu", f"h{block}", f"r{block}"),
            node("Conv", f"r{block} p{block}", f"o{block}"),
            node("Add", f"o{block} s{block - 1}", f"s{block}"),
        ]
        constants[f"e{block}"] = rand(12, 8, 1, 1) / size[None, :, None, None]
        constants[f"p{block}"] = 0.3 * rand(8, 12, 1, 1) * size[:, None, None, None]
    nodes += [node("Conv", "s2 w3", "y")]
    constants["w3"] = rand(4, 8, 1, 1) / size[None, :, None, None]
    return Graph.of(nodes, ("batch", 3, 8, 8), constants)


def copied(graph: ir.Model) -> ir.Model:
    return ir.serde.deserialize_model(ir.serde.serialize_model(graph))


def assert_the_same_with_any_factors(graph: Graph) -> None:
    scaled = copied(graph.model)
    for site in find_sites(scaled):
        assert site.scale(np.exp(RNG.standard_normal(site.channels))) is not None
    for feed in (graph.feed(), graph.feed()):
        assert equivalent(graph.model, scaled, feed) < 1e-4  # float32 round-off, in every step of the recurrence
    recurrences = [
        [n.inputs[1].const_value.numpy() for n in m.graph if n.op_type in GATES] for m in (graph.model, scaled)
    ]
    assert not any(np.allclose(before, after) for before, after in zip(*recurrences, strict=True))


@KINDS
@pytest.mark.parametrize(
    "made",
    [behind_product, behind_normalisation, turned, squeezed, rows_of_maps, beside_others],
    ids=lambda f: f.__name__,
)
def test_factors_reach_recurrent_layers_and_change_nothing(kind: str, made: Callable[[str], Graph]) -> None:
    graph = made(kind)
    (site,) = find_sites(graph.model)
    assert [reader.node.op_type for reader in site.readers] == [kind]
    assert_the_same_with_any_factors(graph)


def test_of_rows_of_maps_and_of_others_it_is_known_which_channel_they_are() -> None:
    (site,) = find_sites(rows_of_maps("LSTM").model)
    assert site.readers[0].of.tolist() == [c for c in range(16) for _ in range(2)]  # type: ignore[union-attr]
    (site,) = find_sites(beside_others("LSTM").model)
    assert site.readers[0].of.tolist() == [OTHER] * 8 + list(range(16))  # type: ignore[union-attr]


def test_batches_may_come_first() -> None:
    graph = behind_normalisation("RNN", batch_first=True)
    scaled = copied(graph.model)
    (site,) = find_sites(scaled)
    site.scale(np.full(16, 2.0))
    recurrences = [next(n for n in m.graph if n.op_type == "RNN") for m in (graph.model, scaled)]
    before, after = (n.inputs[1].const_value.numpy() for n in recurrences)
    np.testing.assert_array_equal(after, before / 2)


@KINDS
def test_what_is_read_as_states_or_with_a_shared_weight_stays(kind: str) -> None:
    constants = {"w": rand(6, 8), **recurrent(kind, 6)}
    nodes = [node("MatMul", "start w", "h"), node(kind, "x W R B  h", "y", hidden_size=8)]
    nodes[1].input[:] = ["x", "W", "R", "B", "", "h"]
    assert find_sites(model(nodes, (5, 1, 6), {**constants, "start": rand(1, 1, 6)})) == []
    shared = {"w": rand(6, 6), **recurrent(kind, 6)}
    nodes = [node("MatMul", "x w", "m")]
    nodes += [node(kind, "m W R B", name, hidden_size=8) for name in ("y", "z")]
    assert find_sites(model(nodes, (5, "batch", 6), shared, ("y", "z"))) == []


@pytest.mark.parametrize("middle", ["Relu", "PRelu slope", "Clip zero", "Clip zero top"])
def test_depthwise_layers_read_and_write_channels(middle: str) -> None:
    graph = mobile(middle)
    sites = find_sites(graph.model)
    assert [(site.tensor, [r.tensor for r in site.readers]) for site in sites] == [("c", ["p"]), ("d", ["q"])]
    assert [len(site.bounds) for site in sites] == ([1, 1] if "top" in middle else [0, 0])
    if "top" not in middle:
        assert_the_same_with_any_factors(graph)


def test_a_transposed_convolution_multiplies_what_it_writes() -> None:
    """It only reads in float, but its own weight takes the factors: no node is needed behind it."""
    nodes = [node("ConvTranspose", "x w b", "c", strides=[2, 2]), node("Relu", "c", "r"), node("Conv", "r w2", "y")]
    graph = Graph.of(nodes, (1, 4, 6, 6), {"w": rand(4, 8, 3, 3), "b": rand(8), "w2": rand(5, 8, 1, 1)})
    for costly in (False, True):
        (site,) = find_sites(graph.model, costly=costly)
        assert [writer.op_type for writer in site.writers] == ["ConvTranspose"]
        assert not site.between
    assert_the_same_with_any_factors(graph)


def test_a_clip_from_another_end_lets_no_factor_through() -> None:
    nodes = [node("Conv", "x w", "c"), node("Clip", "c low top", "p"), node("Conv", "p w2", "y")]
    constants = {"w": rand(8, 3, 1, 1), "w2": rand(4, 8, 1, 1), "low": np.float32(-1), "top": np.float32(1)}
    assert find_sites(model(nodes, ("batch", 3, 4, 4), constants)) == []


def test_a_residual_stream_is_one_site_with_all_its_writers_and_readers() -> None:
    graph = stream()
    site = next(s for s in find_sites(graph.model) if s.tensor == "s0")
    assert [n.name for n in site.writers] == ["Conv_s0", "Conv_o1", "Conv_o2"]
    assert [r.tensor for r in site.readers] == ["s0", "s1", "s2"]
    assert [(r.tensor, r.node.name) for r in site.summed] == [("o1", "Conv_h2"), ("o2", "Conv_y")]
    assert_the_same_with_any_factors(graph)


@pytest.mark.parametrize("other", ["output", "activation", "input", "wider"])
def test_a_stream_that_others_write_or_read_stays(other: str) -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "x w2", "b"), node("Add", "a b", "s"), node("Conv", "s w3", "y")]
    constants = {"w": rand(3, 3, 1, 1), "w2": rand(3, 3, 1, 1), "w3": rand(4, 3, 1, 1)}
    outputs: tuple[str, ...] = ("y",)
    if other == "output":
        outputs = ("y", "s")
    elif other == "activation":
        nodes.insert(2, node("Sigmoid", "b", "b2"))
        nodes[3].input[:] = ["a", "b2"]
    elif other == "input":
        nodes[2].input[:] = ["a", "x"]
    else:
        nodes.insert(2, node("GlobalAveragePool", "b", "b2"))
        nodes[3].input[:] = ["a", "b2"]
    assert find_sites(model(nodes, ("batch", 3, 4, 4), constants, outputs)) == []


def test_a_layer_that_reads_and_writes_one_stream_stays() -> None:
    nodes = [node("Conv", "x w", "a"), node("Conv", "a w2", "b", pads=[1, 1, 1, 1], group=2)]
    nodes += [node("Add", "a b", "s"), node("Conv", "s w3", "y")]
    constants = {"w": rand(8, 3, 1, 1), "w2": rand(8, 4, 3, 3), "w3": rand(4, 8, 1, 1)}
    graph = model(nodes, ("batch", 3, 4, 4), constants)
    assert [n.op_type for n in graph.graph] == ["Conv", "Conv", "Add", "Conv"]
    assert find_sites(graph) == []


# -- where channels are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "axis", "new"),
    [
        ((2, 6, 4, 5), 1, (2, 24, 5)),
        ((2, 6, 4, 5), 1, (2, 120)),
        ((2, 6, 1, 5), 1, (2, 6, 5)),
        ((2, 3, 6), 2, (6, 6)),
        ((6, 6), 1, (2, 3, 6)),
        ((2, 6, 4), 1, (2, 6, 2, 2)),
        ((2, 4, 6), 2, (2, 24)),
    ],
)
def test_marks_of_a_view_are_those_of_the_numbers(old: tuple, axis: int, new: tuple) -> None:
    marks = reshaped(old, new, Marks(axis, np.arange(6)))
    assert marks is not None
    labels = np.arange(6).reshape(-1, *[1] * (len(old) - axis - 1))
    moved = np.moveaxis(np.broadcast_to(labels, old).reshape(new), marks.axis, -1)
    assert (moved == marks.of).all()


@pytest.mark.parametrize(
    ("old", "axis", "new"),
    [((2, 6, 4), 1, (2, 2, 12)), ((2, 6, 4), 1, (2, 4, 6)), ((2, 6, 4), 1, (4, 12)), ((2, 6), 1, (12,))],
)
def test_a_view_that_takes_channels_apart_has_none(old: tuple, axis: int, new: tuple) -> None:
    marks = reshaped(old, new, Marks(axis, np.arange(6)))
    if marks is not None:  # one long row: it is the same channels over and over
        assert new == (12,)
        assert marks.of.tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_marks_that_contradict_are_none() -> None:
    one = Marks(1, np.array([0, OTHER]))
    assert one.merged(Marks(1, np.array([OTHER, 1])), 3).of.tolist() == [0, 1]  # type: ignore[union-attr]
    assert one.merged(Marks(1, np.array([1, OTHER])), 3) is None
    assert one.merged(Marks(2, np.array([OTHER, 1])), 3) is None


# -- factors -----------------------------------------------------------------------------------------------------------


def a_read(of: np.ndarray | None = None, *, channels: int = 12) -> Read:
    size = spread(channels, 1.5)
    rows = np.abs(rand(400, channels) * size)
    return Read(rows, rand(1, channels, 1, 6) / np.sqrt(size).reshape(1, -1, 1, 1), 8, 8, of=of)


def ends_of(read: Read) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(read.rows.max(0).astype(float), np.zeros(read.rows.shape[1]))]


@pytest.mark.parametrize("of", [np.arange(12)[::-1], np.repeat(np.arange(6), 2), np.r_[np.arange(8), [OTHER] * 4]])
def test_the_gradient_of_arranged_channels_is_that_of_finite_differences(of: np.ndarray) -> None:
    read, channels = a_read(of), int(of.max()) + 1
    objective = Objective([read], ends_of(read))
    t, step = 0.3 * RNG.standard_normal(channels), 1e-5
    _, gradient = objective(t)
    for i in range(channels):
        ahead, behind = (objective(t + sign * step * np.eye(channels)[i])[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-9 * abs(ahead))


def test_spreading_and_gathering_are_transposes() -> None:
    of = np.array([2, OTHER, 0, 0])
    factors, parts = np.array([2.0, 3.0, 5.0]), np.array([1.0, 10.0, 100.0, 1000.0])
    assert spread_over(factors, of).tolist() == [5.0, 1.0, 2.0, 2.0]
    assert gathered(parts, of, 3).tolist() == [1100.0, 0.0, 1.0]


def test_channels_beside_others_are_made_like_those() -> None:
    of = np.r_[[OTHER] * 8, np.arange(8)]
    rows = np.abs(rand(400, 16)) * np.r_[np.full(8, 20.0), np.ones(8)].astype(np.float32)
    read = Read(rows, rand(1, 16, 1, 6), 8, 8, of=of)
    factors, relative = best_factors([read], 8, method="minmax")
    assert factors.min() > 2.0  # without the others no factor that is the same for all would change anything
    assert relative < 0.9


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "below"), [(2.99, True), (3.01, False), (6.0, False)])
def test_no_channel_may_come_near_the_end_of_a_clip(largest: float, below: bool) -> None:
    (site, _) = find_sites(mobile("Clip zero top").model)
    peaks = np.array([0.0, 1e-9, 1.0, 2.0, 2.5, 0.5, 0.1, largest], np.float32)
    assert stays_below(site, Seen({}, {"p": peaks})) == below
    assert stays_below(replace(site, bounds=()), Seen({}, {}))


def test_the_end_of_a_clip_grows_with_the_largest_factor() -> None:
    graph = mobile("Clip zero top")
    scaled = copied(graph.model)
    (site, _) = find_sites(scaled)
    site.scale(np.linspace(0.5, 2.5, 8))
    ends = [n.inputs[2].const_value.numpy() for n in scaled.graph if n.op_type == "Clip"]
    assert [float(end) for end in ends] == [15.0, 6.0]
    small = {"x": graph.feed()["x"] / 4}
    assert equivalent(graph.model, scaled, small) < 1e-5
    assert equivalent(graph.model, scaled, {"x": 100 * graph.feed()["x"]}) > 1e-2


def unlike_mobile(top: float = 6.0) -> Graph:
    """An inverted bottleneck clipped at ``top``, where no channel comes near 6."""
    size = spread(32, 1.5) / 32
    nodes = [
        node("Conv", "x w1", "c"),
        node("Clip", "c zero top", "p"),
        node("Conv", "p w2", "d", group=32, pads=[1, 1, 1, 1]),
        node("Clip", "d zero top", "q"),
        node("Conv", "q w3", "y"),
    ]
    constants = {"w1": rand(32, 8, 1, 1) / 5 * size[:, None, None, None], "w2": np.abs(rand(32, 1, 3, 3)) / 9}
    constants |= {"w3": rand(16, 32, 1, 1) / size[None, :, None, None]}
    constants |= {"zero": np.float32(0), "top": np.float32(top)}
    return Graph.of(nodes, ("batch", 8, 8, 8), constants)


def unlike_recurrent(kind: str, *, turned: bool = True) -> Graph:
    """A convolution whose channels differ by a factor of 30, and a recurrent layer that reads them."""
    size = spread(32, 1.5)
    nodes = [node("Conv", "x w", "c", pads=[1, 1]), node("Relu", "c", "r")]
    nodes += [node("Transpose", "r", "t", perm=[2, 0, 1]), last(kind, "t", 96)]
    constants = {"w": rand(32, 6, 3) * size[:, None, None], **recurrent(kind, 32, 96)}
    constants["W"] = constants["W"] / size * 0.1
    constants["R"] = constants["R"] * 0.2
    return Graph.of(nodes, ("batch", 6, 7), constants)


def sqnr(graph: Graph, equalize: str) -> float:
    """On samples that calibration does not see."""
    data = {"x": np.concatenate([rand(*graph.shape) for _ in range(160)])}
    config = Config(placement="all", equalize=equalize, min_agreement=0.0, guard_sqnr=0.0, operators="onnxruntime")
    result = quantize(graph.model, data, config=config)
    assert any("equalized" in note for note in result.report.notes) == (equalize == "auto")
    found: float = result.report.sqnr_db
    return found


@pytest.mark.parametrize(
    ("made", "gain"),
    [(unlike_mobile, 3.0), (stream, 2.0), (lambda: unlike_recurrent("LSTM"), 3.0)],
    ids=["bounded", "stream", "LSTM"],
)
def test_less_is_lost_on_held_out_samples(made: Callable[[], Graph], gain: float) -> None:
    graph = made()
    assert sqnr(graph, "auto") > sqnr(graph, "none") + gain


@pytest.mark.parametrize(("top", "steps"), [(6.0, {"c", "d"}), (1.0, set())])
def test_a_bounded_model_is_scaled_where_the_bound_is_out_of_reach(top: float, steps: set[str]) -> None:
    graph = unlike_mobile(top)
    feeds = [graph.feed() for _ in range(32)]
    plan = make_plan(graph.model, Config(placement="all"), TARGET)
    found = equalized(graph.model, plan, feeds, method="mse")
    assert set(found.steps) == steps
    for feed in (*feeds[:4], *(graph.feed() for _ in range(8))):
        assert equivalent(graph.model, found.model, feed) < 1e-5


def test_an_lstm_that_measures_its_range_counts_as_8_bits_and_a_stored_one_as_float() -> None:
    graph = unlike_recurrent("LSTM")
    feeds = [graph.feed() for _ in range(16)]
    plan = make_plan(graph.model, Config(placement="all", operators="onnxruntime"), TARGET)
    assert {w.storage for w in plan.weights if w.node == "LSTM_y"} == {Storage.DYNAMIC}
    found = equalized(graph.model, plan, feeds, method="mse")
    assert "c" in found.steps
    kept = replace(plan, weights=tuple(w for w in plan.weights if w.node != "LSTM_y"))
    assert "c" not in equalized(graph.model, kept, feeds, method="mse").steps

"""Channels made alike: where it is possible, the best factors, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from equalizing import RNG, TARGET, convolutions, feeds, model, node, rand, spread, transformer
from equivalence import equivalent

from onnxq import Config, DataError, Result, evaluate, quantize
from onnxq.equalize import Terms, equalized, equalized_as
from onnxq.equalize.factors import LARGEST, best_factors, from_steps, to_steps, trial
from onnxq.equalize.objective import Objective, minimum
from onnxq.equalize.reads import Read, energies
from onnxq.equalize.sites import find_sites
from onnxq.plan import make_plan


def names(graph: ir.Model) -> dict[str, list[str]]:
    return {site.tensor: [reader.tensor for reader in site.readers] for site in find_sites(graph)}


@pytest.mark.parametrize("middle", ["Relu", "LeakyRelu"])
def test_convolutions_can_be_scaled_through_relu_and_pooling(middle: str) -> None:
    assert names(convolutions(middle)) == {"c1": ["r1"], "c2": ["p"]}


@pytest.mark.parametrize("epsilon", [False, True])
def test_so_can_normalised_rows_that_several_layers_read(epsilon: bool) -> None:
    assert names(transformer(epsilon=epsilon)) == {"n": ["n", "n"]}


def test_not_so_what_is_an_output_or_read_by_others() -> None:
    assert names(convolutions(last=("r1",))) == {"c2": ["p"]}
    assert names(convolutions("Sigmoid")) == {"c2": ["p"]}


def test_weights_that_several_nodes_share_stay() -> None:
    constants = {"g": spread(8), "b": rand(8), "w": rand(8, 8)}
    nodes = [
        node("LayerNormalization", "x g b", "n"),
        node("MatMul", "n w", "a"),
        node("MatMul", "a w", "y"),
    ]
    assert find_sites(model(nodes, ("batch", 5, 8), constants)) == []


@pytest.mark.parametrize("made", [convolutions, transformer, partial(transformer, epsilon=True)], ids=["c", "t", "u"])
def test_any_factors_leave_what_is_computed(made: Callable[[], ir.Model]) -> None:
    graph = made()
    scaled = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    for site in find_sites(scaled):
        site.scale(np.exp(RNG.standard_normal(site.channels)))
    for feed in feeds(graph, 3):
        assert equivalent(graph, scaled, feed) < 1e-5
    weights = [
        [n.inputs[1].const_value.numpy() for n in m.graph if n.op_type in ("Conv", "MatMul")] for m in (graph, scaled)
    ]
    assert not any(np.allclose(before, after) for before, after in zip(*weights, strict=True))


def test_the_channels_after_a_global_pool_are_those_of_its_input() -> None:
    constants = {"w1": rand(8, 3, 1, 1), "w2": rand(5, 8)}
    nodes = [
        node("Conv", "x w1", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w2", "y", transB=1),
    ]
    graph = model(nodes, ("batch", 3, 4, 4), constants)
    assert names(graph) == {"c": ["f"]}
    (site,) = find_sites(graph)
    assert (site.axis, site.readers[0].axis) == (1, -1)


def test_pooling_over_the_last_axis_mixes_what_matrix_products_take_for_channels() -> None:
    constants = {"w1": rand(6, 8), "w2": rand(8, 5)}
    nodes = [
        node("MatMul", "x w1", "a"),
        node("MaxPool", "a", "p", kernel_shape=[3], pads=[1, 1]),
        node("MatMul", "p w2", "y"),
    ]
    assert find_sites(model(nodes, ("batch", 4, 6), constants)) == []


def test_a_product_that_is_an_output_too_stays() -> None:
    constants = {"g": spread(16), "b": rand(16), "w": rand(16, 8)}
    nodes = [node("Tanh", "x", "t"), node("Mul", "t g", "m"), node("Add", "b m", "n"), node("MatMul", "n w", "y")]
    assert find_sites(model(nodes, ("batch", 5, 16), constants, ("y", "m"))) == []


# -- factors ----------------------------------------------------------------------------------------------------------


def reads(
    activation_bits: int | None = 8, weight_bits: int | None = 8, *, block: int = 0, groups: int = 1
) -> list[Read]:
    size = spread(16, 1.5)
    rows = rand(400, 16) * size
    weight = rand(groups, 16 // groups, 3, 6) / np.sqrt(size).reshape(groups, -1, 1, 1)
    return [Read(rows, weight, activation_bits, weight_bits, block)]


@pytest.mark.parametrize(
    "how", [{}, {"activation_bits": None}, {"weight_bits": None}, {"groups": 4}, {"block": 8, "activation_bits": None}]
)
def test_the_gradient_is_that_of_finite_differences(how) -> None:
    (read,) = reads(**how)
    objective = Objective([read], [(read.rows.max(0), -read.rows.min(0))])
    t, step = 0.3 * RNG.standard_normal(16), 1e-5
    _, gradient = objective(t)
    for i in range(16):
        ahead, behind = (objective(t + sign * step * np.eye(16)[i])[0] for sign in (1, -1))
        assert gradient[i] == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-9 * abs(ahead))


def test_the_minimum_is_below_every_rule_and_convex_along_lines() -> None:
    (read,) = reads()
    ends, weights = np.abs(read.rows).max(0), np.abs(read.weight).max((2, 3)).reshape(-1)
    objective = Objective([read], [(read.rows.max(0), -read.rows.min(0))])
    found = minimum([read], [(read.rows.max(0), -read.rows.min(0))], 16)
    rules = [np.log(weights ** (1 - alpha) / ends**alpha) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    best = objective(found)[0]
    assert all(best < objective(rule)[0] for rule in [*rules, np.zeros(16)])
    for rule in rules:
        middle = objective((found + rule) / 2)[0]
        assert middle <= (best + objective(rule)[0]) / 2
    nudged = [objective(found + 0.05 * RNG.standard_normal(16))[0] for _ in range(50)]
    assert min(nudged) > best * (1 - 1e-3)


def test_rows_count_alike_however_much_they_carry() -> None:
    """As the first token of a sequence, whose activations may be tens of times as large."""
    (read,) = reads(activation_bits=None, weight_bits=4)
    louder = read.rows.copy()
    louder[::20] *= 30.0
    found = [best_factors([replace(read, rows=rows)], 16, method="mse") for rows in (read.rows, louder)]
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    assert found[0][1] < 0.97


def test_unlike_channels_gain_and_alike_channels_are_left_alone() -> None:
    factors, relative = best_factors(reads(), 16, method="mse")
    assert relative < 0.6
    assert np.log(factors).mean() == pytest.approx(0.0, abs=0.05)
    assert np.array_equal(from_steps(to_steps(factors)), factors)
    alike = [Read(np.tile(rand(400, 1), (1, 16)), np.ones((1, 16, 1, 4), np.float32), 8, 8)]
    factors, relative = best_factors(alike, 16, method="mse")
    assert relative > 0.97


def test_dead_channels_and_extreme_ones_stay_within_bounds() -> None:
    (read,) = reads()
    rows = read.rows.copy()
    rows[:, 3] = 0.0
    rows[:, 5] *= 1e6
    factors, relative = best_factors([Read(rows, read.weight, 8, 8)], 16, method="minmax")
    assert factors[3] == 1.0
    assert factors.min() >= 1 / LARGEST
    assert factors.max() <= LARGEST
    assert relative < 1.0


def test_the_trial_is_the_error_that_rounding_makes() -> None:
    rows, weight = rand(200, 8) * spread(8), rand(1, 8, 1, 5)
    factors = np.exp(0.2 * RNG.standard_normal(8))
    scaled, divided = rows * factors, weight[0, :, 0] / factors[:, None]
    step = (scaled.max() - scaled.min()) / 255
    zero = np.rint(-scaled.min() / step)
    x = (np.clip(np.rint(scaled / step) + zero, 0, 255) - zero) * step
    steps = np.abs(divided).max(0) / 7
    w = np.clip(np.rint(divided / steps), -7, 7) * steps
    outputs = rows @ weight[0, :, 0]
    expected = (np.square(x @ w - outputs).sum(1) / np.square(outputs).sum(1)).mean()
    assert trial([Read(rows, weight, 8, 4)], factors, "minmax") == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 40), (40, 6), (1, 9)])
def test_energies_are_those_of_all_outputs(inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(3)
    rows, weight = (rng.standard_normal((3, *n)).astype(np.float32) for n in ((50, inputs), (inputs, outputs)))
    expected = np.square(rows.astype(np.float64) @ weight).sum(axis=(0, 2))
    np.testing.assert_allclose(energies(rows, weight), expected, rtol=1e-5)


def test_factors_that_only_suit_the_rows_that_were_seen_are_not_taken() -> None:
    """Channels whose rows by chance were small: scaled up, others would be clipped."""
    rows = rand(300, 16).astype(np.float32)
    lucky = rows * np.where(np.arange(16) % 4 == 0, 0.1, 1.0).astype(np.float32)
    read = Read(lucky, rand(1, 16, 1, 8).astype(np.float32), 8, None)
    assert best_factors([read], 16, method="minmax")[1] < 0.97
    factors, relative = best_factors([replace(read, unseen=rows)], 16, method="minmax")
    assert relative == 1.0
    assert (factors == 1.0).all()


def test_the_size_of_factors_is_that_of_all_rows() -> None:
    (read,) = reads()
    half = len(read.rows) // 2
    parts = replace(read, rows=read.rows[:half], unseen=read.rows[half:])
    whole, relative = best_factors([parts], 16, method="mse")
    assert relative < 0.97
    apart = [best_factors([replace(read, rows=r)], 16, method="mse")[0] for r in (parts.rows, parts.unseen)]
    assert not any(np.array_equal(whole, part) for part in apart)
    wanted = []
    for share in (0.0, 1e-3):
        low, high = np.quantile(read.rows, (share, 1 - share), axis=0)
        logs = minimum([read], [(high, -low)], 16)
        wanted.append(from_steps(to_steps(np.exp(logs - logs.mean()))))
    assert any(np.allclose(whole, one, rtol=0.1) for one in wanted)


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_model_is_equalized_by_what_its_plan_quantizes() -> None:
    graph = transformer()
    given = feeds(graph)
    plan = make_plan(graph, Config(placement="all"), TARGET)
    found = equalized(graph, plan, given, method="mse")
    equal = found.model
    assert "1 tensor equalized" in found.notes[0]
    again = equalized_as(graph, found.steps)  # what is written down is what was done
    assert ir.serde.serialize_model(again) == ir.serde.serialize_model(equal)
    assert equivalent(graph, equal, given[0]) < 1e-5
    assert [n.name for n in graph.graph] == [n.name for n in equal.graph]
    assert len(equal.graph.initializers) == len(graph.graph.initializers)  # what was replaced is gone
    nothing = make_plan(graph, Config(placement="all").with_excluded(("MatMul",)), TARGET)
    assert equalized(graph, nothing, given, method="mse").model is graph
    for name in ("LayerNormalization_n", "MatMul_z"):
        assert equalized(graph, plan, given, method="mse", terms=Terms(untouched={name})).model is graph


def test_what_is_not_finite_is_reported_by_name() -> None:
    graph = convolutions()
    data = {"x": np.concatenate([f["x"] for f in feeds(graph, 16)])}
    data["x"][:] = 3e38  # overflows in the first sum
    with pytest.raises(DataError, match=r"tensor '\w+' holds (NaN|infinity)"):
        quantize(graph, data, config=Config(placement="all"))


def test_outlying_channels_cost_accuracy_no_more() -> None:
    graph = transformer()
    sqnr = {}
    for equalize in ("none", "auto"):
        config = Config(placement="all", equalize=equalize, min_agreement=0.0, guard_sqnr=0.0)
        result = quantize(graph, {"x": np.concatenate([f["x"] for f in feeds(graph, 128)])}, config=config)
        sqnr[equalize] = result.report.sqnr_db
        assert any("equalized" in note for note in result.report.notes) == (equalize == "auto")
    assert sqnr["auto"] > sqnr["none"] + 3.0


# -- with a multiplication in front -----------------------------------------------------------------------------------


def post_norm() -> ir.Model:
    """Normalised rows with outlying channels that two MatMuls and a residual sum read; GELU-like rows behind them."""
    gamma = spread(32, 1.5)
    constants = {"g": gamma, "b": rand(32), "w1": rand(32, 16) / gamma[:, None], "w2": rand(32, 32) / gamma[:, None]}
    constants |= {"w3": rand(16, 32)}
    nodes = [
        node("LayerNormalization", "x g b", "n"),
        node("MatMul", "n w1", "a"),
        node("Sigmoid", "a", "s"),
        node("MatMul", "s w3", "c"),
        node("Add", "c n", "y"),
        node("MatMul", "n w2", "z"),
    ]
    return model(nodes, ("batch", 6, 32), constants, ("y", "z"))


def test_what_others_read_too_is_scaled_in_front_of_its_layers() -> None:
    graph = post_norm()
    assert find_sites(graph) == []
    sites = {site.tensor: [r.node.name for r in site.readers] for site in find_sites(graph, costly=True)}
    assert sites == {"n": ["MatMul_a", "MatMul_z"], "s": ["MatMul_c"]}


def test_no_tensor_is_scaled_twice() -> None:
    for graph in (convolutions(), transformer(), transformer(epsilon=True)):
        plain, more = find_sites(graph), find_sites(graph, costly=True)
        assert [s.tensor for s in more[: len(plain)]] == [s.tensor for s in plain]
        read = [r.tensor for s in plain for r in s.readers]
        assert not {s.tensor for s in more[len(plain) :]} & {*read, *(s.tensor for s in plain)}


def test_a_multiplication_in_front_leaves_what_is_computed_and_others_bit_for_bit() -> None:
    graph = post_norm()
    scaled = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    added = [site.scale(np.exp(RNG.standard_normal(site.channels))) for site in find_sites(scaled, costly=True)]
    assert [list(names) for names in added] == [["n_equalized"], ["s_equalized"]]
    for feed in feeds(graph, 3):
        assert equivalent(graph, scaled, feed) < 1e-5
    add = next(n for n in scaled.graph if n.op_type == "Add")
    assert [v.name for v in add.inputs] == ["c", "n"]


def test_a_graph_input_can_be_scaled_in_front_too() -> None:
    graph = model([node("MatMul", "x w", "y")], ("batch", 6, 8), {"w": rand(8, 4)})
    (site,) = find_sites(graph, costly=True)
    scaled = ir.serde.deserialize_model(ir.serde.serialize_model(graph))
    (site,) = find_sites(scaled, costly=True)
    site.scale(np.exp(RNG.standard_normal(8)))
    (feed,) = feeds(graph, 1)
    assert equivalent(graph, scaled, feed) < 1e-5


def test_multiplications_are_added_where_they_halve_the_noise_and_integers_are_made() -> None:
    graph = post_norm()
    given = feeds(graph)
    plan = make_plan(graph, Config(placement="all"), TARGET)
    assert equalized(graph, plan, given, method="mse").model is graph
    found = equalized(graph, plan, given, method="mse", terms=Terms(costly=True))
    assert list(found.added) == ["n_equalized"]  # a Sigmoid's channels are alike
    assert "1 tensor equalized by a multiplication in front" in found.notes[0]
    again = equalized_as(graph, found.steps)
    assert ir.serde.serialize_model(again) == ir.serde.serialize_model(found.model)
    weights_only = make_plan(graph, Config(placement="all", weights="int4:16", activations="none"), TARGET)
    assert equalized(graph, weights_only, given, method="mse", terms=Terms(costly=True)).model is graph
    assert equalized(graph, plan, given, method="mse", terms=Terms(costly=True, untouched={"MatMul_z"})).added == {}


def noise_of_post_norm(**choices: object) -> tuple[float, Result]:
    graph = post_norm()
    data = {"x": np.concatenate([f["x"] for f in feeds(graph, 128)])}
    result = quantize(graph, data, config=Config(placement="all", **choices))  # type: ignore[arg-type]
    return result.report.sqnr_db, result


def test_layers_need_not_be_given_back_where_channels_can_be_made_alike() -> None:
    limits = {"min_agreement": 0.0, "guard_sqnr": 36.0}
    _, left = noise_of_post_norm(equalize="none", **limits)
    sqnr, result = noise_of_post_norm(**limits)
    assert any("stay float" in note for note in left.report.notes)
    assert not any("stay float" in note for note in result.report.notes)
    assert len(result.plan.anchors) > len(left.plan.anchors)
    assert sqnr > 36.0
    assert any("multiplication in front" in note for note in result.report.notes)
    assert "n_equalized" not in result.plan.integer


def test_the_spelled_out_choices_give_the_model_again() -> None:
    graph = post_norm()
    data = {"x": np.concatenate([f["x"] for f in feeds(graph, 128)])}
    first = quantize(graph, data, config=Config(min_agreement=0.0, guard_sqnr=36.0, placement="all"))
    again = quantize(graph, data, config=first.config)
    assert any(n.name == "n_equalized" for n in again.model.graph)
    assert [n.name for n in again.model.graph] == [n.name for n in first.model.graph]


def test_layers_can_be_compared_with_those_of_the_float_model(tmp_path: Path) -> None:
    graph = post_norm()
    given = {"x": np.concatenate([f["x"] for f in feeds(graph, 64)])}
    result = quantize(graph, given, config=Config(placement="all", equalize="all"))
    result.save(tmp_path / "q.onnx")
    found = evaluate(graph, tmp_path / "q.onnx", given)
    assert {layer.node for layer in found.layers} >= {"MatMul_a", "MatMul_z"}
    assert all(min(layer.accumulated_db, layer.local_db) > 20 for layer in found.layers)


def test_a_model_that_is_good_without_gets_no_multiplication_unless_asked() -> None:
    loose = {"min_agreement": 0.0, "guard_sqnr": 0.0}
    sqnr, result = noise_of_post_norm(**loose)
    more, asked = noise_of_post_norm(equalize="all", **loose)
    assert not any(n.name == "n_equalized" for n in result.model.graph)
    assert any(n.name == "n_equalized" for n in asked.model.graph)
    assert more > sqnr + 3.0


# -- numbers that overflow --------------------------------------------------------------------------------------------


def near_the_end() -> ir.Model:
    """Two layers, of which the first has biases that nothing much larger than 1 may multiply."""
    size = np.logspace(-2, 2, 8, dtype=np.float32)
    bias = np.full(8, -3e38, np.float32)
    constants = {"w1": rand(6, 8) * size, "b1": bias, "w2": rand(8, 4) / size[:, None]}
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")]
    return model(nodes, ("batch", 6), constants)


def test_a_bias_that_would_overflow_stays_as_it_is() -> None:
    graph = near_the_end()
    before = ir.serde.serialize_model(graph)
    (site,) = find_sites(graph)
    assert site.scale(np.full(8, 4.0)) is None
    assert ir.serde.serialize_model(graph) == before
    assert site.scale(np.full(8, 1.0)) == {}


def test_sites_that_cannot_be_scaled_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = near_the_end()
    monkeypatch.setattr("onnxq.equalize.apply.best_factors", lambda *_, **__: (np.full(8, 4.0), 0.1))
    plan = make_plan(graph, Config(placement="all"), TARGET)
    found = equalized(graph, plan, feeds(graph), method="mse")
    assert (dict(found.steps), found.notes) == ({}, ())

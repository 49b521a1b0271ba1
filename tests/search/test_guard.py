"""The promise of accuracy: when held-out data contradicts it, and which layers are given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import Net, batchnorm_cnn, feeds

from onnxq import quantize
from onnxq.build.candidate import Built
from onnxq.config import Config
from onnxq.measure.compare import Comparison
from onnxq.measure.kernels import KernelMap
from onnxq.measure.references import references
from onnxq.numerics import INT8_NARROW, PerAxis, Share
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, Plan, Storage, Weight
from onnxq.search.acceptance import Verdict, contradicts
from onnxq.search.judging import judge
from onnxq.search.repair import Repaired, summary
from onnxq.search.repair import repair as repair_with

# -- the binomial rule ------------------------------------------------------------------------------------------------


def tail(rows: int, misses: int, p: float) -> float:
    """P(X >= misses), X ~ Binomial(rows, p), by brute force."""
    return sum(comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(misses, rows + 1))


@settings(max_examples=300)
@given(st.integers(1, 300), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_the_rule_is_the_binomial_tail(rows: int, data: st.DataObject, promised: float) -> None:
    misses = data.draw(st.integers(0, rows))
    probability = tail(rows, misses, 1 - promised)
    if abs(probability - 0.05) < 1e-9:
        return
    expected = 1 - misses / rows < promised and probability < 0.05
    assert contradicts(Share(rows - misses, rows, rows), promised) == expected


@pytest.mark.parametrize(
    ("misses", "rows", "promised", "expected"),
    [
        (0, 10, 0.99, False),
        (1, 10, 0.99, False),  # one miss in ten happens to a promise of 99 % in one case of ten
        (2, 10, 0.99, True),
        (1, 4, 1.0, True),  # a promise of no miss is broken by one
        (0, 4, 1.0, False),
        (3, 4, 0.0, False),  # nothing was promised
        (11_000, 1_000_000, 0.99, True),  # many rows do not underflow
        (10_000, 1_000_000, 0.99, False),
    ],
)
def test_cases_by_hand(misses: int, rows: int, promised: float, expected: bool) -> None:
    assert contradicts(Share(rows - misses, rows, rows), promised) == expected


# -- repair on fake builds --------------------------------------------------------------------------------------------


def fake(anchors: tuple[str, ...], kept: Mapping[str, KeptFloat] | None = None) -> Built:
    kept = kept or {}
    plan = Plan(anchors=tuple(a for a in anchors if a not in kept), integer=anchors)
    empty = KernelMap("m", "extended", "0", ())
    return Built(plan, Parameters({}, {}, {}), None, b"", empty, (), kept)  # type: ignore[arg-type]


def verdict(good: bool, sqnr: float, agreement: float = 1.0) -> Verdict:
    return Verdict(Comparison("a", "b", 1, ()), agreement, sqnr, good)


@dataclass(frozen=True)
class Calls:
    """An evaluator and a ranker of plain functions."""

    build: Callable[[Mapping[str, KeptFloat]], Built]
    verdict: Callable[[Built], Verdict]
    noise: Callable[[Mapping[str, KeptFloat]], float]


def repair(
    first: Built,
    build: Callable[[Mapping[str, KeptFloat]], Built],
    verdict_of: Callable[[Built], Verdict],
    noise_alone: Callable[[Mapping[str, KeptFloat]], float],
    **how: Any,
) -> Repaired:
    calls = Calls(build, verdict_of, noise_alone)
    return repair_with(first, calls, calls, **how)


class Bench:
    """Layers that make ``noise`` each when quantized; the sum must stay below ``allowed``."""

    def __init__(self, noise: Mapping[str, float], allowed: float) -> None:
        self.noise, self.allowed = noise, allowed
        self.built: list[frozenset[str]] = []

    def build(self, kept: Mapping[str, KeptFloat]) -> Built:
        built = fake(tuple(self.noise), kept)
        self.built.append(frozenset(built.plan.anchors))
        return built

    def noise_of(self, built: Built) -> float:
        return sum(self.noise[a] for a in built.plan.anchors)

    def noise_alone(self, kept: Mapping[str, KeptFloat]) -> float:
        return sum(noise for name, noise in self.noise.items() if name not in kept)

    def verdict_of(self, built: Built) -> Verdict:
        total = self.noise_of(built)
        return verdict(total <= self.allowed, -10 * math.log10(max(total, 1e-9)))

    def repair(self) -> Repaired:
        first = fake(tuple(self.noise))
        return repair(first, self.build, self.verdict_of, self.noise_alone)


def test_a_good_model_is_left_alone() -> None:
    bench = Bench({"a": 1.0, "b": 2.0}, 3.0)
    built, found, fallback, *_ = bench.repair()
    assert (built.plan.anchors, fallback, found.good) == (("a", "b"), (), True)
    assert bench.built == []


@settings(max_examples=150)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 200))
def test_the_fewest_layers_are_fallback_the_noisiest_first(noise: list[int], allowed: int) -> None:
    bench = Bench({f"l{i}": float(n) for i, n in enumerate(noise)}, float(allowed))
    built, found, fallback, *_ = bench.repair()
    ordered = sorted(noise, reverse=True)
    fewest = next(k for k in range(len(noise) + 1) if sum(ordered[k:]) <= allowed)
    assert found.good
    assert len(fallback) == fewest
    assert sorted((bench.noise[n] for n in fallback), reverse=True) == ordered[:fewest]
    assert set(built.plan.anchors) == set(bench.noise) - set(fallback)


def test_trials_grow_with_the_logarithm_of_the_layers() -> None:
    bench = Bench({f"l{i}": 1.0 for i in range(64)}, 20.0)
    bench.repair()
    assert len(bench.built) <= 2 * math.ceil(math.log2(64))


def test_where_nothing_is_good_the_best_is_kept() -> None:
    """Giving back everything does not help (a problem that is not the layers'): the best of those tried."""
    agreement = {3: 0.7, 2: 0.9, 1: 0.8, 0: 0.6}

    def verdict_of(built: Built) -> Verdict:
        return verdict(False, 10.0, agreement[len(built.plan.anchors)])

    bench = Bench({"a": 3.0, "b": 2.0, "c": 1.0}, 0.0)
    built, found, fallback, *_ = repair(fake(("a", "b", "c")), bench.build, verdict_of, bench.noise_alone)
    assert not found.good
    assert fallback == ("a",)
    assert found.agreement == 0.9
    assert built.plan.anchors == ("b", "c")


def test_layers_that_were_float_before_stay_so() -> None:
    reason = KeptFloat("the runtime said so")
    bench = Bench({"a": 5.0, "b": 1.0, "c": 1.0}, 2.0)
    first = fake(("a", "b", "c", "d"), {"d": reason})
    seen: list[Mapping[str, KeptFloat]] = []

    def build(kept: Mapping[str, KeptFloat]) -> Built:
        seen.append(kept)
        return bench.build(kept)

    _, _, fallback, *_ = repair(first, build, bench.verdict_of, bench.noise_alone)
    assert fallback == ("a",)
    assert all(kept["d"] == reason for kept in seen)


def test_a_model_without_integer_layers_cannot_be_repaired() -> None:
    bench = Bench({}, -1.0)
    _, found, fallback, *_ = bench.repair()
    assert (found.good, fallback) == (False, ())


def test_progress_counts_the_ranking() -> None:
    told: list[tuple[int, int]] = []
    bench = Bench({"a": 5.0, "b": 1.0}, 2.0)
    repair(
        fake(("a", "b")),
        bench.build,
        bench.verdict_of,
        bench.noise_alone,
        progress=lambda d, t: told.append((d, t)),
    )
    assert told == [(1, 2), (2, 2)]


def test_the_summary_is_one_line() -> None:
    plan = Plan(anchors=("x",))
    assert summary(plan, ("a",)) == "1 of 2 layers stay float because they cost too much accuracy: a"
    assert summary(plan, tuple("abcdef")).endswith(
        "6 of 7 layers stay float because they cost too much accuracy: a, b, c, d, ..."
    )


# -- judging real models ----------------------------------------------------------------------------------------------


def scaled(factor: float) -> bytes:
    n = Net()
    y = n("MatMul", "x", n.const("w", np.eye(4) * factor), name="mm", out="y")
    return n.model({"x": ["n", 4]}, {y: ["n", 4]}).SerializeToString()


def test_judging_takes_the_worst_output() -> None:
    (feed,) = feeds(onnx.load_model_from_string(scaled(1.0)), 1)
    good = judge(scaled(1.0), scaled(1.01), [feed], Config())
    assert good.good
    assert good.sqnr_db == pytest.approx(40.0, abs=0.01)
    loud = judge(scaled(1.0), scaled(1.5), [feed], Config())
    assert loud.agreement == 1.0  # the arg-max survives, the level does not
    assert not loud.good
    wrong = judge(scaled(1.0), scaled(-1.0), [{"x": np.eye(4, dtype=np.float32)}], Config(guard_sqnr=-100.0))
    assert not wrong.good
    assert judge(scaled(1.0), scaled(-1.0), [feed], Config(guard_sqnr=-100.0, min_agreement=0.0)).good


# -- a layer that does not survive 8 bits -----------------------------------------------------------------------------


def fragile(outlier: float) -> onnx.ModelProto:
    """Layer ``fragile`` reads one channel of enormous values beside fine ones, and only the fine ones matter."""
    n = Net(5)
    h = n("Relu", n("Gemm", "x", n.weight("w1", 32, 16), n.vector("b1", 32), name="sound", transB=1), name="relu")
    top = n("Mul", n("ReduceMax", h, name="top", axes=[1]), n.const("boost", outlier), name="boosted")
    wide = n("Concat", n("Tanh", h, name="tanh"), top, name="join", axis=1)
    w = n.rng.standard_normal((33, 10)).astype(np.float32)
    w[-1] = 0.0
    n("MatMul", wide, n.const("w2", w), name="fragile", out="y")
    return n.model({"x": ["n", 16]}, {"y": ["n", 10]})


def test_what_is_lost_in_all_and_by_the_typical_sample() -> None:
    """Nine samples lose little, the tenth much: the energy is that of the tenth, the typical logarithm that of nine."""
    n = Net(1)
    n("Identity", "x", name="same", out="y")
    exact = n.model({"x": ["n", 4]}, {"y": ["n", 4]}).SerializeToString()
    n = Net(1)
    n("Mul", "x", n.const("gain", [1.0, 1.0, 1.0, 0.9]), name="rough", out="y")
    rough = n.model({"x": ["n", 4]}, {"y": ["n", 4]}).SerializeToString()
    x = np.ones((10, 4), np.float32)
    x[:, 3] = 2.0
    x[9] *= 50.0
    halves = [{"x": x[:4]}, {"x": x[4:]}]
    found = references(exact, halves).measured(rough)
    reference, lost = (a - a.mean(axis=1, keepdims=True) for a in (x, x * [0, 0, 0, 0.1]))
    assert found.noise == pytest.approx(np.square(lost).sum() / np.square(reference).sum(), rel=1e-4)
    assert found.typical == pytest.approx(np.log(np.square(lost).mean(axis=1)).mean(), rel=1e-4)
    same = references(exact, halves).measured(exact)
    assert same.noise < 1e-12
    assert same.typical < found.typical - 10


def test_a_layer_with_outlier_activations_is_fallback(tmp_path: Path) -> None:
    proto = fragile(1e5)
    data: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal((128, 16)).astype(np.float32)}
    # With min-max the range is the outlier's: 8 bits see nothing else.
    result = quantize(proto, data, config=Config(placement="all", activation_range="minmax"))
    assert result.plan.anchors == ("sound",)
    assert result.good
    assert any(
        "1 of 2 layers stay float because they cost too much accuracy: fragile" in n for n in result.report.notes
    )
    assert {s.node: s.reason for s in result.plan.skipped}["fragile"].startswith("float fallback")
    unguarded = quantize(
        proto, data, config=Config(placement="all", activation_range="minmax", min_agreement=0.0, guard_sqnr=-200.0)
    )
    assert unguarded.plan.anchors == ("sound", "fragile")
    assert unguarded.report.sqnr_db is not None
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > unguarded.report.sqnr_db + 20.0


def test_a_sound_model_gives_nothing_back() -> None:
    data = {"x": np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32)}
    result = quantize(batchnorm_cnn(), data, config=Config(placement="all", min_agreement=0.5))
    assert len(result.plan.anchors) == 4
    assert result.good


def test_every_pair_of_choices_has_one_verdict() -> None:
    """Agreement and level are asked for separately: either alone can fail a model."""
    (feed,) = feeds(onnx.load_model_from_string(scaled(1.0)), 1, seed=4)
    for agreement, level in product((0.0, 1.0), (-100.0, 100.0)):
        config = Config(min_agreement=agreement, guard_sqnr=level)
        assert judge(scaled(1.0), scaled(1.01), [feed], config).good == (level < 0)


def test_what_depends_on_a_layer_falls_back_with_it_and_is_not_ranked() -> None:
    bench = Bench({"a": 5.0, "gate of a": 9.0, "b": 3.0, "gate of b": 0.5, "c": 1.0}, 5.0)
    first = fake(tuple(bench.noise))
    alone: list[frozenset[str]] = []

    def noise_alone(kept: Mapping[str, KeptFloat]) -> float:
        alone.append(frozenset(bench.noise) - frozenset(kept))
        return bench.noise_alone(kept)

    depends_on = {"gate of a": "a", "gate of b": "b"}
    built, found, fallback, *_ = repair(first, bench.build, bench.verdict_of, noise_alone, depends_on=depends_on)
    assert alone == [{"a"}, {"b"}, {"c"}]
    assert fallback == ("a",)
    assert found.good
    assert built.plan.anchors == ("b", "gate of b", "c")


def stored(node: str) -> Weight:
    return Weight(f"{node} weight", node, 1, INT8_NARROW, PerAxis(0), Storage.PACKED)


@pytest.mark.parametrize(
    ("allowed", "expected"), [(6.0, ("a", "b", "y")), (2.0, ("a", "b", "y", "z")), (8.0, ("a", "b"))]
)
def test_stored_weights_go_back_where_layers_do_not_help(allowed: float, expected: tuple[str, ...]) -> None:
    """Layers a and b, and x, y and z that compute in float with stored weights."""
    noise = {"a": 3.0, "b": 2.0, "x": 1.0, "y": 5.0, "z": 2.0}

    def build(kept: Mapping[str, KeptFloat]) -> Built:
        # A layer that goes back with its weight stored makes as much noise as before: here it is weights that make it.
        left = [n for n in noise if n not in kept or kept[n].weight is not None]
        plan = Plan(
            anchors=tuple(n for n in ("a", "b") if n not in kept), weights=tuple(stored(n) for n in left), integer=()
        )
        return Built(plan, Parameters({}, {}, {}), None, b"", KernelMap("m", "extended", "0", ()), (), kept)  # type: ignore[arg-type]

    def total(built: Built) -> float:
        return sum(noise[w.node] for w in built.plan.weights)

    def verdict_of(built: Built) -> Verdict:
        return verdict(total(built) <= allowed, -10 * math.log10(max(total(built), 1e-9)))

    first = build({})
    built, found, fallback, *_ = repair(
        first, build, verdict_of, lambda kept: total(build({n: KeptFloat("") for n in kept}))
    )
    assert found.good
    assert fallback == expected
    assert total(built) <= allowed

"""The way from integers towards float: the budget of noise found with few trials, and where it stops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.build.candidate import Built
from onnxq.errors import RuntimeFailure
from onnxq.measure.compare import Comparison
from onnxq.measure.kernels import KernelMap
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, Plan, Storage
from onnxq.plan.tradeoff import Step, Way, worthwhile
from onnxq.search.acceptance import Verdict
from onnxq.search.climb import Climb, described
from onnxq.search.repair import Ladder, Repaired, notes, repair

FLOAT = Way(Storage.PACKED, 1.0)


def fake(kept: Mapping[str, KeptFloat], layers: Sequence[str], between: Sequence[str] = ()) -> Built:
    anchors = tuple(n for n in layers if n not in kept)
    plan = Plan(anchors=anchors, integer=(*anchors, *(n for n in between if n not in kept)))
    return Built(plan, Parameters({}, {}, {}), None, b"", KernelMap("m", "extended", "0", ()), (), kept)  # type: ignore[arg-type]


@dataclass
class Bench:
    """Layers that make so much noise on integers; candidates with at most ``allowed`` are good, some do not run."""

    noise: Mapping[str, float]
    allowed: float
    floor: float = 0.0
    broken: frozenset[str] = frozenset()
    built: list[frozenset[str]] = field(default_factory=list)

    def build(self, kept: Mapping[str, KeptFloat]) -> Built:
        self.built.append(frozenset(kept))
        if self.broken & kept.keys():
            raise RuntimeFailure("it does not run")
        return fake(kept, list(self.noise))

    def verdict(self, built: Built) -> Verdict:
        floats = {n for n, kept in built.kept_float.items() if kept.weight is None}
        total = sum(self.noise[n] for n in built.plan.anchors) + (0.0 if floats else self.floor)
        level = -10 * math.log10(max(total, 1e-12))
        return Verdict(Comparison("a", "b", 1, ()), 1.0 - min(total, 1.0), level, total <= self.allowed)

    def noise_alone(self, _: Any) -> float:
        raise AssertionError("nothing is ranked where there is a ladder")

    def steps(self, weight: Storage | None = Storage.PACKED) -> list[Step]:
        """The hull: the layers that gain most for their time first; the time of each is 1."""
        ordered, ways, left = sorted(self.noise, key=lambda n: -self.noise[n]), {}, sum(self.noise.values())
        base = self.floor if weight is Storage.PACKED else 0.0
        found = [Step({}, 0.0, left + base)]
        for count, name in enumerate(ordered, start=1):
            ways[name], left = Way(weight, 1.0), left - self.noise[name]
            found.append(Step(dict(ways), float(count), max(left, 0.0) + base))
        return worthwhile(found)

    def repaired(self, *stages: list[Step], most: float = 1.0) -> Repaired:
        first = fake({}, list(self.noise))
        ranker: Any = self.noise_alone
        return repair(first, self, ranker, ladder=Ladder(lambda: stages or (self.steps(),), most))


@settings(max_examples=200)
@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40), st.floats(0.0, 1.0))
def test_the_fastest_good_step_is_found_with_few_trials(noise: list[float], share: float) -> None:
    bench = Bench({f"l{i}": n for i, n in enumerate(noise)}, share * sum(noise) + 1e-9)
    found = bench.repaired()
    assert found.verdict.good
    fewest = next(int(s.time) for s in bench.steps() if s.noise <= bench.allowed)
    assert fewest <= len(found.fallback) <= fewest + math.ceil(0.03 * len(noise))
    assert len(bench.built) <= 10
    assert all(one.good for one in found.curve if one.taken)
    assert sum(one.taken for one in found.curve) == (len(found.curve) > 0)


def test_a_usual_repair_builds_few_candidates() -> None:
    """Sixty layers of noises that fall by a third each: a budget of 3 to 12 dB less."""
    noise = {f"l{i}": 0.97**i for i in range(60)}
    for gain in (3.0, 6.0, 9.0, 12.0):
        bench = Bench(noise, sum(noise.values()) / 10 ** (gain / 10))
        assert bench.repaired().verdict.good
        assert len(bench.built) <= 9


def test_what_does_not_run_is_not_good() -> None:
    bench = Bench({"a": 4.0, "b": 2.0, "c": 1.0}, 3.5, broken=frozenset("a"))
    found = bench.repaired()
    assert not found.verdict.good
    assert found.fallback == ()


def test_weights_go_back_where_their_noise_is_what_is_left() -> None:
    bench = Bench({"a": 4.0, "b": 2.0, "c": 1.0}, 1.0, floor=2.0)
    found = bench.repaired(bench.steps(), bench.steps(None))
    assert found.verdict.good
    assert {kept.weight for kept in found.built.kept_float.values()} == {None}
    assert found.fallback == ("a", "b")


def test_where_nothing_is_good_the_best_of_those_tried_stays() -> None:
    bench = Bench({"a": 4.0, "b": 2.0}, 0.5, floor=1.0)
    found = bench.repaired()
    assert not found.verdict.good
    assert set(found.fallback) == {"a", "b"}
    assert not found.stopped


@pytest.mark.parametrize(("most", "good"), [(0.25, True), (0.2, False)])
def test_no_more_speed_is_given_away_than_was_said(most: float, good: bool) -> None:
    bench = Bench({"a": 8.0, "b": 1.0, "c": 1.0, "d": 1.0}, 3.0)
    found = bench.repaired(most=most)
    assert found.verdict.good == good
    assert found.fallback == (("a",) if good else ())
    assert found.stopped != good
    assert any("keep_accuracy = 'fast'" in note for note in notes(found)) != good


def test_the_notes_name_what_goes_back() -> None:
    ways = {"a": FLOAT, "sum": Way(None, 0.0), "pool": Way(None, 0.0), "b": Way(Storage.DYNAMIC, 0.5)}
    built = fake({}, ["a", "b", "c"], ["sum", "pool"])
    assert described(built, Step(ways, 1.0, 0.1)) == (
        "1 of 3 layers float, 2 nodes between layers float, 1 layer with ranges of the run"
    )
    assert described(built, Step({}, 1.0, 0.1)) == "as planned"
    verdict = Verdict(Comparison("a", "b", 1, ()), 1.0, 20.0, True)
    found = Repaired(built, verdict, ("a",), ("sum", "pool"), ("b",))
    lines = notes(found)
    assert lines[0].startswith("1 of 4 layers stay float")
    assert lines[1].startswith("2 nodes between layers compute in float")
    assert lines[1].endswith("sum, pool")
    assert lines[2] == "ranges measured at every run, for accuracy: b"


def test_the_curve_has_a_row_for_each_candidate() -> None:
    bench = Bench({"a": 4.0, "b": 2.0, "c": 1.0}, 3.0)
    climb = Climb(fake({}, list(bench.noise)), bench.verdict(fake({}, list(bench.noise))), bench)
    found = climb.good([bench.steps()])
    assert found is not None
    curve = climb.curve(found.built)
    assert len(curve) == len(bench.built) + 1
    assert [one.taken for one in curve].count(True) == 1
    assert curve[0].what == "as planned"
    assert curve[0].time == 0.0
    assert next(one for one in curve if one.taken).what == "1 of 3 layers float"


@dataclass
class Surprising(Bench):
    """Noise that does not add up: what steps say is of one half of the layers, what the judge hears of another one."""

    heard: frozenset[str] = frozenset()

    def verdict(self, built: Built) -> Verdict:
        count = len(self.heard & set(built.plan.anchors))
        return Verdict(Comparison("a", "b", 1, ()), 1.0, 20.0 - count, count == 0)


@dataclass
class Alone:
    """The noise of the layers that are heard."""

    heard: frozenset[str]

    def noise(self, kept: Mapping[str, KeptFloat]) -> float:
        return float(len(self.heard - kept.keys()))


def test_where_noise_does_not_add_up_the_layers_that_are_heard_go_back() -> None:
    noise = {f"l{i}": 0.8**i for i in range(12)}
    bench = Surprising(noise, 0.0, heard=frozenset({"l10"}))
    first, alone = fake({}, list(noise)), Alone(bench.heard)

    def giving(names: Any) -> Step:
        return Step(dict.fromkeys(names, FLOAT), float(len(names)), 0.0)

    found = repair(first, bench, alone, ladder=Ladder(lambda: (bench.steps(),), 1.0, giving))
    assert found.verdict.good
    assert found.fallback == ("l10",)
    assert [one.what for one in found.curve if one.taken] == ["1 of 12 layers float"]
    assert max(one.time or 0.0 for one in found.curve) > 0.5
    # The same steps without a look at another way.
    assert len(repair(first, bench, alone, ladder=Ladder(lambda: (bench.steps(),))).fallback) >= 11

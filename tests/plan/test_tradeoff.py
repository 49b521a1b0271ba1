"""Time against noise: against all placements there are, on random networks with random costs and noises."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from test_plan_placement import CHANNELS, VNNI, chain, cost_of, network, table
from zoo import Net, prepared

from onnxq.config import Config
from onnxq.plan import Plan, Storage, fused_output, make_plan
from onnxq.plan.placement import Costs
from onnxq.plan.tradeoff import Reading, Sources, Step, Tradeoff, Way, worthwhile
from onnxq.query import nodes, values_by_name

FLOOR = 0.25


def readings(model: ir.Model, plan: Plan, rng: np.random.Generator) -> tuple[Reading, ...]:
    """Noise of each point, by layers and by all others that read it."""
    values, found = values_by_name(model), []
    for point in plan.points:
        names = sorted({u.node.name or "" for u in values[point.tensor].uses()})
        layers = tuple(n for n in names if n in plan.anchors)
        others = tuple(n for n in names if n not in plan.anchors)
        found += [Reading(point.tensor, r, (float(rng.exponential()),)) for r in (layers, others) if r]
    return tuple(found)


def noise_of(model: ir.Model, plan: Plan, integer: set[str], found: tuple[Reading, ...]) -> float:
    """The noise of a placement, counted reading by reading."""
    makers = {id(fused_output(n)): n.name for n in nodes(model) if n.name in plan.integer}
    values = values_by_name(model)
    made = [r for r in found if makers.get(id(values[r.tensor])) in integer or integer & set(r.readers)]
    return FLOOR + sum(r.noise[0] for r in made)


class Case:
    """A random network with all its placements: (time, noise) by the set of nodes on integers."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.model = prepared(network(seed))
        self.plan = make_plan(self.model, Config(), VNNI)
        # Integers pay, most of the time.
        self.costs = Costs(
            {n: float(rng.uniform(4, 10)) for n in self.plan.integer},
            {n: float(rng.uniform(0, 5)) for n in self.plan.integer},
        )
        self.convert = float(rng.choice([0.3, 1.0]))
        self.readings = readings(self.model, self.plan, rng)
        shapes = {
            v.name: (1, CHANNELS, 16)
            for n in nodes(self.model)
            for v in (*n.inputs, *n.outputs)
            if v is not None and v.name
        }
        sources = Sources(self.readings, floor=(FLOOR,))
        self.trade = Tradeoff(self.model, self.plan, shapes, table(self.convert), self.costs, sources)

    def placed(self, integer: set[str]) -> tuple[float, float]:
        time = cost_of(self.model, self.plan, integer, self.costs, self.convert)
        return time, noise_of(self.model, self.plan, integer, self.readings)

    def all(self) -> list[tuple[float, float]]:
        choices = itertools.chain.from_iterable(
            itertools.combinations(self.plan.integer, size) for size in range(len(self.plan.integer) + 1)
        )
        return [self.placed(set(choice)) for choice in choices]


@pytest.mark.parametrize("seed", range(30))
def test_no_placement_makes_less_noise_for_its_time(seed: int) -> None:
    case = Case(seed)
    every = case.all()
    case.trade.weights = np.ones(1)
    for price in (0.0, 0.1, 1.0, 3.0, 10.0, 100.0):
        step = case.trade.at(price)
        assert (step.time, step.noise) == pytest.approx(case.placed(set(case.plan.integer) - step.ways.keys()))
        least = min(time + price * noise for time, noise in every)
        assert step.time + price * step.noise == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_the_steps_are_the_lower_hull_and_what_lies_between(seed: int) -> None:
    """For each budget of noise the best step takes no longer than the hull of all placements there."""
    case = Case(seed)
    steps, every = case.trade.steps(), case.all()
    assert steps[1:] == worthwhile(steps[1:])
    assert steps[0].ways == {}
    assert all(step.noise < steps[0].noise for step in steps[1:])
    planned, in_float = case.trade.as_planned(), case.trade.in_float()
    assert planned.ways == {}
    assert in_float.ways.keys() == set(case.plan.integer)
    for step in steps:
        assert (step.time, step.noise) == pytest.approx(case.placed(set(case.plan.integer) - step.ways.keys()))
    for price in np.geomspace(0.01, 100.0, 25):
        least = min(time + price * noise for time, noise in every)
        found = min(s.time + price * s.noise for s in steps)
        if planned.time + 1e-9 < min(time for time, _ in every) + 1e-6:  # the plan was made to be fastest
            assert found <= least * (1.0 + 0.01)


def small(**how: object) -> Tradeoff:
    """Three convolutions one behind another, whose inputs make noises of 1, 4 and 2."""
    model = prepared(chain())
    plan = make_plan(model, Config(), VNNI)
    made = (("x", "one", 1.0), ("one_out", "two", 4.0), ("two_out", "three", 2.0))
    found = tuple(Reading(tensor, (reader,), (noise,)) for tensor, reader, noise in made)
    costs = Costs(dict.fromkeys(plan.integer, 10.0), dict.fromkeys(plan.integer, 4.0))
    trade = Tradeoff(model, plan, {}, table(1.0), costs, Sources(found, **how))  # type: ignore[arg-type]
    trade.weights = np.ones(1)
    return trade


def named(step: Step) -> set[str]:
    return set(step.ways)


def test_rounding_goes_only_when_neither_side_is_on_integers() -> None:
    found = [(named(step), step.time, step.noise) for step in small().steps()]
    assert found[0] == (set(), 12.0, 7.0)
    assert found[-1] == ({"one", "two", "three"}, 30.0, 0.0)
    assert ({"one", "two"}, 24.0, 2.0) in found
    # "two" alone reads what "one" writes in codes, and what it writes "three" rounds.
    assert all(step[0] != {"two"} for step in found)


def test_the_cheapest_way_to_be_float_counts() -> None:
    """Ranges of the run are nearly as fast as integers: the layer takes them until noise is dear."""
    dynamic, stored = Way(Storage.DYNAMIC, 5.0, (0.5,)), Way(Storage.PACKED, 10.0)
    trade = small(ways={"one": (stored, dynamic)})
    assert [trade.at(price).ways.get("one") for price in (1.9, 11.0)] == [dynamic, stored]
    assert trade.in_float().ways["one"] == stored


def test_another_integer_form_keeps_its_neighbours() -> None:
    exact = Way(Storage.INTEGER, 6.0, integer=True)
    trade = small(ways={"one": (Way(None, 4.0, (3.0,), integer=True), exact, Way(Storage.PACKED, 10.0))})
    step = trade.at(1.0)
    assert step.ways == {"one": exact}
    assert (step.time, step.noise) == (14.0, 7.0)


def test_what_is_tied_goes_together() -> None:
    for price in (0.1, 1.0, 2.0, 5.0, 20.0):
        gone = named(small(tied={"three": "one"}).at(price))
        assert ("three" in gone) == ("one" in gone)
    assert all(("three" in named(s)) == ("one" in named(s)) for s in small(tied={"three": "one"}).steps())


def test_what_makes_more_noise_and_takes_longer_is_no_step() -> None:
    steps = [Step({}, 1.0, 5.0), Step({}, 2.0, 6.0), Step({}, 3.0, 5.0), Step({}, 4.0, 1.0), Step({}, 1.0, 7.0)]
    assert [(s.time, s.noise) for s in worthwhile(steps)] == [(1.0, 5.0), (4.0, 1.0)]


def test_the_worst_of_several_outputs_counts() -> None:
    """Two heads behind one layer: what helps the one does not help the other, and both must be good."""
    n = Net(3)
    x = n.conv("x", 8, 8, k=1, name="one")
    n.conv(x, 8, 8, k=1, name="left", out="y")
    n.conv(x, 8, 8, k=1, name="right", out="z")
    model = prepared(n.model({"x": [1, 8, 4, 4]}, {"y": [1, 8, 4, 4], "z": [1, 8, 4, 4]}))
    plan = make_plan(model, Config(), VNNI)
    made = (("x", "one", (1.0, 1.0)), ("y", "", (9.0, 0.0)), ("z", "", (0.0, 4.0)))
    found = tuple(Reading(tensor, (reader,), noise) for tensor, reader, noise in made)
    costs = Costs({"one": 100.0, "left": 10.0, "right": 10.0}, dict.fromkeys(plan.integer, 4.0))
    steps = Tradeoff(model, plan, {}, table(1.0), costs, Sources(found)).steps()
    assert [(named(step), step.noise, step.noises) for step in steps] == [
        (set(), 10.0, (10.0, 5.0)),
        ({"left"}, 5.0, (1.0, 5.0)),
        ({"left", "right"}, 1.0, (1.0, 1.0)),
        ({"one", "left", "right"}, 0.0, (0.0, 0.0)),
    ]

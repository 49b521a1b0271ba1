"""From a prepared float graph to a ``Plan``: a pure function of the graph, the configuration and the target.

1. *Anchors*: Conv, Gemm and MatMul with a constant weight. They are what quantization pays for.
2. *Followers*: operators without weights whose integer kernel is at least as fast as the float one
   (``onnxq.kernels``). They are taken only between integer neighbours: all inputs already integers, at least one reader
   that wants integers. That is the greatest fixed point of two monotone conditions, so the order of visiting does not
   matter.
3. *Points*: an integer kernel reads quantized inputs; a convolution or a follower must also write a quantized output
   (onnxruntime fuses only where every edge of the output goes to a QuantizeLinear). Gemm and MatMul may write float,
   unless a Relu or Clip follows that a quantizer must absorb: the residual stream, normalisation and softmax of a
   transformer so keep their precision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.config import Config, Rule
from onnxq.graph.copying import only_building
from onnxq.graph.instrument import repeated
from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import Target
from onnxq.plan.followers import followers
from onnxq.plan.reasons import ReasonCode
from onnxq.plan.shared import agreed
from onnxq.plan.stored import stored_formats
from onnxq.plan.types import Bias, KeptFloat, Own, Plan, Point, SharedWith, Skipped, Source, Storage, Weight
from onnxq.plan.units import ends_in_activation, read, written
from onnxq.plan.weights import anchor_weights, biases, fused_products, operands, stored_weights
from onnxq.query import nodes


@only_building()
def make_plan(
    model: ir.Model,
    config: Config,
    target: Target,
    *,
    keep_float: Mapping[str, KeptFloat] | None = None,
    force_gemm: Collection[str] = (),
    slower: Collection[str] = (),
) -> Plan:
    """The ``Plan`` for ``model`` (as ``graph.prepare`` leaves it; not changed).

    ``keep_float`` maps names of nodes to the reason why they must stay float: what measurements or the runtime said
    about an earlier plan. ``force_gemm`` names the convolutions that shall run as matrix products (``Weight.shift``),
    ``slower`` the nodes whose integer kernel is slower than the float one, but shall be taken all the same.
    Node names must be unique across bodies of If and Loop.
    """
    roles = _roles(model, config, target, keep_float or {}, force_gemm, slower)
    anchors, by_name = roles.anchors, _named(model)
    integer = followers(roles.candidates, anchors)
    chosen = {**anchors, **integer}
    formats = stored_formats(model, config)
    own_operators = config.operators == "onnxruntime"
    points = _points(model, chosen, anchors, target)
    fused = fused_products(anchors, points) if own_operators else frozenset()
    weights = [
        weight
        for name, node in anchors.items()
        for weight in anchor_weights(node, target, formats[name], fused, roles.products, chosen)
    ]
    stored = stored_weights(
        model,
        anchors,
        roles.refused,
        target,
        formats,
        own_operators=own_operators,
        recurrences=own_operators and not config.simulated,
    )
    weights, floats = agreed(model, [*weights, *stored], target)
    shared = {name: KeptFloat.of(ReasonCode.SHARED_FLOATS, why=other) for name, other in floats.items()}
    return Plan(
        points=tuple(points),
        weights=tuple(weights),
        biases=tuple(_biases(by_name, weights)),
        constants=tuple(c for n in integer.values() for c in operands(n, target)),
        integer=tuple(n.name or "" for n in nodes(model) if (n.name or "") in chosen),
        anchors=tuple(anchors),
        skipped=(*_skipped(by_name, roles.refused, target), *_left(by_name, shared, roles.refused)),
        unused_rules=roles.unused_rules,
        accuracy_level=config.accuracy_level,
        native=config.native,
    )


@dataclass(frozen=True)
class _Roles:
    """What each node can become, by its name, before its neighbours are looked at.

    ``anchors`` run on integers, ``candidates`` where they lie between integers; ``refused`` must stay float.
    ``products`` are the convolutions that shall run as matrix products; ``unused_rules`` match no node.
    """

    anchors: Mapping[str, ir.Node]
    candidates: Mapping[str, ir.Node]
    refused: Mapping[str, KeptFloat]
    products: frozenset[str]
    unused_rules: tuple[str, ...]


def _roles(
    model: ir.Model,
    config: Config,
    target: Target,
    keep_float: Mapping[str, KeptFloat],
    force_gemm: Collection[str],
    slower: Collection[str],
) -> _Roles:
    """The ``_Roles`` of the nodes of ``model``; arguments as for ``make_plan``."""
    rules = _Rules(config.rules)
    products = set(force_gemm)
    anchors: dict[str, ir.Node] = {}
    candidates: dict[str, ir.Node] = {}
    refused = dict(keep_float)
    if config.activations != "none":
        for name in repeated(model):
            refused.setdefault(name, KeptFloat.of(ReasonCode.LOOP_BODY, Storage.DYNAMIC))
    for node in nodes(model):
        name = node.name or ""
        rule = rules.first(node)
        if rule is not None and rule.precision in ("float", "stored"):
            weight = Storage.PACKED if rule.precision == "stored" else None
            refused[name] = KeptFloat.of(ReasonCode.RULE, weight, why=rule.match)
        if rule is not None and rule.precision == "int8-two-parts":
            refused[name] = KeptFloat.of(ReasonCode.TWO_PARTS, Storage.TWO_PARTS)
        if rule is not None and rule.precision == "int8-gemm":
            products.add(name)
        if ops.weight_slot(node) is not None:
            if name not in refused and (obstacle := ops.anchor_obstacle(node)) is not None:
                refused[name] = KeptFloat.of(ReasonCode.OBSTACLE, Storage.PACKED, why=obstacle)
            if name not in refused and config.activations == "none":
                refused[name] = KeptFloat.of(ReasonCode.WEIGHTS_ONLY, Storage.BLOCKS)
            if name not in refused:
                anchors[name] = node
        elif name not in refused and ops.can_follow(node):
            named = rule is not None and rule.precision == "int8" and rule.names(name)
            if operator(node).fast(target) or name in slower or named:
                candidates[name] = node
    return _Roles(anchors, candidates, refused, frozenset(products), rules.unused())


class _Rules:
    """The user's ordered rules, and which of them have matched something."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._used: set[int] = set()

    def first(self, node: ir.Node) -> Rule | None:
        hits = [i for i, r in enumerate(self._rules) if r.matches(node.name or "", node.op_type)]
        self._used.update(hits)
        return next((self._rules[i] for i in hits if self._rules[i].precision != "auto"), None)

    def unused(self) -> tuple[str, ...]:
        return tuple(r.match for i, r in enumerate(self._rules) if i not in self._used)


def _could_run(node: ir.Node, target: Target) -> bool:
    """Whether there is an integer kernel worth using for ``node``."""
    fast = ops.can_follow(node) and operator(node).fast(target)
    return ops.weight_slot(node) is not None or fast or ops.can_be_dynamic(node, target)


def _named(model: ir.Model) -> dict[str, ir.Node]:
    return {n.name or "": n for n in nodes(model)}


def _skipped(by_name: Mapping[str, ir.Node], refused: Mapping[str, KeptFloat], target: Target) -> tuple[Skipped, ...]:
    """The ``refused`` nodes that have an integer kernel worth using."""
    return tuple(
        Skipped(name, node.op_type, refused[name].reason, refused[name].code)
        for name, node in by_name.items()
        if name in refused and _could_run(node, target)
    )


def _left(
    by_name: Mapping[str, ir.Node], shared: Mapping[str, KeptFloat], refused: Mapping[str, KeptFloat]
) -> Iterator[Skipped]:
    """The nodes whose weight stays float since it is ``shared``, and for no other reason."""
    for name, kept in shared.items():
        if name not in refused:
            yield Skipped(name, by_name[name].op_type, kept.reason, kept.code)


def _biases(by_name: Mapping[str, ir.Node], weights: Iterable[Weight]) -> Iterator[Bias]:
    """The biases of linear layers that integers could run and that have one of ``weights``, stored as that is."""
    for weight in weights:
        node = by_name[weight.node]
        if ops.weight_slot(node) is not None and ops.anchor_obstacle(node) is None:
            yield from (replace(bias, storage=weight.storage) for bias in biases(node))


def _points(
    model: ir.Model, chosen: Mapping[str, ir.Node], anchors: Mapping[str, ir.Node], target: Target
) -> list[Point]:
    points: dict[str, Point] = {}

    def add(value: ir.Value, consumers: tuple[str, ...] | None, source: Source | None = None) -> None:
        name = value.name or ""
        old = points.get(name)
        if old is not None:
            merged = None if old.consumers is None or consumers is None else (*old.consumers, *consumers)
            points[name] = Point(name, old.qtype, source or old.source, merged, old.ceiling)
            return
        producer = value.producer()
        ceiling = ops.highest(producer) if producer is not None else None
        finite = ceiling if ceiling is not None and np.isfinite(ceiling) else None
        points[name] = Point(name, target.activations, source or Own(), consumers, finite)

    for node in nodes(model):
        name = node.name or ""
        if name not in chosen:
            continue
        for value in read(node):
            producer = value.producer()
            # A linear layer whose activation is absorbed must not leak an unquantized copy of it.
            through = producer is not None and ops.absorbed_ceiling(producer) is not None
            add(value, None if through else (name,))
        if name in anchors and not operator(node).between_codes and not ends_in_activation(node):
            continue
        source = SharedWith(node.inputs[0].name or "") if ops.moves_data(node) and node.inputs[0] is not None else None
        for value in written(node):
            add(value, None, source)
    return list(points.values())


def nothing_to_quantize(plan: Plan) -> str:
    """One line that says why ``plan`` is empty."""
    if not plan.skipped:
        return "nothing to quantize: the model has no Conv, Gemm or MatMul with constant weights"
    reasons = "; ".join(f"{s.op} '{s.node}': {s.reason}" for s in plan.skipped[:3])
    return f"nothing to quantize: {reasons}" + ("; ..." if len(plan.skipped) > 3 else "")

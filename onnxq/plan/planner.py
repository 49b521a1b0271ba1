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

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxq.config import Config, Rule
from onnxq.graph.instrument import unobservable
from onnxq.kernels import ops
from onnxq.kernels.operators import operator
from onnxq.kernels.record import Layout
from onnxq.kernels.targets import Target
from onnxq.plan.reasons import ReasonCode
from onnxq.plan.stored import stored_formats
from onnxq.plan.types import KeptFloat, Own, Plan, Point, SharedWith, Skipped, Source, Storage
from onnxq.plan.units import ends_in_activation, maker_of, read, written
from onnxq.plan.weights import anchor_weights, biases, fused_products, operands, stored_weights
from onnxq.query import array, constant, is_float, nodes


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
    rules = _Rules(config.rules)
    products = set(force_gemm)
    anchors: dict[str, ir.Node] = {}
    candidates: dict[str, ir.Node] = {}
    refused = dict(keep_float or {})
    for name in unobservable(model):
        refused.setdefault(name, KeptFloat.of(ReasonCode.LOOP_BODY, Storage.DYNAMIC))
    for node in nodes(model):
        name = node.name or ""
        rule = rules.first(node)
        if rule is not None and rule.precision in ("float", "stored"):
            weight = Storage.PACKED if rule.precision == "stored" else None
            refused[name] = KeptFloat.of(ReasonCode.RULE, weight, why=rule.match)
        if rule is not None and rule.precision == "int8-gemm":
            products.add(name)
        if ops.weight_slot(node) is not None:
            if name not in refused and (obstacle := ops.anchor_obstacle(node)) is not None:
                refused[name] = KeptFloat.of(ReasonCode.OBSTACLE, Storage.PACKED, why=obstacle)
            if name not in refused and config.activations == "none":
                refused[name] = KeptFloat.of(ReasonCode.WEIGHTS_ONLY, Storage.BLOCKS)
            if name not in refused:
                anchors[name] = node
        elif name not in refused and ops.can_follow(node) and (operator(node).fast(target) or name in slower):
            candidates[name] = node
    integer = _followers(candidates, anchors)
    formats = stored_formats(model, config)
    by_name = _named(model)
    skipped = [
        Skipped(name, node.op_type, refused[name].reason, refused[name].code)
        for name, node in by_name.items()
        if name in refused and _could_run(node, target)
    ]
    chosen = {**anchors, **integer}
    points = _points(model, chosen, anchors, target)
    fused = fused_products(anchors, points) if config.operators == "onnxruntime" else frozenset()
    weights = [w for k, n in anchors.items() for w in anchor_weights(n, target, formats[k], fused, products, chosen)]
    stored = stored_weights(
        model,
        anchors,
        refused,
        target,
        formats,
        own_operators=config.operators == "onnxruntime",
        recurrences=config.operators == "onnxruntime" and not config.simulated,
    )
    float_biases = [
        replace(b, storage=w.storage)
        for w in stored
        if ops.weight_slot(by_name[w.node]) is not None
        for b in biases(by_name[w.node])
        if ops.anchor_obstacle(by_name[w.node]) is None
    ]
    return Plan(
        points=tuple(points),
        weights=(*weights, *stored),
        biases=(*(replace(b, storage=w.storage) for w in weights for b in biases(anchors[w.node])), *float_biases),
        constants=tuple(c for n in integer.values() for c in operands(n, target)),
        integer=tuple(n.name or "" for n in nodes(model) if (n.name or "") in chosen),
        anchors=tuple(anchors),
        skipped=tuple(skipped),
        unused_rules=rules.unused(),
        accuracy_level=config.accuracy_level,
        native=config.native,
    )


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


def _followers(candidates: Mapping[str, ir.Node], anchors: Mapping[str, ir.Node]) -> dict[str, ir.Node]:
    """The greatest set of candidates that all read integers and are read by at least one node that wants them."""
    chosen = dict(candidates)
    convolutions = {n.name for n in anchors.values() if operator(n).between_codes}
    wanted = {id(n.inputs[0]) for n in anchors.values() if operator(n).between_codes}
    while True:
        makers = {**{k: v for k, v in anchors.items() if v.name in convolutions}, **chosen}
        codes = {id(v) for n in makers.values() for v in written(n)}
        readers = {id(n) for n in (*anchors.values(), *chosen.values())}

        def stays(
            node: ir.Node,
            codes: set[int] = codes,
            readers: set[int] = readers,  # bound: the loop rebuilds them
        ) -> bool:
            useful = _reads_integers(node, codes | wanted) and any(
                id(use.node) in readers and _data_use(use.node, use.idx) for out in written(node) for use in out.uses()
            )
            return useful and (not ops.wants_channels_last(node) or _channels_last(node, readers))

        kept = {k: v for k, v in chosen.items() if stays(v)}
        if len(kept) == len(chosen):
            return kept
        chosen = kept


def _channels_last(node: ir.Node, chosen: Collection[int]) -> bool:
    """Whether ``node`` runs in the layout of integer convolutions: behind one, or between two.

    onnxruntime moves the layout on from a convolution only where another one, or what takes it on, reads it again.
    ``chosen``: the ``id`` of all nodes on integers.
    """
    x = node.inputs[0]
    if x is None or not _from_convolution(x, chosen):
        return False
    maker = maker_of(x)
    if maker is not None and operator(maker).layout is Layout.STARTS:
        return True
    pending, seen = [node], {id(node)}
    while pending:
        for use in (u for out in written(pending.pop()) for u in out.uses()):
            if operator(use.node).layout is Layout.STARTS and id(use.node) in chosen and use.idx == 0:
                return True
            if id(use.node) in chosen and id(use.node) not in seen and ops.keeps_channels_last(use.node):
                seen.add(id(use.node))
                pending.append(use.node)
    return False


def _from_convolution(value: ir.Value, chosen: Collection[int]) -> bool:
    """Whether the layout of an integer convolution comes with ``value``."""
    pending, seen = [value], {id(value)}
    while pending:
        maker = maker_of(pending.pop())
        if maker is None or id(maker) not in chosen:
            continue
        if operator(maker).layout is Layout.STARTS:
            return True
        if ops.keeps_channels_last(maker):
            new = [v for v in read(maker) if id(v) not in seen]
            seen.update(id(v) for v in new)
            pending += new
    return False


def _data_use(node: ir.Node, index: int) -> bool:
    return index == 0 if ops.weight_slot(node) is not None else index in ops.data_inputs(node)


def _reads_integers(node: ir.Node, integers: set[int]) -> bool:
    computed = 0
    for index in ops.data_inputs(node):
        value = node.inputs[index]
        assert value is not None
        if constant(value) is not None:
            if not (ops.constants_allowed(node) and _tame(value)):
                return False
        elif id(value) in integers:
            computed += 1
        elif not (is_float(value) and (ops.cheap_operand(node, value) or ops.quantizes_its_inputs(node))):
            return False
    return computed > 0 or ops.quantizes_its_inputs(node)


# Additive masks hold numbers like -1e4 or -3.4e38: a range that includes them has no codes left for anything else.
MASK_MAGNITUDE = 1e4


def _tame(value: ir.Value) -> bool:
    data = array(value)
    return data is not None and data.size > 0 and is_float(value) and bool(np.abs(data).max() < MASK_MAGNITUDE)


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

"""From a prepared float graph to a ``Plan``: a pure function of the graph, the configuration and the target.

1. *Anchors*: Conv, Gemm and MatMul with a constant weight. They are what quantization pays for.
2. *Followers*: operators without weights whose integer kernel is at least as fast as the float one (``ops.py``). They
   are taken only between integer neighbours: all inputs already integers, at least one reader that wants integers.
   That is the greatest fixed point of two monotone conditions, so the order of visiting does not matter.
3. *Points*: an integer kernel reads quantized inputs; a convolution or a follower must also write a quantized output
   (onnxruntime fuses only where every edge of the output goes to a QuantizeLinear). Gemm and MatMul may write float,
   unless a Relu or Clip follows that a quantizer must absorb: the residual stream, normalisation and softmax of a
   transformer so keep their precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxq.config import Config, Rule
from onnxq.graph.instrument import unobservable
from onnxq.graph.query import array, attribute, constant, is_float, nodes
from onnxq.numerics import Granularity, PerAxis, PerBlock
from onnxq.plan import ops
from onnxq.plan.types import Bias, Constant, KeptFloat, Own, Plan, Point, SharedWith, Skipped, Source, Storage, Weight
from onnxq.targets import Target


def make_plan(
    model: ir.Model,
    config: Config,
    target: Target,
    *,
    keep_float: Mapping[str, KeptFloat] | None = None,
    steered: Collection[str] = (),
) -> Plan:
    """The ``Plan`` for ``model`` (as ``graph.prepare`` leaves it; not changed).

    ``keep_float`` maps names of nodes to the reason why they must stay float: what measurements or the runtime said
    about an earlier plan. ``steered`` names the convolutions that shall run as matrix products (``Weight.shift``). Node
    names must be unique across bodies of If and Loop.
    """
    rules = _Rules(config.rules)
    products = set(steered)
    anchors: dict[str, ir.Node] = {}
    candidates: dict[str, ir.Node] = {}
    refused = dict(keep_float or {})
    for name in unobservable(model):
        refused.setdefault(
            name, KeptFloat("inside a Loop or Scan body, whose tensors cannot be observed", Storage.DYNAMIC)
        )
    for node in nodes(model):
        name = node.name or ""
        rule = rules.first(node)
        if rule is not None and rule.precision in ("float", "stored"):
            packed = rule.precision == "stored" and ops.weight_slot(node) is not None
            refused[name] = KeptFloat(f"kept float by rule '{rule.match}'", Storage.PACKED if packed else None)
        if rule is not None and rule.precision == "int8-gemm":
            products.add(name)
        if ops.weight_slot(node) is not None:
            if name not in refused and (obstacle := ops.anchor_obstacle(node)) is not None:
                refused[name] = KeptFloat(obstacle, Storage.PACKED)
            if name not in refused:
                anchors[name] = node
        elif name not in refused and ops.can_follow(node):
            candidates[name] = node
    integer = _followers(candidates, anchors)
    by_name = _named(model)
    skipped = [
        Skipped(name, node.op_type, refused[name].reason)
        for name, node in by_name.items()
        if name in refused and (ops.weight_slot(node) is not None or ops.can_follow(node))
    ]
    chosen = {**anchors, **integer}
    points = _points(model, chosen, anchors, target)
    fused = _fused(anchors, points) if config.operators == "onnxruntime" else frozenset()
    weights = [w for n in anchors.values() for w in _anchor_weights(n, target, fused, products)]
    stored = _stored_weights(model, anchors, refused, target)
    float_biases = [
        replace(b, storage=w.storage)
        for w in stored
        if ops.weight_slot(by_name[w.node]) is not None
        for b in _bias(by_name[w.node])
        if ops.anchor_obstacle(by_name[w.node]) is None
    ]
    return Plan(
        points=tuple(points),
        weights=(*weights, *stored),
        biases=(*(replace(b, storage=w.storage) for w in weights for b in _bias(anchors[w.node])), *float_biases),
        constants=tuple(c for n in integer.values() for c in _constants(n, target)),
        integer=tuple(n.name or "" for n in nodes(model) if (n.name or "") in chosen),
        anchors=tuple(anchors),
        skipped=tuple(skipped),
        unused_rules=rules.unused(),
    )


class _Rules:
    """The user's ordered rules, and which of them have matched something."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._used: set[int] = set()

    def first(self, node: ir.Node) -> Rule | None:
        hits = [i for i, r in enumerate(self._rules) if r.matches(node.name or "", node.op_type)]
        self._used.update(hits)
        return self._rules[hits[0]] if hits else None

    def unused(self) -> tuple[str, ...]:
        return tuple(r.match for i, r in enumerate(self._rules) if i not in self._used)


def _named(model: ir.Model) -> dict[str, ir.Node]:
    return {n.name or "": n for n in nodes(model)}


def settled_output(node: ir.Node) -> ir.Value:
    """The tensor after ``node`` and the bias and activation that its integer kernel takes in.

    A MatMul's bias is the Add that follows; a Relu, or a Clip from 0, is absorbed by the output's quantizer.
    """
    out = node.outputs[0]
    if ops.weight_slot(node) is not None and _bias_add(node) is not None:
        add = _bias_add(node)
        assert add is not None
        out = add[0].outputs[0]
    if ops.moves_data(node) or node.op_type in ("Sigmoid", "LeakyRelu", "Concat"):
        return out
    follower = _only_reader(out)
    if follower is not None and ops.absorbed_ceiling(follower) is not None and follower.inputs[0] is out:
        return follower.outputs[0]
    return out


def absorbed(node: ir.Node) -> list[ir.Node]:
    """The nodes that the integer kernel of ``node`` takes in: those from ``node`` to its ``settled_output``."""
    found: list[ir.Node] = []
    maker = settled_output(node).producer()
    while maker is not None and maker is not node:
        found.append(maker)
        # Of an Add one input is the bias: only the other one has a maker.
        maker = next((p for v in maker.inputs if v is not None and (p := v.producer()) is not None), None)
    return found


def _ends_in_activation(node: ir.Node) -> bool:
    """Whether a Relu or Clip follows ``node``: onnxruntime then fuses only where a quantizer absorbs it."""
    producer = settled_output(node).producer()
    return producer is not None and ops.absorbed_ceiling(producer) is not None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    producer = value.producer()
    return uses[0].node if producer is not None and uses[0].node.graph is producer.graph else None


def _bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add after a MatMul that adds one constant to each output channel, and which of its inputs is the constant."""
    if node.op_type != "MatMul":
        return None
    add = _only_reader(node.outputs[0])
    weight = constant(node.inputs[1])
    if add is None or add.op_type != "Add" or add.domain or weight is None:
        return None
    for index, value in enumerate(add.inputs):
        bias = constant(value)
        if bias is None or not is_float(value):
            continue
        # A bias of higher rank would raise the rank of a matrix product.
        shape = tuple(bias.shape.numpy())
        if shape[-1:] == (weight.shape[1],) and bias.size == weight.shape[1] and len(shape) <= 2:
            return add, index
    return None


def _followers(candidates: Mapping[str, ir.Node], anchors: Mapping[str, ir.Node]) -> dict[str, ir.Node]:
    """The greatest set of candidates that all read integers and are read by at least one node that wants them."""
    chosen = dict(candidates)
    convolutions = {n.name for n in anchors.values() if n.op_type == "Conv"}
    wanted = {id(n.inputs[0]) for n in anchors.values() if n.op_type == "Conv"}
    while True:
        makers = {**{k: v for k, v in anchors.items() if v.name in convolutions}, **chosen}
        written = {id(v) for n in makers.values() for v in _written(n)}
        readers = {id(n) for n in (*anchors.values(), *chosen.values())}

        def stays(
            node: ir.Node,
            written: set[int] = written,
            readers: set[int] = readers,  # bound: the loop rebuilds them
        ) -> bool:
            return _reads_integers(node, written | wanted) and any(
                id(use.node) in readers and _data_use(use.node, use.idx) for out in _written(node) for use in out.uses()
            )

        kept = {k: v for k, v in chosen.items() if stays(v)}
        if len(kept) == len(chosen):
            return kept
        chosen = kept


def _written(node: ir.Node) -> list[ir.Value]:
    """The tensors that an integer ``node`` must write quantized."""
    return list(node.outputs) if node.op_type == "Split" else [settled_output(node)]


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
        ceiling = ops.absorbed_ceiling(producer) if producer is not None else None
        finite = ceiling if ceiling is not None and np.isfinite(ceiling) else None
        points[name] = Point(name, target.activations, source or Own(), consumers, finite)

    for node in nodes(model):
        name = node.name or ""
        if name not in chosen:
            continue
        slots = [0] if name in anchors else ops.data_inputs(node)
        for index in slots:
            value = node.inputs[index]
            if value is None or constant(value) is not None:
                continue
            producer = value.producer()
            # A linear layer whose activation is absorbed must not leak an unquantized copy of it.
            through = producer is not None and ops.absorbed_ceiling(producer) is not None
            add(value, None if through else (name,))
        if name in anchors and node.op_type != "Conv" and not _ends_in_activation(node):
            continue
        source = SharedWith(node.inputs[0].name or "") if ops.moves_data(node) and node.inputs[0] is not None else None
        for value in _written(node):
            add(value, None, source)
    return list(points.values())


# Symmetric codes reach from -127 to 127 at most: one lower they still fit.
_SHIFT = -1


def _fused(anchors: Mapping[str, ir.Node], points: Sequence[Point]) -> frozenset[str]:
    """The MatMuls that become MatMulIntegerToFloat in the file.

    Left to itself, onnxruntime makes one of MatMul between quantizers too, but never takes the bias into it: an Add
    over the whole output remains, up to a fifth of the time of the product. Where all readers want integers,
    QLinearMatMul or QGemm writes them at once and is better still; QGemm, which a bias needs, takes matrices only.
    """
    everywhere = {p.tensor for p in points if p.consumers is None}
    found = set()
    for name, node in anchors.items():
        out = node.outputs[0]
        biased = _bias_add(node) is not None
        writes_codes = settled_output(node).name in everywhere
        is_matrix = out.shape is not None and len(out.shape) == 2
        if node.op_type == "MatMul" and not (writes_codes and (is_matrix or not biased)):
            found.add(name)
    return frozenset(found)


def _anchor_weights(node: ir.Node, target: Target, fused: Collection[str], steered: Collection[str]) -> list[Weight]:
    slot = ops.weight_slot(node)
    assert slot is not None
    value = node.inputs[slot.index]
    assert value is not None
    weight = constant(value)
    assert weight is not None
    granularity = PerAxis(slot.axis % len(weight.shape))
    storage = Storage.FUSED if node.name in fused else Storage.INTEGER
    shift = _SHIFT if node.name in steered and node.op_type == "Conv" else 0
    return [Weight(value.name or "", node.name or "", slot.index, target.weights, granularity, storage, shift)]


def _bias(node: ir.Node) -> list[Bias]:
    slot = ops.weight_slot(node)
    assert slot is not None
    source = node.inputs[0]
    assert source is not None
    add = _bias_add(node)
    if add is not None:
        value = add[0].inputs[add[1]]
        assert value is not None
        return [Bias(value.name or "", add[0].name or "", add[1], source.name or "", node.name or "")]
    if slot.bias is None or len(node.inputs) <= slot.bias or node.inputs[slot.bias] is None:
        return []
    value = node.inputs[slot.bias]
    assert value is not None
    return [Bias(value.name or "", node.name or "", slot.bias, source.name or "", node.name or "")]


def _constants(node: ir.Node, target: Target) -> list[Constant]:
    if not ops.constants_allowed(node):
        return []
    found = []
    for index in ops.data_inputs(node):
        value = node.inputs[index]
        if value is not None and constant(value) is not None:
            found.append(Constant(value.name or "", node.name or "", index, target.activations))
    return found


def _stored_weights(
    model: ir.Model, anchors: Mapping[str, ir.Node], refused: Mapping[str, KeptFloat], target: Target
) -> list[Weight]:
    """Weights of float nodes that are stored as int8 all the same: the file shrinks, the computation stays."""
    found: list[Weight] = []
    for node in nodes(model):
        name = node.name or ""
        if name in anchors or node.domain or (name in refused and refused[name].weight is None):
            continue
        for index, axes in _stored_slots(node).items():
            value = node.inputs[index] if index < len(node.inputs) else None
            weight = constant(value)
            if value is None or weight is None or not is_float(value) or weight.size < ops.STORED_MINIMUM:
                continue
            storage = Storage.PACKED
            if node.op_type == "Gather":
                storage = Storage.GATHERED
            elif name in refused and refused[name].weight is Storage.DYNAMIC and ops.can_be_dynamic(node):
                storage = Storage.DYNAMIC
            shape = tuple(weight.shape.numpy())
            linear = ops.weight_slot(node) is not None
            granularity = PerAxis(axes[0]) if linear else _row_granularity(shape, axes)
            found.append(Weight(value.name or "", name, index, target.weights, granularity, storage))
    return found


def _stored_slots(node: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """The inputs of a float node whose weight may be stored as int8, and the axes that have one scale each."""
    slot = ops.weight_slot(node)
    if slot is not None:
        weight = constant(node.inputs[slot.index])
        return {} if weight is None or len(weight.shape) < 2 else {slot.index: (slot.axis % len(weight.shape),)}
    if node.op_type == "Gather":
        table = constant(node.inputs[0])
        is_embedding = table is not None and len(table.shape) == 2 and constant(node.inputs[1]) is None
        return {0: (0,)} if is_embedding and attribute(node, "axis", 0) == 0 else {}
    return ops.STORED.get(node.op_type, {})


def _row_granularity(shape: tuple[int, ...], axes: tuple[int, ...]) -> Granularity:
    """One scale for every index of ``axes``: the leading axes of a matrix-like weight, or a single axis."""
    if axes == tuple(range(len(shape) - 1)):
        return PerBlock(len(shape) - 1, shape[-1])
    return PerAxis(axes[0])


def nothing_to_quantize(plan: Plan) -> str:
    """One line that says why ``plan`` is empty."""
    if not plan.skipped:
        return "nothing to quantize: the model has no Conv, Gemm or MatMul with constant weights"
    reasons = "; ".join(f"{s.op} '{s.node}': {s.reason}" for s in plan.skipped[:3])
    return f"nothing to quantize: {reasons}" + ("; ..." if len(plan.skipped) > 3 else "")

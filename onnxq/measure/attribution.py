"""Whose time it is: the kernels of a profile, traced back to the nodes of the model before onnxruntime optimised it.

Most kernels keep the name of a node or write a tensor that has kept its name (``trace`` says what survives). What a
kernel took in besides, an activation or a bias, has no time of its own. Conversions between float and integers, and
changes of layout that onnxruntime adds, belong to no node: they are counted by operator.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxq.kernels.operators import named
from onnxq.measure.assignment import plain_name, plain_value
from onnxq.measure.kernels import computes
from onnxq.measure.profile import Profile
from onnxq.runtime.proto import Model, load_proto, walk


@dataclass(frozen=True)
class NodeTime:
    """``microseconds`` of one run that kernels called ``kernel`` (the one that took longest) spent for a node."""

    kernel: str
    microseconds: float


@dataclass(frozen=True)
class Attribution:
    """``nodes``: by name of a node; ``others``: by operator, what belongs to none. Both in microseconds of one run."""

    nodes: Mapping[str, NodeTime]
    others: Mapping[str, float]

    @property
    def total(self) -> float:
        """Microseconds of all kernels."""
        return sum(t.microseconds for t in self.nodes.values()) + sum(self.others.values())


def _nearest_compute(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The compute node that ``node`` is or that lies the fewest steps before it; ``node`` where there is none."""
    pending, seen = deque([node]), {node.output[0]}
    while pending:
        current = pending.popleft()
        if computes(current):
            return current
        for name in current.input:
            maker = makers.get(name)
            if maker is not None and maker.output[0] not in seen:
                seen.add(maker.output[0])
                pending.append(maker)
    return node


def attribute(model: Model, profile: Profile) -> Attribution:
    """The ``Attribution`` of ``profile``, which is one of ``model``."""
    known: dict[str, onnx.NodeProto] = {}
    makers: dict[str, onnx.NodeProto] = {}
    for _, graph in walk(load_proto(model).graph):
        known.update((node.name, node) for node in graph.node if node.name)
        makers.update((value, node) for node in graph.node for value in node.output if value)
    names = set(known)
    nodes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    others: dict[str, float] = defaultdict(float)
    for kernel, time in zip(profile.kernels.nodes, profile.microseconds, strict=True):
        owner = known.get(plain_name(kernel.name, names))
        if owner is None:
            written = (*kernel.outputs, kernel.name.removesuffix("_nchwc"))
            owner = next((m for v in written if (m := makers.get(plain_value(v))) is not None), None)
        record = named(kernel.op)
        added = record.changes_layout and owner is not None and owner.op_type != kernel.op
        if record.converts or added:
            owner = None
        while owner is not None and named(owner.op_type).converts:  # an integer kernel ends in a QuantizeLinear
            owner = makers.get(owner.input[0])
        if owner is not None and kernel.computes:  # it may end in an activation, a bias or a sum
            owner = _nearest_compute(owner, makers)
        if owner is None or not owner.name:
            others[kernel.op] += time
        else:
            nodes[owner.name][kernel.op] += time
    found = {name: NodeTime(max(own, key=own.__getitem__), sum(own.values())) for name, own in nodes.items()}
    return Attribution(found, dict(others))

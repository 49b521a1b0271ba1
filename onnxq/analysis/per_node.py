"""Every node of a float model: the kernel that runs it, its share of the time, and what becomes of both when quantized.

Times are those of onnxruntime's profile on this machine, one thread. A node without a kernel of its own is computed
within another's; what converts between floats and integers, or changes a layout, belongs to no node and is told apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.config import Config
from onnxq.files.temporary import temporary_folder
from onnxq.graph.kinds import METADATA_KEY
from onnxq.graph.prepare import prepare
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.operators import named
from onnxq.kernels.targets import target_of
from onnxq.measure.attribution import Attribution, attribute
from onnxq.measure.profile import profile
from onnxq.plan import Plan, absorbed
from onnxq.plan.place import planned
from onnxq.query import is_float, nodes

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class KernelShare:
    """The operator that onnxruntime runs, its microseconds in one run, and their share of the whole model's, 0 to 1."""

    kernel: str
    microseconds: float
    share: float


@dataclass(frozen=True)
class NodeRow:
    """One node. ``before``: in the float model; ``after``: in the quantized one (None there: not given, or the node
    was computed within another's kernel). ``becomes``: ``integer``, ``absorbed``, ``float`` or ``""`` for nodes that
    integers do not concern. ``reason``: why it stays float.
    """

    node: str
    op: str
    becomes: str
    before: KernelShare | None
    after: KernelShare | None
    reason: str


@dataclass(frozen=True)
class NodeTable:
    """``rows``: in graph order; ``others_before``, ``others_after``: microseconds of no node's, by operator."""

    rows: tuple[NodeRow, ...]
    total_before_us: float
    total_after_us: float | None
    others_before: Mapping[str, float]
    others_after: Mapping[str, float]


def node_table(
    model: ir.Model, feeds: Iterable[Feed], *, quantized: ir.Model | None = None, config: Config | None = None
) -> NodeTable:
    """The ``NodeTable`` of the float ``model`` on ``feeds``, beside ``quantized``, which was made from it.

    Without ``quantized``, ``becomes`` and ``reason`` are what quantizing with ``config`` would do.
    """
    config = Config() if config is None else config
    kept = list(feeds)
    target = target_of(config)
    prepared = prepare(model, target=target).model
    with temporary_folder() as folder:
        before = _measured(prepared, kept, folder)
        if quantized is None:
            plan = planned(prepared, config, target, kept[:1], folder)
            after, becomes, reasons = None, _planned(prepared, plan), {s.node: s.reason for s in plan.skipped}
        else:
            after = _measured(quantized, kept, folder)
            becomes, reasons = _found(prepared, after), kept_reasons(quantized)
    rows = [
        NodeRow(
            node.name or "",
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            becomes.get(node.name or "", ""),
            _share(before, node),
            None if after is None else _share(after, node),
            reasons.get(node.name or "", "") if becomes.get(node.name or "") == "float" else "",
        )
        for node in nodes(prepared)
        if any(is_float(v) for v in node.outputs)
    ]
    return NodeTable(
        tuple(rows),
        before.total,
        None if after is None else after.total,
        before.others,
        {} if after is None else after.others,
    )


def kept_reasons(quantized: ir.Model) -> dict[str, str]:
    """Why nodes stay float, by name, as onnxq has written it into the file; empty for other tools' files."""
    try:
        groups = json.loads(quantized.metadata_props.get(METADATA_KEY, "{}"))["float"]
        return {str(name): str(reason) for reason, names in groups.items() for name in names}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _measured(model: ir.Model, feeds: list[Feed], folder: Path) -> Attribution:
    handed = to_runtime(model, folder)
    return attribute(handed, profile(handed, feeds))


def _share(times: Attribution, node: ir.Node) -> KernelShare | None:
    found = times.nodes.get(node.name or "")
    return None if found is None else KernelShare(found.kernel, found.microseconds, found.microseconds / times.total)


def _planned(prepared: ir.Model, plan: Plan) -> dict[str, str]:
    """What ``plan`` makes of each node."""
    found, integer = {s.node: "float" for s in plan.skipped}, set(plan.integer)
    for node in nodes(prepared):
        if node.name in integer:
            found.update((inner.name or "", "absorbed") for inner in absorbed(node))
            found[node.name] = "integer"
    return found


def _found(prepared: ir.Model, after: Attribution) -> dict[str, str]:
    """What has become of each node, by the kernel that ran it; nodes without one were taken in by a neighbour."""
    found = {}
    for node in nodes(prepared):
        own = after.nodes.get(node.name or "")
        if own is None:
            found[node.name or ""] = "absorbed"
        elif named(own.kernel).kind in ("integer compute", "integer elementwise"):
            found[node.name or ""] = "integer"
        else:
            found[node.name or ""] = "float"
    return found

"""Where integers pay in one model: shapes from a run of it, costs from the target's table, the best placement of all.

Without a table for the target, or without an input to run the model on, everything runs on integers that can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.config import Config
from onnxq.errors import OnnxqError
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.costs import CostTable, cost_table
from onnxq.kernels.operators import operator
from onnxq.kernels.ops import can_follow
from onnxq.kernels.targets import Target
from onnxq.kernels.work import Shapes, work_of
from onnxq.measure.profile import observed_shapes
from onnxq.plan import KeptFloat, Plan, make_plan
from onnxq.plan.placement import force_gemm, uneconomic
from onnxq.query import nodes

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Placement:
    """What costs decide.

    ``keep_float``: nodes that are cheaper in float and why; ``force_gemm``: convolutions that another kernel runs
    faster; ``slower``: nodes whose integer kernel is slower than the float one, and yet saves more in conversions.
    """

    keep_float: Mapping[str, KeptFloat] = field(default_factory=dict)
    force_gemm: frozenset[str] = frozenset()
    slower: frozenset[str] = frozenset()


def place(model: ir.Model, config: Config, target: Target, feeds: Iterable[Feed], folder: Path) -> Placement:
    """The ``Placement`` of the prepared ``model`` at the sizes of the first of ``feeds``; ``folder`` is for scratch."""
    # What simulates fewer bits is no faster wherever it is, and weights alone have no kernels to weigh up.
    costly = config.placement == "cost" and config.activations == "uint8"
    table = cost_table(target.name) if costly else None
    feed = next(iter(feeds), None)
    if table is None or feed is None:
        return Placement()
    shapes = tensor_shapes(model, feed, folder)
    wanted, products = wanted_on_integers(model, config), force_gemm(model, shapes, table, target)
    slow = frozenset(n.name or "" for n in nodes(model) if _slower(n, shapes, table, target))
    for slower in (slow, frozenset[str]()) if slow else (frozenset[str](),):
        plan = make_plan(model, config, target, slower=slower)
        kept = uneconomic(model, plan, shapes, table, target, wanted=wanted)
        taken = slower & set(plan.integer) - kept.keys()
        if taken or not slower:  # where none is taken, the plan is the one without them
            break
    return Placement({name: why for name, why in kept.items() if name not in slow}, products, taken)


def _slower(node: ir.Node, shapes: Shapes, table: CostTable, target: Target) -> bool:
    """Whether ``node`` has an integer kernel that is slower than float, and that was measured."""
    if not can_follow(node) or operator(node).fast(target):
        return False
    work = work_of(node, shapes, target)
    return work is not None and (work.kernel, "int8") in table.grids


def planned(model: ir.Model, config: Config, target: Target, feeds: Iterable[Feed], folder: Path) -> Plan:
    """The plan that ``place`` leads to, for a look without building anything."""
    placement = place(model, config, target, feeds, folder)
    return make_plan(
        model,
        config,
        target,
        keep_float=placement.keep_float,
        force_gemm=placement.force_gemm,
        slower=placement.slower,
    )


def wanted_on_integers(model: ir.Model, config: Config) -> frozenset[str]:
    """The nodes that a rule puts on integers, whatever that costs."""
    ruled = {n.name or "": config.precision_of(n.name or "", n.op_type) or "" for n in nodes(model)}
    return frozenset(name for name, precision in ruled.items() if precision.startswith("int8"))


def tensor_shapes(model: ir.Model, feed: Feed, folder: Path) -> Shapes:
    """The shapes of all computed tensors of ``model`` in a run on ``feed``; empty where the model does not run."""
    try:
        seen = observed_shapes(to_runtime(model, folder), feed)
    except OnnxqError:
        return {}
    found = {name: tuple(array.shape) for name, array in feed.items()}
    for node in nodes(model):
        outputs = [o.name for o in node.outputs if o.name]
        shapes = seen.get(node.name or "", ())
        if len(outputs) == len(shapes):
            found.update(zip(outputs, shapes, strict=True))
    return found

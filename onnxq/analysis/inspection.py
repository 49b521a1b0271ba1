"""``inspect``: what a model is, what quantizing would do to it, and which kernels onnxruntime really runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import onnx_ir as ir

from onnxq.analysis.left_float import Left, LeftGroup, grouped
from onnxq.analysis.per_node import NodeTable, node_table
from onnxq.analysis.running import Opened, feeds_for_a_look, opened, some_feed, too_large_for_a_look
from onnxq.calibrate.feeds import FeedOptions, FeedSource
from onnxq.config import Config
from onnxq.errors import ModelError, one_line
from onnxq.files.temporary import temporary_folder
from onnxq.graph.copying import all_graphs
from onnxq.graph.io import load
from onnxq.graph.kinds import quantized_ops, require_not_quantized
from onnxq.graph.prepare import prepare, prepare_in_place
from onnxq.graph.runtime_model import or_refused
from onnxq.graph.signature import TensorSpec
from onnxq.kernels.operators import operator
from onnxq.kernels.targets import resolve_target, target_of
from onnxq.measure.assignment import KernelAssignment, assignments
from onnxq.measure.kernels import KernelMap, kernel_map
from onnxq.measure.size import ModelSize, model_size
from onnxq.plan import Plan, ReasonCode, Skipped, absorbed
from onnxq.plan.place import planned
from onnxq.plan.planner import nothing_to_quantize
from onnxq.query import is_float, nodes
from onnxq.runtime.plain import plain

if TYPE_CHECKING:
    from onnxq.pipeline import ModelSource

Kernels: TypeAlias = Literal["quantized", "always", "never"]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: ``shape`` holds numbers, names of symbolic dimensions, None (any); None: unknown rank."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


@dataclass(frozen=True)
class OpOutlook:
    """What quantizing would make of the nodes of one operator type: ``nodes = integer + absorbed + left float``.

    ``integer``: run in an integer kernel. ``absorbed``: disappear into a neighbour's kernel. ``stored``: of those left
    float, how many have their weights stored as int8.
    """

    op: str
    nodes: int
    integer: int
    absorbed: int
    stored: int

    @property
    def left_float(self) -> int:
        """How many compute in float as before."""
        return self.nodes - self.integer - self.absorbed


@dataclass(frozen=True)
class Outlook:
    """What quantizing would do: by operator type, and which nodes with heavy computations are left and why.

    ``target``: the kind of CPU that was planned for. Bytes are those of float32 weights in the prepared graph:
    ``integer_bytes`` of ``weight_bytes`` would be read by integer kernels, ``stored_bytes`` only stored as int8.
    """

    target: str
    ops: tuple[OpOutlook, ...]
    left: tuple[LeftGroup, ...]
    weight_bytes: int
    integer_bytes: int
    stored_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What is known of a model without data.

    | field           | meaning                                                                                     |
    |-----------------|---------------------------------------------------------------------------------------------|
    | `opsets`        | version by domain; ``ai.onnx`` is the default one                                           |
    | `size`          | bytes and parameters                                                                        |
    | `nodes`         | their number, bodies of If and Loop included                                                |
    | `quantized_ops` | how often each quantization operator occurs; empty: a float model                           |
    | `outlook`       | of a float model: what quantizing would do; None where it is refused                        |
    | `refusal`       | why a float model cannot be quantized, or None                                              |
    | `kernels`       | what onnxruntime runs, from the graph that it optimised; None where that was not asked for  |
    | `assignments`   | with ``kernels``: the kernel that each Conv, Gemm, MatMul, ... ended in                     |
    | `node_table`    | kernel and share of the time of every node, where that was asked for                        |
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    size: ModelSize
    nodes: int
    quantized_ops: Mapping[str, int]
    outlook: Outlook | None = None
    refusal: str | None = None
    kernels: KernelMap | None = None
    assignments: tuple[KernelAssignment, ...] = ()
    node_table: NodeTable | None = None

    @property
    def quantized(self) -> bool:
        """Whether the model has quantization operators."""
        return bool(self.quantized_ops)

    @property
    def left_float(self) -> tuple[LeftGroup, ...]:
        """With ``kernels``: the compute nodes that onnxruntime does not run on integers, grouped by reason."""
        # Most causes name a tensor, which only its own node shares: without it alike ones come together.
        return grouped(
            [Left(f.op, f.code.text(op=f.op), f.code.value, f.node or f.output) for f in self.assignments if f.code]
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            **plain(self),
            "kernels": None if self.kernels is None else self.kernels.to_dict(),
            "fates": plain(self.assignments),  # its name until 0.2
            "left_float": plain(self.left_float),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """As JSON text; NaN and infinity are null."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def inspect(
    model: ModelSource,
    quantized: ModelSource | None = None,
    *,
    config: Config | None = None,
    kernels: Kernels = "quantized",
    by_node: bool = False,
    data: FeedSource | None = None,
    feed_options: FeedOptions | None = None,
) -> Inspection:
    """The ``Inspection`` of ``model``, float or quantized.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        config: the rules and the target that a float model's outlook follows.
        kernels: for which models to ask onnxruntime what it runs (it loads the model for that): quantized ones, all or
            none.
        quantized: what was made of the float ``model``: both are run, and told node by node.
        by_node: the same for ``model`` alone, beside what quantizing would do.
        data: inputs to run on, anything that ``open_feed`` takes; None: random ones.
        feed_options: how files become inputs; see ``FeedOptions``.

    Raises:
        ModelError: unreadable; or ``model`` is not a float model where it must be.
        DataError: nothing could be made up to run the model on, or ``data`` does not fit.
        ConfigError: an unknown target.
        RuntimeFailure: onnxruntime cannot load the model (only where kernels are asked for).
    """
    config = Config() if config is None else config
    resolve_target(config.target)  # an unknown one is an error for quantized models too
    with opened(model) as (given,):
        found = quantized_ops(given.model)
        table = None
        if by_node or quantized is not None:
            if found:
                raise ModelError(f"{given.name} is quantized already", hint="give the float model first, then this one")
            feeds = list(some_feed(given, data, feed_options))
            other = None if quantized is None else load(quantized)
            table = node_table(given.reference.model, feeds, quantized=other, config=config)
        asked = kernels == "always" or (kernels == "quantized" and bool(found))
        running = kernel_map(given.runnable) if asked else None
        assigned = () if running is None else assignments(given.runnable, running)
        seen = replace(_facts(given, found), kernels=running, assignments=assigned, node_table=table)
        if found or quantized is not None:
            return seen
        outlook, refusal = _outlook(given, config, feed_options)
        return replace(seen, outlook=outlook, refusal=refusal)


def _facts(given: Opened, found: Mapping[str, int]) -> Inspection:
    """What the file says; ``found``: its quantization operators."""
    model, signature = given.model, given.signature
    return Inspection(
        given.name,
        tuple(describe(s) for s in signature.inputs),
        tuple(describe(s) for s in signature.outputs),
        {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        model.ir_version,
        " ".join(t for t in (model.producer_name, model.producer_version) if t),
        model_size(given.source),
        sum(1 for _ in nodes(model)),
        found,
    )


def describe(spec: TensorSpec) -> TensorInfo:
    """``spec`` as printable text."""
    return TensorInfo(spec.name, "unknown type" if spec.dtype is None else spec.type_name, spec.shape)


def _outlook(given: Opened, config: Config, options: FeedOptions | None) -> tuple[Outlook | None, str | None]:
    """What quantizing the float model would do, or why it is refused. A large model is no more what it was then."""
    with or_refused(given.source):
        return _foreseen(given, config, options)


def _foreseen(given: Opened, config: Config, options: FeedOptions | None) -> tuple[Outlook | None, str | None]:
    target, too_large = target_of(config), too_large_for_a_look(given.model)
    try:
        require_not_quantized(given.model)
        # What is not run is not needed as it was given: copying takes as long as planning.
        preparing = prepare_in_place if too_large else prepare
        prepared = preparing(given.reference.model, target=target, native=config.native)
    except ModelError as error:
        return None, one_line(error)
    feeds = [] if too_large else feeds_for_a_look(given, options)  # none, of unknown sizes: everything that can
    with temporary_folder() as folder:
        plan = planned(prepared.model, config, target, feeds, folder)
    if plan.empty:
        return None, nothing_to_quantize(plan)
    notes = (
        *prepared.notes,
        *filter(None, [too_large]),
        *(f"rule '{rule}' matched no node" for rule in plan.unused_rules),
    )
    integer, stored = (_bytes(prepared.model, plan, only) for only in (True, False))
    total = sum(v.const_value.nbytes for v in _weights(prepared.model).values() if v.const_value is not None)
    return Outlook(target.name, *_by_op(prepared.model, plan), total, integer, stored, notes), None


def _weights(model: ir.Model) -> dict[str, ir.Value]:
    """The float initializers by name."""
    return {name: value for graph in all_graphs(model) for name, value in graph.initializers.items() if is_float(value)}


def _bytes(model: ir.Model, plan: Plan, integer: bool) -> int:
    """Float bytes of the weights that are read by integer kernels, or of those that are stored as int8 only."""
    weights = _weights(model)
    layers = set(plan.layers)
    for_integers = {w.tensor for w in plan.weights if w.node in layers}
    others = {w.tensor for w in plan.weights} - for_integers
    names = for_integers if integer else others
    return sum(t.nbytes for n in names if n in weights and (t := weights[n].const_value) is not None)


def _by_op(model: ir.Model, plan: Plan) -> tuple[tuple[OpOutlook, ...], tuple[LeftGroup, ...]]:
    integer, stored = {*plan.integer, *plan.layers}, {w.node for w in plan.weights if not w.storage.computes}
    skipped = {s.node: s for s in plan.skipped}
    taken_in = _absorbed(model, integer)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    left: list[Left] = []
    for node in nodes(model):
        name = node.name or ""
        if name not in integer and not any(is_float(v) for v in node.outputs):
            continue  # shapes, indices and masks have nothing to quantize
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        row = counts[op]
        row[0] += 1
        row[1] += name in integer
        row[2] += name in taken_in
        row[3] += name in stored and name not in integer
        if name not in integer and name not in taken_in and (name in skipped or operator(node).kind == "float compute"):
            known = skipped.get(name) or Skipped(name, op, *_why_float(name in stored))
            left.append(Left(op, known.reason, known.code.value, name))
    outlooks = tuple(OpOutlook(op, *row) for op, row in counts.items())
    return tuple(sorted(outlooks, key=lambda o: (-o.integer, -o.nodes, o.op))), grouped(left)


def _absorbed(model: ir.Model, integer: set[str]) -> set[str]:
    """Names of the nodes that an integer kernel takes in besides its own: bias Add, Relu, Clip."""
    return {inner.name or "" for n in nodes(model) if n.name in integer for inner in absorbed(n)} - integer


def _why_float(stored: bool) -> tuple[str, ReasonCode]:
    code = ReasonCode.STORED_ONLY if stored else ReasonCode.NO_FASTER_KERNEL
    return code.text(), code

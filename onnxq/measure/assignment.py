"""From the nodes of a model to the kernels they ended in, through the names that onnxruntime's fusions keep.

What survives (observed on onnxruntime 1.19 and 1.32): QLinearConv, QLinearMatMul, QGemm, FusedConv and MatMulNBits keep
the *node name* of the float operator; Gemm made from MatMul + Add appends ``/MatMulAddFusion`` (a scaled MatMul
``/MatMulScaleFusion``, 1.19 with a trailing slash). The NHWC copies append ``_token_N`` (1.19 calls them all
``QLinearConv``) and their output is named like the node; NCHWc convolutions are called ``<output>_nchwc`` and FusedGemm
always ``fused gemm``. The *output* is that of the last node swallowed, mostly the QuantizeLinear's, but a Reshape may
be put between. *Weights* keep their names (MatMulNBits appends ``_T``), except those that were folded from a constant
subgraph. An If whose condition is constant is inlined: its nodes lose their names, its values get the prefix
``_if_then_branch_``. Moving Q and DQ about appends ``_pre_q``, ``_q_to_dq`` or ``_post_dq`` to values. So: names first,
then outputs, then weights.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from onnxq.kernels.operators import named
from onnxq.measure.kernels import Kernel, KernelMap, computes
from onnxq.runtime.proto import Model, load_proto, walk

if TYPE_CHECKING:
    import onnx

# onnxruntime merges equal initialisers of up to 8 elements, so the names of small ones prove nothing.
_SMALLEST_WEIGHT = 9


class FloatCause(Enum):
    """The likeliest cause why a compute node does not run on integers; ``TEXTS`` says each in words."""

    NO_INTEGER_KERNEL = "no_integer_kernel"
    INPUT_NOT_DEQUANTIZED = "input_not_dequantized"
    WEIGHT_NOT_DEQUANTIZED = "weight_not_dequantized"
    GRAPH_OUTPUT = "graph_output"
    OUTPUT_NOT_QUANTIZED = "output_not_quantized"
    FUSION_RULES = "fusion_rules"
    UNTRACED = "untraced"

    def text(self, **names: str) -> str:
        """The cause in words; without ``names`` that of all nodes that share it."""
        return " ".join(TEXTS[self].format_map(defaultdict(str, names)).split())


# ``tensor``: the name of the one that is not as it should be; ``op``: the node's operator.
TEXTS = {
    FloatCause.NO_INTEGER_KERNEL: "onnxruntime has no integer kernel for {op}",
    FloatCause.INPUT_NOT_DEQUANTIZED: "its input {tensor} does not come from a DequantizeLinear in the same graph",
    FloatCause.WEIGHT_NOT_DEQUANTIZED: "its weight {tensor} does not come from a DequantizeLinear in the same graph",
    FloatCause.GRAPH_OUTPUT: "its output is an output of the graph, so no QuantizeLinear can absorb it",
    FloatCause.OUTPUT_NOT_QUANTIZED: "its output does not go to one QuantizeLinear alone",
    FloatCause.FUSION_RULES: (
        "its types, zero points, bias or activation do not meet onnxruntime's rules for integer kernels"
    ),
    FloatCause.UNTRACED: "no node of the optimised graph could be traced to it",
}


@dataclass(frozen=True)
class KernelAssignment:
    """Where the compute node ``node`` (an ``op``; its first output is ``output``) of the unoptimised model ended.

    ``kernel``: the operator that runs it, None where no trace of it is left (folded away, or fused with others).
    ``found_by``: ``name``, ``output``, ``weight`` or ``""``. ``why``: for those not on
    integers, the likeliest cause in words; ``code``: which one that is.
    """

    node: str
    op: str
    scope: str
    output: str
    kernel: str | None
    integer: bool
    found_by: str
    why: str
    code: FloatCause | None = None


def assignments(model: Model, kernels: KernelMap) -> tuple[KernelAssignment, ...]:
    """The ``KernelAssignment`` of every Conv, Gemm, MatMul, recurrent and attention node of ``model``, bodies included.

    ``model`` is the unoptimised model that ``kernels`` was made from. Nodes inside local functions are not looked at.
    """
    originals = [o for scope, graph in walk(load_proto(model).graph) for o in _Graph(scope, graph).compute()]
    free = [k for k in kernels.nodes if k.kind in ("integer compute", "float compute")]
    counts = Counter((o.scope, o.node) for o in originals)
    ambiguous = {name for (_, name), n in counts.items() if n > 1} | {""}
    known = {o.node for o in originals} - ambiguous
    rules: tuple[_Rule, ...] = (
        ("name", lambda o: [o.node] if o.node in known else [], lambda k: [plain_name(k.name, known)]),
        ("output", lambda o: o.reached(), lambda k: [*map(plain_value, k.outputs), k.name.removesuffix("_nchwc")]),
        (
            "weight",
            lambda o: o.weights,
            lambda k: [v for w in map(plain_value, k.weights) for v in (w, w.removesuffix("_T"))],
        ),
    )
    found: dict[int, tuple[Kernel, str]] = {}
    for rule, keys_of, kernel_keys in rules:
        index: dict[str, list[Kernel]] = defaultdict(list)
        for kernel in free:
            for key in kernel_keys(kernel):
                index[key].append(kernel)
        taken: set[int] = set()
        for i, original in enumerate(originals):
            match = None if i in found else _nearest(original.scope, keys_of(original), index, taken)
            if match is not None:
                found[i] = (match, rule)
                taken.add(id(match))
        free = [k for k in free if id(k) not in taken]
    return tuple(_assignment(o, *found.get(i, (None, ""))) for i, o in enumerate(originals))


def _nearest(
    scope: str, keys: Iterable[str], index: Mapping[str, list[Kernel]], taken: Collection[int]
) -> Kernel | None:
    """The first kernel of ``keys`` that is not taken; one of ``scope`` goes before others.

    A body keeps its scope unless onnxruntime inlined it.
    """
    other = None
    for key in keys:
        for kernel in index.get(key, ()):
            if id(kernel) not in taken:
                if kernel.scope == scope:
                    return kernel
                other = other or kernel
    return other


def plain_name(name: str, known: set[str]) -> str:
    """A kernel's ``name`` less what fusions appended, stopping at the first ``known`` node name."""
    name = name.rstrip("/")
    while name not in known:
        shorter = re.sub(r"(/[^/]*Fusion[^/]*|_token_\d+)$", "", name)
        if shorter == name:
            break
        name = shorter
    return name


def plain_value(name: str) -> str:
    """A value's ``name`` less what inlining an If and moving QuantizeLinear and DequantizeLinear about add to it."""
    return re.sub(r"^_if_(then|else)_branch_|(_pre_q|_q_to_dq|_post_dq)$", "", name)


@dataclass(frozen=True)
class _Original:
    """A compute node.

    ``reached``: gives the values its output flows into before the next compute node, nearest first: where layers are
    skipped these may be half the graph, and mostly the first is the one. ``weights``: the larger initialisers behind
    its inputs.
    """

    node: str
    op: str
    scope: str
    output: str
    reached: Callable[[], Iterable[str]]
    weights: tuple[str, ...]
    code: FloatCause
    why: str


def _assignment(original: _Original, kernel: Kernel | None, rule: str) -> KernelAssignment:
    integer = kernel is not None and kernel.kind == "integer compute"
    op = None if kernel is None else kernel.op
    code: FloatCause | None = None
    why = ""
    if not integer:
        code = FloatCause.UNTRACED if kernel is None else original.code
        why = code.text() if kernel is None else original.why
    return KernelAssignment(original.node, original.op, original.scope, original.output, op, integer, rule, why, code)


_Rule: TypeAlias = "tuple[str, Callable[[_Original], Iterable[str]], Callable[[Kernel], Iterable[str]]]"


class _Graph:
    """One graph with its edges both ways."""

    def __init__(self, scope: str, graph: onnx.GraphProto) -> None:
        self.scope, self.graph = scope, graph
        self.sizes = {t.name: math.prod(t.dims) for t in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.users[name].append(node)
        self.outputs = {v.name for v in graph.output}
        self.constants = self._constants()

    def compute(self) -> Iterator[_Original]:
        for node in self.graph.node:
            if computes(node):
                output = next((name for name in node.output if name), "")
                weights = tuple(sorted(w for name in node.input for w in self._weights(name)))
                reached = partial(self._reached, node)
                yield _Original(node.name, node.op_type, self.scope, output, reached, weights, *self._cause(node))

    def _reached(self, node: onnx.NodeProto) -> Iterator[str]:
        pending = deque(dict.fromkeys(name for name in node.output if name))
        seen = set(pending)
        yield from pending
        while pending:
            for user in self.users[pending.popleft()]:
                if not computes(user):
                    new = [name for name in dict.fromkeys(user.output) if name and name not in seen]
                    seen.update(new)
                    pending.extend(new)
                    yield from new

    def _weights(self, name: str) -> set[str]:
        """The larger initialisers behind ``name`` where everything behind it is constant, else nothing."""
        found, seen, pending = set[str](), set[str](), [name] if name in self.constants else []
        while pending:
            current = pending.pop()
            if not current or current in seen:
                continue
            seen.add(current)
            if current in self.sizes:
                found |= {current} if self.sizes[current] >= _SMALLEST_WEIGHT else set()
            else:
                pending += list(self.makers[current].input)
        return found

    def _constants(self) -> set[str]:
        """The names of the values behind which everything is constant."""
        found = set(self.sizes)
        # How many inputs of a node are not known to be constant; one that is read twice counts once.
        nodes = list(self.graph.node)  # protobuf has one object for each only as long as somebody holds it
        missing = {id(node): len({name for name in node.input if name} - found) for node in nodes}
        pending = [node for node in nodes if not missing[id(node)]]
        while pending:
            for name in pending.pop().output:
                if not name or name in found:
                    continue
                found.add(name)
                for user in self.users[name]:
                    missing[id(user)] -= 1
                    if not missing[id(user)]:
                        pending.append(user)
        return found

    def _cause(self, node: onnx.NodeProto) -> tuple[FloatCause, str]:
        """The first rule of onnxruntime's QDQ fusions that ``node`` breaks, or a shrug; and that in words."""
        tensor, code = self._broken_rule(node)
        return code, code.text(tensor=tensor, op=node.op_type)

    def _broken_rule(self, node: onnx.NodeProto) -> tuple[str, FloatCause]:
        record = named(node.op_type)
        if record.slot is None:
            return "", FloatCause.NO_INTEGER_KERNEL
        for i, code in enumerate((FloatCause.INPUT_NOT_DEQUANTIZED, FloatCause.WEIGHT_NOT_DEQUANTIZED)):
            name = node.input[i] if i < len(node.input) else ""
            maker = self.makers.get(name)
            while maker is not None and named(maker.op_type).propagates:
                maker = self.makers.get(maker.input[0])
            if maker is None or named(maker.op_type).kind != "dequantize":
                return name, code
        users = self.users[node.output[0]]
        while len(users) == 1 and named(users[0].op_type).absorbed:
            users = self.users[users[0].output[0]]
        if node.output[0] in self.outputs and record.between_codes:
            return "", FloatCause.GRAPH_OUTPUT
        if record.between_codes and not (len(users) == 1 and named(users[0].op_type).kind == "quantize"):
            return "", FloatCause.OUTPUT_NOT_QUANTIZED
        return "", FloatCause.FUSION_RULES

"""What onnxruntime really runs for a model, read from the optimised graph that it saves, not guessed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.files.temporary import temporary_folder
from onnxq.kernels.operators import named
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model, label, load_proto, scope_of, subgraphs
from onnxq.runtime.session import Level, open_session

if TYPE_CHECKING:
    import onnx

    from onnxq.kernels.record import Kind


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised graph. ``scope`` names the If/Loop body that holds it (``""``: the main graph).

    ``weights``: initialisers it reads, itself or behind a per-run DequantizeLinear. ``waste``: elements of a constant
    that this DequantizeLinear converts anew on every run (0 for all other nodes).
    """

    op: str
    domain: str
    name: str
    scope: str
    outputs: tuple[str, ...]
    kind: Kind
    weights: tuple[str, ...] = ()
    waste: int = 0

    @property
    def computes(self) -> bool:
        """Whether it is a convolution, a matrix product or the like, on floats or integers."""
        return self.kind in ("integer compute", "float compute")


@dataclass(frozen=True)
class KernelMap:
    """The ``nodes`` that onnxruntime ``runtime`` runs for ``model`` at optimisation ``level``."""

    model: str
    level: Level
    runtime: str
    nodes: tuple[Kernel, ...]

    def of_kind(self, kind: Kind) -> tuple[Kernel, ...]:
        """The nodes of one kind, in graph order."""
        return tuple(node for node in self.nodes if node.kind == kind)

    @property
    def integer_compute(self) -> tuple[Kernel, ...]:
        """Convolutions, matrix products and the like on integers."""
        return self.of_kind("integer compute")

    @property
    def float_compute(self) -> tuple[Kernel, ...]:
        """Convolutions, matrix products and the like on floats."""
        return self.of_kind("float compute")

    @property
    def waste(self) -> tuple[Kernel, ...]:
        """The DequantizeLinear nodes that convert a constant on every run."""
        return tuple(node for node in self.nodes if node.waste)

    def counts(self) -> dict[str, dict[str, int]]:
        """Node counts: kind, then operator."""
        table: dict[str, Counter[str]] = {}
        for node in self.nodes:
            table.setdefault(node.kind, Counter())[node.op] += 1
        return {kind: dict(sorted(ops.items())) for kind, ops in sorted(table.items())}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, the counts included."""
        return {**plain(self), "counts": self.counts()}


def kernel_map(model: Model, *, level: Level = "extended", config: Mapping[str, str] | None = None) -> KernelMap:
    """The ``KernelMap`` of ``model``.

    At ``extended`` the picture is the same on every CPU of one architecture; ``all`` adds the layouts (NCHWc, NHWC)
    that this CPU prefers. The optimised model lies in the temporary folder for a moment, weights included.

    Raises what ``open_session`` raises.
    """

    import onnxruntime as ort

    with temporary_folder() as temporary:
        path = temporary / "optimized.onnx"
        open_session(model, threads=1, optimize=level, save_optimized=path, config=config)
        graph = load_proto(path).graph
    return KernelMap(label(model), level, str(ort.__version__), kernels_of(graph))


def kernels_of(graph: onnx.GraphProto) -> tuple[Kernel, ...]:
    """The nodes of the optimised ``graph`` and its bodies, in graph order."""
    nodes: list[Kernel] = []
    # uint8 inputs (images) are data, not codes, but what moves them is as cheap: no distinction is made.
    eight_bit = {v.name for v in graph.input if _is_8_bit(v.type.tensor_type.elem_type)}
    _collect(graph, nodes, scope="", constants={}, eight_bit=eight_bit)
    return tuple(nodes)


def _is_8_bit(elem_type: int) -> bool:
    return elem_type in (2, 3)  # TensorProto.UINT8, INT8


def _collect(
    graph: onnx.GraphProto, nodes: list[Kernel], *, scope: str, constants: dict[str, int], eight_bit: set[str]
) -> None:
    """Append the kernels of ``graph`` and its bodies to ``nodes``.

    ``constants``: elements of each initialiser in sight; ``eight_bit``: values in sight that hold 8-bit codes. The
    saved graph holds no types of inner values, so they are followed from the quantize nodes on.
    """
    constants, eight_bit = dict(constants), set(eight_bit)
    constants.update((t.name, math.prod(t.dims)) for t in graph.initializer)
    eight_bit |= {t.name for t in graph.initializer if _is_8_bit(t.data_type)}
    behind: dict[str, str] = {}  # value dequantized from a constant on every run -> that constant
    for node in graph.node:
        kind = classify(
            node.op_type, on_codes=bool(node.input) and node.input[0] in eight_bit, operands=len(node.input)
        )
        waste = 0
        if kind == "dequantize" and node.input[0] in constants:
            waste = constants[node.input[0]]
            behind[node.output[0]] = node.input[0]
        if kind in ("quantize", "integer movement") or (kind.startswith("integer") and _stays_8_bit(node)):
            eight_bit |= {name for name in node.output if name}
        read = (behind.get(name, name) for name in node.input)
        weights = tuple(dict.fromkeys(name for name in read if name in constants))
        outputs = tuple(name for name in node.output if name)
        nodes.append(Kernel(node.op_type, node.domain, node.name, scope, outputs, kind, weights, waste))
        for attribute, body in subgraphs(node):
            below = scope_of(node, attribute)
            _collect(
                body, nodes, scope=f"{scope}/{below}" if scope else below, constants=constants, eight_bit=eight_bit
            )


def _stays_8_bit(node: onnx.NodeProto) -> bool:
    """Whether an integer kernel writes 8-bit codes: some do only if they are given an output zero point."""
    record = named(node.op_type)
    given = record.output_zero_point
    return record.stays_8_bit and (given is None or (len(node.input) > given and bool(node.input[given])))


def computes(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is a convolution, a matrix product or the like, on floats or integers."""
    record = named(node.op_type)
    return record.computes and len(node.input) >= record.operands


def classify(op: str, *, on_codes: bool = False, operands: int | None = None) -> Kind:
    """The ``Kind`` of operator ``op`` with so many ``operands`` (None: enough of them).

    ``on_codes``: whether its first input holds 8-bit codes.
    """
    record = named(op)
    moves = record.kind == "integer movement" and not on_codes
    return "other" if moves or (operands is not None and operands < record.operands) else record.kind

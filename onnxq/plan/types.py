"""The plan: which tensors carry QuantizeLinear/DequantizeLinear, which weights become integers, what stays float."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from onnxq.numerics import Granularity, QType
from onnxq.plan.reasons import ReasonCode
from onnxq.weights import WeightFormat, weight_format


@dataclass(frozen=True)
class Own:
    """The point has parameters of its own, chosen from what was observed."""

    def __str__(self) -> str:
        return "own"


@dataclass(frozen=True)
class SharedWith:
    """The point has exactly the parameters of another tensor (an operator that only moves data needs equal ones)."""

    tensor: str

    def __str__(self) -> str:
        return f"as {self.tensor}"


Source = Own | SharedWith


@dataclass(frozen=True)
class Point:
    """A tensor that is quantized and dequantized.

    | field       | meaning                                                                                        |
    |-------------|------------------------------------------------------------------------------------------------|
    | `tensor`    | name in the prepared float graph                                                               |
    | `consumers` | names of the nodes that read the dequantized value; None: every reader, graph outputs included |
    | `source`    | where its parameters come from                                                                 |
    | `ceiling`   | upper end that the codes must not pass, so that a Clip is absorbed; None: no limit             |
    """

    tensor: str
    qtype: QType
    source: Source = field(default=Own())
    consumers: tuple[str, ...] | None = None
    ceiling: float | None = None


class Storage(Enum):
    """What a quantized weight becomes in the file."""

    INTEGER = "integer kernel"  # DequantizeLinear in front of a node that runs in an integer kernel
    FUSED = "integer kernel with float bias"  # MatMulIntegerToFloat, which only onnxruntime knows
    DYNAMIC = "integer kernel, activation range at run time"  # needs no calibration; linear layers and LSTM
    TWO_PARTS = "integer kernel, input in two parts, ranges at run time"  # of linear layers: 8 bits and 8 bits more
    PACKED = "stored int8, computed float"  # expanded once when the runtime loads the model
    GATHERED = "int8 table, rows dequantized"  # embedding: only the rows that are read become float
    BLOCKS = (
        "4-bit kernel, activations float"  # MatMulNBits: a scale for each block of inputs, unpacked while computing
    )

    @property
    def computes(self) -> bool:
        """Whether the weight is multiplied as integers, with an activation range that calibration has fixed."""
        return self in (Storage.INTEGER, Storage.FUSED)

    @property
    def measures(self) -> bool:
        """Whether the weight is multiplied as integers, with an activation range that is measured at every run."""
        return self in (Storage.DYNAMIC, Storage.TWO_PARTS)


@dataclass(frozen=True)
class Weight:
    """A constant input stored as integers: ``qtype`` is what kernels compute with, ``stored`` what is in the file.

    ``shift`` is added to codes and zero points, which changes no number: onnxruntime's direct convolution wants zero
    points of 0, so that any other forces it to matrix products. ``padded_input_channels``: input channels of zeros
    that a convolution gets beside its own (see ``ops.padded_input_channels``). ``turned``: whether the node reads the
    transpose of the matrix ``tensor``. ``at_load``: whether the file holds no codes for it: the runtime makes them when
    it loads the model, of floats that something else reads, or of another one's codes (``plan.shared``).
    """

    tensor: str
    node: str
    index: int
    qtype: QType
    granularity: Granularity
    storage: Storage
    stored: WeightFormat = field(default=weight_format("int8"))
    shift: int = 0
    padded_input_channels: int = 0
    turned: bool = False
    at_load: bool = False


@dataclass(frozen=True)
class Bias:
    """A constant bias beside a quantized weight.

    Where the weight's ``storage`` is ``INTEGER`` it becomes int32 with ``scale = input scale * weight scale``; else it
    stays float, and may be corrected.
    """

    tensor: str
    node: str
    index: int
    input: str
    weight_node: str
    storage: Storage = Storage.INTEGER


@dataclass(frozen=True)
class Constant:
    """A constant operand of an integer elementwise node, quantized like an activation."""

    tensor: str
    node: str
    index: int
    qtype: QType


@dataclass(frozen=True)
class Skipped:
    """A node that could carry integers but stays float, and why: in words, and as a code."""

    node: str
    op: str
    reason: str
    code: ReasonCode = ReasonCode.OTHER


@dataclass(frozen=True)
class KeptFloat:
    """Why a node cannot have a fixed activation range, and what its weight may become all the same.

    ``weight``: None leaves it float; ``DYNAMIC`` and ``TWO_PARTS`` fall back to ``PACKED`` for nodes that have no such
    kernel.
    ``reason`` is for the user; what is compared is ``code``.
    """

    reason: str
    weight: Storage | None = None
    code: ReasonCode = ReasonCode.OTHER

    @classmethod
    def of(cls, code: ReasonCode, weight: Storage | None = None, *, why: str = "") -> KeptFloat:
        """That for the reason ``code``; ``why`` as in ``ReasonCode.text``."""
        return cls(code.text(why), weight, code)


@dataclass(frozen=True)
class Plan:
    """What ``emit`` writes. ``integer`` lists the nodes meant for integer kernels, in graph order."""

    points: tuple[Point, ...] = ()
    weights: tuple[Weight, ...] = ()
    biases: tuple[Bias, ...] = ()
    constants: tuple[Constant, ...] = ()
    integer: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unused_rules: tuple[str, ...] = ()
    accuracy_level: int = 0  # of MatMulNBits; 0: the runtime's own choice
    native: bool = False  # whether weights of 4 bits become int4 tensors

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes whose weights are multiplied in integers, with fixed ranges or those of the run."""
        return tuple(dict.fromkeys([*self.anchors, *(w.node for w in self.weights if w.storage.measures)]))

    @property
    def empty(self) -> bool:
        """Whether there is nothing in the model that could be quantized, or nothing was to be."""
        shared = any(s.code is ReasonCode.SHARED_FLOATS for s in self.skipped)
        return not self.anchors and not self.weights and not shared

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the tensors whose values must be seen: those with parameters of their own."""
        return tuple(p.tensor for p in self.points if isinstance(p.source, Own))

    @property
    def roots(self) -> dict[str, str]:
        """By tensor of each point, the tensor whose parameters it has: its own, or the end of the chain of sharing."""
        shared = {p.tensor: p.source.tensor for p in self.points if isinstance(p.source, SharedWith)}
        found: dict[str, str] = {}
        for tensor in dict.fromkeys(p.tensor for p in self.points):
            chain = [tensor]
            while chain[-1] in shared and chain[-1] not in found:  # what shares with another one may come before it
                chain.append(shared[chain[-1]])
            found.update(dict.fromkeys(chain, found.get(chain[-1], chain[-1])))
        return {point.tensor: found[point.tensor] for point in self.points}

    def __str__(self) -> str:
        lines = [f"{len(self.anchors)} weighted and {len(self.integer) - len(self.anchors)} other integer nodes"]
        lines += [
            f"point    {p.tensor}: {p.qtype} {p.source}"
            + (f" <= {p.ceiling:g}" if p.ceiling is not None else "")
            + ("" if p.consumers is None else f" -> {', '.join(p.consumers)}")
            for p in self.points
        ]
        lines += [
            f"weight   {w.node}[{w.index}] {w.tensor}: {w.qtype} {w.granularity} {w.storage.value}"
            + (f", stored as {w.stored}" if w.stored.packed else "")
            + (", transposed" if w.turned else "")
            + (", made at load" if w.at_load else "")
            + (f", zero point {w.shift}" if w.shift else "")
            + (f", input channels of zeros: {w.padded_input_channels}" if w.padded_input_channels else "")
            for w in self.weights
        ]
        lines += [
            f"bias     {b.node}[{b.index}] {b.tensor}" + ("" if b.storage is Storage.INTEGER else ": float")
            for b in self.biases
        ]
        lines += [f"constant {c.node}[{c.index}] {c.tensor}: {c.qtype}" for c in self.constants]
        lines += [f"float    {s.node} ({s.op}): {s.reason}" for s in self.skipped]
        lines += [f"unused   rule {r}" for r in self.unused_rules]
        return "\n".join(lines)

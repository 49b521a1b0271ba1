"""What is written down about an operator: one ``Operator`` each, which everything else asks (``operators``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from onnxq.kernels.costs import Shapes, Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxq.kernels.targets import Target

MICROSOFT = "com.microsoft"
# The domain of ONNX itself and that of onnxruntime's own operators: many stand in both.
BOTH = ("", MICROSOFT)

Kind: TypeAlias = Literal[
    "integer compute", "integer elementwise", "integer movement", "float compute", "quantize", "dequantize", "other"
]


class Role(Enum):
    """What an operator can be in a quantized graph."""

    ANCHOR = "multiplies by a constant weight on integers: what quantization pays for"
    FOLLOWER = "has an integer kernel without weights, for between integer neighbours"
    MOVES = "a follower that copies values, so that its output has the parameters of its input"
    STORED = "stays float, but its weight may be stored as integers"
    FLOAT = "stays float"


class Layout(Enum):
    """What the integer kernel of an operator does with channels last, the layout of integer convolutions."""

    NONE = "ends it"
    STARTS = "computes in it, and hands it on"
    KEEPS = "takes it on from what it reads to what it writes"
    NEEDS = "takes it on, and is slower than float in any other"


class Blocks(Enum):
    """What the float kernel of an operator does with channels in blocks, the layout of float convolutions on x86."""

    NONE = "neither"
    STARTS = "computes in it"
    KEEPS = "takes it on behind what computes in it"


class Arithmetic(Enum):
    """What an elementwise operator of two operands computes."""

    SUM = "sum"
    PRODUCT = "product"


class Gradient(Enum):
    """What onnxruntime-training 1.19.2 differentiates on the CPU: each was tried."""

    NONE = "none"
    SMOOTH = "there is one"
    FLAT = "outputs do not move when inputs move a little: gradients end there, as they should"


class Homogeneous(Enum):
    """Where ``f(s x) = s f(x)`` for ``s > 0``."""

    NUMBERS = "number by number"
    CHANNELS = "channel by channel of a map"


class Arrangement(Enum):
    """How an operator arranges the numbers that it reads anew."""

    VIEW = "in another shape, their order kept"
    TURNED = "with its axes in another order"


@dataclass(frozen=True)
class WeightSlot:
    """Where an operator with weights keeps them: input ``index``, output-channel axis ``axis``, bias input ``bias``.

    ``axis`` is that of the constant that holds the weight (``kernels.held``), which may be its transpose.
    """

    index: int
    axis: int
    bias: int | None


@dataclass(frozen=True)
class Recurrence:
    """A recurrent operator: its ``gates``, the inputs that its ``states`` begin with, its usual ``activations``."""

    gates: int
    states: tuple[int, ...]
    activations: tuple[str, ...]


def always(_: ir.Node) -> bool:
    """True."""
    return True


def never(_: ir.Node, __: Target) -> bool:
    """False."""
    return False


def nothing(_: ir.Node) -> None:
    """None."""


def no_weights(_: ir.Node) -> Mapping[int, tuple[int, ...]]:
    """An empty mapping."""
    return {}


def none_wrong(_: ir.Node) -> tuple[tuple[int, ...], ...]:
    """None."""
    return ()


def _unbroken(_: ir.Node) -> bool:
    return False


def _keeps_blocks(_: ir.Node, __: Shapes, ___: Target) -> bool:
    return False


@dataclass(frozen=True)
class Operator:
    """One operator. What is not said is what holds for one of which nothing is known: it stays float.

    | field               | meaning                                                                                |
    |---------------------|----------------------------------------------------------------------------------------|
    | `name`, `domains`   | `op_type`, and the domains in which it is this operator                                |
    | `role`              | what it can be in a quantized graph                                                    |
    | `kind`              | what a node of the optimised graph is; integer movement: only where it reads codes     |
    | `operands`          | with fewer inputs than that it moves numbers                                           |
    | **weights**         |                                                                                        |
    | `slot`              | where its weight lies, if an integer kernel multiplies by it                           |
    | `obstacle`          | why a node with such a weight cannot run on integers all the same                      |
    | `stored`            | the inputs of a float node that may be stored as integers, and the axes with one scale each |
    | `gathered`          | whether it reads rows of its weight, so that only these are dequantized                |
    | `dynamic`           | whether there is an integer kernel, and a faster one, that measures ranges at every run |
    | `kernel_to_float`   | the integer kernel that writes floats and takes a float bias                           |
    | `direct`            | whether there are two integer kernels: a direct one, and matrix products               |
    | `between_codes`     | whether its integer kernel goes from codes to codes: what it reads and writes is there as codes for others. A matrix product may write floats |
    | `rounded_at_load`   | where onnxruntime may quantize its float weight by itself when it loads a model: from the shape of the weight, axis and number of the channels that the node reads; None: not there |
    | `recurrence`        | what it is made of if it is recurrent                                                  |
    | `misshapen`         | the shapes of the constant weights of a node, where the operator cannot have such; none elsewhere |
    | **followers**       |                                                                                        |
    | `kernels`           | its integer kernels in the optimised graph                                             |
    | `fast_on`           | names of the targets where these are at least as fast as float; None: all. Elsewhere costs alone choose them |
    | `fits`              | whether the attributes of a node are such that there is an integer kernel              |
    | `data`              | the inputs that carry activations (not shapes, axes or conditions); None: all          |
    | `constants`         | whether a constant operand may be quantized like an activation                         |
    | `broadcasts`        | whether an operand may be one number a channel next to a map, cheap to quantize        |
    | `joins`             | whether it puts its operands together: it may quantize them, and requantizes those of other parameters |
    | `all_outputs`       | whether every output is quantized, not the first alone                                 |
    | **activations**     |                                                                                        |
    | `takes_activation`  | whether its integer kernel takes in the activation behind it                           |
    | `ceiling`           | the end that codes of its output must not pass; `inf`: none, but they begin at 0       |
    | `absorbed`          | whether a quantizer with zero point `qmin` that keeps to `ceiling` replaces it exactly |
    | `free_in_float`     | whether the float kernel in front takes it in at no cost                               |
    | `arithmetic`        | what it computes of two operands                                                       |
    | `line`              | slope and offset of ``clip(a x + b, 0, 1)``, where that is what it computes            |
    | `gate`              | whether it is the gate ``g`` of activations ``x g(x)``                                 |
    | **layouts**         |                                                                                        |
    | `layout`, `blocks`  | what its integer kernel does with channels last, its float kernel with blocks          |
    | `breaks_blocks`     | whether a float node needs the channels of its map one after the other                 |
    | `fused_in_float`    | whether a float kernel in front takes the node in                                      |
    | `breaks_between_integers` | whether onnxruntime makes an invalid or another node of a float node that reads what integer ones make |
    | `propagates`        | whether onnxruntime moves a quantizer from behind it to the front                      |
    | `changes_layout`    | whether onnxruntime puts it in to change layouts                                       |
    | **costs**           |                                                                                        |
    | `work`              | which kernel of a cost table it needs and how much of it; None: unknown. Where it has none to say: `name`, by elements of the output |
    | **equalization**    |                                                                                        |
    | `homogeneous`       | which factors pass through it                                                          |
    | `arrangement`       | how it arranges numbers, if that is all that it does                                   |
    | `channel_inputs`    | the inputs with one number a channel that multiply and shift its output                |
    | **training**        |                                                                                        |
    | `gradient`          | what onnxruntime-training makes of it                                                  |
    | `gradient_if`       | whether there is that gradient for a node                                              |
    | `gradient_outputs`  | the outputs, beside the first, that its gradient reads                                 |
    | **runtime**         |                                                                                        |
    | `stays_8_bit`       | whether an integer kernel writes 8-bit codes                                           |
    | `output_zero_point` | the input without which it writes floats all the same                                  |
    """  # noqa: E501 - a table

    name: str
    domains: tuple[str, ...] = ("",)
    role: Role = Role.FLOAT
    kind: Kind = "other"
    operands: int = 1
    slot: Callable[[ir.Node], WeightSlot] | None = None
    obstacle: Callable[[ir.Node], str | None] = nothing
    stored: Callable[[ir.Node], Mapping[int, tuple[int, ...]]] = no_weights
    gathered: bool = False
    dynamic: Callable[[ir.Node, Target], bool] = never
    kernel_to_float: str | None = None
    direct: bool = False
    between_codes: bool = False
    rounded_at_load: Callable[[ir.Node, tuple[int, ...]], tuple[int, int] | None] | None = None
    recurrence: Recurrence | None = None
    misshapen: Callable[[ir.Node], tuple[tuple[int, ...], ...]] = none_wrong
    kernels: tuple[str, ...] = ()
    fast_on: frozenset[str] | None = None
    fits: Callable[[ir.Node], bool] = always
    data: tuple[int, ...] | None = (0,)
    constants: bool = False
    broadcasts: bool = False
    joins: bool = False
    all_outputs: bool = False
    takes_activation: bool = False
    ceiling: Callable[[ir.Node], float | None] = nothing
    absorbed: bool = False
    free_in_float: bool = False
    arithmetic: Arithmetic | None = None
    line: Callable[[ir.Node], tuple[float, float]] | None = None
    gate: bool = False
    layout: Layout = Layout.NONE
    blocks: Blocks = Blocks.NONE
    breaks_blocks: Callable[[ir.Node, Shapes, Target], bool] = _keeps_blocks
    fused_in_float: Callable[[ir.Node], bool] | None = None
    breaks_between_integers: Callable[[ir.Node], bool] = _unbroken
    propagates: bool = False
    changes_layout: bool = False
    work: Callable[[ir.Node, Shapes, Target], Work | None] | None = None
    homogeneous: Homogeneous | None = None
    arrangement: Arrangement | None = None
    channel_inputs: tuple[int, ...] = ()
    gradient: Gradient = Gradient.NONE
    gradient_if: Callable[[ir.Node], bool] = always
    gradient_outputs: tuple[str, ...] = ()
    stays_8_bit: bool = False
    output_zero_point: int | None = None

    @property
    def follows(self) -> bool:
        """Whether it has an integer kernel without weights."""
        return self.role in (Role.FOLLOWER, Role.MOVES)

    @property
    def moves_data(self) -> bool:
        """Whether it copies values without changing them, so that output and input share parameters."""
        return self.role is Role.MOVES

    @property
    def keeps_channels_last(self) -> bool:
        """Whether it takes the layout of integer convolutions on from what it reads to what it writes."""
        return self.layout in (Layout.KEEPS, Layout.NEEDS)

    @property
    def quantized(self) -> bool:
        """Whether only quantized models have it."""
        return self.kind in ("integer compute", "integer elementwise", "quantize", "dequantize")

    @property
    def converts(self) -> bool:
        """Whether it goes between floats and codes."""
        return self.kind in ("quantize", "dequantize")

    @property
    def computes(self) -> bool:
        """Whether it is a convolution, a matrix product or the like, on floats or integers."""
        return self.kind in ("integer compute", "float compute")

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer of a float model with weights to quantize or store, embeddings left out."""
        return self.kind == "float compute" and self.role in (Role.ANCHOR, Role.STORED)

    def fast(self, target: Target) -> bool:
        """Whether its integer kernel without weights is at least as fast as the float one on ``target``."""
        return self.fast_on is None or target.name in self.fast_on

"""What it says of numbers that an operator made them: probabilities, vectors of length 1, parts of a sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Meaning(Enum):
    """What the output of an operator is by its definition; the value is the text of a reason."""

    DISTRIBUTION = "probabilities that sum to 1"
    LOG_DISTRIBUTION = "logarithms of probabilities"
    PROBABILITY = "independent probabilities"
    NOT_NEGATIVE = "numbers that are never negative"
    UNIT = "vectors of length 1"
    NORMALIZED = "normalized vectors"
    MEAN = "means over places"
    BOUNDED = "numbers within bounds"
    LINEAR = "sums of products"
    LARGER = "an enlarged map"
    CHOICE = "indices or choices"
    ROUNDED = "rounded numbers"
    OTHER = ""


# What moves, scales or stores numbers: what they are is what their first input is.
_PASSES = (
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat"),
    *("Pad", "Expand", "Tile", "Gather", "Dropout", "QuantizeLinear", "DequantizeLinear"),
)
# The same where the other operand is a constant.
_PASSES_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")
_MEANINGS: Mapping[str, Meaning] = {
    "Softmax": Meaning.DISTRIBUTION,
    "LogSoftmax": Meaning.LOG_DISTRIBUTION,
    "Sigmoid": Meaning.PROBABILITY,
    "HardSigmoid": Meaning.PROBABILITY,
    "Relu": Meaning.NOT_NEGATIVE,
    "Softplus": Meaning.NOT_NEGATIVE,
    "LpNormalization": Meaning.UNIT,
    "LayerNormalization": Meaning.NORMALIZED,
    "SkipLayerNormalization": Meaning.NORMALIZED,
    "RMSNormalization": Meaning.NORMALIZED,
    "SimplifiedLayerNormalization": Meaning.NORMALIZED,
    "BatchNormalization": Meaning.NORMALIZED,
    "GlobalAveragePool": Meaning.MEAN,
    "ReduceMean": Meaning.MEAN,
    "Tanh": Meaning.BOUNDED,
    "Clip": Meaning.BOUNDED,
    "Gemm": Meaning.LINEAR,
    "MatMul": Meaning.LINEAR,
    "Conv": Meaning.LINEAR,
    "ConvTranspose": Meaning.LARGER,
    "DepthToSpace": Meaning.LARGER,
    "Resize": Meaning.LARGER,
    "ArgMax": Meaning.CHOICE,
    "TopK": Meaning.CHOICE,
    "Round": Meaning.ROUNDED,
    "Ceil": Meaning.ROUNDED,
    "Floor": Meaning.ROUNDED,
}


def meaning(name: str) -> Meaning:
    """That of the operator ``name``."""
    return _MEANINGS.get(name, Meaning.OTHER)


def passes(name: str, *, constant: bool) -> bool:
    """Whether the operator ``name`` leaves what numbers are; ``constant``: whether all inputs but one are constants."""
    return name in _PASSES or (constant and name in _PASSES_WITH_CONSTANT)


@dataclass(frozen=True)
class Head:
    """What stands behind an output: its operator, what that means, and how many tokens the model's inputs choose from.

    ``tokens``: the rows of tables that integer inputs are looked up in.
    """

    op: str = ""
    meaning: Meaning = Meaning.OTHER
    tokens: frozenset[int] = frozenset()

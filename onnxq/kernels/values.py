"""What operators do with the values, not the sizes, of their inputs."""

from __future__ import annotations

# What makes integers of integers; what reads those decides.
PASS_ON = frozenset(
    {
        *("Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Slice", "Expand", "Gather"),
        *("Add", "Sub", "Mul", "Neg", "Abs", "Min", "Max", "Clip", "Not", "And", "Or", "Xor", "Equal", "Greater"),
        *("Less", "GreaterOrEqual", "LessOrEqual", "Where", "Cast"),
    }
)
# Of those, the first of their inputs that are sizes and axes.
FIRST_SIZE = {"Unsqueeze": 1, "Squeeze": 1, "Reshape": 1, "Slice": 1, "Expand": 1}
# By operator, the inputs whose values pick rows or are looked at, whatever they are; None: all of them.
PICKED: dict[str, tuple[int, ...] | None] = {
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "EmbedLayerNormalization": None,
    "Shape": None,
    "Size": None,
    "Where": (0,),
    "ArgMax": (0,),
    "ArgMin": (0,),
}
# The output of these has a size that values of their inputs decide, and that nothing else bounds.
SIZED_BY_VALUES = frozenset(
    {
        *("CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "EyeLike", "MaxUnpool", "OneHot", "Pad", "Range"),
        *("Resize", "Tile", "Upsample"),
    }
)

"""Why a node stays float, as codes: what is compared is the code, what is shown is its text."""

from __future__ import annotations

from enum import Enum


class ReasonCode(Enum):
    """Why a node has no fixed activation range; ``TEXTS`` says each in words."""

    RULE = "rule"
    LOOP_BODY = "loop_body"
    OBSTACLE = "obstacle"
    WEIGHTS_ONLY = "weights_only"
    NOT_WORTH_IT = "not_worth_it"
    NEVER_REACHED = "never_reached"
    RANGE_UNKNOWN = "range_unknown"
    MASK = "mask"
    RUNTIME_KERNEL = "runtime_kernel"
    UNRUNNABLE = "unrunnable"
    EQUALIZES = "equalizes"
    ACCURACY = "accuracy"
    TWO_PARTS = "two_parts"
    FILE_NOT_SMALLER = "file_not_smaller"
    SLOWER_THAN_FLOAT = "slower_than_float"
    NO_FASTER_KERNEL = "no_faster_kernel"
    STORED_ONLY = "stored_only"
    QUANTIZED_ALONE = "quantized_alone"
    SHARED_FLOATS = "shared_floats"
    OTHER = "other"  # whoever kept the node float says why in words only

    def text(self, why: str = "") -> str:
        """The reason in words; ``why``: the rule, obstacle or kernel that it names."""
        return TEXTS[self].format(why=why)


TEXTS = {
    ReasonCode.RULE: "kept float by rule '{why}'",
    ReasonCode.LOOP_BODY: "inside a Loop or Scan body, where calibration fixes no range",
    ReasonCode.OBSTACLE: "{why}",
    ReasonCode.WEIGHTS_ONLY: "only weights are quantized (activations = none)",
    ReasonCode.NOT_WORTH_IT: "integers would not pay here, conversions counted",
    ReasonCode.NEVER_REACHED: "the calibration data never reached it (a branch that did not run)",
    ReasonCode.RANGE_UNKNOWN: "without calibration data the range of its input is unknown",
    ReasonCode.MASK: "what it reads or writes holds infinity, or numbers that stand for it: a mask has no range",
    ReasonCode.RUNTIME_KERNEL: "the runtime keeps it in a float kernel ({why})",
    ReasonCode.UNRUNNABLE: "onnxruntime cannot run it on integers: {why}",
    ReasonCode.EQUALIZES: "{why}",
    ReasonCode.ACCURACY: "float fallback: on integers it cost too much accuracy",
    ReasonCode.TWO_PARTS: "on integers, with its input in two parts of 8 bits, which is more accurate than one",
    ReasonCode.FILE_NOT_SMALLER: "storing its weight as integers does not make the file smaller",
    ReasonCode.SLOWER_THAN_FLOAT: "its integer kernel made the model slower than float on this machine",
    ReasonCode.NO_FASTER_KERNEL: "onnxruntime has no integer kernel that is faster",
    ReasonCode.STORED_ONLY: "onnxruntime has no integer kernel that is faster; its weights are stored as int8",
    ReasonCode.QUANTIZED_ALONE: "another layer is quantized alone",
    ReasonCode.SHARED_FLOATS: "its weight is stored once, as the floats that '{why}' reads",
    ReasonCode.OTHER: "{why}",
}

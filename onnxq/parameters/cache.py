"""Parameters that were chosen, kept under all that decides them; who finds one finds what choosing anew would give."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.files.scratch import Scratch
from onnxq.numerics import Granularity, QType, QuantParams
from onnxq.plan.types import Bias
from onnxq.ranges.moments import Moments
from onnxq.weights import StoredWeight, WeightFormat

F32 = npt.NDArray[np.float32]

# The scale that a weight has is its own, whatever room biases needed, where it is so many times larger than that room
# asks for: restoring the gain raises a scale by 6 at most while the output correlates by half with the float one.
_CLEARLY = 16.0


@dataclass(frozen=True)
class CodesKey:
    """All that decides the codes of a weight, beside the room for biases.

    ``model`` and ``nodes``: what they are weights of, by identity; ``moments``: of what each of the nodes multiplies
    them with, by identity too. ``made_of``: the weight whose values they round, where those are not the model's.
    """

    model: ir.Model
    nodes: tuple[tuple[str, int], ...]
    moments: tuple[Moments, ...]
    tensor: str
    granularity: Granularity
    stored: WeightFormat
    qtype: QType
    method: str
    objective: str
    restore: str
    rounding: str
    at_load: bool
    made_of: StoredWeight | None


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight in integers, made with room for biases down to the scales ``least``; and what biases become by it."""

    quantized: StoredWeight
    least: F32
    biases: dict[tuple[Bias, ...], dict[tuple[str, int], F32]] = field(default_factory=dict)

    def serves(self, least: F32) -> bool:
        """Whether the same would have been made with room down to ``least``."""
        if np.array_equal(self.least, least):
            return True
        return bool((self.quantized.params.scale > _CLEARLY * np.maximum(self.least, least)).all())


@dataclass(frozen=True, eq=False)
class ParameterCache:
    """``tensors``: by what decides them; ``scratch`` holds codes."""

    scratch: Scratch = field(default_factory=Scratch)
    tensors: dict[Hashable, QuantParams] = field(default_factory=dict)
    _codes: dict[CodesKey, list[Codes]] = field(default_factory=dict)

    def find(self, key: CodesKey, least: F32) -> Codes | None:
        """The codes under ``key`` with room down to ``least``; None where there are none."""
        return next((codes for codes in self._codes.get(key, ()) if codes.serves(least)), None)

    def keep(self, key: CodesKey, codes: Codes) -> None:
        """Remembers ``codes`` under ``key``."""
        self._codes.setdefault(key, []).append(codes)

"""Rules: how single nodes run, whatever is right for the others."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxq.config.formats import format_name
from onnxq.errors import ConfigError

PRECISIONS = ("auto", "int8", "int8-gemm", "int8-two-parts", "stored", "float")


@dataclass(frozen=True)
class Rule:
    """How nodes run whose name or operator type matches ``match`` (shell wildcards).

    ``int8``: on integers, whatever that costs; where the kernel of an operator without weights is slower than float
    (AveragePool, Softmax, Where), only if the rule names the node itself. ``int8-gemm``: the same, a convolution by
    matrix products. ``int8-two-parts``: a product or an LSTM on integers with its input rounded in two parts of 8 bits,
    ranges measured at every run; what has no such kernel is ``stored``. ``stored``: in float, weights stored as
    integers. ``float``: as in the float model. ``weights`` names a weight format (see ``onnxq.config.formats``) instead
    of ``Config.weights``; a rule that gives one and no precision leaves where things run to the placement.
    """

    match: str
    precision: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", "auto" if self.weights else "float")
        if self.weights:
            format_name(self.weights)
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"rule '{self.match}': precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'"
            )

    @classmethod
    def of(cls, name: str, precision: str) -> Rule:
        """The rule for the node called ``name`` alone."""
        return cls(glob.escape(name), precision)

    def names(self, name: str) -> bool:
        """Whether the rule speaks of the node called ``name`` alone."""
        return self.match == glob.escape(name)

    def matches(self, name: str, op_type: str) -> bool:
        """Whether the rule speaks of a node called ``name`` of type ``op_type``."""
        return fnmatchcase(name, self.match) or fnmatchcase(op_type, self.match)

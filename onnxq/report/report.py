"""The report of one quantization: what it cost and what it gained. One value; table and JSON are two prints of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxq.measure.assignment import KernelAssignment
from onnxq.measure.certainty import Certainty
from onnxq.measure.compare import Comparison
from onnxq.measure.kernels import KernelMap
from onnxq.measure.latency import LatencyReport
from onnxq.measure.layers import LayerNoise
from onnxq.measure.metric import MetricComparison
from onnxq.measure.size import ModelSize
from onnxq.report.curve import CurvePoint
from onnxq.runtime.plain import plain


@dataclass(frozen=True)
class LeftFloat:
    """A compute node that does not run on integers: the float operator ``kernel`` it ended in, and why.

    ``code``: that of the reason, which no wording changes.
    """

    node: str
    op: str
    kernel: str | None
    reason: str
    code: str = ""


@dataclass(frozen=True)
class Trial:
    """A candidate of tuning: its time over that of the best before it, ``ratio``, with its 95 % interval; geometric
    means over the numbers of threads. ``kept``: whether it became the best.
    """

    what: str
    ratio: float
    low: float
    high: float
    kept: bool


@dataclass(frozen=True)
class Step:
    """One step of an adaptation: its measure on held-out samples, before and after it.

    Noise at the outputs by their energy, or the cross-entropy of labels.

    ``kept``: whether it became part of the result. ``curve``: of training: step, loss on the samples trained on, loss
    on those held out. ``code``: what a checkpoint knows the step by, whatever ``what`` calls it.
    """

    what: str
    before: float
    after: float
    kept: bool
    seconds: float
    curve: tuple[tuple[int, float, float], ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Refit:
    """A layer adapted in closed form: the ridge taken, and the energy of its output's error by that of its target,
    before and after: with the float weight on the noisy input, and with the adapted and rounded one.
    """

    node: str
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class Adaptation:
    """How weights were adapted to noise: the ``level``, its steps in order, and the layers refitted in closed form.

    ``measure``: what the steps were judged by: ``noise`` or, with labels, ``cross-entropy`` in nats.
    """

    level: str
    steps: tuple[Step, ...] = ()
    layers: tuple[Refit, ...] = ()
    notes: tuple[str, ...] = ()
    measure: str = "noise"

    @property
    def kept(self) -> bool:
        """Whether anything came of it."""
        return any(step.kept for step in self.steps)


@dataclass(frozen=True)
class LayerBits:
    """The weight format that a layer was given by its sensitivity: bytes of the weight in the file, and the noise that
    it makes at the outputs by itself, by energy."""

    node: str
    stored: str
    nbytes: int
    noise: float


@dataclass(frozen=True)
class Report:
    """What is known of a quantized model beside its float ``source``; parts that were not measured are None or empty.

    ``latency``: the float model first, the quantized one second. ``assignments``: of the compute nodes of the *result*.
    ``reasons``: why a node was left float, by node name or, for unnamed nodes, by first output name; where it says
    nothing, the cause found in the graph stands; ``reason_codes``: the codes of these.
    ``provenance``: versions, options, data, as text. ``tuning``: the candidates that were timed. ``adaptation``: None
    where none was asked for. ``bits``: where they were given by sensitivity. ``metric``: what the user's own measure
    says; ``certainties``: how sure is what was promised of counted decisions. ``curve``: the candidates between
    integers and float that were built where too much was lost.
    """

    source: ModelSize
    result: ModelSize
    comparison: Comparison | None = None
    metric: MetricComparison | None = None
    certainties: tuple[Certainty, ...] = ()
    latency: LatencyReport | None = None
    kernels: KernelMap | None = None
    assignments: tuple[KernelAssignment, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    reason_codes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    tuning: tuple[Trial, ...] = ()
    adaptation: Adaptation | None = None
    bits: tuple[LayerBits, ...] = ()
    curve: tuple[CurvePoint, ...] = ()

    @property
    def integer(self) -> tuple[KernelAssignment, ...]:
        """The compute nodes that run on integers."""
        return tuple(assignment for assignment in self.assignments if assignment.integer)

    @property
    def left_float(self) -> tuple[LeftFloat, ...]:
        """The compute nodes that do not, each with its reason."""
        return tuple(
            LeftFloat(f.node or f.output, f.op, f.kernel, *self._reason(f)) for f in self.assignments if not f.integer
        )

    def _reason(self, assignment: KernelAssignment) -> tuple[str, str]:
        name = assignment.node or assignment.output
        if name in self.reasons:
            return self.reasons[name], self.reason_codes.get(name, "")
        return assignment.why, "" if assignment.code is None else assignment.code.value

    @property
    def smaller(self) -> float:
        """How many times smaller the result is on disk."""
        return self.source.file_bytes / max(self.result.file_bytes, 1)

    @property
    def slower(self) -> bool:
        """Whether the quantized model was timed and is slower than the float one, beyond doubt (``LatencyReport``)."""
        return self.latency is not None and self.latency.slower

    @property
    def sqnr_db(self) -> float | None:
        """Model SQNR in dB (see ``Comparison.sqnr_db``)."""
        return None if self.comparison is None else self.comparison.sqnr_db

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            **plain(self),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "metric": None if self.metric is None else self.metric.to_dict(),
            "certainties": [certainty.to_dict() for certainty in self.certainties],
            "kernels": None if self.kernels is None else self.kernels.to_dict(),
            "fates": plain(self.assignments),  # its name until 0.2
            "left_float": plain(self.left_float),
            "smaller": self.smaller,
            "slower": self.slower,
            "unsure": self.latency is not None and bool(self.latency.unsure),
            "sqnr_db": plain(self.sqnr_db),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """As JSON text; NaN and infinity are null."""
        import json

        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

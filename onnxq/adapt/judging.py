"""What adapted parameters lose on held-out samples: noise at the outputs or, with labels, nats a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.labels import Labels, cross_entropy
from onnxq.adapt.simulation import simulated
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.references import Lost, References, references
from onnxq.parameters.choose import Parameters
from onnxq.plan import Plan
from onnxq.runtime.session import open_session, run

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


@dataclass(frozen=True)
class OutputLoss:
    """Judges parameters for ``plan`` of ``model`` on the batches ``check``; ``seen``: what float makes of them."""

    model: ir.Model
    plan: Plan
    check: Sequence[Feed]
    labels: Labels | None
    folder: Path
    seen: References

    @classmethod
    def of(cls, model: ir.Model, plan: Plan, check: Sequence[Feed], labels: Labels | None, folder: Path) -> OutputLoss:
        """That by ``check``, on which the float ``model`` is run at once."""
        return cls(model, plan, check, labels, folder, references(to_runtime(model, folder), check))

    def of_parameters(self, parameters: Parameters) -> Lost:
        """What is lost; with labels nats a label, which say all there is to say."""
        model = simulated(self.model, self.plan, parameters)
        if self.labels is None:
            return self.seen.measured_once(to_runtime(model, self.folder))
        return Lost(cross_entropy(outputs_of(model, self.check, self.folder), self.labels.check), 0.0)


def outputs_of(model: ir.Model, feeds: Iterable[Feed], folder: Path) -> list[dict[str, Array]]:
    """By name, what ``model`` makes of each of ``feeds``; ``folder`` is for scratch."""
    session = open_session(to_runtime(model, folder))
    names = [v.name or "" for v in model.graph.outputs]
    return [dict(zip(names, run(session, feed), strict=True)) for feed in feeds]

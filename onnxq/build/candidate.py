"""A candidate, and what is built of it: frozen values that can be compared, kept and changed with ``replace``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.config import Config
from onnxq.measure.assignment import KernelAssignment
from onnxq.measure.kernels import KernelMap
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, Plan, ReasonCode
from onnxq.plan.place import Placement


@dataclass(frozen=True, eq=False)
class Watch:
    """How the tensors of a graph are seen.

    ``model``: what is run for that (None: the graph itself). ``trusted``: the names of the tensors whose values can be
    believed (None: all). ``unseen``: why nodes stay float whose tensors were not seen.
    """

    model: ir.Model | None = None
    trusted: frozenset[str] | None = None
    unseen: ReasonCode = ReasonCode.NEVER_REACHED

    def believes(self, tensor: str) -> bool:
        """Whether values of ``tensor`` count."""
        return self.trusted is None or tensor in self.trusted


@dataclass(frozen=True, eq=False)
class Candidate:
    """Everything that decides what a quantized model is, beside the data; ``build`` is a function of it.

    | field          | meaning                                                                                     |
    |----------------|---------------------------------------------------------------------------------------------|
    | `graph`        | the prepared float model                                                                    |
    | `config`       | the choices it is built with: not always those that the user made (see ``search``)          |
    | `placement`    | what costs decided                                                                          |
    | `fixed`        | nodes that stay float whatever costs and accuracy say: they prepare what is rounded, or the |
    |                | runtime cannot run them                                                                     |
    | `kept`         | nodes that stay float beside these: what an earlier candidate showed to be too noisy, slow  |
    | `extrapolated` | whether ranges are made for samples that are yet to come                                    |
    | `learned`      | parameters that adaptation found; they hold whatever the configuration says                 |
    | `watch`        | how its tensors are seen                                                                    |
    """

    graph: ir.Model
    config: Config
    placement: Placement = field(default_factory=Placement)
    fixed: Mapping[str, KeptFloat] = field(default_factory=dict)
    kept: Mapping[str, KeptFloat] = field(default_factory=dict)
    extrapolated: bool = False
    learned: Parameters | None = None
    watch: Watch = field(default_factory=Watch)

    @property
    def keep_float(self) -> dict[str, KeptFloat]:
        """All nodes that stay float, and why."""
        return {**self.placement.keep_float, **self.fixed, **self.kept}

    @property
    def watched(self) -> ir.Model:
        """The model that is run to see tensors."""
        return self.graph if self.watch.model is None else self.watch.model

    @property
    def unrunnable(self) -> dict[str, KeptFloat]:
        """The nodes among ``fixed`` that onnxruntime was seen to be unable to run on integers."""
        return {name: kept for name, kept in self.fixed.items() if kept.code is ReasonCode.UNRUNNABLE}

    def keeping(self, more: Mapping[str, KeptFloat]) -> Candidate:
        """The same with these nodes kept float instead of ``kept``."""
        return replace(self, kept=more)


@dataclass(frozen=True, eq=False)
class Draft:
    """A quantized model that the runtime has not been asked about; ``runtime_model``: as the runtime loads it."""

    plan: Plan
    parameters: Parameters
    model: ir.Model
    runtime_model: bytes | Path


@dataclass(frozen=True, eq=False)
class Built(Draft):
    """A quantized model whose planned kernels are confirmed; ``kept_float``: all nodes that had to be given up."""

    kernels: KernelMap
    assignments: tuple[KernelAssignment, ...]
    kept_float: Mapping[str, KeptFloat]

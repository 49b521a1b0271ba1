"""A candidate of a toy, and all that building others like it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.build.build import Context, build, draft, statistics
from onnxq.build.candidate import Built, Candidate, Draft, Watch
from onnxq.calibrate.runner import Feeds, Statistics
from onnxq.config import Config
from onnxq.kernels.targets import Target
from onnxq.plan import KeptFloat
from onnxq.plan.place import Placement


@dataclass(frozen=True)
class Bench:
    """Builds what ``candidate`` is with more nodes kept float; ``context`` sees each tensor once."""

    candidate: Candidate
    context: Context

    @property
    def prepared(self) -> ir.Model:
        """The float graph."""
        return self.candidate.graph

    @property
    def config(self) -> Config:
        """The choices."""
        return self.candidate.config

    def build(self, kept: Mapping[str, KeptFloat] | None = None) -> Built:
        """The candidate with ``kept`` float."""
        return build(self.candidate.keeping(kept or {}), self.context)

    def draft(self, kept: Mapping[str, KeptFloat] | None = None) -> Draft:
        """The same without asking the runtime."""
        return draft(self.candidate.keeping(kept or {}), self.context)

    def statistics(self, made: Draft) -> Statistics:
        """What was seen for the plan of ``made``."""
        return statistics(self.candidate, self.context, made.plan)

    def extrapolated(self) -> Bench:
        """The same with ranges for samples that are yet to come."""
        return Bench(replace(self.candidate, extrapolated=True), self.context)


def bench(
    model: ir.Model,
    config: Config,
    target: Target,
    feeds: Feeds,
    folder: Path,
    *,
    placement: Placement | None = None,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Bench:
    """That of ``model``, quantized as ``config`` says on ``feeds``."""
    candidate = Candidate(model, config, placement or Placement(), watch=watch or Watch())
    return Bench(candidate, Context.of(target, feeds, folder, progress=progress))

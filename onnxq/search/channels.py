"""Strategies about channels and rounding: equalize before anything is built, and more where accuracy fell short."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from onnxq.build.candidate import Candidate
from onnxq.calibrate.feeds import Feed
from onnxq.config import AUTO
from onnxq.equalize import Equalized, Terms, equalized
from onnxq.kernels.targets import target_of
from onnxq.plan import KeptFloat, ReasonCode, make_plan
from onnxq.plan.place import Placement
from onnxq.query import nodes
from onnxq.search.attempt import Attempt, Job, Search

# Samples that show how large channels are: the fewest, the most, and the elements of activations that they may have.
_EQUALIZED_SAMPLES = (32, 256)
_EQUALIZED_ELEMENTS = 1 << 30


def equalized_for(job: Job, placement: Placement, feed: Feed, *, costly: bool) -> Equalized:
    """The prepared model with channels equalized for the plan that ``placement`` leads to."""
    config, model = job.asked, job.prepared
    if config.equalize == "none":
        return Equalized(model)
    job.tell("equalize", 0, None)
    kept, force_gemm = placement.keep_float, placement.force_gemm
    slower = placement.slower
    plan = make_plan(model, config, target_of(config), keep_float=kept, force_gemm=force_gemm, slower=slower)
    # What a rule keeps float keeps its weights too.
    untouched = {n.name or "" for n in nodes(model) if config.precision_of(n.name or "", n.op_type) == "float"}
    fewest, most = _EQUALIZED_SAMPLES
    few = feed.limit(min(most, max(fewest, _EQUALIZED_ELEMENTS // max(1, _elements(model)))))
    return equalized(
        model,
        plan,
        few,
        method=config.activation_range,
        terms=Terms(untouched, costly, config.simulated),
        feeds_hint=few.len_hint,
        scratch=job.scratch,
    )


def stays_float(equal: Equalized) -> dict[str, KeptFloat]:
    """What equalizing added: it prepares what is rounded behind it."""
    return {name: KeptFloat.of(ReasonCode.EQUALIZES, why=why) for name, why in equal.added.items()}


def equalized_more_and_rounded_together(search: Search, attempt: Attempt) -> Attempt | None:
    """What is tried before layers fall back to float: a pass over some tensors, and all weights rounded together.

    The former costs some speed, the latter time and memory for layers with many inputs. None where there is nothing
    more to be tried.
    """
    job, candidate = search.job, attempt.candidate
    config = candidate.config
    if config.activations != "uint8" or job.asked.weights == AUTO or search.samples is None:
        return None
    costly = config.equalize != "none"
    equal = equalized_for(job, candidate.placement, search.samples.calibration, costly=costly)
    rounding = "compensated" if config.rounding == "auto" else config.rounding
    if not equal.costs and (rounding == config.rounding or not config.guarded):
        return None
    harder = Candidate(
        equal.model,
        replace(config, rounding=rounding),
        candidate.placement,
        fixed={**candidate.unrunnable, **stays_float(equal)},
        extrapolated=candidate.extrapolated,
        watch=candidate.watch,
    )
    return replace(attempt, equalized=equal).of(harder)


def _elements(model: ir.Model) -> int:
    """What all nodes write for one sample, as far as shapes are known; open dimensions count as 1."""
    shapes = (v.shape for node in nodes(model) for v in node.outputs if v.shape is not None)
    return sum(math.prod(d for d in shape if isinstance(d, int)) for shape in shapes)

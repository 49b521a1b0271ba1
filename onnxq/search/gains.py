"""Strategies that keep two promises: the file is never larger, and the model never slower, for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from onnxq.build.candidate import Built
from onnxq.config import Config
from onnxq.emit.short_names import shorten
from onnxq.graph.copying import copy_model
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.assignment import assignments
from onnxq.measure.kernels import KernelMap, kernel_map
from onnxq.measure.latency import benchmark
from onnxq.measure.size import model_size
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage
from onnxq.query import nodes, values_by_name
from onnxq.report.provenance import metadata
from onnxq.search.acceptance import slower, smaller_file
from onnxq.search.attempt import Attempt, Search
from onnxq.search.timing import thread_counts

BUSY_MACHINE = (
    "this machine was busy: threads waited {share:.0%} of the time for a core, so that times with several threads are "
    "unsure and decide nothing; those with one thread are processor time"
)
# In files below the first, of a few small layers, the quantizers of each node on integers may take so much beyond what
# weights save: what they buy is speed.
SMALL_FILE = 32 << 10
QUANTIZER_BYTES = 1 << 10

# Bytes of a metadata entry beside its text.
_ENTRY = 32


def described_bytes(search: Search, attempt: Attempt, config: Config, plan: Plan) -> int:
    """What the file of ``attempt`` is going to grow by, built by ``plan``: the entry that says how it was made."""
    return _ENTRY + len(metadata(config, search.described, plan, attempt.equalized.steps))


_SLOWER = (
    "integer kernels made this model slower on this machine: weights are stored as integers, and those "
    "layers compute in float"
)


_SLOW_BLOCKS = (
    "4-bit kernels made this model slower on this machine with these samples: with activations in float the file and "
    "the memory are smaller, not the time; int8 and w4a8 compute on integers"
)


def never_larger(search: Search, attempt: Attempt) -> Attempt | None:
    """The model in float, or just as it was given, where the file would be no smaller and nothing is faster for it."""
    if _small_enough(search, attempt):
        return None
    attempt = _with_short_names(search, attempt)
    if _small_enough(search, attempt):
        return attempt
    plan, reason = attempt.built.plan, KeptFloat.of(ReasonCode.FILE_NOT_SMALLER)
    found = _rebuilt(search, attempt, [*(w.node for w in plan.weights), *plan.layers], reason)
    if found.built.plan.weights:  # what a rule wants stored is stored
        return None
    found = found.noting(
        "nothing can be gained: no layer is left that integers would speed up, and the file would not be smaller"
    )
    # What the runtime cannot run as it was given (bfloat16) is not given back like that.
    runs = search.job.source is search.job.reference
    return found if _small_enough(search, found) or not runs else as_given(search, found)


def _small_enough(search: Search, attempt: Attempt) -> bool:
    """Whether the file is smaller than the one that was given, or no larger and nothing in it is quantized."""
    plan, given = attempt.built.plan, model_size(search.job.source).file_bytes
    size = model_size(attempt.built.runtime_model).file_bytes
    described = described_bytes(search, attempt, attempt.candidate.config, plan)
    if plan.layers and given < SMALL_FILE:
        return smaller_file(size, given + QUANTIZER_BYTES * len({*plan.integer, *plan.layers}))
    return smaller_file(size + described, given if plan.weights else given + 1)


def _with_short_names(search: Search, attempt: Attempt) -> Attempt:
    """``attempt`` with short names for what quantizing added."""
    built, model, prepared = attempt.built, copy_model(attempt.built.model), attempt.candidate.graph
    shorten(model, {*values_by_name(prepared), *(n.name or "" for n in nodes(prepared))})
    runtime_model = to_runtime(model, search.job.folder)
    return replace(attempt, made=_seen_anew(replace(built, model=model, runtime_model=runtime_model)))


def as_given(search: Search, attempt: Attempt) -> Attempt:
    """``attempt``, in which nothing is quantized, with the model as it was given in place of the prepared one."""
    job = search.job
    made = _seen_anew(replace(attempt.built, model=copy_model(job.original), runtime_model=job.source))
    verdict = None if search.judge is None else search.judge.restated(made)
    return replace(attempt, made=made, verdict=verdict, latency=None)


def _seen_anew(built: Built) -> Built:
    """``built`` with what the runtime makes of its model."""
    kernels = kernel_map(built.runtime_model)
    return replace(built, kernels=kernels, assignments=assignments(built.runtime_model, kernels))


def never_slower(search: Search, attempt: Attempt) -> Attempt | None:
    """``attempt`` timed beside float; where it is slower, the one that only stores its weights as integers."""
    if search.job.asked.latency_seconds <= 0 or search.timed is None:
        return None
    search.job.tell("latency", 0, None)
    attempt = _timed(search, attempt)
    if attempt.latency is not None and attempt.latency.unsure:
        waited = max(row.waited for row in attempt.latency.unsure)
        attempt = attempt.noting(BUSY_MACHINE.format(share=waited))
    if not slower(attempt.latency) or not attempt.built.plan.layers or search.job.asked.simulated:
        return attempt.noting(*_slow_blocks(attempt))
    reason = KeptFloat.of(ReasonCode.SLOWER_THAN_FLOAT, Storage.PACKED)
    found = _rebuilt(search, attempt, attempt.built.plan.layers, reason)
    found = never_larger(search, found) or found
    found = _timed(search, found.noting(_SLOWER))
    return found.noting(*_slow_blocks(found))


def _slow_blocks(attempt: Attempt) -> tuple[str, ...]:
    """The line for the report where 4-bit kernels are slower than float: they were asked for, and are not given back.

    Small files and little memory are what they are for, and what is slow on these samples may be fast on others.
    """
    blocks = sum(w.storage is Storage.BLOCKS for w in attempt.built.plan.weights)
    return (_SLOW_BLOCKS,) if blocks and slower(attempt.latency) else ()


def _rebuilt(search: Search, attempt: Attempt, names: Iterable[str], reason: KeptFloat) -> Attempt:
    """``attempt`` with the nodes called ``names`` kept float for ``reason`` too, judged anew and not yet timed."""
    kept = {**attempt.built.kept_float, **dict.fromkeys(names, reason)}
    found = attempt.of(attempt.candidate.keeping(kept))
    verdict = None if search.judge is None else search.judge.restated(found.built)
    return replace(found, verdict=verdict, latency=None)


def _timed(search: Search, attempt: Attempt) -> Attempt:
    if search.timed is None:
        raise ValueError("there is nothing to time on")
    report = benchmark(
        [search.job.reference, attempt.built.runtime_model],
        list(search.timed),
        threads=thread_counts(),
        seconds=search.job.asked.latency_seconds,
        seed=search.job.asked.seed,
    )
    if report.slower and _same_kernels(search.job.reference, attempt.built.kernels):
        report = replace(report, same_kernels=True)
    return replace(attempt, latency=report)


def _same_kernels(reference: bytes | Path, kernels: KernelMap) -> bool:
    """Whether the float model runs what ``kernels`` says: what is stored as integers may be float once it is loaded."""
    before = kernel_map(reference, level=kernels.level)
    return Counter((n.op, n.domain) for n in before.nodes) == Counter((n.op, n.domain) for n in kernels.nodes)

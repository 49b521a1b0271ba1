"""Strategies that keep two promises: the file is never larger, and the model never slower, for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from onnxq.measure.kernels import KernelMap, kernel_map
from onnxq.measure.latency import benchmark
from onnxq.measure.size import model_size
from onnxq.plan import KeptFloat, ReasonCode, Storage
from onnxq.search.acceptance import slower, smaller_file
from onnxq.search.attempt import Attempt, Search
from onnxq.search.timing import thread_counts

BUSY_MACHINE = (
    "this machine was busy: threads waited {share:.0%} of the time for a core, so that times with several threads are "
    "unsure and decide nothing; those with one thread are processor time"
)


def never_larger(search: Search, attempt: Attempt) -> Attempt | None:
    """The model in float, where nothing computes with integers and the file would not be smaller."""
    built = attempt.built
    if built.plan.layers or not built.plan.weights:
        return None
    if smaller_file(model_size(built.runtime_model).file_bytes, model_size(search.job.source).file_bytes):
        return None
    reason = KeptFloat.of(ReasonCode.FILE_NOT_SMALLER)
    found = _rebuilt(search, attempt, [w.node for w in built.plan.weights], reason)
    if found.built.plan.weights:  # what a rule wants stored is stored
        return None
    return found.noting(
        "nothing can be gained: no layer is left that integers would speed up, and the file would not be smaller"
    )


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
        return attempt
    reason = KeptFloat.of(ReasonCode.SLOWER_THAN_FLOAT, Storage.PACKED)
    found = _rebuilt(search, attempt, attempt.built.plan.layers, reason)
    note = "integer kernels made this model slower on this machine: weights are stored as int8, the computing is float"
    return _timed(search, found.noting(note))


def _rebuilt(search: Search, attempt: Attempt, names: Iterable[str], reason: KeptFloat) -> Attempt:
    """``attempt`` with the nodes called ``names`` kept float for ``reason`` too, judged anew and not yet timed."""
    kept = {**attempt.built.kept_float, **dict.fromkeys(names, reason)}
    found = attempt.of(attempt.candidate.keeping(kept))
    verdict = None if search.judge is None else search.judge.on_held_out(found.built)
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

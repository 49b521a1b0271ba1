"""What onnxruntime cannot run: found by halving, kept float, and named. What fails ends no search.

A candidate may be refused when it is loaded or fail in a run, although the float model runs: then the fewest nodes are
kept float with which it runs, and the search goes on with that. A strategy that fails although the candidate runs is
left out. As long as nothing fails, nothing here is loaded or run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from onnxq.adapt.runtime import NoTrainingRuntime
from onnxq.build.build import build, planned
from onnxq.build.candidate import Candidate
from onnxq.calibrate.runner import Feeds
from onnxq.equalize import Equalized
from onnxq.errors import RuntimeFailure, one_line
from onnxq.files.scratch import discard
from onnxq.graph.copying import copy_model
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage
from onnxq.query import nodes
from onnxq.runtime.session import Feed, open_session, run
from onnxq.search.acceptance import JUDGED_FEEDS
from onnxq.search.attempt import Attempt, Search, Strategy
from onnxq.search.gains import as_given
from onnxq.search.repair import fewest

# Each cure keeps at least one more node float: these are more than any model needs that can be helped at all.
_MOST_CURES = 16
_SHOWN = 4
_COMPUTED_IN_FLOAT = (Storage.PACKED, Storage.GATHERED)
_WORDS = 160


def improved(search: Search, attempt: Attempt, strategies: Sequence[Strategy]) -> Attempt:
    """``attempt`` after all ``strategies``, one after another; each gives None where it has nothing better."""
    for strategy in strategies:
        attempt = _safely(strategy, search, attempt)
    return attempt


def _safely(strategy: Strategy, search: Search, attempt: Attempt) -> Attempt:
    """What ``strategy`` makes of ``attempt``, or of what can be run of it; ``attempt`` where it fails all the same."""
    judged = attempt.verdict is not None

    def tried(attempt: Attempt) -> Attempt:
        if judged and attempt.verdict is None and search.judge is not None:  # it is another one by now
            attempt = replace(attempt, verdict=search.judge.verdict(attempt.built))
        return strategy(search, attempt) or attempt

    for left in reversed(range(_MOST_CURES)):
        try:
            return tried(attempt)
        except NoTrainingRuntime:
            raise  # what was asked for is not there: nothing is wrong with the model
        except RuntimeFailure as error:
            cured = _cured(search, attempt, error)
            if cured is None:
                return _left_out(strategy, search, attempt, error)
            cured = cured if left else _passed_through(search, attempt, _words(error))
            attempt = replace(cured, verdict=None)
    return tried(attempt)


def _left_out(strategy: Strategy, search: Search, attempt: Attempt, error: RuntimeFailure) -> Attempt:
    """``attempt`` without ``strategy``, which failed though the candidate runs, and judged if nobody else will."""
    if search.judge is not None and attempt.verdict is None:
        attempt = replace(attempt, verdict=search.judge.verdict(attempt.built))
    return attempt.noting(f"left out ({strategy.__name__.replace('_', ' ')}): {_words(error)}")


@dataclass(frozen=True)
class _Failure:
    """What a candidate was refused with, and the feed that it failed on; None where it could not even be loaded."""

    error: RuntimeFailure
    feed: Feed | None


def _cured(search: Search, attempt: Attempt, error: RuntimeFailure) -> Attempt | None:
    """``attempt`` with the fewest nodes kept float with which it runs; None where it runs as it is.

    Raises ``error`` where the float model does not run either.
    """
    feeds = _feeds(search)
    failure = _failure(attempt.candidate, attempt, feeds)
    if failure is None:
        return None
    float_feeds = attempt.context.statistics.feeds[0] if failure.feed is None else [failure.feed]
    if _refused(search.job.reference, float_feeds) is not None:
        raise error
    search.job.tell("unrunnable", 0, None)
    seen = feeds if failure.feed is None else [failure.feed]
    why = _words(failure.error)
    for weight in (Storage.PACKED, None):
        names = _suspects(planned(attempt.candidate, attempt.context), weight)
        kept = KeptFloat.of(ReasonCode.UNRUNNABLE, weight, why=why)
        found = _culprits(attempt, names, kept, seen)
        if found:
            cured = attempt.of(_keeping(attempt.candidate, dict.fromkeys(found, kept)))
            return cured.noting(_summary(found))
    return _passed_through(search, attempt, why)


def _feeds(search: Search) -> Feeds:
    """What the result has to run on."""
    if search.samples is None:
        return search.timed or ()
    held_out = search.samples.held_out.limit(JUDGED_FEEDS)
    second = None if search.judge is None else search.judge.second_check
    return held_out if second is None else _Both(held_out, second)


@dataclass(frozen=True)
class _Both:
    """Feeds, and those behind them; as often as wanted."""

    first: Feeds
    second: Feeds

    def __iter__(self) -> Iterator[Feed]:
        return chain(self.first, self.second)


def _failure(candidate: Candidate, attempt: Attempt, feeds: Iterable[Feed]) -> _Failure | None:
    """How ``candidate`` fails, with the data of ``attempt``; None where it is built, loaded and runs on ``feeds``."""
    known = attempt.made if candidate is attempt.candidate else None
    try:
        built = known or build(candidate, attempt.context)
    except RuntimeFailure as error:
        return _Failure(error, None)
    try:
        return _refused(built.runtime_model, feeds)
    finally:
        if known is None:
            discard(built.runtime_model)


def _refused(model: bytes | Path, feeds: Iterable[Feed]) -> _Failure | None:
    """How ``model`` fails when it is loaded or run on ``feeds``; None where it does not."""
    try:
        session = open_session(model)
    except RuntimeFailure as error:
        return _Failure(error, None)
    for feed in feeds:
        try:
            run(session, feed)
        except RuntimeFailure as error:
            return _Failure(error, feed)
    return None


def _suspects(plan: Plan, weight: Storage | None) -> list[str]:
    """The nodes of ``plan`` that keeping float with such a ``weight`` changes, those first that cost least to lose."""
    anchors = set(plan.anchors)
    others = [name for name in plan.integer if name not in anchors]
    weights = [w.node for w in plan.weights if weight is None or w.storage not in _COMPUTED_IN_FLOAT]
    return list(dict.fromkeys([*others, *weights]))


def _culprits(attempt: Attempt, names: Sequence[str], kept: KeptFloat, feeds: Iterable[Feed]) -> list[str]:
    """The fewest of ``names`` that must be float for the candidate to run; none where that does not help.

    One is found after another, each as the last of the fewest first names that help beside those found before.
    """

    found: list[str] = []

    def runs(more: Sequence[str], count: int) -> bool:
        candidate = _keeping(attempt.candidate, dict.fromkeys([*found, *more[:count]], kept))
        return _failure(candidate, attempt, feeds) is None

    while not found or not runs(names, 0):
        count = fewest(0, len(names), partial(runs, names))
        if count is None:
            return []
        found.append(names[count - 1])
        names = names[: count - 1]
    return found


def _keeping(candidate: Candidate, more: Mapping[str, KeptFloat]) -> Candidate:
    """``candidate`` with ``more`` nodes float for good."""
    kept = {name: why for name, why in candidate.kept.items() if name not in more}
    return replace(candidate, fixed={**candidate.fixed, **more}, kept=kept)


def _passed_through(search: Search, attempt: Attempt, why: str) -> Attempt:
    """The model as it was given, with nothing on integers; what runs in its place where it cannot run itself."""
    graph = copy_model(search.job.original)
    kept = KeptFloat.of(ReasonCode.UNRUNNABLE, why=why)
    fixed = dict.fromkeys((node.name or "" for node in nodes(graph)), kept)
    candidate = Candidate(graph, attempt.candidate.config, fixed=fixed)
    unchanged = replace(attempt, equalized=Equalized(graph), adaptation=None, bits=(), tuning=None).of(candidate)
    given = as_given(search, unchanged) if search.job.source is search.job.reference else unchanged
    return given.noting(
        f"the model is passed through as it was given: onnxruntime cannot run it prepared for integers ({why})"
    )


def _summary(names: Sequence[str]) -> str:
    """One line for the report."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    stay = "1 node stays" if len(names) == 1 else f"{len(names)} nodes stay"
    return f"{stay} float because onnxruntime cannot run the model with integers there: {shown}"


def _words(error: RuntimeFailure) -> str:
    """What onnxruntime itself said, in one line."""
    text = re.split(
        r"\[ONNXRuntimeError\] : \d+ : \w+ : |\(opset \d+\): |while running (?:.* on .*\]|[^:]+): ", error.what
    )[-1]
    return one_line(text, limit=_WORDS)

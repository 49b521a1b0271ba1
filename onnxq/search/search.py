"""From a prepared graph and data to the candidate that held-out samples bear out: most of ``quantize``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from onnxq.build.build import Context
from onnxq.build.candidate import Candidate, Watch
from onnxq.calibrate.feeds import Feed, FeedOptions
from onnxq.calibrate.first_run import before_first_run
from onnxq.calibrate.layout import OVERRIDE
from onnxq.calibrate.made_up import NOT_RUN, MadeUp, failing, made_up
from onnxq.calibrate.synthetic import impose_moments
from onnxq.calibrate.unused import unused
from onnxq.config import AUTO
from onnxq.equalize import Equalized
from onnxq.errors import ConfigError, DataError, RuntimeFailure
from onnxq.graph.heads import heads
from onnxq.graph.lengths import value_lengths
from onnxq.kernels.targets import target_of
from onnxq.measure.accuracy import class_indices
from onnxq.measure.metric import Top1
from onnxq.measure.references import Answers
from onnxq.plan import ReasonCode
from onnxq.plan.place import place
from onnxq.search.acceptance import (
    JUDGED_FEEDS,
    SIZED_FEEDS,
    TIMED_FEEDS,
    UNUSED_SAMPLES,
    affordable_samples,
    made_samples,
)
from onnxq.search.attempt import Attempt, Job, Samples, Search, split
from onnxq.search.channels import equalized_for, stays_float
from onnxq.search.judging import CandidateJudge, elements, second_check
from onnxq.search.measuring import MetricJudge
from onnxq.search.proof import Proof
from onnxq.search.strategies import AT_THE_END, BEFORE_JUDGING, JUDGED, WITHOUT_DATA
from onnxq.search.unrunnable import improved

NO_DATA = "no real data was seen: ranges come from the model alone, and accuracy was not checked"
NO_ROOM = (
    "the float model does not fit into the memory that quantizing may take: it was not run, the data was not looked "
    "at, and nothing was compared; allow more with --memory"
)


@dataclass(frozen=True)
class Outcome:
    """The best that was found. ``made_from``: what the data was, in words."""

    attempt: Attempt
    made_from: str
    warnings: tuple[str, ...] = ()


def with_data(job: Job, feed: Feed) -> Outcome:
    """The best static INT8 model that held-out samples bear out."""
    feed = feed.limit(job.asked.samples)
    before_first_run(job.prepared, job.reference, next(iter(feed)))
    samples = replace(split(feed, job.asked), unused=unused(feed, UNUSED_SAMPLES))
    _try_measures(job, samples.held_out)
    search = Search(job, samples, samples.held_out.limit(TIMED_FEEDS), feed.description)
    first = _first(job, samples)
    attempt = improved(
        search, first if not feed.reading else first.noting(f"{feed.reading} ({OVERRIDE})"), BEFORE_JUDGING
    )
    search = replace(search, judge=_judge(job, samples, attempt))
    attempt = improved(search, attempt, JUDGED)
    if ignored := [name for name in feed.ignored if name != job.asked.labels]:
        attempt = attempt.noting(f"arrays that no input wants were ignored: {', '.join(ignored)}")
    problems = () if attempt.verdict is None else attempt.verdict.comparison.problems
    warnings = (*([feed.warning] if feed.warning else []), *problems)
    attempt = improved(search, attempt, AT_THE_END)
    return Outcome(_with_accuracy(search, attempt), feed.description, warnings)


def _first(job: Job, samples: Samples) -> Attempt:
    """Where a search with data begins: the placement of least cost, channels equalized, nothing built."""
    config, calibration = job.asked, samples.calibration
    target, total = target_of(config), calibration.len_hint
    placement = place(job.prepared, config, target, [typical(calibration)], job.folder)
    # Where kernels are simulated or weights adapted, accuracy is what is asked for.
    costly = config.equalize == "all" or (config.equalize == "auto" and (config.simulated or samples.check is not None))
    notes = samples.notes
    try:
        equal = equalized_for(job, placement, calibration, costly=costly)
    except RuntimeFailure as error:  # if the model itself does not run, building says so
        equal, notes = Equalized(job.prepared), (*notes, f"channels were not equalized: {error.what}")
    candidate = Candidate(equal.model, config, placement, fixed=stays_float(equal))
    context = Context.of(
        target,
        calibration,
        job.folder,
        scratch=job.scratch,
        progress=lambda done: job.tell("observe", done, total),
    )
    return Attempt(candidate, context, equal, notes=notes)


def typical(feed: Feed) -> dict[str, npt.NDArray[Any]]:
    """The one of middle size of a few samples: what a layer costs hangs on how long the sentence is."""
    few = list(feed.limit(SIZED_FEEDS))
    sizes = [sum(array.size for array in arrays.values()) for arrays in few]
    return few[sizes.index(sorted(sizes)[len(sizes) // 2])]


def _judge(job: Job, samples: Samples, attempt: Attempt) -> CandidateJudge:
    """The judge by the held-out samples and, where they are others, by calibration samples as the second check set."""
    config, seen = job.asked, None
    if samples.calibration is not samples.held_out:
        seen = second_check(attempt.candidate, attempt.context, samples.calibration)
    metric, proof = None, None
    if seen is not None:
        most = made_samples(elements(attempt.candidate, attempt.context), samples.calibration.len_hint or 0)
        # Weights that were adapted know the samples they were adapted on too well.
        sources = [samples.held_out.limit(JUDGED_FEEDS), *([seen] if samples.check is None else [])]
        proof = Proof(sources, _afforded(attempt, samples.unused), most, config)
    if job.metric is not None:
        feeds = [f for f in (samples.held_out.limit(JUDGED_FEEDS), _afforded(attempt, samples.unused), seen) if f]
        metric = MetricJudge(job.metric, feeds, config.labels, config.max_drop)
    lengths, behind = value_lengths(job.prepared), heads(job.prepared)
    return CandidateJudge(job.reference, config, samples.held_out, seen, lengths, job.scratch, behind, metric, proof)


def _try_measures(job: Job, feed: Feed) -> None:
    """Nothing; raises ``DataError`` at once where labels or the user's measure would fail after all the work."""
    if job.asked.labels and _counts_classes(job):
        class_indices(feed.labels(job.asked.labels))
    if job.metric is not None:
        answers = Answers(job.reference)
        MetricJudge(job.metric, (feed.limit(1),), job.asked.labels, job.asked.max_drop).known(answers)


def _counts_classes(job: Job) -> bool:
    """Whether labels are taken for classes: a measure of the user's own takes them for what it likes."""
    return job.metric is None or isinstance(job.metric, Top1)


def _with_accuracy(search: Search, attempt: Attempt) -> Attempt:
    """``attempt`` with the accuracy of both models, where there are labels, on samples that calibration did not see."""
    job, judge, samples, verdict = search.job, search.judge, search.samples, attempt.verdict
    if not job.asked.labels or not _counts_classes(job) or judge is None or samples is None or verdict is None:
        return attempt
    feeds = [feed for feed in (_afforded(attempt, samples.held_out), _afforded(attempt, samples.unused)) if feed]
    accuracy = judge.accuracy(attempt.built, feeds)
    return replace(attempt, verdict=replace(verdict, comparison=replace(verdict.comparison, accuracy=accuracy)))


def _afforded(attempt: Attempt, feed: Feed | None) -> Feed | None:
    """As many samples of ``feed`` as a model of this size can be judged on."""
    return None if feed is None else feed.limit(affordable_samples(elements(attempt.candidate, attempt.context)))


def without_data(job: Job, options: FeedOptions | None) -> Outcome:
    """Ranges from BatchNormalization where there is one; elsewhere ranges measured at run time, or none.

    A model that does not fit into memory is not run at all.
    """
    config = job.asked
    if config.weights == AUTO:
        raise ConfigError(
            "weights = 'auto' needs calibration data: how much a layer matters is measured", hint="give it with --calib"
        )
    if config.adapt != "none":
        raise ConfigError(
            "adapt needs calibration data: weights are fitted to what layers read", hint="give it with --calib"
        )
    if not job.fits:
        return _on_made_up(job, MadeUp(None))
    found = made_up(job.prepared, job.reference, job.signature.inputs, options)
    try:
        return _on_made_up(job, found)
    except (DataError, RuntimeFailure):
        # Other samples than the first: where the float model fails on one of them too, it is not the candidate's fault.
        again = None if found.feed is None else failing(job.prepared, job.reference, found.feed)
        if again is None:
            raise
        return _on_made_up(job, MadeUp(None, f"{NOT_RUN}: {again}"))


def _on_made_up(job: Job, made: MadeUp) -> Outcome:
    config, feed = job.asked, made.feed
    watched, trusted = impose_moments(job.prepared)
    target = target_of(config)
    candidate = Candidate(
        job.prepared,
        config,
        place(job.prepared, config, target, feed or (), job.folder),
        watch=Watch(watched, trusted if feed is not None else frozenset(), ReasonCode.RANGE_UNKNOWN),
    )
    context = Context.of(target, feed if feed is not None else (), job.folder, scratch=job.scratch)
    timed = None if feed is None else feed.limit(TIMED_FEEDS)
    search = Search(job, None, timed, "none")
    attempt = improved(search, Attempt(candidate, context, Equalized(job.prepared)), WITHOUT_DATA)
    if made.note:
        attempt = attempt.noting(made.note)
    return Outcome(improved(search, attempt, AT_THE_END), "none", (NO_DATA if job.fits else NO_ROOM,))

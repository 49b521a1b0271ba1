"""From a prepared graph and data to the candidate that held-out samples bear out: most of ``quantize``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxq.build.build import Context
from onnxq.build.candidate import Candidate, Watch
from onnxq.calibrate.feeds import Feed, FeedOptions
from onnxq.calibrate.synthetic import impose_moments, runnable_feed
from onnxq.config import AUTO
from onnxq.equalize import Equalized
from onnxq.errors import ConfigError
from onnxq.kernels.targets import target_of
from onnxq.plan import ReasonCode
from onnxq.plan.place import place
from onnxq.runtime.session import open_session, run
from onnxq.search.acceptance import TIMED_FEEDS
from onnxq.search.attempt import Attempt, Job, Samples, Search, improved, split
from onnxq.search.channels import equalized_for, stays_float
from onnxq.search.judging import CandidateJudge, second_check
from onnxq.search.strategies import AT_THE_END, BEFORE_JUDGING, JUDGED, WITHOUT_DATA

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
    samples = split(feed, job.asked)
    search = Search(job, samples, samples.held_out.limit(TIMED_FEEDS), feed.description)
    attempt = improved(search, _first(job, samples), BEFORE_JUDGING)
    search = replace(search, judge=_judge(job, samples, attempt))
    attempt = improved(search, attempt, JUDGED)
    if ignored := [name for name in feed.ignored if name != job.asked.labels]:
        attempt = attempt.noting(f"arrays that no input wants were ignored: {', '.join(ignored)}")
    problems = () if attempt.verdict is None else attempt.verdict.comparison.problems
    warnings = (*([feed.warning] if feed.warning else []), *problems)
    return Outcome(improved(search, attempt, AT_THE_END), feed.description, warnings)


def _first(job: Job, samples: Samples) -> Attempt:
    """Where a search with data begins: the placement of least cost, channels equalized, nothing built."""
    config, calibration = job.asked, samples.calibration
    target, total = target_of(config), calibration.len_hint
    placement = place(job.prepared, config, target, calibration.limit(1), job.folder)
    # Where kernels are simulated or weights adapted, accuracy is what is asked for.
    costly = config.equalize == "all" or (config.equalize == "auto" and (config.simulated or samples.check is not None))
    equal = equalized_for(job, placement, calibration, costly=costly)
    candidate = Candidate(equal.model, config, placement, fixed=stays_float(equal))
    context = Context.of(
        target,
        calibration,
        job.folder,
        scratch=job.scratch,
        progress=lambda done: job.tell("observe", done, total),
    )
    return Attempt(candidate, context, equal, notes=samples.notes)


def _judge(job: Job, samples: Samples, attempt: Attempt) -> CandidateJudge:
    """The judge by the held-out samples and, where they are others, by calibration samples as the second check set."""
    seen = None
    if samples.calibration is not samples.held_out:
        seen = second_check(attempt.candidate, attempt.context, samples.calibration)
    return CandidateJudge(job.reference, job.asked, samples.held_out, seen, job.scratch)


def without_data(job: Job, options: FeedOptions | None) -> Outcome:
    """Ranges from BatchNormalization where there is one; elsewhere ranges measured at run time, or none.

    A model that does not fit into memory is not run at all.
    """
    config = job.asked
    if config.weights == AUTO:
        raise ConfigError("weights = 'auto' needs calibration data: how much a layer matters is measured")
    if config.adapt != "none":
        raise ConfigError("adapt needs calibration data: weights are fitted to what layers read")
    watched, trusted = impose_moments(job.prepared)
    feed = runnable_feed(job.reference, job.signature.inputs, options) if job.fits else None
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
    if timed is not None:
        session = open_session(attempt.built.runtime_model)
        for one in timed:
            run(session, one)
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in one.items())
        attempt = attempt.noting(f"loaded and run on random inputs: {shapes}")
    return Outcome(improved(search, attempt, AT_THE_END), "none", (NO_DATA if job.fits else NO_ROOM,))

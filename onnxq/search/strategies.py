"""The strategies of a search, in order: each makes a better candidate of the one before it, or nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onnxq.adapt.adapter import Adapter
from onnxq.adapt.labels import Labels
from onnxq.build.build import statistics
from onnxq.calibrate.feeds import Feed
from onnxq.errors import RuntimeFailure
from onnxq.kernels.costs import conversion_table
from onnxq.measure.latency import benchmark
from onnxq.parameters.choose import Parameters
from onnxq.plan.place import tensor_shapes
from onnxq.ranges.registry import find_method
from onnxq.runtime.session import open_session, run
from onnxq.search.acceptance import (
    JUDGED_FEEDS,
    TIMED_SECONDS,
    Shortfall,
    Verdict,
    as_asked,
    faster,
    good_enough,
    most_given,
    promising,
)
from onnxq.search.attempt import Attempt, Search, Strategy
from onnxq.search.bits import summary as summary_of_bits
from onnxq.search.bits import with_bits
from onnxq.search.channels import equalized_more_and_rounded_together
from onnxq.search.deciding import cheap_deciding
from onnxq.search.gains import described_bytes, never_larger, never_slower
from onnxq.search.judging import CandidateEvaluator, CandidateJudge, OutputNoise
from onnxq.search.readings import Readings
from onnxq.search.remember import recall, remember, tuning_key
from onnxq.search.repair import Ladder, Repaired, notes, repair
from onnxq.search.rungs import Rungs, Scene
from onnxq.search.timing import thread_counts
from onnxq.search.tune import tune

WIDER = "ranges of {count} tensors are wider than their own error asks for: what was clipped weighs more at the outputs"

# Samples in a batch for adapting.
_ADAPTED_ROWS = 32
# Of samples with large maps, as many as have so many elements of activations in all.
_ADAPTED_ELEMENTS = 1 << 25


def tuned_placement(search: Search, attempt: Attempt) -> Attempt | None:
    """The fastest placement that the time allows to find, or that was found before."""
    job, candidate = search.job, attempt.candidate
    config = job.asked
    if config.tune_seconds <= 0 or search.timed is None or config.activations != "uint8":
        return None
    job.tell("tune", 0, None)
    feeds, threads = list(search.timed), thread_counts()
    key = tuning_key(job.prepared, config, feeds[0], threads)
    found = recall(key, config.tune_seconds)
    if found is None:
        progress = partial(job.tell, "tune")
        found = tune(
            candidate,
            attempt.context,
            feeds,
            threads=threads,
            seconds=config.tune_seconds,
            seed=config.seed,
            progress=progress,
        )
        remember(key, found, config.tune_seconds)
    effective = replace(candidate.config, operators=found.operators)
    return replace(attempt, candidate=replace(candidate, placement=found.placement, config=effective), tuning=found)


def bits_by_sensitivity(search: Search, attempt: Attempt) -> Attempt | None:
    """A weight format for each layer, within the budget that was given."""
    if search.samples is None:
        return None
    job = search.job
    candidate, choices = with_bits(
        attempt.candidate,
        attempt.context,
        job.reference,
        search.samples.calibration,
        job.tell,
        added_bytes=partial(described_bytes, search, attempt),
    )
    if not choices:
        return None
    return replace(attempt, candidate=candidate, bits=choices).noting(summary_of_bits(choices))


def first_built(search: Search, attempt: Attempt) -> Attempt | None:
    """The candidate as it stands."""
    return attempt.of(attempt.candidate)


def loaded_and_run(search: Search, attempt: Attempt) -> Attempt | None:
    """The candidate as it stands: without data all that can be asked of it is that it loads, and runs at all."""
    session = open_session(attempt.built.runtime_model)
    if search.timed is None:
        return None
    for feed in search.timed:
        run(session, feed)
    shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in feed.items())
    return attempt.noting(f"loaded and run on random inputs: {shapes}")


def extrapolated_ranges(search: Search, attempt: Attempt) -> Attempt | None:
    """Ranges for samples that are yet to come, where that loses less on held-out samples.

    In every tensor less is lost on such samples; at the outputs not always, where what is clipped matters little.
    """
    judge, samples = search.judge, search.samples
    second = _extrapolated(attempt)
    if judge is None or samples is None or second is None:
        return None
    if samples.check is not None:  # the held-out samples have their say when weights are adapted
        judge = judge.by(samples.check)
    return second if judge.loses_less(second.built, attempt.built) else None


def _extrapolated(attempt: Attempt) -> Attempt | None:
    """``attempt`` with extrapolated ranges; None where those are the same."""
    candidate, first = attempt.candidate, attempt.built
    if not find_method(candidate.config.activation_range).extrapolated or not first.plan.points:
        return None
    second = attempt.of(replace(candidate, extrapolated=True, kept=first.kept_float))
    return None if second.built.parameters.tensors == first.parameters.tensors else second


def adapted_weights(search: Search, attempt: Attempt) -> Attempt | None:
    """Parameters adapted to the noise in the network, as far as the samples kept for that bear them out."""
    if search.samples is None or search.samples.check is None:
        return None
    job, fit, check = search.job, search.samples.calibration, search.samples.check
    candidate, first = attempt.candidate, attempt.built
    labels = job.asked.labels if job.asked.adapt == "full" else ""
    elements = attempt.context.statistics.elements(candidate.watched, feeds=JUDGED_FEEDS)
    rows = int(max(1, min(_ADAPTED_ROWS, _ADAPTED_ELEMENTS / max(1.0, elements))))
    adapter = Adapter(
        candidate.graph,
        first.plan,
        first.parameters,
        statistics(candidate, attempt.context, first.plan),
        candidate.config,
        fit.batches(rows),
        list(check.batches(rows)),
        job.folder,
        job.tell,
        Labels(fit.labels(labels), check.labels(labels)) if labels else None,
        rows_first=fit.layout.rows_first,
        scratch=job.scratch,
    )
    adaptation = adapter.run(job.asked.adapt)
    # The samples that judged it have done so: ranges, which need all there are, are chosen on them too.
    context = attempt.context.with_more(check, candidate, first.plan)
    learned = None
    if adaptation.kept:
        best, start = adapter.best, first.parameters.tensors
        tensors = {tensor: chosen for tensor, chosen in best.tensors.items() if chosen != start.get(tensor)}
        learned = Parameters(tensors, best.weights, best.biases)
    after = replace(attempt, context=context, adaptation=adaptation).noting(*adaptation.notes)
    return after.of(replace(candidate, learned=learned, kept=first.kept_float))


def float_fallback(search: Search, attempt: Attempt) -> Attempt | None:
    """As many layers in float as it takes; a harder try at integers goes before that, where there is one."""
    judge, samples = search.judge, search.samples
    if judge is None or samples is None:
        return None
    search.job.tell("verify", 0, None)
    ways, verdict = [attempt], judge.verdict(attempt.built)
    if not verdict.good and samples.check is None:
        harder = _judged_harder(search, attempt, judge)
        if harder is not None and promising(harder[1], verdict):
            ways = [harder[0], *([] if harder[1].good else [attempt])]
    best, found = _best_repaired(search, judge, ways)
    best = best.noting(*best.equalized.notes)
    if best.verdict is not None and Shortfall.LENGTHS in best.verdict.shortfalls:
        best = best.noting(f"not good: {Shortfall.LENGTHS.value}; other layers in float would not decide otherwise")
    return replace(best, curve=found.curve).noting(*notes(found))


def _judged_harder(search: Search, attempt: Attempt, judge: CandidateJudge) -> tuple[Attempt, Verdict] | None:
    """A harder try at integers and what is said of it; None where there is none that runs."""
    try:
        harder = equalized_more_and_rounded_together(search, attempt)
        return None if harder is None else (harder, judge.verdict(harder.built))
    except RuntimeFailure:
        return None


def _best_repaired(search: Search, judge: CandidateJudge, ways: list[Attempt]) -> tuple[Attempt, Repaired]:
    """What is best of ``ways``, the more promising first, once each is repaired; and what became of it.

    Where both end well the faster one is: what makes channels alike costs time, and so do layers in float.
    """
    ends: list[tuple[Attempt, Repaired]] = []
    for way in ways:
        meter = OutputNoise(way.candidate, way.context, judge)
        progress = partial(search.job.tell, "repair")
        readings = Readings(way.built, meter, way.candidate.graph, progress)
        if not as_asked(judge.verdict(way.built), judge.config).good_but_for_lengths:
            way, readings = _with_wider_ranges(way, readings, judge)
            meter = replace(meter, candidate=way.candidate)
        found = repair(
            way.built,
            CandidateEvaluator(way.candidate, way.context, judge),
            meter,
            depends_on=way.equalized.gates,
            deciding=partial(cheap_deciding, lengths=judge.lengths, search=search),
            progress=progress,
            ladder=_ladder(search, way, readings),
        )
        candidate = way.candidate.keeping(found.built.kept_float)
        ends.append((replace(way, candidate=candidate, made=found.built, verdict=found.verdict), found))
        if good_enough(found.verdict, len(found.fallback), len(way.built.plan.layers)):
            return ends[-1]
    return _better(ends, search.timed)


def _with_wider_ranges(way: Attempt, readings: Readings, judge: CandidateJudge) -> tuple[Attempt, Readings]:
    """``way`` with wider ranges where these lose less; what costs no time comes before what does."""
    wider = readings.wider()
    if not wider:
        return way, readings
    learned = way.candidate.learned or Parameters({}, {}, {})
    learned = replace(learned, tensors={**learned.tensors, **wider})
    second = way.of(replace(way.candidate, learned=learned, kept=way.built.kept_float))
    if not judge.loses_less(second.built, way.built):
        return way, readings
    return second.noting(WIDER.format(count=len(wider))), readings.of(second.built)


def _ladder(search: Search, way: Attempt, readings: Readings) -> Ladder | None:
    """What there is between ``way`` and float; None where sizes are unknown."""
    feed = None if search.timed is None else next(iter(search.timed), None)
    shapes = {} if feed is None else tensor_shapes(way.candidate.graph, feed, search.job.folder)
    if not shapes:
        return None
    target, timed = way.context.target, way.candidate.config.placement == "cost"
    own = way.candidate.config.operators == "onnxruntime" and not way.candidate.config.simulated
    scene = Scene(way.candidate.graph, shapes, conversion_table(target.name), target, timed, own)
    rungs = Rungs(way.built, readings, scene, depends_on=way.equalized.gates)
    return Ladder(rungs.stages, most_given(search.job.asked), rungs.giving)


def _better(ends: list[tuple[Attempt, Repaired]], timed: Feed | None) -> tuple[Attempt, Repaired]:
    """Of one or two repaired attempts the one to keep."""
    verdicts = [attempt.verdict for attempt, _ in ends if attempt.verdict is not None]
    if len(ends) == 1 or timed is None or not all(verdict.good for verdict in verdicts):
        return max(zip(ends, verdicts, strict=True), key=lambda end: end[1].standing)[0]
    models = [attempt.built.runtime_model for attempt, _ in ends]
    report = benchmark(models, timed, seconds=TIMED_SECONDS, memory=False)
    return ends[faster(report.rows[1].ratio_high)]


# What is tried with data, without any, and in both cases at the end.
BEFORE_JUDGING: tuple[Strategy, ...] = (tuned_placement, bits_by_sensitivity, first_built)
JUDGED: tuple[Strategy, ...] = (extrapolated_ranges, adapted_weights, float_fallback)
WITHOUT_DATA: tuple[Strategy, ...] = (tuned_placement, first_built, loaded_and_run)
AT_THE_END: tuple[Strategy, ...] = (never_larger, never_slower)

"""From a prepared model and data to the candidate that held-out samples bear out: most of ``quantize``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from onnxq.build.builder import Builder, Built
from onnxq.calibrate.feeds import Feed, FeedOptions
from onnxq.calibrate.synthetic import impose_moments, runnable_feed
from onnxq.config import AUTO, Config
from onnxq.equalize import Equalized, equalized
from onnxq.errors import ConfigError
from onnxq.files.scratch import Scratch
from onnxq.graph.signature import Signature, signature
from onnxq.kernels.targets import target_of
from onnxq.measure.latency import LatencyReport, benchmark
from onnxq.parameters.choose import Parameters
from onnxq.plan import KeptFloat, ReasonCode, make_plan
from onnxq.plan.place import Placement, place
from onnxq.query import nodes
from onnxq.report.provenance import metadata
from onnxq.report.report import Adaptation, LayerBits
from onnxq.runtime.session import open_session, run
from onnxq.search.bits import summary as summary_of_bits
from onnxq.search.bits import with_bits
from onnxq.search.guard import End, Verdict, summary
from onnxq.search.remember import recall, remember, tuning_key
from onnxq.search.trial import Trial, second_check, with_extrapolated_ranges
from onnxq.search.tune import Tuning, tune

Progress: TypeAlias = Callable[[str, int, "int | None"], None]

# Below so many samples none is held out: the judgement would rest on one or two of them.
_FEW_SAMPLES = 8
# Held-out feeds that are timed.
_TIMED_FEEDS = 4
# Fewer layers that are given back are no reason to look for another way; and how long two ways are timed.
_FEW_GIVEN_BACK = 0.05
_TIMED_S = 2.0
# Bytes of a metadata entry beside its text.
_ENTRY = 32
# Samples that show how large channels are: the fewest, the most, and the elements of activations that they may have.
_EQUALIZED_SAMPLES = (32, 256)
_EQUALIZED_ELEMENTS = 1 << 30
# Samples in a batch for adapting, and the share of calibration samples that adapting is judged by.
_ADAPTED_ROWS = 32
_CHECKED_SHARE = 0.125

NO_DATA = "no real data was seen: ranges come from the model alone, and accuracy was not checked"


@dataclass(frozen=True)
class Job:
    """What all stages of one call share."""

    prepared: ir.Model
    original: ir.Model
    reference: bytes | Path  # the original as the runtime loads it
    folder: Path
    config: Config
    tell: Progress
    scratch: Scratch

    @property
    def signature(self) -> Signature:
        return signature(self.original)


@dataclass(frozen=True)
class Outcome:
    """The candidate chosen so far. ``verdict`` is None without data; ``timed`` are feeds to measure latency on."""

    built: Built
    builder: Builder
    verdict: Verdict | None
    timed: Feed | None
    made_from: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    latency: LatencyReport | None = None
    held_out: Feed | None = None
    tuning: Tuning | None = None
    adaptation: Adaptation | None = None
    equalized: Mapping[str, str] = field(default_factory=dict)
    bits: tuple[LayerBits, ...] = ()


def with_data(job: Job, feed: Feed) -> Outcome:
    """The best static INT8 model that held-out samples bear out."""
    config = job.config
    feed = feed.limit(config.samples)
    calibration, check, held_out, notes = _split(feed, config)
    total = calibration.len_hint
    target = target_of(config)
    placement = place(job.prepared, config, target, calibration.limit(1), job.folder)
    # Where kernels are simulated or weights adapted, accuracy is what is asked for.
    costly = config.equalize == "all" or (config.equalize == "auto" and (config.simulated or check is not None))
    equal = _equalized(job, placement, calibration, costly=costly)
    builder = Builder(
        equal.model,
        config,
        target,
        calibration,
        job.folder,
        placement=placement,
        fixed=_fixed(equal),
        progress=lambda done: job.tell("observe", done, total),
        scratch=job.scratch,
    )
    timed = held_out.limit(_TIMED_FEEDS)
    builder, trials = _tuned(job, builder, timed)
    builder, choices = with_bits(
        builder,
        job.reference,
        calibration,
        job.folder,
        job.tell,
        added_bytes=lambda config, plan: _ENTRY + len(metadata(config, feed.description, plan, equal.steps)),
    )
    notes += [summary_of_bits(choices)] if choices else []
    first = builder.build()
    seen = None if calibration is held_out else calibration.limit(second_check(builder))
    trial = Trial(job.reference, config, held_out, seen)
    if (ahead := with_extrapolated_ranges(builder, first)) is not None:
        judges = trial if check is None else Trial(job.reference, config, check, None)
        builder, first = judges.better((builder, first), ahead)
    adaptation = None
    if check is not None:
        first, adaptation = _adapted(job, builder, first, calibration, check)
        notes += adaptation.notes
    job.tell("verify", 0, None)

    tries, verdict = [(equal, builder, first)], trial.verdict(first)
    if not verdict.good and check is None and (harder := _harder(job, builder, calibration)) is not None:
        other, anew = harder
        second = anew.build()
        found = trial.verdict(second)
        if found.good or found.sqnr_db > verdict.sqnr_db:
            tries = [(other, anew, second), *([] if found.good else tries)]
    equal, builder, end = _repaired(job, trial, tries, timed)
    best, verdict, given_back = end
    notes += equal.notes
    if given_back:
        notes.append(summary(best.plan, given_back))
    if ignored := [name for name in feed.ignored if name != config.labels]:
        notes.append(f"arrays that no input wants were ignored: {', '.join(ignored)}")
    warnings = (*([feed.warning] if feed.warning else []), *verdict.comparison.problems)
    return Outcome(
        best,
        builder,
        verdict,
        timed,
        feed.description,
        tuple(notes),
        warnings,
        held_out=held_out,
        tuning=trials,
        adaptation=adaptation,
        equalized=equal.steps,
        bits=tuple(LayerBits(c.node, c.option.stored, c.option.nbytes, c.option.noise) for c in choices),
    )


def _elements(model: ir.Model) -> int:
    """What all nodes write for one sample, as far as shapes are known; open dimensions count as 1."""
    shapes = (v.shape for node in nodes(model) for v in node.outputs if v.shape is not None)
    return sum(math.prod(d for d in shape if isinstance(d, int)) for shape in shapes)


def _split(feed: Feed, config: Config) -> tuple[Feed, Feed | None, Feed, list[str]]:
    """(samples for calibration, for judging adaptation if there is any, for judging the result, notes)."""
    count, notes = feed.samples, []
    if config.held_out == 0.0 or (count is not None and count < _FEW_SAMPLES):
        calibration = held_out = feed
        notes.append("judged on the calibration samples themselves: there are too few to hold any out")
    else:
        calibration, held_out = feed.split(config.held_out, seed=config.seed)
    if config.adapt == "none":
        return calibration, None, held_out, notes
    batch = calibration.layout.rows if calibration.layout.fixed else 1
    if count is not None and count < max(_FEW_SAMPLES, 4 * batch):
        notes.append(f"not adapted: {count} samples are too few to fit weights to and to judge them by")
        return calibration, None, held_out, notes
    # Nothing of what is judged by these may have seen them, ranges included.
    fitted, check = calibration.split(_CHECKED_SHARE, seed=config.seed + 1)
    return fitted, check, held_out, notes


def _repaired(
    job: Job, trial: Trial, tries: Sequence[tuple[Equalized, Builder, Built]], timed: Feed
) -> tuple[Equalized, Builder, End]:
    """What is best of ``tries``, the more promising first, once each has had as many layers given back as it takes.

    Where both end well the faster one is: what makes channels alike costs time, and so do layers in float.
    """
    ends: list[tuple[Equalized, Builder, End]] = []
    for equal, builder, built in tries:
        end = trial.repaired(built, builder, partial(job.tell, "repair"), goes_with=equal.gates)
        ends.append((equal, builder, end))
        if end[1].good and len(end[2]) <= _FEW_GIVEN_BACK * len(built.plan.layers):
            break
    if len(ends) == 1:
        return ends[0]
    (_, _, (one, said, _)), (_, _, (two, said_too, _)) = ends
    if not (said.good and said_too.good):
        return max(ends, key=lambda e: (e[2][1].good, e[2][1].agreement, e[2][1].sqnr_db))
    report = benchmark([one.runtime_model, two.runtime_model], timed, seconds=_TIMED_S, memory=False)
    return ends[report.rows[1].ratio_high < 1.0]


def _fixed(equal: Equalized) -> dict[str, KeptFloat]:
    """What equalizing added stays float: it makes ready what is rounded behind it."""
    return {name: KeptFloat.of(ReasonCode.EQUALIZES, why=why) for name, why in equal.added.items()}


def _harder(job: Job, builder: Builder, feed: Feed) -> tuple[Equalized, Builder] | None:
    """What is tried before layers go back to float: a pass over some tensors, and all weights rounded together.

    The former costs some speed, the latter time and memory for layers with many inputs. None where there is nothing
    more to be tried.
    """
    config = builder.config
    if config.activations != "uint8" or job.config.weights == AUTO:
        return None
    equal = _equalized(job, builder.placement, feed, costly=config.equalize != "none")
    rounding = "compensated" if config.rounding == "auto" else config.rounding
    if not equal.costs and (rounding == config.rounding or not config.guarded):
        return None
    anew = builder.of_another(equal.model, _fixed(equal))
    return equal, replace(anew, config=replace(config, rounding=rounding))


def _equalized(job: Job, placement: Placement, feed: Feed, *, costly: bool) -> Equalized:
    """The prepared model with channels equalized for the plan that ``placement`` leads to."""
    config, model = job.config, job.prepared
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
        feeds_hint=few.len_hint,
        untouched=untouched,
        costly=costly,
        simulated=config.simulated,
        scratch=job.scratch,
    )


def _adapted(job: Job, builder: Builder, first: Built, fit: Feed, check: Feed) -> tuple[Built, Adaptation]:
    """``first`` with parameters adapted to the noise in the network, as far as the samples ``check`` bear them out."""
    from onnxq.adapt.labels import Labels
    from onnxq.adapt.levels import Adapter

    start = first.parameters
    adapter = Adapter(
        builder.prepared,
        first.plan,
        start,
        builder.statistics,
        builder.config,
        list(fit.batches(_ADAPTED_ROWS)),
        list(check.batches(_ADAPTED_ROWS)),
        job.folder,
        job.tell,
        Labels(fit.labels(job.config.labels), check.labels(job.config.labels)) if job.config.labels else None,
    )
    adaptation = adapter.run(job.config.adapt)
    # The samples that judged it have done so: ranges, which need all there are, are chosen on them too.
    builder.see_more(check, first.plan)
    if adaptation.kept:
        best = adapter.best
        learned = {tensor: chosen for tensor, chosen in best.tensors.items() if chosen != start.tensors.get(tensor)}
        builder.parameters = Parameters(learned, best.weights, best.biases)
    else:
        builder.parameters = None
    return builder.build(first.kept_float), adaptation


def without_data(job: Job, options: FeedOptions | None) -> Outcome:
    """Ranges from BatchNormalization where there is one; elsewhere ranges measured at run time, or none."""
    if job.config.weights == AUTO:
        raise ConfigError("weights = 'auto' needs calibration data: how much a layer matters is measured")
    if job.config.adapt != "none":
        raise ConfigError("adapt needs calibration data: weights are fitted to what layers read")
    watched, trusted = impose_moments(job.prepared)
    feed = runnable_feed(job.reference, job.signature.inputs, options)
    target = target_of(job.config)
    builder = Builder(
        job.prepared,
        job.config,
        target,
        feed if feed is not None else (),
        job.folder,
        placement=place(job.prepared, job.config, target, feed or (), job.folder),
        watched=watched,
        trusted=trusted if feed is not None else frozenset(),
        unseen=ReasonCode.RANGE_UNKNOWN,
        scratch=job.scratch,
    )
    timed = None if feed is None else feed.limit(_TIMED_FEEDS)
    builder, trials = _tuned(job, builder, timed)
    built = builder.build()
    notes: tuple[str, ...] = ()
    if timed is not None:
        session = open_session(built.runtime_model)
        for one in timed:
            run(session, one)
        notes = (f"loaded and run on random inputs: {', '.join(f'{k} {list(v.shape)}' for k, v in one.items())}",)
    return Outcome(built, builder, None, timed, "none", notes, (NO_DATA,), tuning=trials)


def _tuned(job: Job, builder: Builder, timed: Feed | None) -> tuple[Builder, Tuning | None]:
    """``builder`` with the fastest placement that the time allows to find, or that was found before, and the trials."""
    config = job.config
    if config.tune_seconds <= 0 or timed is None or config.activations != "uint8":
        return builder, None
    job.tell("tune", 0, None)
    feeds, threads = list(timed), thread_counts()
    key = tuning_key(job.prepared, config, feeds[0], threads)
    found = recall(key, config.tune_seconds)
    if found is None:
        progress = partial(job.tell, "tune")
        found = tune(builder, feeds, threads=threads, seconds=config.tune_seconds, seed=config.seed, progress=progress)
        remember(key, found, config.tune_seconds)
    return replace(builder, placement=found.placement, config=replace(config, operators=found.operators)), found


def thread_counts() -> tuple[int, ...]:
    """One, and all that there are."""
    return tuple(sorted({1, os.cpu_count() or 1}))

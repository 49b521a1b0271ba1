"""``quantize``: the stages in order, each a function of its arguments."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxq._version import __version__
from onnxq.build import Builder, Built
from onnxq.calibrate.feeds import Feed, FeedOptions, FeedSource, open_feed
from onnxq.calibrate.synthetic import impose_moments, runnable_feed
from onnxq.config import AUTO, Config
from onnxq.errors import ConfigError, ModelError
from onnxq.graph.handoff import hand_off
from onnxq.graph.io import load, save, serialize
from onnxq.graph.kinds import METADATA_KEY, require_float32
from onnxq.graph.prepare import prepare
from onnxq.graph.query import nodes
from onnxq.graph.signature import Signature, signature
from onnxq.guard import References, Verdict, judge, references, repair, summary
from onnxq.measure.compare import Comparison
from onnxq.measure.latency import NOTICEABLE, LatencyReport, benchmark
from onnxq.measure.report import Adaptation, Report
from onnxq.measure.size import model_size
from onnxq.mixed import with_bits
from onnxq.notes import storage_notes
from onnxq.placing import place
from onnxq.plan import KeptFloat, Plan, Storage, make_plan
from onnxq.plan.placement import NOT_WORTH_IT
from onnxq.plan.planner import nothing_to_quantize
from onnxq.ranges.registry import find_method
from onnxq.runtime.session import open_session, run
from onnxq.targets import target_of
from onnxq.tuned import as_config, recall, remember, tuning_key
from onnxq.tuning import Tuning, tune

if TYPE_CHECKING:
    import onnx

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"
Progress: TypeAlias = Callable[[str, int, "int | None"], None]

# Below so many samples none is held out: the judgement would rest on one or two of them.
_FEW_SAMPLES = 8
# The most held-out feeds that a judgement runs, the fewer that rank layers (one run a layer), and those that are timed.
_JUDGED_FEEDS = 64
_RANKED_FEEDS = 8
# Calibration samples that witness disagreement: at most so many, and of large models only what this many counted
# elements of activations allow, for each costs a run of both models.
_WITNESSES = 256
_WITNESSED_ELEMENTS = 1 << 24
_TIMED_FEEDS = 4
# Samples in a batch for adapting, and the share of calibration samples that adapting is judged by.
_ADAPTED_ROWS = 32
_CHECKED_SHARE = 0.125

NOTHING_PAYS = (
    "no layer of this model is large enough for integers to pay on this CPU: weights are stored as int8, "
    "the computing is float; placement = 'all' in the configuration tries all the same"
)
NO_DATA = "no real data was seen: ranges come from the model alone, and accuracy was not checked"


@dataclass(frozen=True)
class Result:
    """A quantized model and what is known of it.

    | field        | meaning                                                                                 |
    |--------------|-----------------------------------------------------------------------------------------|
    | `model`      | the quantized ``onnx_ir.Model``                                                         |
    | `plan`       | what was quantized, what not and why                                                    |
    | `report`     | sizes, noise, agreement, kernels, latency; prints as a table or as JSON                 |
    | `good`       | whether held-out samples bear out the promised agreement and SQNR (True if not checked) |
    | `config`     | the choices with the placement spelled out: they give this model again, on any machine  |
    """

    model: ir.Model
    plan: Plan
    report: Report
    good: bool
    config: Config

    @property
    def comparison(self) -> Comparison | None:
        """The comparison with the float model on held-out samples; None where there was no data."""
        return self.report.comparison

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> tuple[Path, ...]:
        """Writes the model atomically and returns the files written. Raises ``OutputError``; see ``graph.io.save``."""
        return save(self.model, path, overwrite=overwrite)

    def proto(self) -> onnx.ModelProto:
        """The model as an ``onnx.ModelProto`` (below 2 GB)."""
        import onnx

        proto = onnx.ModelProto()
        proto.ParseFromString(serialize(self.model))
        return proto


def quantize(
    model: ModelSource,
    data: FeedSource | None = None,
    *,
    config: Config | None = None,
    feed_options: FeedOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """An INT8 version of ``model`` for onnxruntime's CPU kernels; nothing is written and ``model`` stays as it is.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; float32, opset 7 or newer.
        data: calibration inputs, unlabelled: anything that ``open_feed`` takes (a dict of arrays with samples along the
            first axis, a list of feeds, an ``.npz``, a folder of images, ...). None: the best that can be done without.
        config: the choices; see ``Config``.
        feed_options: how files become inputs; see ``FeedOptions``.
        progress: called as ``progress(stage, done, total)``; ``total`` is None where unknown.

    Raises:
        ModelError: unreadable, not float32, already quantized, or nothing in it can be quantized.
        DataError: the data does not fit the model, is empty or not finite.
        RuntimeFailure: onnxruntime cannot run the float model.
    """
    config = Config() if config is None else config
    tell = progress or (lambda *_: None)
    tell("prepare", 0, None)
    original = load(model)
    require_float32(original)
    for method in (config.weight_range, config.activation_range):
        find_method(method)  # a wrong name is an error even where nothing is quantized with it
    prepared = prepare(original)
    outline = make_plan(prepared.model, config, target_of(config))
    if not outline.anchors and not outline.weights:
        raise ModelError(nothing_to_quantize(outline))
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        job = _Job(prepared.model, original, hand_off(original, Path(name)), Path(name), config, tell)
        if data is None:
            outcome = _without_data(job, feed_options)
        else:
            outcome = _with_data(job, open_feed(data, signature(original).inputs, options=feed_options))
        outcome = _never_slower(job, outcome)
        return _result(job, outcome, (*prepared.notes, *outcome.notes))


@dataclass(frozen=True)
class _Job:
    """What all stages of one call share."""

    prepared: ir.Model
    original: ir.Model
    reference: bytes | Path  # the original as the runtime loads it
    folder: Path
    config: Config
    tell: Progress

    @property
    def signature(self) -> Signature:
        return signature(self.original)


@dataclass(frozen=True)
class _Outcome:
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


def _with_data(job: _Job, feed: Feed) -> _Outcome:
    """The best static INT8 model that held-out samples bear out."""
    config = job.config
    feed = feed.limit(config.samples)
    count = feed.samples
    notes: list[str] = []
    if config.held_out == 0.0 or (count is not None and count < _FEW_SAMPLES):
        calibration = held_out = feed
        notes.append("judged on the calibration samples themselves: there are too few to hold any out")
    else:
        calibration, held_out = feed.split(config.held_out, seed=config.seed)
    check = None
    if config.adapt != "none":
        # Nothing of what is judged by these may have seen them, ranges included.
        batch = calibration.layout.rows if calibration.layout.fixed else 1
        if count is not None and count < max(_FEW_SAMPLES, 4 * batch):
            notes.append(f"not adapted: {count} samples are too few to fit weights to and to judge them by")
        else:
            calibration, check = calibration.split(_CHECKED_SHARE, seed=config.seed + 1)
    total = calibration.len_hint
    target = target_of(config)
    builder = Builder(
        job.prepared,
        config,
        target,
        calibration,
        job.folder,
        placement=place(job.prepared, config, target, calibration.limit(1), job.folder),
        progress=lambda done: job.tell("observe", done, total),
    )
    timed = held_out.limit(_TIMED_FEEDS)
    builder, trials = _tuned(job, builder, timed)
    builder, found = with_bits(builder, job.reference, calibration, job.folder, job.tell)
    notes += found
    first = builder.build()
    adaptation = None
    if check is not None:
        first, adaptation = _adapted(job, builder, first, calibration, check)
        notes += adaptation.notes
    job.tell("verify", 0, None)

    def verdict_of(built: Built) -> Verdict:
        verdict = judge(job.reference, built.handed, held_out.limit(_JUDGED_FEEDS), config)
        if not config.guarded:
            return replace(verdict, good=not verdict.comparison.problems)
        if not verdict.good or calibration is held_out:
            return verdict
        # A few held-out samples show one wrong decision in a hundred too seldom. Ranges fit hundreds of samples with
        # two numbers a tensor, so that those are almost as good witnesses of disagreement; the report leaves them out.
        seen = sum(h.total for h in builder.statistics.histograms.values()) / (calibration.len_hint or _JUDGED_FEEDS)
        witnesses = int(min(_WITNESSES, max(1.0, _WITNESSED_ELEMENTS / max(seen, 1.0))))
        wider = judge(job.reference, built.handed, calibration.limit(witnesses), config)
        return replace(verdict, good=wider.good)

    @cache
    def ranked() -> References:
        return references(job.reference, held_out.limit(_RANKED_FEEDS))

    best, verdict, given_back = repair(
        first,
        builder.build,
        verdict_of,
        lambda kept: ranked().noise(builder.draft(kept).handed),
        progress=lambda done, total: job.tell("repair", done, total),
    )
    if given_back:
        notes.append(summary(best.plan, given_back))
    if feed.ignored:
        notes.append(f"arrays that no input wants were ignored: {', '.join(feed.ignored)}")
    warnings = (*([feed.warning] if feed.warning else []), *verdict.comparison.problems)
    return _Outcome(
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
    )


def _adapted(job: _Job, builder: Builder, first: Built, fit: Feed, check: Feed) -> tuple[Built, Adaptation]:
    """``first`` with parameters adapted to the noise in the network, as far as the samples ``check`` bear them out."""
    from onnxq.adapt.levels import Adapter

    assert builder.parameters is not None
    adapter = Adapter(
        job.prepared,
        first.plan,
        builder.parameters,
        builder.statistics,
        builder.config,
        list(fit.batches(_ADAPTED_ROWS)),
        list(check.batches(_ADAPTED_ROWS)),
        job.folder,
        job.tell,
    )
    adaptation = adapter.run(job.config.adapt)
    if not adaptation.kept:
        return first, adaptation
    builder.parameters = adapter.best
    return builder.build(first.kept_float), adaptation


def _without_data(job: _Job, options: FeedOptions | None) -> _Outcome:
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
        unseen="without calibration data the range of its input is unknown",
    )
    timed = None if feed is None else feed.limit(_TIMED_FEEDS)
    builder, trials = _tuned(job, builder, timed)
    built = builder.build()
    notes: tuple[str, ...] = ()
    if timed is not None:
        session = open_session(built.handed)
        for one in timed:
            run(session, one)
        notes = (f"loaded and run on random inputs: {', '.join(f'{k} {list(v.shape)}' for k, v in one.items())}",)
    return _Outcome(built, builder, None, timed, "none", notes, (NO_DATA,), tuning=trials)


def _tuned(job: _Job, builder: Builder, timed: Feed | None) -> tuple[Builder, Tuning | None]:
    """``builder`` with the fastest placement that the time allows to find, or that was found before, and the trials."""
    config = job.config
    if config.tune_seconds <= 0 or timed is None or config.activations != "uint8":
        return builder, None
    job.tell("tune", 0, None)
    feeds, threads = list(timed), _thread_counts()
    key = tuning_key(job.prepared, config, feeds[0], threads)
    found = recall(key, config.tune_seconds)
    if found is None:
        progress = partial(job.tell, "tune")
        found = tune(builder, feeds, threads=threads, seconds=config.tune_seconds, seed=config.seed, progress=progress)
        remember(key, found, config.tune_seconds)
    return replace(builder, placement=found.placement, config=replace(config, operators=found.operators)), found


def _thread_counts() -> tuple[int, ...]:
    """One, and all that there are."""
    return tuple(sorted({1, os.cpu_count() or 1}))


def _never_slower(job: _Job, outcome: _Outcome) -> _Outcome:
    """``outcome`` with its latency; where it is slower than float, the one that only stores its weights as integers."""
    if job.config.latency_seconds <= 0 or outcome.timed is None:
        return outcome
    job.tell("latency", 0, None)
    outcome = _timed(job, outcome)
    if not _slower(outcome) or not outcome.built.plan.anchors or job.config.simulated:
        return outcome
    reason = KeptFloat("its integer kernel made the model slower than float on this machine", Storage.PACKED)
    built = outcome.builder.build({**outcome.built.kept_float, **dict.fromkeys(outcome.built.plan.anchors, reason)})
    verdict = None
    if outcome.held_out is not None:
        verdict = judge(job.reference, built.handed, outcome.held_out.limit(_JUDGED_FEEDS), job.config)
    note = "integer kernels made this model slower on this machine: weights are stored as int8, the computing is float"
    return _timed(job, replace(outcome, built=built, verdict=verdict, notes=(*outcome.notes, note), latency=None))


def _timed(job: _Job, outcome: _Outcome) -> _Outcome:
    assert outcome.timed is not None
    report = benchmark(
        [job.reference, outcome.built.handed],
        list(outcome.timed),
        threads=_thread_counts(),
        seconds=job.config.latency_seconds,
        seed=job.config.seed,
    )
    return replace(outcome, latency=report)


def _slower(outcome: _Outcome) -> bool:
    return outcome.latency is not None and any(row.ratio_low > NOTICEABLE for row in outcome.latency.rows)


def _result(job: _Job, outcome: _Outcome, notes: tuple[str, ...]) -> Result:
    built = outcome.built
    if not built.plan.anchors and any(k.reason == NOT_WORTH_IT for k in built.kept_float.values()):
        notes = (*notes, NOTHING_PAYS)
    unused = tuple(f"rule '{rule}' matched no node" for rule in built.plan.unused_rules)
    provenance = {
        "onnxq": __version__,
        "calibration": outcome.made_from,
        "config": json.dumps(asdict(outcome.builder.config), sort_keys=True),
    }
    reasons: dict[str, list[str]] = {}
    for skipped in built.plan.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.node)
    built.model.metadata_props[METADATA_KEY] = json.dumps({**provenance, "float": reasons}, sort_keys=True)
    final = hand_off(built.model, job.folder)
    report = Report(
        model_size(job.reference),
        model_size(final),
        comparison=None if outcome.verdict is None else outcome.verdict.comparison,
        latency=outcome.latency,
        kernels=built.kernels,
        fates=built.fates,
        reasons={s.node: s.reason for s in built.plan.skipped},
        notes=(*notes, *storage_notes(built.plan, job.config), *unused),
        warnings=outcome.warnings,
        provenance=provenance,
        tuning=() if outcome.tuning is None else outcome.tuning.trials,
        adaptation=outcome.adaptation,
    )
    spelled = as_config(outcome.builder.config, built, nodes(job.prepared))
    return Result(built.model, built.plan, report, outcome.verdict is None or outcome.verdict.good, spelled)

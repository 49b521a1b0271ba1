"""``quantize``: the stages in order, each a function of its arguments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxq.calibrate.feeds import FeedOptions, FeedSource, open_feed
from onnxq.config import Config
from onnxq.errors import ModelError
from onnxq.files.scratch import Scratch
from onnxq.graph.io import load, save, serialize
from onnxq.graph.kinds import METADATA_KEY, require_float32
from onnxq.graph.prepare import prepare
from onnxq.graph.runtime_model import to_runtime
from onnxq.graph.signature import signature
from onnxq.kernels.targets import target_of
from onnxq.measure.compare import Comparison
from onnxq.measure.latency import NOTICEABLE, benchmark
from onnxq.measure.size import model_size
from onnxq.plan import KeptFloat, Plan, ReasonCode, Storage, make_plan
from onnxq.plan.planner import nothing_to_quantize
from onnxq.query import nodes
from onnxq.ranges.registry import find_method
from onnxq.report.notes import storage_notes
from onnxq.report.provenance import metadata, provenance
from onnxq.report.report import Report
from onnxq.search.candidates import Job, Outcome, Progress, thread_counts, with_data, without_data
from onnxq.search.guard import judge
from onnxq.search.remember import as_config
from onnxq.search.trial import JUDGED_FEEDS

if TYPE_CHECKING:
    import onnx

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"

NOTHING_PAYS = (
    "no layer of this model is large enough for integers to pay on this CPU: weights are stored as int8, "
    "the computing is float; placement = 'all' in the configuration tries all the same"
)


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
    target = target_of(config)
    prepared = prepare(original, target=target, native=config.native)
    outline = make_plan(prepared.model, config, target)
    if not outline.anchors and not outline.weights:
        raise ModelError(nothing_to_quantize(outline))
    with tempfile.TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job = Job(prepared.model, original, to_runtime(original, folder), folder, config, tell, Scratch(folder))
        if data is None:
            outcome = without_data(job, feed_options)
        else:
            outcome = with_data(job, open_feed(data, signature(original).inputs, options=feed_options))
        outcome = _never_slower(job, _never_larger(job, outcome))
        return _result(job, outcome, (*prepared.notes, *outcome.notes))


def _never_larger(job: Job, outcome: Outcome) -> Outcome:
    """``outcome``; where nothing computes with integers and the file would not be smaller, the model in float."""
    built = outcome.built
    if built.plan.layers or not built.plan.weights:
        return outcome
    if model_size(built.runtime_model).file_bytes < model_size(job.reference).file_bytes:
        return outcome
    reason = KeptFloat.of(ReasonCode.FILE_NOT_SMALLER)
    note = "nothing can be gained: no layer is left that integers would speed up, and the file would not be smaller"
    found = _rebuilt(job, outcome, [w.node for w in built.plan.weights], reason, note)
    return outcome if found.built.plan.weights else found  # what a rule wants stored is stored


def _rebuilt(job: Job, outcome: Outcome, names: Iterable[str], reason: KeptFloat, note: str) -> Outcome:
    """``outcome`` with the nodes called ``names`` kept float for ``reason`` too, judged anew and not yet timed."""
    built = outcome.builder.build({**outcome.built.kept_float, **dict.fromkeys(names, reason)})
    verdict = None
    if outcome.held_out is not None:
        verdict = judge(job.reference, built.runtime_model, outcome.held_out.limit(JUDGED_FEEDS), job.config)
    return replace(outcome, built=built, verdict=verdict, notes=(*outcome.notes, note), latency=None)


def _never_slower(job: Job, outcome: Outcome) -> Outcome:
    """``outcome`` with its latency; where it is slower than float, the one that only stores its weights as integers."""
    if job.config.latency_seconds <= 0 or outcome.timed is None:
        return outcome
    job.tell("latency", 0, None)
    outcome = _timed(job, outcome)
    if not _slower(outcome) or not outcome.built.plan.layers or job.config.simulated:
        return outcome
    reason = KeptFloat.of(ReasonCode.SLOWER_THAN_FLOAT, Storage.PACKED)
    note = "integer kernels made this model slower on this machine: weights are stored as int8, the computing is float"
    return _timed(job, _rebuilt(job, outcome, outcome.built.plan.layers, reason, note))


def _timed(job: Job, outcome: Outcome) -> Outcome:
    assert outcome.timed is not None
    report = benchmark(
        [job.reference, outcome.built.runtime_model],
        list(outcome.timed),
        threads=thread_counts(),
        seconds=job.config.latency_seconds,
        seed=job.config.seed,
    )
    return replace(outcome, latency=report)


def _slower(outcome: Outcome) -> bool:
    return outcome.latency is not None and any(row.ratio_low > NOTICEABLE for row in outcome.latency.rows)


def _result(job: Job, outcome: Outcome, notes: tuple[str, ...]) -> Result:
    built = outcome.built
    if (
        not built.plan.layers
        and built.plan.weights
        and any(k.code is ReasonCode.NOT_WORTH_IT for k in built.kept_float.values())
    ):
        notes = (*notes, NOTHING_PAYS)
    unused = tuple(f"rule '{rule}' matched no node" for rule in built.plan.unused_rules)
    config = outcome.builder.config
    built.model.metadata_props[METADATA_KEY] = metadata(config, outcome.made_from, built.plan, outcome.equalized)
    final = to_runtime(built.model, job.folder)
    report = Report(
        model_size(job.reference),
        model_size(final),
        comparison=None if outcome.verdict is None else outcome.verdict.comparison,
        latency=outcome.latency,
        kernels=built.kernels,
        assignments=built.assignments,
        reasons={s.node: s.reason for s in built.plan.skipped},
        reason_codes={s.node: s.code.value for s in built.plan.skipped},
        notes=(*notes, *storage_notes(built.plan, job.config), *unused),
        warnings=outcome.warnings,
        provenance=provenance(config, outcome.made_from),
        tuning=() if outcome.tuning is None else outcome.tuning.trials,
        adaptation=outcome.adaptation,
        bits=outcome.bits,
    )
    spelled = as_config(config, built, nodes(job.prepared))
    return Result(built.model, built.plan, report, outcome.verdict is None or outcome.verdict.good, spelled)

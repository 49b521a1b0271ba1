"""``quantize``: the stages in order, each a function of its arguments."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxq.build.candidate import Built
from onnxq.calibrate.feeds import FeedOptions, FeedSource, open_feed
from onnxq.calibrate.metrics import MetricSource, metric_asked_for
from onnxq.config import Config
from onnxq.errors import ConfigError, ModelError
from onnxq.files.memory import Memory, give_back_freed_memory, give_back_holes
from onnxq.files.scratch import Scratch
from onnxq.files.temporary import temporary_folder
from onnxq.graph.io import load, save, serialize
from onnxq.graph.kinds import METADATA_KEY, require_not_quantized, require_plain_layouts
from onnxq.graph.passes.naming import tell_apart
from onnxq.graph.prepare import prepare
from onnxq.graph.reference import reference
from onnxq.graph.runtime_model import or_refused, to_runtime, weight_bytes
from onnxq.graph.signature import keep_signature, signature
from onnxq.kernels.targets import target_of
from onnxq.measure.compare import Comparison
from onnxq.measure.kinds.guess import require_outputs
from onnxq.measure.metric import Metric, Top1
from onnxq.measure.size import model_size
from onnxq.plan import Plan, ReasonCode, Storage, make_plan
from onnxq.plan.planner import nothing_to_quantize
from onnxq.query import nodes
from onnxq.ranges.registry import find_method
from onnxq.report.notes import storage_notes
from onnxq.report.provenance import metadata, provenance
from onnxq.report.report import LayerBits, Report
from onnxq.search.acceptance import Verdict
from onnxq.search.attempt import Job, Progress
from onnxq.search.remember import as_config
from onnxq.search.search import Outcome, with_data, without_data

if TYPE_CHECKING:
    import onnx

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"

NOTHING_PAYS = (
    "no layer of this model is large enough for integers to pay on this CPU: weights are stored as integers, "
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
    | `good`       | whether held-out samples, or the metric, bear out what was promised or asked (True if not checked): with 8 bits agreement and SQNR, with fewer only those that the configuration names; ``min_sqnr`` always |
    | `config`     | the choices with the placement spelled out: they give this model again, on any machine  |
    """  # noqa: E501 - a table

    model: ir.Model
    plan: Plan
    report: Report
    good: bool
    config: Config

    @property
    def too_slow(self) -> bool:
        """Whether it is slower than the float model, and not made for its size: 4-bit kernels compute in float."""
        made_small = not self.plan.layers and any(w.storage is Storage.BLOCKS for w in self.plan.weights)
        return self.report.slower and not made_small

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
    metric: MetricSource | None = None,
    feed_options: FeedOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """An INT8 version of ``model`` for onnxruntime's CPU kernels; nothing is written and ``model`` stays as it is.

    Args:
        model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; of any float type, opset 7 or newer.
        data: calibration inputs, unlabelled: anything that ``open_feed`` takes (a dict of arrays with samples along the
            first axis, a list of feeds, an ``.npz``, a folder of images, ...). None: the best that can be done without.
        config: the choices; see ``Config``.
        metric: a measure of your own, which decides whether the result is good (``Config.max_drop``) and which layers
            go back to float: a function from the outputs of one sample by name (and its label, with ``Config.labels``)
            to a number, or two, from the outputs to a prediction and from (predictions, labels) to a score. Higher is
            better. A callable, a pair of them, or text as ``package.module:function``; None: ``Config.metric``.
        feed_options: how files become inputs; see ``FeedOptions``.
        progress: called as ``progress(stage, done, total)``; ``total`` is None where unknown.

    Raises:
        ModelError: unreadable, already quantized, or nothing in it can be quantized.
        DataError: the data does not fit the model, is empty or not finite; the metric cannot be loaded, raises or
            returns no number.
        RuntimeFailure: onnxruntime cannot run the float model.
    """
    config = Config() if config is None else config
    measure = _metric(metric, data, config)
    if measure is not None and measure.name != Top1.name:
        config = replace(config, metric=measure.name)
    tell = _tidy(progress or (lambda *_: None))
    give_back_freed_memory()
    tell("prepare", 0, None)
    original = load(model)
    require_not_quantized(original)
    require_plain_layouts(original)
    tell_apart(original)
    for method in (config.weight_range, config.activation_range):
        find_method(method)  # a wrong name is an error even where nothing is quantized with it
    require_outputs(dict(config.judge), [value.name or "" for value in original.graph.outputs])
    with or_refused(original):
        return _quantized(original, data, Asked(config, measure, feed_options), tell)


@dataclass(frozen=True)
class Asked:
    """What the user chose: the configuration, the measure of the user's own, and how files become inputs."""

    config: Config
    metric: Metric | None
    feed_options: FeedOptions | None


def _metric(given: MetricSource | None, data: FeedSource | None, config: Config) -> Metric | None:
    """The measure that decides; None where the user has none."""
    found = metric_asked_for(
        config.metric if given is None else given, labels=bool(config.labels), max_drop=config.max_drop
    )
    if found is not None and data is None:
        raise ConfigError("a metric needs data: it measures what the model makes of it", hint="give --calib DATA")
    return found


def _tidy(progress: Progress) -> Progress:
    """``progress`` as it is, and between two stages the system has back what the one before left free."""
    last = [""]

    def tell(stage: str, done: int, total: int | None) -> None:
        if stage != last[0]:
            last[0] = stage
            give_back_holes()
        progress(stage, done, total)

    return tell


def _quantized(original: ir.Model, data: FeedSource | None, asked: Asked, tell: Progress) -> Result:
    """The stages behind the checks of what was given."""
    config, feed_options = asked.config, asked.feed_options
    target = target_of(config)
    with temporary_folder() as folder:
        memory = Memory.of(config.memory, weight_bytes(original))
        fits = memory.holds(weight_bytes(original))
        source = to_runtime(original, folder)
        run_as = reference(original, source, folder)
        prepared = prepare(run_as.model, target=target, native=config.native)
        outline = make_plan(prepared.model, config, target)
        if outline.empty:
            raise ModelError(nothing_to_quantize(outline))
        scratch = Scratch(folder, budget=memory.kept, workspace=memory.workspace)
        job = Job(prepared.model, original, source, run_as.runnable, folder, config, tell, scratch, fits, asked.metric)
        if data is None or not fits:
            outcome = without_data(job, feed_options)
        else:
            feed = open_feed(data, signature(original).inputs, options=feed_options)
            with feed.explaining():
                outcome = with_data(job, feed)
        return _result(job, outcome, (*prepared.notes, *([run_as.note] if run_as.note else [])))


def _result(job: Job, outcome: Outcome, prepared_notes: tuple[str, ...]) -> Result:
    """The model, the report and the configuration that gives this model again."""
    attempt, built = outcome.attempt, outcome.attempt.built
    config = attempt.candidate.config  # the effective one: what was asked for, and what the search made of it
    if built.runtime_model is not job.source:  # that is the model as it was given
        entry = metadata(config, outcome.made_from, built.plan, attempt.equalized.steps)
        built.model.metadata_props[METADATA_KEY] = entry
    keep_signature(built.model, job.original)
    final = to_runtime(built.model, job.folder)
    notes = (*prepared_notes, *attempt.notes, *_nothing_pays(built), *storage_notes(built.plan, job.asked))
    report = Report(
        model_size(job.source),
        model_size(final),
        comparison=None if attempt.verdict is None else attempt.verdict.comparison,
        metric=None if attempt.verdict is None else attempt.verdict.metric,
        certainties=() if attempt.verdict is None else attempt.verdict.certainties,
        latency=attempt.latency,
        kernels=built.kernels,
        assignments=built.assignments,
        reasons={s.node: s.reason for s in built.plan.skipped},
        reason_codes={s.node: s.code.value for s in built.plan.skipped},
        notes=(*notes, *(f"rule '{rule}' matched no node" for rule in built.plan.unused_rules)),
        warnings=outcome.warnings,
        provenance=provenance(config, outcome.made_from),
        tuning=() if attempt.tuning is None else attempt.tuning.trials,
        adaptation=attempt.adaptation,
        bits=tuple(LayerBits(c.node, c.option.stored, c.option.nbytes, c.option.noise) for c in attempt.bits),
        curve=attempt.curve,
    )
    spelled = as_config(config, built, attempt.candidate.placement, nodes(job.prepared))
    return Result(built.model, built.plan, report, _borne_out(attempt.verdict, job.asked), spelled)


def _borne_out(verdict: Verdict | None, asked: Config) -> bool:
    """Whether data bears out what was promised or ``asked``; of fewer than 8 bits nothing is promised unasked."""
    if verdict is None:
        return True
    if asked.min_sqnr is not None and not verdict.sqnr_db >= asked.min_sqnr:
        return False
    usual = Config()
    named = (asked.min_agreement, asked.guard_sqnr) != (usual.min_agreement, usual.guard_sqnr)
    return verdict.good and not (named and verdict.shortfalls)


def _nothing_pays(built: Built) -> tuple[str, ...]:
    """The line for the report where only weights are stored, since integers would pay nowhere."""
    costs = any(kept.code is ReasonCode.NOT_WORTH_IT for kept in built.kept_float.values())
    return (NOTHING_PAYS,) if costs and _only_stored(built) else ()


def _only_stored(built: Built) -> bool:
    """Whether weights are integers in the file and nothing computes with them: 4-bit kernels do."""
    weights = built.plan.weights
    return bool(weights) and not built.plan.layers and all(w.storage is not Storage.BLOCKS for w in weights)

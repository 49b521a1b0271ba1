"""``quantize``: the stages in order, each a function of its arguments."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxq._version import __version__
from onnxq.build import Builder, Built
from onnxq.calibrate.feeds import Feed, FeedOptions, FeedSource, open_feed
from onnxq.config import Config
from onnxq.errors import DataError, ModelError
from onnxq.graph.handoff import hand_off
from onnxq.graph.io import load, save, serialize
from onnxq.graph.kinds import quantized_ops, require_float32
from onnxq.graph.prepare import prepare
from onnxq.graph.signature import signature
from onnxq.guard import Verdict, judge, repair, summary
from onnxq.measure.compare import Comparison
from onnxq.measure.trace import Fate
from onnxq.plan import Plan, make_plan
from onnxq.plan.planner import nothing_to_quantize
from onnxq.targets import resolve_target

if TYPE_CHECKING:
    import onnx

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model"
Progress: TypeAlias = Callable[[str, int, "int | None"], None]

# Below so many samples none is held out: the judgement would rest on one or two of them.
_FEW_SAMPLES = 8
# The most held-out feeds that a judgement runs, and the fewer that rank layers (one run for each layer).
_JUDGED_FEEDS = 64
_RANKED_FEEDS = 8

METADATA_KEY = "onnxq"


@dataclass(frozen=True)
class Result:
    """A quantized model and what is known of it.

    | field        | meaning                                                                        |
    |--------------|--------------------------------------------------------------------------------|
    | `model`      | the quantized ``onnx_ir.Model``                                                |
    | `plan`       | what was quantized, what not and why                                           |
    | `comparison` | with the float model, on held-out samples                                      |
    | `fates`      | for each Conv, Gemm, MatMul, ...: the kernel that onnxruntime runs             |
    | `good`       | whether the held-out samples bear out the promised agreement and SQNR          |
    | `notes`      | one line each: what happened that the user should know                         |
    | `warnings`   | one line each: what the user must know before trusting the model               |
    """

    model: ir.Model
    plan: Plan
    comparison: Comparison
    fates: tuple[Fate, ...]
    good: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Writes the model atomically and returns the files written. Raises ``OutputError``; see ``graph.save``."""
        return save(self.model, path)

    def proto(self) -> onnx.ModelProto:
        """The model as an ``onnx.ModelProto`` (below 2 GB)."""
        import onnx

        return onnx.ModelProto.FromString(serialize(self.model))


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
            first axis, a list of feeds, an ``.npz``, a folder of images, ...).
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
    if ops := quantized_ops(original):
        raise ModelError(f"the model is already quantized (it has {', '.join(ops)}): give the float model")
    require_float32(original)
    prepared = prepare(original)
    target = resolve_target(config.target)
    outline = make_plan(prepared.model, config, target)
    if not outline.anchors and not outline.weights:
        raise ModelError(nothing_to_quantize(outline))
    if data is None:
        raise DataError("calibration data is needed: pass arrays, feeds or a path (see quantize's docstring)")
    feed = open_feed(data, signature(original).inputs, options=feed_options)
    calibration, held_out, notes = _divided(feed, config)
    notes = [*prepared.notes, *notes]
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        folder = Path(name)
        reference = hand_off(original, folder)
        total = calibration.len_hint
        builder = Builder(
            prepared.model, config, target, calibration, folder, lambda done: tell("observe", done, total)
        )
        first = builder.build()

        def verdict_of(built: Built) -> Verdict:
            return judge(reference, built.handed, held_out.limit(_JUDGED_FEEDS), config)

        def noise_of(built: Built) -> float:
            seen = judge(reference, built.handed, held_out.limit(_RANKED_FEEDS), config)
            return float(10.0 ** (-seen.sqnr_db / 10.0))

        tell("verify", 0, None)
        best, verdict, given_back = repair(
            first, builder.build, verdict_of, noise_of, progress=lambda done, total: tell("repair", done, total)
        )
    if given_back:
        notes.append(summary(best.plan, given_back))
    notes += [f"rule '{rule}' matched no node" for rule in best.plan.unused_rules]
    warnings = [feed.warning] if feed.warning else []
    if verdict.comparison.problems:
        warnings += list(verdict.comparison.problems)
    quantized = best.model
    quantized.metadata_props[METADATA_KEY] = _provenance(config, feed)
    return Result(quantized, best.plan, verdict.comparison, best.fates, verdict.good, tuple(notes), tuple(warnings))


def _divided(feed: Feed, config: Config) -> tuple[Feed, Feed, list[str]]:
    """The samples to calibrate on, those to judge by, and what to tell the user about the division."""
    feed = feed.limit(config.samples)
    count = feed.samples
    if config.held_out == 0.0 or (count is not None and count < _FEW_SAMPLES):
        return feed, feed, ["the result is judged on the calibration samples themselves: too few to hold any out"]
    calibration, held_out = feed.split(config.held_out, seed=config.seed)
    return calibration, held_out, []


def _provenance(config: Config, feed: Feed) -> str:
    """How the model was made, as JSON for its metadata."""
    made = {"version": __version__, "calibration": feed.description, "config": asdict(config)}
    return json.dumps(made, sort_keys=True)

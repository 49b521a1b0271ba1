"""``evaluate``: a quantized model against the float one, at the outputs and layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxq.analysis.running import Opened, checked_feed, opened, told
from onnxq.calibrate.feeds import Feed, FeedOptions, FeedSource
from onnxq.calibrate.metrics import MetricSource, metric_asked_for
from onnxq.calibrate.unused import LabelledFeed
from onnxq.config.judged import judged
from onnxq.equalize import equalized_as
from onnxq.errors import ConfigError, RuntimeFailure, one_line
from onnxq.files.temporary import temporary_folder
from onnxq.graph.heads import heads
from onnxq.graph.kinds import METADATA_KEY
from onnxq.graph.lengths import value_lengths
from onnxq.graph.prepare import prepare
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.targets import TARGETS, resolve_target
from onnxq.measure.compare import Comparison, compare
from onnxq.measure.kinds import guessed
from onnxq.measure.layers import LayerNoise, common_tensors, layer_noise
from onnxq.measure.metric import Answering, Metric, MetricComparison, Top1, measured_by, seen
from onnxq.measure.references import Answers, seen_of
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model
from onnxq.runtime.session import open_session, run

if TYPE_CHECKING:
    from onnxq.pipeline import ModelSource
    from onnxq.search.attempt import Progress

Layers: TypeAlias = "tuple[tuple[LayerNoise, ...], tuple[str, ...]]"  # and notes
_NO_LAYERS: Layers = ((), ())


@dataclass(frozen=True)
class Evaluation:
    """What two models do with the same data.

    | field        | meaning                                                                     |
    |--------------|-----------------------------------------------------------------------------|
    | `comparison` | SQNR and agreement of each output, accuracy where labels were given         |
    | `layers`     | noise of each layer that both models have; empty if it was not asked for    |
    | `data`       | what it was measured on, as text                                            |
    | `notes`      | one line each: what the user should know                                    |
    | `warnings`   | one line each: what the user must know before trusting the figures          |
    | `metric`     | what the measure of your own says of both; None where none was given        |
    """

    comparison: Comparison
    layers: tuple[LayerNoise, ...]
    data: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    metric: MetricComparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        metric = None if self.metric is None else self.metric.to_dict()
        return {**plain(self), "comparison": self.comparison.to_dict(), "metric": metric}

    def to_json(self, *, indent: int | None = 2) -> str:
        """As JSON text; NaN and infinity are null."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def evaluate(
    float_model: ModelSource,
    quantized_model: ModelSource,
    data: FeedSource,
    *,
    labels: str | npt.ArrayLike | None = None,
    metric: MetricSource | None = None,
    max_drop: float | None = None,
    judge: Mapping[str, str] | None = None,
    layer_samples: int = 16,
    feed_options: FeedOptions | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The ``Evaluation`` of ``quantized_model`` against ``float_model`` over ``data``.

    Args:
        float_model: a path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; its inputs are those that are fed.
        quantized_model: likewise, made from ``float_model``.
        data: anything that ``open_feed`` takes.
        labels: class indices, one a sample (for outputs ``[N, T, C]`` one a row, ``[N, T]``), in the order of the
            samples; or the name of the array in ``data`` that holds them. Negative ones are ignored. With a ``metric``
            they are whatever that takes.
        metric: a measure of your own; see ``quantize``. It needs labels by their name, if any.
        max_drop: the most that it, or top-1 where there are only labels, may lose; None: 1 % of the float model's.
        judge: kinds by the name of an output, where what an output is for should not be guessed (``Config.judge``).
        layer_samples: so many samples serve to measure the layers, evenly spaced; 0: layers are not measured.
        feed_options: how files become inputs; see ``FeedOptions``.
        threads: of onnxruntime; None leaves its choice.
        progress: called as ``progress(stage, done, total)``; ``total`` is None where unknown.

    Raises:
        ModelError: unreadable, or the outputs of the two models have different names.
        ConfigError: the metric is none, or there is nothing that ``max_drop`` could be of.
        DataError: the data or the labels do not fit; the metric cannot be loaded, raises or returns no number.
        RuntimeFailure: onnxruntime cannot load or run a model.
    """
    if layer_samples < 0:
        raise ConfigError(f"layer_samples must be at least 0, not {layer_samples}")
    measuring = _Measuring.asked(metric, labels, max_drop)
    with opened(float_model, quantized_model) as (reference, test), temporary_folder() as name:
        feed = checked_feed(data, (reference, test), feed_options)
        with feed.explaining():
            comparison = compare(
                reference.runnable,
                test.runnable,
                told(feed, progress, "compare"),
                labels=measuring.class_indices(feed, labels),
                **_outputs(reference, feed, judge or {}),
                threads=threads,
            )
        measured = measuring.of((reference, test), feed)
        layers, notes = _NO_LAYERS
        if layer_samples:
            feeds = told(feed.limit(layer_samples), progress, "layers")
            layers, notes = _layer_by_layer(_as_prepared(reference, test, Path(name)), test.runnable, feeds, threads)
    notes = (*(given.reference.note for given in (reference, test) if given.reference.note), *notes)
    warnings = (feed.warning,) if feed.warning else ()
    return Evaluation(comparison, layers, feed.description, notes, warnings, measured)


@dataclass(frozen=True)
class _Measuring:
    """What is measured beside noise: by ``metric`` (None: nothing), with the labels of that name (empty: without)."""

    metric: Metric | None
    labels: str
    max_drop: float | None

    @classmethod
    def asked(
        cls, metric: MetricSource | None, labels: str | npt.ArrayLike | None, max_drop: float | None
    ) -> _Measuring:
        found = metric_asked_for(metric, labels=labels is not None, max_drop=max_drop)
        if found is not None and not isinstance(labels, str | None):
            raise ConfigError("a metric takes labels from the data", hint="give the name of their array as labels")
        return cls(found, labels if isinstance(labels, str) else "", max_drop)

    def class_indices(self, feed: Feed, labels: str | npt.ArrayLike | None) -> npt.NDArray[Any] | None:
        """Labels that are taken for classes: a measure of the user's own takes them for what it likes."""
        if labels is None or not (self.metric is None or isinstance(self.metric, Top1)):
            return None
        return np.asarray(feed.labels(labels) if isinstance(labels, str) else labels)

    def of(self, models: tuple[Opened, Opened], feed: Feed) -> MetricComparison | None:
        """What the metric says of the float model and the quantized one, each run on its own."""
        if self.metric is None:
            return None
        sessions = [open_session(model.runnable) for model in models]
        names = [output.name for output in sessions[0].get_outputs()]
        both = [
            Answering(who, names, partial(run, session, outputs=names))
            for who, session in zip(("the float model", "the quantized model"), sessions, strict=True)
        ]
        truth = None if self.labels else both[0]
        found = [list(seen(self.metric, model, LabelledFeed(feed, self.labels), truth)) for model in both]
        before, after = ([value for value, _ in values] for values in found)
        labels = [label for _, label in found[0]] if self.labels else None
        return measured_by(self.metric, before, after, labels, self.max_drop)


def _outputs(reference: Opened, feed: Feed, asked: Mapping[str, str]) -> dict[str, Any]:
    """What ``compare`` is told of the float model's outputs; ``asked``: what the user says some are for."""
    known = dict(judged(asked))
    lengths, seen = value_lengths(reference.model).outputs, seen_of(Answers(reference.runnable), feed)
    kinds = guessed(seen, heads=heads(reference.model), lengths=lengths, asked=known)
    return {"lengths": lengths, "kinds": kinds}


def _layer_by_layer(
    float_model: Model, quantized_model: Model, feeds: Iterable[Mapping[str, Any]], threads: int | None
) -> Layers:
    """(the noise of each layer that both models have, notes): one note and no layers where it cannot be told."""
    names = common_tensors(float_model, quantized_model)
    if not names:
        return (), ("the two models have no layer of the same name, so noise cannot be told layer by layer",)
    try:
        return tuple(layer_noise(float_model, quantized_model, names, feeds, threads=threads)), ()
    except RuntimeFailure as error:
        # The comparison of the outputs is what was asked for; not every graph can be cut into layers.
        return (), (f"noise could not be told layer by layer: {one_line(error)}",)


def _as_prepared(reference: Opened, test: Opened, folder: Path) -> Path | bytes:
    """The float model whose tensors mean what those of the same name mean in the quantized model.

    Where BatchNormalization was folded, or channels were equalized, the output of a Conv is another tensor than before,
    under the same name. So a model of our own is compared with the float model as it was prepared for quantizing; those
    of other tools, which fold as they please, with the float model as it is.
    """
    if METADATA_KEY not in test.model.metadata_props:
        return reference.runnable
    written = json.loads(test.model.metadata_props[METADATA_KEY])
    name = json.loads(written.get("config", "{}")).get("target", "")
    target = resolve_target(name if name in TARGETS else "auto")
    return to_runtime(
        equalized_as(prepare(reference.reference.model, target=target).model, written.get("equalized", {})), folder
    )

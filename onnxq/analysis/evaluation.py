"""``evaluate``: a quantized model against the float one, at the outputs and layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxq.analysis.running import Opened, checked_feed, opened, told
from onnxq.calibrate.feeds import Feed, FeedOptions, FeedSource
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
from onnxq.measure.references import Answers, seen_of
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model

if TYPE_CHECKING:
    from onnxq.pipeline import ModelSource
    from onnxq.search.attempt import Progress


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
    """

    comparison: Comparison
    layers: tuple[LayerNoise, ...]
    data: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**plain(self), "comparison": self.comparison.to_dict()}

    def to_json(self, *, indent: int | None = 2) -> str:
        """As JSON text; NaN and infinity are null."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def evaluate(
    float_model: ModelSource,
    quantized_model: ModelSource,
    data: FeedSource,
    *,
    labels: str | npt.ArrayLike | None = None,
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
            samples; or the name of the array in ``data`` that holds them. Negative ones are ignored.
        judge: kinds by the name of an output, where what an output is for should not be guessed (``Config.judge``).
        layer_samples: so many samples serve to measure the layers, evenly spaced; 0: layers are not measured.
        feed_options: how files become inputs; see ``FeedOptions``.
        threads: of onnxruntime; None leaves its choice.
        progress: called as ``progress(stage, done, total)``; ``total`` is None where unknown.

    Raises:
        ModelError: unreadable, or the outputs of the two models have different names.
        DataError: the data or the labels do not fit.
        RuntimeFailure: onnxruntime cannot load or run a model.
    """
    if layer_samples < 0:
        raise ConfigError(f"layer_samples must be at least 0, not {layer_samples}")
    with (
        opened(float_model, quantized_model) as (reference, test),
        temporary_folder() as name,
    ):
        folder = Path(name)
        feed = checked_feed(data, (reference, test), feed_options)
        targets = feed.labels(labels) if isinstance(labels, str) else labels
        with feed.explaining():
            comparison = compare(
                reference.runnable,
                test.runnable,
                told(feed, progress, "compare"),
                labels=None if targets is None else np.asarray(targets),
                **_outputs(reference, feed, judge or {}),
                threads=threads,
            )
        layers: tuple[LayerNoise, ...] = ()
        notes: tuple[str, ...] = ()
        if layer_samples:
            prepared = _as_prepared(reference, test, folder)
            feeds = told(feed.limit(layer_samples), progress, "layers")
            layers, notes = _layer_by_layer(prepared, test.runnable, feeds, threads)
    notes = (*(given.reference.note for given in (reference, test) if given.reference.note), *notes)
    warnings = (feed.warning,) if feed.warning else ()
    return Evaluation(comparison, layers, feed.description, notes, warnings)


def _outputs(reference: Opened, feed: Feed, asked: Mapping[str, str]) -> dict[str, Any]:
    """What ``compare`` is told of the float model's outputs; ``asked``: what the user says some are for."""
    known = dict(judged(asked))
    lengths, seen = value_lengths(reference.model).outputs, seen_of(Answers(reference.runnable), feed)
    kinds = guessed(seen, heads=heads(reference.model), lengths=lengths, asked=known)
    return {"lengths": lengths, "kinds": kinds}


def _layer_by_layer(
    float_model: Model, quantized_model: Model, feeds: Iterable[Mapping[str, Any]], threads: int | None
) -> tuple[tuple[LayerNoise, ...], tuple[str, ...]]:
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

"""The quantized model against the float one over the same data: noise, agreement, accuracy. Nothing is kept but sums.

How an output is judged is told in ``outputs``, and what it is judged as in ``kinds``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy.typing as npt

from onnxq.errors import DataError, ModelError
from onnxq.kernels.lengths import Length
from onnxq.measure.accuracy import Accuracy, Scorer
from onnxq.measure.compared import OutputComparison
from onnxq.measure.kinds import KindGuess, Seen, guessed
from onnxq.measure.kinds.kind import Where
from onnxq.measure.matching import Matched, match_detections
from onnxq.measure.outputs import OutputSums
from onnxq.measure.places import place_of, require_defined
from onnxq.measure.references import Answers
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model, label
from onnxq.runtime.session import QUIET, open_session, run

__all__ = ["Comparison", "OutputComparison", "compare"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """All outputs of two models over ``feeds`` runs of each; ``accuracy`` only where labels were given."""

    float_model: str
    quantized_model: str
    feeds: int
    outputs: tuple[OutputComparison, ...]
    accuracy: Accuracy | None = None

    @property
    def primary(self) -> OutputComparison:
        """The output that stands for the model: the first with an SQNR, else the first."""
        return next((o for o in self.outputs if o.sqnr_db is not None), self.outputs[0])

    @property
    def sqnr_db(self) -> float | None:
        """Model SQNR in dB: of the output that loses most, with the row mean removed where that is defined.

        The first output alone would say nothing of a layer that only others come from.
        """
        levels = [o.level_db for o in self.outputs if o.level_db is not None]
        return min(levels, default=None, key=lambda level: -math.inf if math.isnan(level) else level)

    @property
    def differences(self) -> tuple[str, ...]:
        """The outputs with samples of another length, one line each."""
        return tuple(line for o in self.outputs if (line := o.difference) is not None)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one line each; empty if all outputs are finite and of equal shapes."""
        return tuple(o.problem for o in self.outputs if o.problem)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            **plain(replace(self, outputs=())),
            "outputs": [output.to_dict() for output in self.outputs],
            "sqnr_db": plain(self.sqnr_db),
            "problems": list(self.problems),
            "differences": list(self.differences),
        }


def compare(
    float_model: Model | Answers,
    quantized_model: Model,
    feeds: Iterable[Mapping[str, Array]],
    *,
    labels: npt.ArrayLike | None = None,
    lengths: Mapping[str, Length] | None = None,
    kinds: Mapping[str, KindGuess] | None = None,
    threads: int | None = None,
) -> Comparison:
    """The ``Comparison`` of ``quantized_model`` with ``float_model`` over ``feeds``, one pass, constant memory.

    ``float_model``: or what is known of its answers already.

    ``labels: [N] int`` for ``[N, C]`` outputs or ``[N, T] int`` for ``[N, T, C]``, in the order of the feeds; negative
    labels are ignored. They are for the first float output with at least 2 classes. ``lengths``: the outputs whose
    lengths follow from values, and how. ``kinds``: what each output is for; without it that is guessed from names,
    shapes and ranges.

    Raises ``DataError`` for empty feeds, labels that do not fit, or NaN in a feed and in what float makes of it,
    ``ModelError`` where output names differ.
    """
    # Idle threads of one session that spin would slow the other one down (see ``latency``).
    b = open_session(quantized_model, threads=threads, config=QUIET)
    if isinstance(float_model, Answers):
        name, names, answer = label(float_model.model), float_model.names, float_model.of
    else:
        a = open_session(float_model, threads=threads, config=QUIET)
        name, names, answer = label(float_model), [o.name for o in a.get_outputs()], partial(run, a)
    if missing := sorted(set(names) - {o.name for o in b.get_outputs()}):
        raise ModelError(
            f"{label(quantized_model)} has no output {missing[0]}, which {name} has",
            hint="compare a model with its own quantized version",
        )
    judged = _Judged(names, feeds, lengths or {}, kinds, None if labels is None else Scorer(labels, None))
    for feed in feeds:
        judged.add(feed, answer(feed), run(b, feed, outputs=names))
    if not judged.count:
        raise DataError("there is no data to compare the models on", hint="give at least one sample")
    outputs = judged.outputs()
    accuracy = None if judged.scorer is None else judged.scorer.result()
    return Comparison(name, label(quantized_model), judged.count, outputs, accuracy)


class _Judged:
    """The outputs of two models, added up feed by feed.

    Where nobody says what outputs are for, the first feeds' answers wait until enough was seen to tell.
    """

    def __init__(
        self,
        names: Sequence[str],
        feeds: object,
        lengths: Mapping[str, Length],
        kinds: Mapping[str, KindGuess] | None,
        scorer: Scorer | None,
    ) -> None:
        self.names, self.feeds, self.lengths, self.scorer = names, feeds, lengths, scorer
        self.detected = {name for name, how in lengths.items() if how is Length.DETECTED}
        self.seen = Seen()
        self.waiting: list[tuple[int, Sequence[Array], Sequence[Array]]] = []
        self.sums: dict[str, OutputSums] = {}
        self.count = 0
        if kinds is not None:
            self._begin(kinds)

    def add(self, feed: Mapping[str, Array], references: Sequence[Array], tests: Sequence[Array]) -> None:
        """Takes what both models answer to the next feed."""
        for output, reference in zip(self.names, references, strict=True):
            require_defined(output, reference, feed, place=lambda: place_of(self.feeds, self.count))
        if self.scorer is not None:
            self.scorer.add(self.names, references, tests)
        if self.sums:
            self._add(self.count, references, tests)
        else:
            self.waiting.append((self.count, references, tests))
            self.seen.add(self.names, references, feed)
            if self.seen.enough:
                self._begin(guessed(self.seen, lengths=self.lengths))
        self.count += 1

    def outputs(self) -> tuple[OutputComparison, ...]:
        """What was found, output by output."""
        if not self.sums:
            self._begin(guessed(self.seen, lengths=self.lengths))
        return tuple(s.result(self._place) for s in self.sums.values())

    def _begin(self, kinds: Mapping[str, KindGuess]) -> None:
        self.sums = {name: OutputSums(name, kinds[name], self.lengths.get(name)) for name in self.names}
        for count, references, tests in self.waiting:
            self._add(count, references, tests)
        self.waiting.clear()

    def _add(self, count: int, references: Sequence[Array], tests: Sequence[Array]) -> None:
        matched: dict[str, Matched] = {}
        if self.detected:
            both = [dict(zip(self.names, of, strict=True)) for of in (references, tests)]
            matched = match_detections(both[0], both[1], among=self.detected)
        for output, reference, test in zip(self.names, references, tests, strict=True):
            self.sums[output].add(
                reference, test, feed=count, place=lambda: place_of(self.feeds, count), matched=matched.get(output)
            )

    def _place(self, where: Where) -> str:
        return place_of(self.feeds, where.feed, where.row)

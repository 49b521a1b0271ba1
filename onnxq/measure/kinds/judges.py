"""The measure of each kind."""

from __future__ import annotations

from collections.abc import Callable

from onnxq.measure.kinds.boxes import DenseBoxes, LoneBoxes, PlaceScores
from onnxq.measure.kinds.classes import Classes, Equal, NextToken
from onnxq.measure.kinds.ctc import Texts
from onnxq.measure.kinds.judge import Judge
from onnxq.measure.kinds.kind import Kind, KindGuess
from onnxq.measure.kinds.layout import NO_SCORES, Layout
from onnxq.measure.kinds.maps import Maps
from onnxq.measure.kinds.numbers import Embedding, Features, Regression
from onnxq.measure.kinds.signals import Images, Sounds
from onnxq.measure.kinds.thresholds import Thresholds


def judges_of(guess: KindGuess, width: int) -> list[Judge]:
    """One for each kind in ``guess``, of an output with ``width`` channels."""
    return [_judge(kind, guess.layout, width) for kind in guess.kinds]


def _judge(kind: Kind, layout: Layout, width: int) -> Judge:
    if kind in (Kind.CLASSES, Kind.TOKENS, Kind.PIXELS):
        choice = width > 1 and (layout.distribution or not layout.bounded or kind is not Kind.PIXELS)
        return Classes(kind, layout) if choice else Thresholds(kind, layout)
    if kind is Kind.BOXES:
        if layout.scores is None or layout.encoded:
            return PlaceScores(layout)
        return DenseBoxes(layout) if layout.scores != NO_SCORES else LoneBoxes(layout)
    if kind is Kind.LABELS:
        return Thresholds(kind, layout)
    plain: dict[Kind, Callable[[Layout], Judge]] = {
        Kind.CTC: Texts,
        Kind.NEXT_TOKEN: NextToken,
        Kind.EMBEDDING: Embedding,
        Kind.MAP: Maps,
        Kind.REGRESSION: Regression,
        Kind.IMAGE: Images,
        Kind.AUDIO: Sounds,
    }
    if kind in plain:
        return plain[kind](layout)
    return Equal(layout) if kind is Kind.IDS else Features()

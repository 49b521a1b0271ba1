"""What outputs are for, how that is recognised, and how each kind is measured.

Internal: what is public is what ``onnxq`` exports.
"""

from onnxq.measure.kinds.guess import guessed
from onnxq.measure.kinds.judges import judges_of
from onnxq.measure.kinds.kind import KINDS, Kind, KindGuess, Measured, Promise
from onnxq.measure.kinds.layout import Layout
from onnxq.measure.kinds.seen import Seen

__all__ = ["KINDS", "Kind", "KindGuess", "Layout", "Measured", "Promise", "Seen", "guessed", "judges_of"]

"""What an ONNX file is made of, read off without reading it: only the places of its messages are looked at.

A parser turns two bytes into a hundred, and a file of zeros or of millions of empty entries into gigabytes. So messages
are walked through first, where they lie in the file. Those that hold weights are stepped over.
"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import mmap

from onnxq.runtime.wire import NoModel, fields

# Entries of one kind in one message (of a node: its inputs, outputs and attributes), and of all kinds in all messages
# that are looked into.
MOST_OF_A_KIND, MOST_OF_A_NODE = 500_000, 10_000
MOST_ENTRIES = 3_000_000
# Smaller messages are not looked into, but for the graph itself: their entries are few.
_SMALL = 1 << 14

# By message, its fields that are messages too; the numbers are those of onnx.proto.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, _TENSOR, _SPARSE = range(7)
_MESSAGES: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_NAMES = ("model", "graph", "node", "attribute", "function", "tensor", "sparse tensor")
_GRAPH_FIELD = 7


class TooMany(ValueError):
    """It holds more entries than a model has; the text says of what."""


def check_skeleton(data: mmap | bytes) -> None:
    """Nothing; raises ``NoModel`` where ``data`` is no serialised model or is cut, ``TooMany`` where it is a bomb."""
    left = MOST_ENTRIES
    seen_graph = False
    waiting = [(_MODEL, 0, len(data))]
    while waiting:
        kind, start, end = waiting.pop()
        counts: dict[int, int] = {}
        most = MOST_OF_A_NODE if kind == _NODE else MOST_OF_A_KIND
        for field, _, where, stop in fields(data, start, end):
            counts[field] = counts.get(field, 0) + 1
            left -= 1
            if counts[field] > most:
                raise TooMany(f"more than {most:,} entries of a kind in a {_NAMES[kind]}")
            if left < 0:
                raise TooMany(f"more than {MOST_ENTRIES:,} entries")
            seen_graph |= kind == _MODEL and field == _GRAPH_FIELD
            inner = _MESSAGES[kind].get(field)
            if inner is not None and (stop - where > _SMALL or kind == _MODEL):
                waiting.append((inner, where, stop))
    if not seen_graph:
        raise NoModel

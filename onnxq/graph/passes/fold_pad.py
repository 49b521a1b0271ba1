"""Pad nodes disappear into the pads of the Conv or pooling operator after them."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import bypass, constant, integer, integers, is_op, text

# Operators whose result is never negative, so that padding with zero equals MaxPool's own padding with -infinity.
_NON_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Abs", "Exp", "Sqrt")


def fold_pad(model: ir.Model) -> int:
    """Folds constant, non-negative, spatial zero padding into Conv, MaxPool and AveragePool; returns how many.

    Into all readers or none; into AveragePool only where it counts the padding, into MaxPool only after something that
    is never negative.
    """
    count = 0
    for graph in all_graphs(model):
        for node in tuple(graph):
            if not is_op(node, "Pad") or node.outputs[0].is_graph_output():
                continue
            source, pads, uses = node.inputs[0], _zero_pads(node), tuple(node.outputs[0].uses())
            if source is None or pads is None or not uses:
                continue
            if any(use.idx != 0 or use.node.graph is not graph for use in uses):
                continue
            totals = [_combined(use.node, pads, source) for use in uses]
            if all(total is not None for total in totals):
                for use, total in zip(uses, totals, strict=True):
                    _widen(use.node, total or ())
                bypass(node, keep=source)
                count += 1
    return count


def _widen(consumer: ir.Node, pads: tuple[int, ...]) -> None:
    consumer.attributes["pads"] = ir.AttrInt64s("pads", pads)
    consumer.attributes.pop("auto_pad", None)
    if is_op(consumer, "AveragePool"):
        consumer.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)


def _zero_pads(node: ir.Node) -> tuple[int, ...] | None:
    """The spatial pads (starts, then ends) of a Pad node that adds zeros around the image; None for any other."""
    if text(node, "mode", "constant") != "constant" or len(node.inputs) < 2:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        value = constant(node.inputs[2])
        if value is None or value.any():
            return None
    pads = constant(node.inputs[1])
    if pads is None or pads.ndim != 1 or (pads < 0).any():
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        shape, axes = node.outputs[0].shape, constant(node.inputs[3])
        if shape is None or axes is None:
            return None
        full = [0] * (2 * len(shape))
        for index, axis in enumerate(axes.tolist()):
            full[axis % len(shape)] = int(pads[index])
            full[len(shape) + axis % len(shape)] = int(pads[len(axes) + index])
    else:
        full = [int(pad) for pad in pads]
    rank = len(full) // 2
    if rank < 3 or any(full[i] or full[rank + i] for i in (0, 1)):
        return None
    return (*full[2:rank], *full[rank + 2 :])


def _combined(consumer: ir.Node, pads: tuple[int, ...], source: ir.Value) -> tuple[int, ...] | None:
    """The pads of ``consumer`` with ``pads`` added; None where it would then compute something else."""
    if not is_op(consumer, "Conv", "MaxPool", "AveragePool"):
        return None
    mode = text(consumer, "auto_pad", "NOTSET")
    own = integers(consumer, "pads") if mode == "NOTSET" else None
    if mode not in ("NOTSET", "VALID") or (own is not None and len(own) != len(pads)):
        return None
    total = tuple(a + b for a, b in zip(own or (0,) * len(pads), pads, strict=True))
    if is_op(consumer, "Conv"):
        return total
    kernel = integers(consumer, "kernel_shape") or ()
    if len(kernel) * 2 != len(total) or set(integers(consumer, "dilations") or ()) - {1}:
        return None
    if integer(consumer, "ceil_mode", 0) and set(integers(consumer, "strides") or ()) - {1}:
        return None  # with a stride of 1 there is nothing to round
    if any(pad >= kernel[index % len(kernel)] for index, pad in enumerate(total)):
        return None  # runtimes refuse padding as large as the kernel
    if is_op(consumer, "AveragePool"):
        counted = integer(consumer, "count_include_pad", 0) or not any(own or ())
        return total if counted else None
    producer = source.producer()
    if len(consumer.outputs) > 1 or producer is None or not is_op(producer, *_NON_NEGATIVE):
        return None
    return total

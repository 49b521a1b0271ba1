"""A stack of one matrix becomes that matrix: ``[1, K, N]`` that a MatMul broadcasts over its batch is ``[K, N]``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.copying import all_graphs
from onnxq.graph.edit import constant, is_op, new_constant, rank, redirect
from onnxq.graph.nodes import After, NodeBuilder


def use_single_matrices(model: ir.Model) -> int:
    """Makes MatMuls read the only matrix of a stack; returns how many.

    Kernels on integers and 4-bit weights take matrices. Where the stack has more axes than what it is multiplied with,
    the result gets the axes of 1 that it had by that. Left: stacks that anything else reads.
    """
    count = 0
    for graph in all_graphs(model):
        for value in tuple(graph.initializers.values()):
            stack = constant(value)
            if stack is None or stack.ndim < 3 or set(stack.shape[:-2]) != {1} or not _broadcast(value):
                continue
            matrix = new_constant(graph, stack.reshape(stack.shape[-2:]), name=f"{value.name}_matrix")
            for use in tuple(value.uses()):
                _read(use.node, matrix, stack.ndim)
                count += 1
    return count


def _broadcast(value: ir.Value) -> bool:
    """Whether nothing but MatMuls of tensors of known rank read ``value``, on their right."""
    if value.is_graph_output():
        return False
    uses = tuple(value.uses())
    return bool(uses) and all(
        use.idx == 1 and is_op(use.node, "MatMul") and (rank(use.node.inputs[0]) or 0) >= 2 for use in uses
    )


def _read(matmul: ir.Node, matrix: ir.Value, axes: int) -> None:
    """Makes ``matmul`` read ``matrix`` in place of a stack of so many ``axes``."""
    missing = axes - (rank(matmul.inputs[0]) or 0)
    matmul.replace_input_with(1, matrix)
    if missing <= 0:
        return
    output = matmul.outputs[0]
    build = NodeBuilder(After(matmul))
    leading = build.constant(np.arange(missing, dtype=np.int64), f"{output.name}_leading_axes")
    wide = build("Unsqueeze", [output, leading], name=f"{output.name}_as_stack", like=output)
    producer = wide.producer()
    assert producer is not None
    redirect(output, wide, but=[producer])
    if output.shape is not None:
        output.shape = ir.Shape(list(output.shape)[missing:])

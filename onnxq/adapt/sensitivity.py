"""What an error in a layer's output costs at the outputs of the network, channel by channel.

``G = E[J^T J]`` over samples and positions, J the Jacobian of all outputs with respect to one position of the layer's
output. ``J^T J`` is estimated without bias by gradients of random combinations of the outputs, ``E[J^T v v^T J]``,
``v ~ N(0, 1)`` (Hutchinson's estimator). It comes out of one backward pass for all layers: a tensor of zeros is added
to each output, and its gradient read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.adapt.gradients import differentiable, new_input, summed, with_gradient
from onnxq.adapt.samples import Samples
from onnxq.adapt.trainer import Trainer
from onnxq.calibrate.runner import values_of
from onnxq.graph.copying import copy_model
from onnxq.graph.edit import new_constant, redirect
from onnxq.graph.geometry import Geometry
from onnxq.graph.nodes import After, NodeBuilder

F64 = npt.NDArray[np.float64]

# Random combinations of the outputs for each sample, and the bytes that a batch of gradients may take.
_REPEATS = 4
_BATCH = 32
_BATCH_BYTES = 256 << 20


def output_costs(
    model: ir.Model,
    layers: Mapping[str, Geometry],
    samples: Samples,
    trainer: Trainer,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, F64]:
    """``[g, C, C]`` G of each of ``layers`` (by node) that gradients reach and that has several channels in a group.

    Raises ``RuntimeFailure`` where the training runtime fails.
    """
    copy = copy_model(model)
    differentiable(copy)
    reached = with_gradient(copy)
    wanted = [
        node
        for node in copy.graph
        if (layer := layers.get(node.name or "")) is not None
        and layer.groups < layer.channels
        and node.outputs[0].name in reached
    ]
    if not wanted:
        return {}
    shapes = _shapes(model, [n.outputs[0].name or "" for n in wanted], samples)
    wanted = [n for n in wanted if n.outputs[0].name in shapes]
    largest = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    batch = int(np.clip(_BATCH_BYTES // max(largest, 1), 1, min(_BATCH, samples.count)))
    batch = batch if samples.rows is None else samples.rows
    probes: dict[str, tuple[int, int]] = {}
    of: dict[str, str] = {}
    for node in wanted:
        out, layer = node.outputs[0], layers[node.name or ""]
        one, *rest = shapes[out.name or ""]
        zeros = np.zeros((one if samples.rows else batch * one, *rest), np.float32)
        probe = new_constant(copy.graph, zeros, name=f"{node.name}_probe")
        _added(node, probe)
        probes[probe.name or ""] = (1 if layer.kernel else zeros.ndim - 1, layer.groups)
        of[probe.name or ""] = node.name or ""
    randoms = []
    parts: list[tuple[ir.Value, ir.Value]] = []
    for output in list(copy.graph.outputs):
        if output.name not in reached or output.name not in samples.outputs:
            continue
        noise = new_input(copy, f"{output.name}_noise", output)
        parts.append((output, noise))
        shape = samples.outputs[output.name].shape[1:]
        randoms.append((tuple(int(d) for d in shape), bool(shape)))
    scores = [samples.score(output.name or "") for output, _ in parts]
    summed(copy, [(output, noise, 1.0 / np.sqrt(score)) for (output, noise), score in zip(parts, scores, strict=True)])
    found = trainer.curvature(copy, samples.inputs, probes, randoms, batch=batch, repeats=_REPEATS, progress=progress)
    return {of[name]: moments for name, moments in found.items()}


def _shapes(model: ir.Model, tensors: Sequence[str], samples: Samples) -> dict[str, tuple[int, ...]]:
    """Shapes of ``tensors`` for one sample; those are left out whose first axis does not grow with the samples.

    Where the number of rows is fixed: for so many.
    """
    counts = (1, 2) if samples.rows is None else (samples.rows,) * 2
    seen = values_of(model, tensors, [samples.batch(range(count)) for count in counts])
    single, double = ({tensor: array.shape for tensor, array in arrays.items()} for arrays in seen)
    if samples.rows is not None:
        return single
    return {t: shape for t, shape in single.items() if double[t] == (2 * shape[0], *shape[1:])}


def _added(node: ir.Node, probe: ir.Value) -> None:
    """Adds ``probe`` to the first output of ``node``."""
    out, name = node.outputs[0], node.outputs[0].name
    build = NodeBuilder(After(node))
    add = build.node("Add", [out, probe], name=f"{probe.name}_add", outputs=(f"{probe.name}_sum",), like=out)
    redirect(out, add.outputs[0], but=[add])
    out.name = out.name or f"{name}_bare"

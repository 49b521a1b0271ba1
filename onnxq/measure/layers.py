"""Where the noise arises: SQNR of each layer, of the network so far (accumulated) and of that layer alone (local).

*Accumulated* noise of a tensor: what the quantized network computes against what the float network computes. *Local*
noise: the quantized nodes between the nearest tensors that the float network also has and this tensor, fed with the
float network's values. So a layer's local noise is the rounding of its inputs and of its weights, and not yet that of
its output, which the next layer pays, unless ``observed`` names a requantized value for it.

The quantized network runs with ``session.disable_quant_qdq`` at basic optimisation: onnxruntime then computes with the
rounded values in float, as the file says. Tapping inner tensors would otherwise break up the very fusions that are to
be measured, tensor by tensor in another way. What integer kernels add (one step here and there; on CPUs without VNNI
saturation) is therefore not in these figures but in those of ``compare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError, RuntimeFailure
from onnxq.kernels.operators import named
from onnxq.measure.cut import boundary, cut, made_names, tapped
from onnxq.numerics import Noise, noise
from onnxq.runtime.proto import Model, bring_weights, folder, load_proto
from onnxq.runtime.session import open_session, run

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

Array = npt.NDArray[Any]

_SIMULATE = {"session.disable_quant_qdq": "1"}


@dataclass(frozen=True)
class LayerNoise:
    """Of float tensor ``tensor``, made by node ``node`` (an ``op``): SQNR in dB and the energies behind it.

    ``inputs``: the float tensors that the layer was fed with for the local figure.
    """

    tensor: str
    node: str
    op: str
    accumulated_db: float
    local_db: float
    inputs: tuple[str, ...]


def common_tensors(float_model: Model, quantized_model: Model, *, ops: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the tensors that nodes of both models make, in the float model's order.

    Only first outputs of ``ops``; if none are given, of layers with weights: convolutions, products, recurrent ones.
    """
    there = made_names(load_proto(quantized_model).graph)
    nodes = load_proto(float_model).graph.node
    wanted = [n for n in nodes if (n.op_type in ops if ops else named(n.op_type).is_layer)]
    return tuple(name for n in wanted for name in n.output[:1] if name in there)


def layer_noise(
    float_model: Model,
    quantized_model: Model,
    tensor_names: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    *,
    observed: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> list[LayerNoise]:
    """The ``LayerNoise`` of each of ``tensor_names``, in that order, over ``feeds``: one pass, memory of one feed.

    ``observed``: for a float tensor, the tensor of the quantized model to compare with it (the output of its
    DequantizeLinear, say), where that is not the one of the same name. Only floating-point tensors make sense.

    Raises ``ModelError`` for a name that is not in both main graphs, ``DataError`` for empty feeds.
    """
    names = list(dict.fromkeys(tensor_names))
    observed = {name: (observed or {}).get(name, name) for name in names}
    reference, test = load_proto(float_model), load_proto(quantized_model)
    folders = [bring_weights(p, folder(m)) for p, m in ((reference, float_model), (test, quantized_model))]
    known = made_names(reference.graph)
    borders = {t: boundary(test, observed[t], known=known, own=t) for t in names}
    taps = list(dict.fromkeys([*names, *(b for t in names for b in borders[t] if b in known)]))
    # Basic for both: the layouts of higher levels would only be undone at every tap.
    a = _open(tapped(reference, taps), folders[0], threads=threads, simulate=False)
    b = _open(tapped(test, observed.values()), folders[1], threads=threads, simulate=True)
    infos = _typed_inputs(a)
    locals_: dict[str, tuple[InferenceSession, tuple[str, ...]]] = {}
    for t in names:
        part = cut(test, observed[t], inputs={name: infos[name] for name in borders[t]}, own=t)
        locals_[t] = _open(part.model, folders[1], threads=threads, simulate=True), part.inputs
    accumulated, local = dict.fromkeys(names, Noise()), dict.fromkeys(names, Noise())
    count = 0
    for count, feed in enumerate(feeds, start=1):  # noqa: B007 - counts the feeds
        values: dict[str, Array] = {**feed, **dict(zip(taps, run(a, feed, outputs=taps), strict=True))}
        tests = run(b, feed, outputs=[observed[t] for t in names])
        for t, value in zip(names, tests, strict=True):
            accumulated[t] += _noise(t, values[t], value)
            session, inputs = locals_[t]
            alone = run(session, {name: values[name] for name in inputs}, outputs=[observed[t]])[0]
            local[t] += _noise(t, values[t], alone)
    if not count:
        raise DataError("there is no data to measure layers on", hint="give at least one sample")
    makers = {name: node for node in reference.graph.node for name in node.output}
    return [
        LayerNoise(t, makers[t].name, makers[t].op_type, accumulated[t].sqnr_db, local[t].sqnr_db, borders[t])
        for t in names
    ]


def _noise(name: str, reference: Array, test: Array) -> Noise:
    if reference.shape != test.shape:
        shapes = f"{list(reference.shape)} in the float model but {list(test.shape)} in the quantized one"
        raise RuntimeFailure(f"tensor {name} has shape {shapes}", hint="compare a model with its own quantized version")
    return noise(reference, np.asarray(test))


def _open(proto: onnx.ModelProto, data: Path | None, *, threads: int | None, simulate: bool) -> InferenceSession:
    return open_session(
        proto.SerializeToString(),
        threads=threads,
        optimize="basic",
        config=_SIMULATE if simulate else None,
        data_folder=data,
    )


def _typed_inputs(session: InferenceSession) -> dict[str, onnx.ValueInfoProto]:
    """Type of every input and output of ``session``, of unknown shape, as a cut's graph inputs need it."""
    import onnx

    infos: dict[str, onnx.ValueInfoProto] = {}
    for value in [*session.get_inputs(), *session.get_outputs()]:
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        info = onnx.ValueInfoProto(name=value.name)
        info.type.tensor_type.elem_type = onnx.TensorProto.DataType.Value(_PROTO_NAMES.get(kind, kind.upper()))
        infos[value.name] = info
    return infos


_PROTO_NAMES = {"float": "FLOAT", "double": "DOUBLE"}

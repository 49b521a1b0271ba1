"""Whether a layer in two 8-bit parts, of its weight or of its input, is faster than the same layer in float.

A weight in two parts is ``W = s1 Q1 + s2 Q2``: two integer products of the same codes, added up. An input in two parts
is ``x = d1 q1 + d2 q2``, the second what rounding the first has lost. An input in groups is split along its channels,
each part with a scale and a product of its own. Every form is timed against the float layer and the integer one, both
in turn, in processor time of one thread. Products write codes and are added as codes (QLinearAdd), as between integer
neighbours, or write floats, as MatMul may.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import harness
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
SECONDS = 2.0
# (channels in, channels out, kernel, side of the map, groups)
CONVOLUTIONS = (
    (64, 64, 3, 56, 1),
    (128, 128, 3, 28, 1),
    (256, 256, 3, 14, 1),
    (64, 256, 1, 56, 1),
    (256, 64, 1, 56, 1),
    (128, 512, 1, 28, 1),
    (512, 512, 1, 7, 1),
    (96, 96, 3, 56, 96),
)
# (rows, inputs, outputs)
PRODUCTS = ((1, 512, 512), (1, 1024, 1024), (16, 256, 1024), (128, 384, 384), (128, 384, 1536), (128, 768, 768))
FORMS = ("float", "integer", "weight in two parts", "input in two parts", "input in two groups")


@dataclass
class Parts:
    """A model under construction: one layer between codes and codes, or floats."""

    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def scale(self, value: float = 0.02, zero: int = 128) -> tuple[str, str]:
        return self.constant(np.float32(value)), self.constant(np.uint8(zero))

    def __call__(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attributes))
        return out

    def model(self, out: str, shape: Sequence[int], out_type: int) -> bytes:
        self.nodes.append(helper.make_node("Identity", [out], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "layer",
            [helper.make_tensor_value_info("x", out_type, list(shape))],
            [helper.make_tensor_value_info("y", out_type, None)],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        ).SerializeToString()

    def dequantized(self, codes: str, scale: tuple[str, str]) -> str:
        return self("DequantizeLinear", [codes, *scale])

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        codes = self.constant(self.rng.integers(-127, 128, shape, np.int8))
        scale = self.constant(np.full(shape[axis], 0.01, np.float32))
        zero = self.constant(np.zeros(shape[axis], np.int8))
        return self("DequantizeLinear", [codes, scale, zero], axis=axis)


Layer = Callable[[Parts, str, int], str]  # of what it reads, and of the part of the input channels: 1, or 2 for a half


def convolution(inputs: int, outputs: int, kernel: int, groups: int) -> Layer:
    def made(parts: Parts, x: str, part: int, *, integer: bool = True) -> str:
        shape = (outputs, inputs // part // groups, kernel, kernel)
        weight = parts.weight(shape, 0) if integer else parts.constant(parts.rng.standard_normal(shape, np.float32))
        return parts("Conv", [x, weight], group=groups, pads=[kernel // 2] * 4)

    return made


def product(inputs: int, outputs: int) -> Layer:
    def made(parts: Parts, x: str, part: int, *, integer: bool = True) -> str:
        shape = (inputs // part, outputs)
        weight = parts.weight(shape, 1) if integer else parts.constant(parts.rng.standard_normal(shape, np.float32))
        return parts("MatMul", [x, weight])

    return made


def built(form: str, layer: Layer, shape: tuple[int, ...], axis: int, *, codes: bool) -> bytes:
    """The model of ``layer`` in ``form``; between ``codes`` it reads and writes codes, else floats."""
    parts = Parts(np.random.default_rng(0))
    if form == "float":
        return parts.model(layer(parts, "x", 1, integer=False), shape, TensorProto.FLOAT)  # type: ignore[call-arg]
    scale, out = parts.scale(), parts.scale(0.3)
    q = "x" if codes else parts("QuantizeLinear", ["x", *scale])

    def between(value: str) -> str:  # what one product writes, for the next sum
        return parts.dequantized(parts("QuantizeLinear", [value, *out]), out) if codes else value

    def ended(value: str) -> str:
        return parts("QuantizeLinear", [value, *out]) if codes else value

    x = parts.dequantized(q, scale)
    if form == "integer":
        y = ended(layer(parts, x, 1))
    elif form == "weight in two parts":
        y = ended(parts("Add", [between(layer(parts, x, 1)), between(layer(parts, x, 1))]))
    elif form == "input in two parts":
        # Both are there as codes where what writes them is an integer layer in two parts: the best case.
        fine = parts.scale(0.0001)
        rest = x if codes else parts("Sub", ["x", x])
        second = "x" if codes else parts("QuantizeLinear", [rest, *fine])
        low = parts.dequantized(second, fine)
        y = ended(parts("Add", [between(layer(parts, x, 1)), between(layer(parts, low, 1))]))
    else:
        size = parts.constant(np.array([shape[axis] // 2] * 2))
        name = f"v{len(parts.nodes)}"
        ends = [f"{name}_0", f"{name}_1"]
        source = q if codes else "x"
        parts.nodes.append(helper.make_node("Split", [source, size], ends, name=name, axis=axis))
        halves = []
        for end in ends:
            own = parts.scale(0.02)
            half = end if codes else parts("QuantizeLinear", [end, *own])
            halves.append(between(layer(parts, parts.dequantized(half, own), 2)))
        y = ended(parts("Add", halves))
    return parts.model(y, shape, TensorProto.UINT8 if codes else TensorProto.FLOAT)


def session_of(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def times(models: dict[str, bytes], shape: tuple[int, ...], seconds: float) -> dict[str, float]:
    """Microseconds of processor time by form: the least of the rounds, in each of which every form has its turn."""
    sessions = {form: session_of(model) for form, model in models.items()}
    rng = np.random.default_rng(1)
    feeds = {}
    for form, session in sessions.items():
        floats = session.get_inputs()[0].type == "tensor(float)"
        x = rng.standard_normal(shape, np.float32) if floats else rng.integers(0, 256, shape, np.uint8)
        feeds[form] = {"x": x}
    loops, best = {}, dict.fromkeys(sessions, np.inf)
    for form, session in sessions.items():
        begun, count = time.process_time(), 0
        while time.process_time() - begun < 0.05:
            session.run(None, feeds[form])
            count += 1
        loops[form] = count
    spent = 0.0
    while spent < seconds * len(sessions):
        for form, session in sessions.items():
            begun = time.process_time()
            for _ in range(loops[form]):
                session.run(None, feeds[form])
            took = time.process_time() - begun
            spent += took
            best[form] = min(best[form], took / loops[form] * 1e6)
    return best


def main() -> None:
    """Time every size, print the ratios to float, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time for each form and size")
    options = parser.parse_args()
    rows = []
    cases = [
        (
            f"Conv {k}x{k} {i}->{o}, {side}x{side}" + (", depthwise" if g > 1 else ""),
            convolution(i, o, k, g),
            (1, i, side, side),
            1,
            True,
        )
        for i, o, k, side, g in CONVOLUTIONS
    ]
    for r, i, o in PRODUCTS:
        for codes in (True, False):
            cases.append((f"MatMul {r}x{i}x{o}, {'codes' if codes else 'floats'}", product(i, o), (r, i), 1, codes))
    for name, layer, shape, axis, codes in cases:
        forms = [f for f in FORMS if not ("depthwise" in name and "groups" in f)]
        found = times({f: built(f, layer, shape, axis, codes=codes) for f in forms}, shape, options.seconds)
        rows.append({"layer": name, "microseconds": {form: round(of, 1) for form, of in found.items()}})
        print(name, {form: round(of / found["float"], 2) for form, of in found.items()}, flush=True)
        harness.write("two_parts", vars(options), {"layers": rows})


if __name__ == "__main__":
    main()

"""Whether a layer in two 8-bit parts, of its weight or of its input, is faster than the same layer in float.

A weight in two parts is ``W = s1 Q1 + s2 Q2``: two integer products of the same codes, added up. An input in two parts
is ``x = d1 q1 + d2 q2``, the second what rounding the first has lost. An input in groups is split along its channels,
each part with a scale and a product of its own. Every form is timed against the float layer and the integer one, both
in turn, in processor time of one thread. Products write codes and are added as codes (QLinearAdd), as between integer
neighbours, or write floats, as MatMul may. And an end for each channel, as equalizing through Clip would need it: a Min
in float in front of the layer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import harness
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.config import Rule
from onnxq.graph.io import serialize

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
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
# (inputs, units, steps)
LSTMS = ((40, 64, 50), (64, 128, 50), (128, 128, 100), (256, 256, 50), (512, 512, 20))
CODES = ("input in two groups", "an end for each channel")
FLOATS = ("input in two parts, ranges at run time", "input in two groups")
FORMS = ("float", "integer", "weight in two parts", "input in two parts")


@dataclass(frozen=True)
class Codes:
    """A tensor in codes; ``scale``: names of scale and zero point."""

    codes: str
    scale: tuple[str, str]


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
        return helper.make_model(graph, opset_imports=IMPORTS, ir_version=8).SerializeToString()

    def dequantized(self, x: Codes) -> str:
        return self("DequantizeLinear", [x.codes, *x.scale])

    def measured(self, value: str) -> Codes:
        outs = [f"{value}_{part}" for part in ("codes", "scale", "zero")]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [value], outs, name=f"{value}_measured"))
        return Codes(outs[0], (outs[1], outs[2]))

    def rounded(self, value: str) -> str:
        scale = self.scale(0.3)
        return self.dequantized(Codes(self("QuantizeLinear", [value, *scale]), scale))

    def split(self, value: str, size: int) -> list[str]:
        ends = [f"{value}_low", f"{value}_high"]
        sizes = self.constant(np.array([size // 2] * 2))
        self.nodes.append(helper.make_node("Split", [value, sizes], ends, name=f"{value}_split", axis=1))
        return ends

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        codes = self.constant(self.rng.integers(-127, 128, shape, np.int8))
        scale = self.constant(np.full(shape[axis], 0.01, np.float32))
        zero = self.constant(np.zeros(shape[axis], np.int8))
        return self("DequantizeLinear", [codes, scale, zero], axis=axis)


class Convolution:
    """Between codes and codes; its products are added as codes."""

    def __init__(self, inputs: int, outputs: int, kernel: int, side: int, groups: int) -> None:
        self.shape = (1, inputs, side, side)
        self._weight = (outputs, inputs // groups, kernel, kernel)
        self._groups = groups
        self.name = f"Conv {kernel}x{kernel} {inputs}->{outputs}, {side}x{side}" + (", depthwise" if groups > 1 else "")
        self.codes = True

    def float(self, parts: Parts, x: str) -> str:
        return self._conv(parts, x, parts.constant(parts.rng.standard_normal(self._weight, np.float32)))

    def integer(self, parts: Parts, x: Codes, part: int = 1) -> str:
        shape = (self._weight[0], self._weight[1] // part, *self._weight[2:])
        return parts.rounded(self._conv(parts, parts.dequantized(x), parts.weight(shape, 0)))

    def models(self) -> dict[str, bytes]:
        """By form."""
        forms = [*FORMS, *(f for f in CODES if self._groups == 1 or "groups" not in f)]
        return {form: built(form, self) for form in forms}

    def _conv(self, parts: Parts, x: str, weight: str) -> str:
        return parts("Conv", [x, weight], group=self._groups, pads=[self._weight[2] // 2] * 4)


class Product:
    """Between codes and codes, or between floats and floats by MatMulIntegerToFloat."""

    def __init__(self, rows: int, inputs: int, outputs: int, *, codes: bool) -> None:
        self.shape = (rows, inputs)
        self._weight = (inputs, outputs)
        self.codes = codes
        self.name = f"MatMul {rows}x{inputs}x{outputs}, {'codes' if codes else 'floats'}"

    def float(self, parts: Parts, x: str) -> str:
        return parts("MatMul", [x, parts.constant(parts.rng.standard_normal(self._weight, np.float32))])

    def integer(self, parts: Parts, x: Codes, part: int = 1) -> str:
        shape = (self._weight[0] // part, self._weight[1])
        if self.codes:
            return parts.rounded(parts("MatMul", [parts.dequantized(x), parts.weight(shape, 1)]))
        weight = parts.constant(parts.rng.integers(-127, 128, shape, np.int8))
        scale = parts.constant(np.full(shape[1], 0.01, np.float32))
        zero = parts.constant(np.zeros(shape[1], np.int8))
        inputs = [x.codes, weight, x.scale[0], scale, x.scale[1], zero]
        return parts("MatMulIntegerToFloat", inputs, domain="com.microsoft")

    def models(self) -> dict[str, bytes]:
        """By form."""
        forms = [*FORMS, *(f for f in (CODES if self.codes else FLOATS) if "channel" not in f)]
        return {form: built(form, self) for form in forms}


class Lstm:
    """As onnxq writes it, and, for the price of an input product apart, with four times its units to read."""

    def __init__(self, inputs: int, units: int, steps: int) -> None:
        self.shape = (steps, 1, inputs)
        self._units = units
        self.name = f"LSTM {inputs}->{units}, {steps} steps"

    def models(self) -> dict[str, bytes]:
        """By form."""
        apart = self._float(4 * self._units)
        return {
            "float": self._float(self.shape[2]).SerializeToString(),
            "integer": self._quantized(self._float(self.shape[2]), "int8"),
            "input in two parts": self._quantized(self._float(self.shape[2]), "int8-two-parts"),
            "input product apart, without the product": self._quantized(apart, "int8"),
        }

    def _float(self, inputs: int) -> onnx.ModelProto:
        rng, rows = np.random.default_rng(0), 4 * self._units
        constants = {"W": (1, rows, inputs), "R": (1, rows, self._units), "B": (1, 2 * rows)}
        node = helper.make_node("LSTM", ["x", *constants], ["y"], name="lstm", hidden_size=self._units)
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*self.shape[:2], inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(0.1 * rng.standard_normal(s, np.float32), n) for n, s in constants.items()],
        )
        return helper.make_model(graph, opset_imports=IMPORTS[:1], ir_version=8)

    def _quantized(self, model: onnx.ModelProto, precision: str) -> bytes:
        config = onnxq.Config(rules=(Rule("lstm", precision),), equalize="none", min_agreement=0.0, guard_sqnr=0.0)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        data = [{"x": np.random.default_rng(i).standard_normal(shape, np.float32)} for i in range(8)]
        return serialize(onnxq.quantize(model, data, config=config).model)


def built(form: str, layer: Convolution | Product) -> bytes:
    """The model of ``layer`` in ``form``."""
    parts = Parts(np.random.default_rng(0))
    if form == "float":
        return parts.model(layer.float(parts, "x"), layer.shape, TensorProto.FLOAT)
    scale = parts.scale()
    x = Codes("x" if layer.codes else parts("QuantizeLinear", ["x", *scale]), scale)
    if form == "integer":
        y = layer.integer(parts, x)
    elif form == "weight in two parts":
        y = parts("Add", [layer.integer(parts, x), layer.integer(parts, x)])
    elif form == "input in two parts":
        fine = parts.scale(0.0001)
        # As codes both are there already: the best case. As floats the second is what rounding the first has lost.
        rest = "x" if layer.codes else parts("Sub", ["x", parts.dequantized(x)])
        low = Codes("x" if layer.codes else parts("QuantizeLinear", [rest, *fine]), fine)
        y = parts("Add", [layer.integer(parts, x), layer.integer(parts, low)])
    elif form == "input in two parts, ranges at run time":
        first = parts.measured("x")
        second = parts.measured(parts("Sub", ["x", parts.dequantized(first)]))
        y = parts("Add", [layer.integer(parts, first), layer.integer(parts, second)])
    elif form == "input in two groups":
        halves = parts.split("x", layer.shape[1])
        scales = [parts.scale(), parts.scale()]
        codes = (
            halves if layer.codes else [parts("QuantizeLinear", [h, *s]) for h, s in zip(halves, scales, strict=True)]
        )
        y = parts("Add", [layer.integer(parts, Codes(c, s), 2) for c, s in zip(codes, scales, strict=True)])
    else:
        ends = parts.constant(np.ones((layer.shape[1], *[1] * (len(layer.shape) - 2)), np.float32))
        bounded = parts("QuantizeLinear", [parts("Min", [parts.dequantized(x), ends]), *scale])
        y = layer.integer(parts, Codes(bounded, scale))
    if not layer.codes:
        return parts.model(y, layer.shape, TensorProto.FLOAT)
    return parts.model(parts("QuantizeLinear", [y, *parts.scale(0.3)]), layer.shape, TensorProto.UINT8)


def session_of(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def times(models: dict[str, bytes], seconds: float) -> dict[str, float]:
    """Microseconds of processor time by form: the least of the rounds, in each of which every form has its turn."""
    sessions = {form: session_of(model) for form, model in models.items()}
    rng = np.random.default_rng(1)
    feeds = {}
    for form, session in sessions.items():
        floats = session.get_inputs()[0].type == "tensor(float)"
        shape = tuple(session.get_inputs()[0].shape)
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
    parser.add_argument(
        "--only", nargs="+", help="words of the names of layers (default: all); others stay as they are"
    )
    options = parser.parse_args()
    path = harness.RESULTS / "two_parts.json"
    rows = json.loads(path.read_text())["layers"] if path.exists() else {}
    layers: list[Convolution | Product | Lstm] = [Convolution(*sizes) for sizes in CONVOLUTIONS]
    layers += [Product(*sizes, codes=codes) for sizes in PRODUCTS for codes in (True, False)]
    layers += [Lstm(*sizes) for sizes in LSTMS]
    for layer in layers:
        if options.only and not any(word in layer.name for word in options.only):
            continue
        found = times(layer.models(), options.seconds)
        rows[layer.name] = {form: round(of, 1) for form, of in found.items()}
        print(layer.name, {form: round(of / found["float"], 2) for form, of in found.items()}, flush=True)
        harness.write("two_parts", vars(options), {"layers": rows})


if __name__ == "__main__":
    main()

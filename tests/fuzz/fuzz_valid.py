"""Random graphs that onnxruntime runs, with random choices: is what the report says of a result true of it?"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from fuzz_seeds import node, weights
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config

Arrays = Mapping[str, np.ndarray]


class Grown:
    """A graph that grows node by node; shapes are those without the batch axis, ``n``."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.image = rng.random() < 0.6
        self.shapes: dict[str, tuple[int, ...]] = {"x": (4, 6, 6) if self.image else (5, 16)}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def proto(self) -> onnx.ModelProto:
        read = {name for n in self.nodes for name in n.input}
        made = [name for n in self.nodes for name in n.output]
        ends = [name for name in made if name not in read]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", TensorProto.FLOAT, ("n", *self.shapes["x"]))],
            [value(name, TensorProto.FLOAT, ("n", *self.shapes[name])) for name in ends],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def grow(self) -> None:
        source = self.rng.choice(list(self.shapes)[-4:])
        steps = (self._linear, self._linear, self._plain, self._plain, self._arithmetic, self._join, self._shape)
        self.rng.choice(steps)(source, self.shapes[source], f"t{len(self.nodes)}")

    def _add(self, op: str, inputs: str, output: str, shape: tuple[int, ...], **attributes: object) -> None:
        self.nodes.append(node(op, inputs, output, **attributes))
        self.shapes[output] = shape

    def _constant(self, array: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        scale = self.rng.choice((0.3, 1.0, 1.0, 1.0, 3.0)) if array.dtype == np.float32 else 1
        self.constants[name] = (array * scale).astype(array.dtype)
        return name

    def _linear(self, source: str, shape: tuple[int, ...], output: str) -> None:
        wide = self.rng.choice((4, 8, 16, 24))
        if len(shape) == 3:
            groups = self.rng.choice((1, 1, 1, shape[0]))
            wide = wide if groups == 1 else groups
            kernel = self.rng.choice((1, 3))
            w = self._constant(weights(wide, shape[0] // groups, kernel, kernel))
            b = self._constant(weights(wide))
            pads = [kernel // 2] * 4
            self._add("Conv", f"{source} {w} {b}", output, (wide, *shape[1:]), pads=pads, group=groups)
        elif self.rng.random() < 0.5 and len(shape) == 1:
            w, b = self._constant(weights(wide, shape[-1])), self._constant(weights(wide))
            self._add("Gemm", f"{source} {w} {b}", output, (wide,), transB=1)
        else:
            w = self._constant(weights(wide, shape[-1]).T.copy())
            self._add("MatMul", f"{source} {w}", output, (*shape[:-1], wide))

    def _plain(self, source: str, shape: tuple[int, ...], output: str) -> None:
        op = self.rng.choice(("Relu", "Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Erf", "Abs", "Softmax"))
        self._add(op, source, output, shape, **({"axis": -1} if op == "Softmax" else {}))

    def _arithmetic(self, source: str, shape: tuple[int, ...], output: str) -> None:
        per_channel = (shape[0], 1, 1) if len(shape) == 3 else shape[-1:]
        constant = self._constant(np.abs(weights(*per_channel)) + np.float32(0.3))
        self._add(self.rng.choice(("Add", "Mul", "Sub", "Div")), f"{source} {constant}", output, shape)

    def _join(self, source: str, shape: tuple[int, ...], output: str) -> None:
        other = self.rng.choice([name for name, known in self.shapes.items() if known == shape])
        if self.rng.random() < 0.7:
            self._add(self.rng.choice(("Add", "Mul")), f"{source} {other}", output, shape)
        else:
            self._add("Concat", f"{source} {other}", output, (2 * shape[0], *shape[1:]), axis=1)

    def _shape(self, source: str, shape: tuple[int, ...], output: str) -> None:
        if len(shape) == 3 and self.rng.random() < 0.5 and min(shape[1:]) >= 2:
            op = self.rng.choice(("MaxPool", "AveragePool"))
            half = (shape[0], shape[1] // 2, shape[2] // 2)
            self._add(op, source, output, half, kernel_shape=[2, 2], strides=[2, 2])
        elif len(shape) == 3 and self.rng.random() < 0.4:
            self._add("GlobalAveragePool", source, output, (shape[0], 1, 1))
        elif len(shape) > 1 and self.rng.random() < 0.3:
            self._add("Flatten", source, output, (int(np.prod(shape)),))
        elif len(shape) == 2:
            self._add("Transpose", source, output, shape[::-1], perm=[0, 2, 1])


CHOICES: tuple[dict[str, object], ...] = (
    {},
    {"placement": "all"},
    {"placement": "all"},
    {"placement": "all", "equalize": "all"},
    {"placement": "all", "weights": "int4"},
    {"placement": "all", "weights": "int4", "activations": "none"},
    {"placement": "all", "activation_range": "minmax"},
    {"placement": "all", "operators": "standard"},
    {"placement": "all", "guard_sqnr": 30.0},
)


@dataclass(frozen=True)
class Valid:
    """A case: a model, samples to quantize with, samples of the same kind that nobody has seen, and the choices."""

    proto: onnx.ModelProto
    data: Arrays
    fresh: Arrays
    config: Config


def valid(number: int) -> Valid:
    """Case ``number``: always the same one."""
    rng = random.Random(f"valid {number}")
    grown = Grown(rng)
    for _ in range(rng.randrange(3, 14)):
        grown.grow()
    numbers = np.random.default_rng(rng.randrange(2**32))
    spread = rng.choice((0.0, 0.0, 0.5, 1.0))  # how much samples differ in size

    def draw(count: int) -> Arrays:
        x = numbers.standard_normal((count, *grown.shapes["x"]))
        sizes = np.exp(spread * numbers.standard_normal((count, *[1] * len(grown.shapes["x"]))))
        return {"x": (x * sizes).astype(np.float32)}

    count = rng.choice((8, 16, 32, 64))
    config = Config(latency_seconds=0, seed=number, **rng.choice(CHOICES))
    return Valid(grown.proto(), draw(count), draw(256), config)


def outputs(content: bytes, arrays: Arrays) -> dict[str, np.ndarray]:
    """The outputs of a model, one sample a run, as the report runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    x = arrays["x"]
    rows = [session.run(None, {"x": x[i : i + 1]}) for i in range(len(x))]
    return {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """In dB, signal and noise summed over all samples."""
    signal = np.square(reference, dtype=np.float64).sum()
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))

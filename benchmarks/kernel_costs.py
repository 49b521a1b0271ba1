"""Measures what onnxruntime's float and int8 kernels cost by operator and size, for the planner's cost table.

Every size is one node of a small model; its time is that of onnxruntime's own profile, one thread, median over runs,
least over repeats. What profiling adds to a node stays in: it makes conversions, which are nodes more, as much dearer
as networks have shown them to be. Outputs are cut to one element, so that no allocation of a large result is counted,
and layout changes at the ends are not either. What has more work than `--largest` is scaled up from the size below.

Writes `onnxq/kernels/cost_tables/TARGET.json` for the kind of CPU that this machine is (`onnxq.kernels.targets`). Run
it while the machine does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import harness
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.kernels.costs import FORMAT
from onnxq.kernels.targets import resolve_target
from onnxq.measure.profile import kernel_times
from onnxq.runtime.session import Level

OPSET = 17
TABLES = harness.ROOT / "onnxq" / "kernels" / "cost_tables"
NODES_A_MODEL = 24
SHORTEST = 1.0  # microseconds: what the profile can tell
SIDES = (1, 4, 8, 16, 32, 64, 128)


class Parts:
    """One model under construction: many small graphs side by side. Values are called `c<case>_<what>`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: list[onnx.ValueInfoProto] = []
        self.rng = np.random.default_rng(0)
        self.case = 0

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        out = f"c{self.case}_{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, domain=domain, **attributes))
        return out

    def constant(self, value: Any) -> str:
        name = f"c{self.case}_k{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, shape: Sequence[int], dtype: type = np.float32) -> str:
        name = f"c{self.case}_x{len(self.inputs)}"
        values = self.rng.integers(0, 256, shape) if dtype == np.uint8 else self.rng.standard_normal(shape)
        self.inputs[name] = values.astype(dtype)
        return name

    def output(self, value: str, rank: int, kind: int = TensorProto.FLOAT) -> None:
        """One element of `value` as an output of the model."""
        ends, axes = self.constant(np.ones(rank, np.int64)), self.constant(np.arange(rank))
        out = self.node("Slice", [value, self.constant(np.zeros(rank, np.int64)), ends, axes])
        self.outputs.append(helper.make_tensor_value_info(out, kind, None))

    def model(self) -> bytes:
        kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
        inputs = [helper.make_tensor_value_info(n, kinds[x.dtype], x.shape) for n, x in self.inputs.items()]
        graph = helper.make_graph(self.nodes, "costs", inputs, self.outputs, self.initializers)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())

    # -- what the kernels need ---------------------------------------------------------------------------------------

    def quantized(self, value: str, zero: int = 128) -> str:
        return self.node("QuantizeLinear", [value, self.constant(np.float32(0.05)), self.constant(np.uint8(zero))])

    def real(self, codes: str, zero: int = 128) -> str:
        return self.node("DequantizeLinear", [codes, self.constant(np.float32(0.05)), self.constant(np.uint8(zero))])

    def coded(self, shape: Sequence[int]) -> str:
        """A real tensor behind 8-bit codes."""
        return self.real(self.input(shape, np.uint8))

    def weight(self, shape: Sequence[int], zero_point: int = 0) -> str:
        """A real weight [C_out, ...] behind int8 codes, one scale for each channel."""
        codes = self.constant(self.rng.integers(-63, 64, shape).astype(np.int8))
        scale = self.constant(np.full(shape[0], 0.01, np.float32))
        zero = self.constant(np.full(shape[0], zero_point, np.int8))
        return self.node("DequantizeLinear", [codes, scale, zero], axis=0)


Build = Callable[[Parts, str, tuple[int, ...]], None]


@dataclass(frozen=True)
class Kernel:
    """What is measured under one name. `build` adds a case in `float` or `int8`; `ops`: the kernels that count."""

    name: str
    axes: dict[str, tuple[int, ...]]
    build: Build
    ops: tuple[str, ...]
    work: Callable[..., float] = field(default=lambda *sizes: math.prod(sizes))
    numbers: tuple[str, ...] = ("float", "int8")
    optimize: Level = "all"
    alone: bool = False  # onnxruntime adds it, so that its name says nothing of the case
    together: bool = False  # several kernels do the work


def convolution(cin: int, cout: int, kernel: int, group: int, side: int, parts: Parts, number: str) -> None:
    """A convolution with bias and Relu that keeps the size of its map of `side` times `side`."""
    attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "group": group}
    if kernel % 2 == 0:  # patches: no overlap
        attributes |= {"pads": [0] * 4, "strides": [kernel] * 2}
        side *= kernel
    shape, weight = (1, cin, side, side), (cout, cin // group, kernel, kernel)
    if number == "float":
        w, b = (parts.constant(parts.rng.standard_normal(s).astype(np.float32) * 0.1) for s in (weight, (cout,)))
        y = parts.node("Relu", [parts.node("Conv", [parts.input(shape), w, b], **attributes)])
        parts.output(y, 4)
        return
    scale, bias = parts.constant(np.full(cout, 0.05 * 0.01, np.float32)), parts.constant(np.zeros(cout, np.int32))
    b = parts.node("DequantizeLinear", [bias, scale], axis=0)
    # A zero point other than 0 keeps onnxruntime from its direct convolution: it multiplies matrices instead.
    x, w = parts.coded(shape), parts.weight(weight, int(number == "int8-gemm"))
    y = parts.node("Relu", [parts.node("Conv", [x, w, b], **attributes)])
    parts.output(parts.quantized(y, zero=0), 4, TensorProto.UINT8)


def side(pixels: int) -> int:
    """The side of the square map with `pixels`."""
    return round(math.sqrt(pixels))


def pointwise(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    convolution(sizes[0], sizes[1], 1, 1, side(sizes[2]), parts, number)


def spatial(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    convolution(sizes[0] // 9, sizes[1], 3, 1, side(sizes[2]), parts, number)


def few_channels(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    convolution(3, sizes[1], round(math.sqrt(sizes[0] / 3)), 1, side(sizes[2]), parts, number)


def widened(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    """A first convolution of less than four channels; on integers with a fourth one of zeros, as onnxq writes it."""
    inner, area, channels, pixels = sizes
    kernel, edge = side(area), side(pixels)
    if number == "float":
        convolution(inner, channels, kernel, 1, edge, parts, number)
        return
    codes = parts.input((1, inner, edge, edge), np.uint8)
    ends = parts.constant(np.array([0, 0, 0, 0, 0, 4 - inner, 0, 0]))
    x = parts.real(parts.node("Pad", [codes, ends, parts.constant(np.uint8(128))]))
    scale, bias = parts.constant(np.full(channels, 0.05 * 0.01, np.float32)), np.zeros(channels, np.int32)
    b = parts.node("DequantizeLinear", [parts.constant(bias), scale], axis=0)
    w = parts.weight((channels, 4, kernel, kernel))
    y = parts.node("Conv", [x, w, b], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
    parts.output(parts.quantized(parts.node("Relu", [y]), zero=0), 4, TensorProto.UINT8)


def depthwise(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    convolution(sizes[0], sizes[0], side(sizes[1]), sizes[0], side(sizes[2]), parts, number)


def grouped(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    width, channels = sizes[0] // 9, sizes[1]
    convolution(channels, channels, 3, channels // width, side(sizes[2]), parts, number)


def matmul(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    rows, inner, columns = sizes
    if number == "float":
        w = parts.constant(parts.rng.standard_normal((inner, columns)).astype(np.float32))
        parts.output(parts.node("MatMul", [parts.input((rows, inner)), w]), 2)
        return
    codes = parts.constant(parts.rng.integers(-63, 64, (inner, columns)).astype(np.int8))
    ones, zero = np.full(columns, 0.01, np.float32), np.zeros(columns, np.int8)
    given = [parts.constant(v) for v in (np.float32(0.05), ones, np.uint8(128), zero, ones)]
    x = parts.input((rows, inner), np.uint8)
    parts.output(parts.node("MatMulIntegerToFloat", [x, codes, *given], domain="com.microsoft"), 2)


def elementwise(op: str, operands: int, **attributes: Any) -> Build:
    """`op` on maps of 64 channels (as many elements as the size says), all operands computed."""

    def build(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
        shape = (1, 64, sizes[0] // 64, 1)
        if number == "float":
            parts.output(parts.node(op, [parts.input(shape) for _ in range(operands)], **attributes), 4)
            return
        y = parts.node(op, [parts.coded(shape) for _ in range(operands)], **attributes)
        parts.output(parts.quantized(y), 4, TensorProto.UINT8)

    return build


def pool(op: str) -> Build:
    """3 x 3, stride 2, behind a pointwise convolution: int8 kernels are fast only in that convolution's layout."""

    def build(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
        shape, attributes = (1, 64, 2 * side(sizes[0] // 64), 2 * side(sizes[0] // 64)), {"kernel_shape": [3, 3]}
        attributes |= {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        if number == "float":
            parts.output(parts.node(op, [parts.input(shape)], **attributes), 4)
            return
        x = parts.node("Conv", [parts.coded(shape), parts.weight((64, 64, 1, 1))])
        y = parts.node(op, [parts.real(parts.quantized(x))], **attributes)
        parts.output(parts.quantized(y), 4, TensorProto.UINT8)

    return build


def softmax(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    """Rows of 64."""
    shape = (sizes[0] // 64, 64)
    if number == "float":
        parts.output(parts.node("Softmax", [parts.input(shape)], axis=-1), 2)
        return
    y = parts.node("Softmax", [parts.coded(shape)], axis=-1)
    parts.output(parts.quantized(y, zero=0), 2, TensorProto.UINT8)


def where(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    shape = (1, 64, sizes[0] // 64, 1)
    chosen = parts.node("Cast", [parts.input(shape, np.uint8)], to=TensorProto.BOOL)
    if number == "float":
        parts.output(parts.node("Where", [chosen, parts.input(shape), parts.input(shape)]), 4)
        return
    y = parts.node("Where", [chosen, parts.coded(shape), parts.coded(shape)])
    parts.output(parts.quantized(y), 4, TensorProto.UINT8)


# What only moves is given in the type that it moves.
MOVED = {"float": (np.float32, TensorProto.FLOAT), "int8": (np.uint8, TensorProto.UINT8)}


def transpose(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    """[1, 64, n] to [1, n, 64]."""
    kind, proto = MOVED[number]
    parts.output(parts.node("Transpose", [parts.input((1, 64, sizes[0] // 64), kind)], perm=[0, 2, 1]), 3, proto)


def resize(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    """To twice the side, nearest; the size is that of the output."""
    edge = side(sizes[0] // 64)
    scales = parts.constant(np.array([1, 1, 2, 2], np.float32))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    kind, proto = MOVED[number]
    x = parts.input((1, 64, max(1, edge // 2), max(1, edge // 2)), kind)
    parts.output(parts.node("Resize", [x, "", scales], **attributes), 4, proto)


def quantize(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    parts.output(parts.quantized(parts.input((64, sizes[0] // 64))), 2, TensorProto.UINT8)


def dequantize(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    parts.output(parts.real(parts.input((64, sizes[0] // 64), np.uint8)), 2)


def in_blocks(parts: Parts, number: str, sizes: tuple[int, ...]) -> None:
    """A pointwise float convolution, whose blocked layout onnxruntime enters in front of it and leaves behind it."""
    convolution(64, 64, 1, 1, side(sizes[0] // 64), parts, number)


ELEMENTS = (1024, 16384, 65536, 262144, 1048576, 4194304)
PIXELS = tuple(s * s for s in SIDES)
MAPS = tuple(64 * p for p in PIXELS[1:])
CONVOLUTION = ("float", "int8", "int8-gemm")
EDGE = ("float",)  # what lies between float and int8 has one cost
KERNELS = (
    Kernel(
        "conv.pointwise",
        {"reduction": (8, 32, 128, 512, 2048), "channels": (8, 32, 128, 512, 2048), "pixels": PIXELS},
        pointwise,
        ("Conv", "FusedConv", "QLinearConv"),
        numbers=CONVOLUTION,
    ),
    Kernel(
        "conv.spatial",
        {"reduction": (72, 288, 1152, 4608), "channels": (16, 64, 256, 1024), "pixels": PIXELS},
        spatial,
        ("Conv", "FusedConv", "QLinearConv"),
        numbers=CONVOLUTION,
    ),
    Kernel(
        "conv.few",
        {"reduction": (27, 147, 768), "channels": (16, 64, 384), "pixels": (64, 256, 1024, 4096, 16384)},
        few_channels,
        ("Conv", "FusedConv", "QLinearConv"),
        numbers=CONVOLUTION,
    ),
    Kernel(
        "conv.widened",
        {"inner": (1, 3), "kernel": (9, 25, 49), "channels": (16, 64), "pixels": (64, 256, 1024, 4096, 16384)},
        widened,
        ("Conv", "FusedConv", "QLinearConv", "Pad"),
        together=True,
    ),
    Kernel(
        "conv.depthwise",
        {"channels": (16, 64, 256, 1024), "kernel": (9, 25, 49), "pixels": PIXELS},
        depthwise,
        ("Conv", "FusedConv", "QLinearConv"),
        numbers=CONVOLUTION,
    ),
    Kernel(
        "conv.grouped",
        {"reduction": (72, 288, 576), "channels": (64, 256, 1024), "pixels": (16, 64, 256, 1024, 4096)},
        grouped,
        ("Conv", "FusedConv", "QLinearConv"),
        numbers=CONVOLUTION,
    ),
    Kernel(
        "matmul",
        {"rows": (1, 16, 64, 256, 1024, 4096), "inner": (32, 128, 512, 2048), "columns": (32, 128, 512, 2048)},
        matmul,
        ("MatMul", "MatMulIntegerToFloat"),
    ),
    Kernel("Add", {"elements": ELEMENTS}, elementwise("Add", 2), ("Add", "QLinearAdd")),
    Kernel("Mul", {"elements": ELEMENTS}, elementwise("Mul", 2), ("Mul", "QLinearMul")),
    Kernel("Concat", {"elements": ELEMENTS}, elementwise("Concat", 2, axis=1), ("Concat", "QLinearConcat")),
    Kernel("Sigmoid", {"elements": ELEMENTS}, elementwise("Sigmoid", 1), ("Sigmoid", "QLinearSigmoid")),
    Kernel("LeakyRelu", {"elements": ELEMENTS}, elementwise("LeakyRelu", 1), ("LeakyRelu", "QLinearLeakyRelu")),
    Kernel(
        "GlobalAveragePool",
        {"elements": ELEMENTS},
        elementwise("GlobalAveragePool", 1),
        ("GlobalAveragePool", "QLinearGlobalAveragePool"),
    ),
    Kernel("MaxPool", {"elements": MAPS}, pool("MaxPool"), ("MaxPool", "NhwcMaxPool")),
    Kernel("AveragePool", {"elements": MAPS}, pool("AveragePool"), ("AveragePool", "QLinearAveragePool")),
    Kernel("Softmax", {"elements": ELEMENTS}, softmax, ("Softmax", "QLinearSoftmax")),
    Kernel("Where", {"elements": ELEMENTS}, where, ("Where", "QLinearWhere")),
    Kernel("Transpose", {"elements": ELEMENTS}, transpose, ("Transpose",), optimize="none"),
    Kernel("Resize", {"elements": MAPS}, resize, ("Resize",), optimize="none"),
    Kernel("ReorderInput", {"elements": MAPS}, in_blocks, ("ReorderInput",), numbers=EDGE, alone=True),
    Kernel("ReorderOutput", {"elements": MAPS}, in_blocks, ("ReorderOutput",), numbers=EDGE, alone=True),
    Kernel("QuantizeLinear", {"elements": ELEMENTS}, quantize, ("QuantizeLinear",), numbers=EDGE, optimize="none"),
    Kernel(
        "DequantizeLinear", {"elements": ELEMENTS}, dequantize, ("DequantizeLinear",), numbers=EDGE, optimize="none"
    ),
)


def main() -> None:
    """Measure every kernel and write the table of this machine's kind of CPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--largest", type=float, default=3e8, help="multiply-adds of the largest size that is run")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="kernels to measure anew; the others stay as they are in the table")
    options = parser.parse_args()
    target = resolve_target("auto").name
    path = TABLES / f"{target}.json"
    kept = json.loads(path.read_text())["grids"] if options.only else []
    grids = [g for g in kept if g["kernel"] not in options.only]
    for kernel in KERNELS:
        if options.only and kernel.name not in options.only:
            continue
        axes = {name: list(sizes) for name, sizes in kernel.axes.items()}
        for number, found in measure(kernel, options).items():
            times = [round(max(SHORTEST, t), 2) for t in found]
            grids.append({"kernel": kernel.name, "number": number, "axes": axes, "microseconds": times})
            print(f"{kernel.name} {number}: {min(times):.1f} to {max(times):.0f} us", flush=True)
    path.parent.mkdir(exist_ok=True)
    content = {"format": FORMAT, "target": target, "machine": harness.machine(), "grids": grids}
    path.write_text(_compact(content))
    print(f"written: {path.relative_to(harness.ROOT)}")


def measure(kernel: Kernel, options: argparse.Namespace) -> dict[str, list[float]]:
    """By number, profiled microseconds at every size of `kernel`, the last axis running fastest.

    Float and int8 take turns: what slows the machine down for a while must not fall on one of them alone.
    """
    sizes = list(itertools.product(*kernel.axes.values()))
    run = [s for s in sizes if kernel.work(*s) <= options.largest]
    found: dict[str, dict[tuple[int, ...], float]] = {number: {} for number in kernel.numbers}
    for batch in _batches(run, 1 if kernel.alone else NODES_A_MODEL):
        for _ in range(options.repeats):
            for number, least in found.items():
                for size, took in zip(batch, timed(kernel, number, batch, options.runs), strict=True):
                    least[size] = min(took, least.get(size, math.inf))
    for least in found.values():
        for size in sizes:
            if size not in least:  # the sizes below come earlier, since axes increase
                axis = next(i for i in reversed(range(len(size))) if _below(kernel, size, i) in least)
                smaller = _below(kernel, size, axis)
                least[size] = least[smaller] * kernel.work(*size) / kernel.work(*smaller)
    return {number: [least[size] for size in sizes] for number, least in found.items()}


def _below(kernel: Kernel, size: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """`size` with the next smaller size along `axis`; itself at the end."""
    points = list(kernel.axes.values())[axis]
    return (*size[:axis], points[max(0, points.index(size[axis]) - 1)], *size[axis + 1 :])


def _batches(sizes: Sequence[tuple[int, ...]], most: int) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(sizes), most):
        yield sizes[start : start + most]


def timed(kernel: Kernel, number: str, sizes: Sequence[tuple[int, ...]], runs: int) -> list[float]:
    """Profiled microseconds of `kernel` at each of `sizes`, measured in one model."""
    parts = Parts()
    for case, size in enumerate(sizes):
        parts.case = case
        kernel.build(parts, number, size)
    times = kernel_times(parts.model(), [parts.inputs], runs=runs, optimize=kernel.optimize)
    found = []
    for case in range(len(sizes)):
        own = [t for t in times if t.op in kernel.ops and (kernel.alone or t.name.startswith(f"c{case}_"))]
        wanted = own[-1:] if kernel.name == "MaxPool" else own
        if not wanted or (len(wanted) > 1 and not kernel.together):
            raise SystemExit(f"{kernel.name} {number} {sizes[case]}: not one kernel but {[t.name for t in own]}")
        found.append(sum(t.microseconds for t in wanted))
    return found


def _compact(content: dict[str, Any]) -> str:
    """JSON with one grid a line."""
    grids = ",\n  ".join(json.dumps(grid) for grid in content["grids"])
    rest = {key: value for key, value in content.items() if key != "grids"}
    return json.dumps(rest, indent=1)[:-2] + f',\n "grids": [\n  {grids}\n ]\n}}\n'


if __name__ == "__main__":
    main()

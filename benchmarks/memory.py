"""What quantizing takes of memory and processor: models whose inside is large, beside `quantize_static` (min-max).

`vgg16`: the shapes of VGG-16 at 240 x 240, 62 MB. `spectrogram`: an STFT inside, 9 seconds of sound a sample. `cnn`:
19 MB, with `--adapt fast`. `large`: 3 GB of weights beside the model, in a process that may allocate 2 GB
(`RLIMIT_DATA`: files that are mapped do not count), without data; `quantize_static` is not asked. Weights are random,
so no layer is given back (`harness.UNGUARDED`). Processor time counts all threads, imports left out; memory is the
child's peak, imports and mapped files included. Writes `benchmarks/results/memory.json`, run by run.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnx
from cost import peak_bytes
from onnx import TensorProto, helper

SEED = 2023
LIMIT_BYTES = 2_000_000_000
# By row: the model, the samples, the tool and onnxq's choices.
ROWS: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "spectrogram": ("spectrogram", 96, "onnxq", {}),
    "spectrogram, quantize_static": ("spectrogram", 96, "quantize_static", {}),
    "cnn, --adapt fast": ("cnn", 64, "onnxq", {"adapt": "fast"}),
    "vgg16": ("vgg16", 96, "onnxq", {}),
    "vgg16, quantize_static": ("vgg16", 96, "quantize_static", {}),
    "large, int8": ("large", 0, "onnxq", {"memory": 1500}),
    "large, int4": ("large", 0, "onnxq", {"memory": 1500, "weights": "int4:32", "activations": "none"}),
}


class Graph:
    """A model in the making, whose weights go to a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.nodes, self.tensors = path, [], []
        self.rng = np.random.default_rng(SEED)
        self.file = path.with_name(f"{path.name}.data").open("wb")

    def weight(self, *shape: int, inputs: int) -> str:
        """The name of random weights; `inputs`: of one output, which decides how large they are."""
        start = self.file.tell()
        for row in range(0, shape[0], 512):
            some = self.rng.standard_normal((min(512, shape[0] - row), *shape[1:]), dtype=np.float32)
            (some * np.float32((2 / inputs) ** 0.5)).tofile(self.file)
        tensor = TensorProto(name=f"w{len(self.tensors)}", data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": Path(self.file.name).name, "offset": start, "length": self.file.tell() - start}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return tensor.name

    def constant(self, value: Any) -> str:
        """The name of a small constant."""
        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(value), f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new node."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def save(self, shape: list[Any], output: str, *, inside: bool) -> None:
        """Writes the model with its only input, called x; `inside`: its weights go into the file."""
        self.file.close()
        self.nodes[-1].output[0] = output = "y"
        ends = [helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info(output, 1, None)]
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], self.tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), self.path)
        if inside:
            onnx.save(onnx.load(self.path), self.path)
            Path(self.file.name).unlink()


def convolutions(graph: Graph, x: str, channels: int, layers: list[tuple[int, int]], classes: int) -> str:
    """Convolutions of 3 x 3 with (filters, stride), a stride of 0 for pooling; then the mean and a classifier."""
    for filters, stride in layers:
        if not stride:
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            continue
        weight = graph.weight(filters, channels, 3, 3, inputs=9 * channels)
        bias = graph.weight(filters, inputs=200)
        x = graph.add("Relu", graph.add("Conv", x, weight, bias, pads=[1, 1, 1, 1], strides=[stride, stride]))
        channels = filters
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    weight, bias = graph.weight(classes, channels, inputs=channels), graph.weight(classes, inputs=200)
    return graph.add("Gemm", x, weight, bias, transB=1)


def build(name: str, path: Path) -> tuple[int, ...]:
    """Writes the model called so; the shape of one sample."""
    graph = Graph(path)
    if name == "vgg16":
        blocks = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
        layers = [layer for filters, count in blocks for layer in [*[(filters, 1)] * count, (0, 0)]]
        shape: tuple[int, ...] = (3, 240, 240)
        graph.save(["n", *shape], convolutions(graph, "x", 3, layers, 1000), inside=True)
    elif name == "cnn":
        sizes = [(32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (256, 1), (512, 2), (512, 1)]
        shape = (3, 224, 224)
        graph.save(["n", *shape], convolutions(graph, "x", 3, sizes, 100), inside=True)
    elif name == "spectrogram":
        shape = (144160,)
        window = graph.constant(np.hanning(320).astype(np.float32))
        step, size = graph.constant(np.int64(160)), graph.constant(np.int64(320))
        z = graph.add("STFT", "x", step, window, size, onesided=1)
        power = graph.add("ReduceSum", graph.add("Mul", z, z), graph.constant(np.array([-1])), keepdims=0)
        level = graph.add("Log", graph.add("Add", power, graph.constant(np.float32(1e-3))))
        maps = graph.add("Unsqueeze", level, graph.constant(np.array([1])))
        layers = [(128, 1), (0, 0), (64, 1), (0, 0), (64, 1), (0, 0), (32, 1), (0, 0)]
        graph.save(["n", *shape], convolutions(graph, maps, 1, layers, 3), inside=True)
    else:
        shape = (16, 2304)
        graph.save(["n", *shape], transformer(graph, 2304, 12), inside=False)
    return shape


def transformer(graph: Graph, width: int, layers: int) -> str:
    """The matrices of so many layers, and no attention between tokens: what it computes plays no part."""

    def linear(x: str, inputs: int, outputs: int) -> str:
        return graph.add("MatMul", x, graph.weight(inputs, outputs, inputs=2 * inputs))

    x = "x"
    for _ in range(layers):
        gate = graph.add("Sigmoid", linear(x, width, width))
        value = graph.add("Mul", graph.add("Mul", gate, linear(x, width, width)), linear(x, width, width))
        x = graph.add("Add", x, linear(value, width, width))
        x = graph.add("Add", x, linear(graph.add("Relu", linear(x, width, 4 * width)), 4 * width, width))
    return x


def samples(shape: tuple[int, ...], count: int) -> np.ndarray:
    """So many random samples, smooth on the whole."""
    rng = np.random.default_rng(SEED + 1)
    coarse = rng.standard_normal((count, *shape[:-1], -(-shape[-1] // 16))).repeat(16, axis=-1)[..., : shape[-1]]
    return (coarse + 0.3 * rng.standard_normal((count, *shape))).astype(np.float32)


def work(row: str, model: Path, data: Path) -> dict[str, float]:
    """Child process: quantize once."""
    import onnxruntime  # noqa: F401 - the peer's imports hold it too

    from onnxq import Config, quantize

    _, count, tool, choices = ROWS[row]
    with tempfile.TemporaryDirectory(prefix="onnxq-memory-") as folder:
        out, config = Path(folder) / "quantized.onnx", Config(**harness.UNGUARDED, **choices)
        if not count:
            resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        start, began = time.process_time(), time.perf_counter()
        if tool == "onnxq":
            quantize(model, data if count else None, config=config).save(out)
        else:
            from peers import quantize_static

            with np.load(data) as archive:
                x = archive["x"]
            quantize_static(model, out, ({"x": x[i : i + 1]} for i in range(count)))
        written = sum(path.stat().st_size for path in Path(folder).glob("quantized.onnx*"))
        found = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - began}
        return {**found, "peak_mb": peak_bytes() / 1e6, "mb": written / 1e6}


def main() -> None:
    """Measure row by row, print each, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help=f"rows: {', '.join(ROWS)}")
    options = parser.parse_args()
    path = harness.RESULTS / "memory.json"
    for row in harness.chosen(options.only, list(ROWS)):
        name, count, tool, _ = ROWS[row]
        with tempfile.TemporaryDirectory(prefix="onnxq-memory-") as folder:
            model, data = Path(folder) / f"{name}.onnx", Path(folder) / "data.npz"
            shape = build(name, model)
            if count:
                np.savez(data, x=samples(shape, count))
            size = sum(part.stat().st_size for part in Path(folder).glob(f"{name}.onnx*")) / 1e6
            command = [sys.executable, __file__, "--child", row, str(model), str(data)]
            run, error = harness.attempt(row, lambda command=command: harness.child(command))
        runs = json.loads(path.read_text())["runs"] if path.exists() else {}
        runs[row] = {"tool": tool, "samples": count, "model_mb": size, "error": error, **(run or {})}
        print(row, runs[row], flush=True)
        harness.write("memory", vars(options), {"runs": runs})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()

"""How the time that onnxq takes grows with the number of nodes: processor time of `inspect` and of `quantize`.

Graphs of many small nodes: `chain`, elementwise operators one behind the other with a product at the end; `layers`,
products and activations in turn; `shapes`, the arithmetic about shapes that exporters write; `fan`, one value that all
nodes read. Each run is a child process of its own, model and imports not counted. `exponent` is that of a power law
through the two largest sizes, without what onnxruntime takes (`onnxruntime_s`: sessions made and run): n log n is 1.1
there. `sessions` is the time that onnxruntime alone takes to make one session of the model as it is, at the levels
that optimize nothing and everything, with its exponents. Writes `benchmarks/results/nodes.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
SAMPLES = 16


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 10000, 50000])
    parser.add_argument("--graphs", nargs="+", choices=list(GRAPHS), default=list(GRAPHS))
    parser.add_argument(
        "--inspect", type=int, nargs="*", default=[200_000], help="sizes for `inspect` of a chain alone"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        graph, size, task = options.child
        print(json.dumps(measured(GRAPHS[graph](int(size)), task)))
        return
    rows = [row(graph, size, "quantize") for graph in options.graphs for size in sorted(options.sizes)]
    rows += [row("chain", size, "inspect") for size in options.inspect]
    growth = {graph: exponent([r for r in rows if r["graph"] == graph]) for graph in options.graphs}
    alone = {graph: runtime_alone(graph, options.sizes) for graph in options.graphs}
    given = {key: value for key, value in vars(options).items() if key != "child"}
    path = harness.write("nodes", given, {"runs": rows, "exponent": growth, "sessions": alone})
    print(f"\nexponents: {growth}\nwritten: {path.relative_to(harness.ROOT)}")


def row(graph: str, size: int, task: str) -> dict[str, Any]:
    """One run in a child process."""
    command = [sys.executable, __file__, "--child", graph, str(size), task]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {"graph": graph, "nodes": size, "task": task, **json.loads(done.stdout.splitlines()[-1])}
    print(f"| {graph} | {size:,} | {task} | {found['seconds']:.1f} |", flush=True)
    return found


def measured(model: onnx.ModelProto, task: str) -> dict[str, float]:
    """Seconds of processor time of one run, and of wall time beside."""
    from onnxq import Config, inspect, quantize

    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    data = {"x": np.random.default_rng(0).standard_normal((SAMPLES, *shape)).astype(np.float32)}
    with runtime_timed() as spent:
        wall, processor = time.perf_counter(), time.process_time()
        if task == "inspect":
            inspect(model)
        else:
            quantize(model, data, config=Config(latency_seconds=0))
        seconds, wall = time.process_time() - processor, time.perf_counter() - wall
    return {"seconds": round(seconds, 2), "onnxruntime_s": round(sum(spent), 2), "wall_s": round(wall, 2)}


@contextlib.contextmanager
def runtime_timed() -> Iterator[list[float]]:
    """Inside, the seconds of processor time of every session of onnxruntime that is made or run, one after another."""
    spent: list[float] = []
    kept = {name: getattr(ort.InferenceSession, name) for name in ("__init__", "run")}

    def timed(of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.process_time()
            try:
                return of(*arguments, **keywords)
            finally:
                spent.append(time.process_time() - start)

        return call

    for name, of in kept.items():
        setattr(ort.InferenceSession, name, timed(of))
    try:
        yield spent
    finally:
        for name, of in kept.items():
            setattr(ort.InferenceSession, name, of)


def runtime_alone(graph: str, sizes: list[int]) -> dict[str, Any]:
    """Seconds of processor time for one session of the two largest graphs, by level, and the exponents."""
    ends = sorted(sizes)[-2:]
    content = {size: GRAPHS[graph](size).SerializeToString() for size in ends}
    found: dict[str, Any] = {"nodes": ends}
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        spent = []
        for size in ends:
            with runtime_timed() as of:
                ort.InferenceSession(content[size], options, providers=["CPUExecutionProvider"])
            spent.append(of[0])
        growth = round(math.log(spent[1] / spent[0]) / math.log(ends[1] / ends[0]), 2) if len(ends) == 2 else None
        found[level] = {"seconds": [round(s, 2) for s in spent], "exponent": growth}
    print(f"| {graph} | {ends} | onnxruntime alone | {found} |", flush=True)
    return found


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """That of the power law through the two largest sizes of `quantize`."""
    own = [(r["nodes"], r["seconds"] - r["onnxruntime_s"]) for r in rows if r["task"] == "quantize"]
    ends = sorted(own)[-2:]
    if len(ends) < 2:
        return None
    (a, s), (b, t) = ends
    return round(math.log(t / s) / math.log(b / a), 2)


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A model from `x: [n, WIDTH]` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(seed: int, *shape: int) -> np.ndarray:
    """Normal, and such that products keep their size."""
    return (np.random.default_rng(seed).standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32)


def chain(size: int) -> onnx.ModelProto:
    """Elementwise operators one behind the other."""
    nodes, value = [], "x"
    for i in range(size - 1):
        op = ("Relu", "Sigmoid", "Add", "Mul")[i % 4]
        nodes.append(helper.make_node(op, [value, "c"] if i % 4 > 1 else [value], [f"v{i}"], name=f"n{i}"))
        value = f"v{i}"
    nodes.append(helper.make_node("MatMul", [value, "w"], ["y"], name="last"))
    return model_of(nodes, {"c": np.full(WIDTH, 0.5, np.float32), "w": weight(0, WIDTH, 64)})


def layers(size: int) -> onnx.ModelProto:
    """Products with weights of their own, each with an activation behind it."""
    nodes, constants, value = [], {}, "x"
    for i in range(size // 2):
        constants[f"w{i}"] = weight(i, WIDTH, WIDTH)
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], name=f"m{i}"))
        value = "y" if i == size // 2 - 1 else f"v{i}"
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [value], name=f"t{i}"))
    return model_of(nodes, constants)


def shapes(size: int) -> onnx.ModelProto:
    """Reshape by arithmetic with the shape of what is reshaped."""
    nodes, value = [], "x"
    for i in range(size // 5):
        steps = (
            ("Shape", [value], {}),
            ("Gather", [f"s{i}_0", "zero"], {}),
            ("Unsqueeze", [f"s{i}_1", "axis"], {}),
            ("Concat", [f"s{i}_2", "width"], {"axis": 0}),
            ("Reshape", [value, f"s{i}_3"], {}),
        )
        for k, (op, inputs, attributes) in enumerate(steps):
            nodes.append(helper.make_node(op, inputs, [f"s{i}_{k}"], name=f"s{i}_{k}", **attributes))
        value = f"s{i}_4"
    nodes.append(helper.make_node("MatMul", [value, "w"], ["y"], name="last"))
    arithmetic = {"zero": np.array(0), "axis": np.array([0]), "width": np.array([WIDTH])}
    return model_of(nodes, {**arithmetic, "w": weight(0, WIDTH, 64)})


def fan(size: int) -> onnx.ModelProto:
    """One value that all nodes read, and a tree of sums behind them."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first")]
    values = [f"v{i}" for i in range(size // 2)]
    nodes += [helper.make_node("Sigmoid", ["h"], [value], name=value) for value in values]
    while len(values) > 1:
        pairs = [(values[i], values[i + 1]) for i in range(0, len(values) - 1, 2)]
        left = values[len(pairs) * 2 :]
        values = [f"a{len(nodes)}_{k}" for k in range(len(pairs))]
        nodes += [helper.make_node("Add", pair, [v], name=v) for pair, v in zip(pairs, values, strict=True)]
        values += left
    nodes.append(helper.make_node("Identity", values, ["y"], name="last"))
    return model_of(nodes, {"w": weight(0, WIDTH, WIDTH)})


GRAPHS: dict[str, Callable[[int], onnx.ModelProto]] = {"chain": chain, "layers": layers, "shapes": shapes, "fan": fan}


if __name__ == "__main__":
    main()

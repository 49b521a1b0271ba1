"""Whether timing decides the same on a busy machine: the same comparison again and again, with other processes at work.

Three pairs of a float model and what became of it: faster, slower, and the same kernels. Each is judged many times, on
the machine as it is and with processes that never stop; by what a thread computes and, for comparison, by the wall
clock alone. Prints a markdown table and writes `benchmarks/results/busy.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxq
from onnxq.measure import benchmark
from onnxq.search.timing import thread_counts

PAIRS = ("faster", "slower", "same kernels")


def main() -> None:
    """Judge every pair, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8, help="that keep the machine busy")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each run and number of threads")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="onnxq-busy-") as folder:
        for name in PAIRS:
            models, feeds = pair(name, Path(folder))
            for clock in ("processor time", "wall clock"):
                for processes in (0, options.processes):
                    with busy(processes), believing(clock):
                        found = [judged(models, feeds, options.seconds, run) for run in range(options.runs)]
                    results.setdefault(name, {}).setdefault(clock, {})[str(processes)] = found
                    print(table(results).splitlines()[-1], flush=True)
    path = harness.write("busy", vars(options), {"pairs": results})
    print(f"\n{table(results)}\n\nwritten: {path.relative_to(harness.ROOT)}")


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keeps `processes` processes computing."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.5 if running else 0.0)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def believing(clock: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which the wall clock is believed, whatever else runs; or nothing."""
    if clock != "wall clock":
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch("onnxq.measure.latency.clock", return_value=time.perf_counter))
    stack.enter_context(mock.patch("onnxq.measure.latency.Latency.sure", True))
    return stack


def judged(models: list[Path], feeds: list[dict[str, Any]], seconds: float, seed: int) -> dict[str, Any]:
    """One comparison: whether it says slower, the ratio with one thread, how long threads waited."""
    report = benchmark(models, feeds, threads=thread_counts(), seconds=seconds, seed=seed, memory=False)
    waited = max(row.waited for row in report.rows)
    return {"slower": report.slower, "ratio": report.rows[1].ratio, "waited": waited}


def pair(name: str, folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """The files of a float model and of what became of it, and feeds."""
    path, result = folder / f"{name}.onnx", folder / f"{name}.q.onnx"
    size, depth = (24, 40) if name == "slower" else (256, 12)
    rng = np.random.default_rng(0)
    onnx.save(chain(rng, size, depth), path)
    data = {"x": rng.standard_normal((64, size)).astype(np.float32)}
    rules = (onnxq.Rule("*", "stored"),) if name == "same kernels" else ()
    choices = onnxq.Config(placement="all", latency_seconds=0.0, rules=rules, **harness.UNGUARDED)
    onnxq.quantize(path, data, config=choices).save(result)
    rows = 1 if name == "slower" else 16
    return [path, result], list(harness.feeds({"x": data["x"][: 4 * rows]}, rows))


def chain(rng: np.random.Generator, size: int, depth: int) -> onnx.ModelProto:
    """`depth` products of [N, size] and [size, size], a Relu behind each."""
    nodes, weights = [], []
    for i in range(depth):
        weight = rng.standard_normal((size, size)).astype(np.float32) * np.float32((2 / size) ** 0.5)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"p{i}"], f"product{i}"))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"h{i + 1}" if i + 1 < depth else "y"], f"relu{i}"))
    ends = [helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, ["N", size]) for v in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def table(results: dict[str, Any]) -> str:
    """A row for each pair, clock and number of processes."""
    rows = []
    for name, clocks in results.items():
        for clock, loads in clocks.items():
            for processes, found in loads.items():
                slower = sum(run["slower"] for run in found)
                ratios = [run["ratio"] for run in found]
                waited = float(np.mean([run["waited"] for run in found]))
                spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
                rows.append([name, clock, processes, f"{slower} of {len(found)}", spread, f"{waited:.0%}"])
    header = ["result", "by", "busy processes", "says slower", "time / float, 1 thread", "threads waited"]
    return harness.markdown(header, rows)


if __name__ == "__main__":
    main()

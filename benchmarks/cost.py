"""What quantizing itself costs: seconds and peak memory of onnxq (its defaults) and of `quantize_static` (min-max).

Each run is a child process of its own, the two tools in turn; both read the same samples, one file a sample, so that
neither holds the data. Seconds count from the model's path to the written file, without imports and with
`quantize_static`'s pre-processing, and with onnxq's judgement of the result (`harness.UNGUARDED`: the weights are
random, no layer is given back); memory is the child's peak, imports included. `--adapt LEVEL` measures one run of 4-bit
weights with that adaptation instead. Prints a markdown table and writes `benchmarks/results/cost.json`, or
`cost_adapted.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import networks
import numpy as np

TOOLS = ("onnxq", "quantize_static")
SEED = 2001
CHUNK = 16


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", help="default: resnet50 mobilenet_v2")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adapt", help="measure 4-bit weights with this level of adaptation, and nothing else")
    options = parser.parse_args()
    names = harness.chosen(options.networks or ["resnet50", "mobilenet_v2"], list(networks.NETWORKS))
    if options.adapt:
        adapted(options, names)
        return
    rows = []
    for name in names:
        model = networks.build(name)
        with tempfile.TemporaryDirectory(prefix="onnxq-cost-") as folder:
            data = write_samples(name, sorted(options.samples), Path(folder))
            for count, samples in data.items():
                rows.append(measure(name, model, samples, count, options.repeats))
                print(table(rows[-1:]), flush=True)
    rows = [*_kept(names), *rows]
    path = harness.write("cost", vars(options), {"runs": rows, "growth": growth(rows)})
    print(f"\n{table(rows)}\n\nwritten: {path.relative_to(harness.ROOT)}")


def adapted(options: argparse.Namespace, names: Sequence[str]) -> None:
    """One run for each of `names`, with the fewest samples; writes `cost_adapted.json`."""
    found, count = {}, min(options.samples)
    for name in names:
        model = networks.build(name)
        with tempfile.TemporaryDirectory(prefix="onnxq-cost-") as folder:
            samples = write_samples(name, [count], Path(folder))[count]
            run = child(f"onnxq {options.adapt}", model, samples, count)
        found[name] = {**run, "samples": count, "level": options.adapt}
        print(name, found[name], flush=True)
    path = harness.write("cost_adapted", vars(options), {"networks": found})
    print(f"written: {path.relative_to(harness.ROOT)}")


def _kept(names: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of networks other than `names` that the JSON holds already."""
    path = harness.RESULTS / "cost.json"
    before = json.loads(path.read_text())["runs"] if path.exists() else []
    return [row for row in before if row["network"] not in names]


def write_samples(name: str, counts: Sequence[int], folder: Path) -> dict[int, Path]:
    """One folder for each of the ascending `counts`, holding that many `.npz` files; larger ones share the files."""
    everything = folder / "all"
    everything.mkdir()
    for start in range(0, max(counts), CHUNK):
        arrays = networks.inputs(name, CHUNK, seed=SEED + start)
        for i in range(CHUNK):
            np.savez(everything / f"{start + i:06d}.npz", **{key: value[i : i + 1] for key, value in arrays.items()})
    folders = {}
    for count in counts:
        folders[count] = folder / f"{count}"
        folders[count].mkdir()
        for path in sorted(everything.iterdir())[:count]:
            os.link(path, folders[count] / path.name)
    return folders


def measure(name: str, model: Path, samples: Path, count: int, repeats: int) -> dict[str, Any]:
    """The figures of both tools on one network with one number of samples, and the ratio between them."""
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    errors: dict[str, str] = {}
    for i in range(repeats):
        for tool in TOOLS if i % 2 == 0 else reversed(TOOLS):
            if tool not in errors:
                run, error = harness.attempt(f"{tool} on {name}", lambda t=tool: child(t, model, samples, count))
                if run is None:
                    errors[tool] = error or ""
                else:
                    runs[tool].append(run)
    row: dict[str, Any] = {"network": name, "samples": count, "runs": runs, "errors": errors}
    if not errors:
        ours, theirs = (runs[tool] for tool in TOOLS)
        pairs = [a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)]
        row["seconds_ratio"] = statistics.median(pairs)
        row["memory_ratio"] = _median(ours, "peak_mb") / _median(theirs, "peak_mb")
    return row


def child(tool: str, model: Path, samples: Path, count: int) -> dict[str, float]:
    """`seconds` and `peak_mb` of one quantization in a process of its own."""
    return harness.child([sys.executable, __file__, "--child", tool, str(model), str(samples), str(count)])


def _work(tool: str, model: Path, samples: Path, count: int) -> dict[str, float]:
    """Child process: quantize once."""
    with tempfile.TemporaryDirectory(prefix="onnxq-cost-") as folder:
        out = Path(folder) / "quantized.onnx"
        if tool.startswith("onnxq"):
            import onnxruntime  # noqa: F401 - the peer's imports hold it too

            from onnxq import Config, quantize

            level = tool.removeprefix("onnxq").strip()
            more = {"weights": "int4", "adapt": level} if level else {}
            start = time.perf_counter()
            quantize(model, samples, config=Config(samples=count, **harness.UNGUARDED, **more)).save(out)
            seconds = time.perf_counter() - start
        else:
            from peers import quantize_static

            seconds = quantize_static(model, out, _files(samples)).seconds
        return {
            "seconds": seconds,
            "cpu_seconds": time.process_time(),
            "peak_mb": peak_bytes() / 1e6,
            "mb": out.stat().st_size / 1e6,
        }


def _files(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The feeds in `folder`, read one at a time."""
    for path in sorted(folder.iterdir()):
        with np.load(path) as archive:
            yield {name: archive[name] for name in archive.files}


def peak_bytes() -> int:
    """The most resident memory this process has held. On Linux from /proc: ru_maxrss there includes the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By network and tool: peak memory at the most samples over that at the fewest."""
    grown: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        for tool in TOOLS:
            own = [row for row in rows if row["network"] == name and row["runs"][tool]]
            if own:
                peaks = [_median(row["runs"][tool], "peak_mb") for row in own]
                grown.setdefault(name, {})[tool] = peaks[-1] / peaks[0]
    return grown


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as markdown: medians over the repeats."""
    lines = []
    for row in rows:
        cells = [row["network"], str(row["samples"])]
        for key, form in (("seconds", ".1f"), ("peak_mb", ".0f")):
            for tool in TOOLS:
                runs = row["runs"][tool]
                cells.append(harness.number(_median(runs, key), form) if runs else "failed")
            cells.append(harness.number(row.get("seconds_ratio" if key == "seconds" else "memory_ratio")))
        lines.append(cells)
    header = ["network", "samples", *(f"{tool} s" for tool in TOOLS), "ratio", *(f"{tool} MB" for tool in TOOLS)]
    return harness.markdown([*header, "ratio"], lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()

"""Few bits: what files weigh, how fast they are, what accuracy they keep, and what large models need to be made.

Four parts, each a table and `benchmarks/results/int4_PART.json`:

- `accuracy`: weight formats on every model in `models/`, activations of 8 bits, judged on the whole test set.
- `files`: networks with random weights: size, kernels, load time and latency beside INT8 and beside the 4-bit file of
  onnxruntime's `quantize_static`, whose weights are dequantized at every run.
- `decoder`: weights only, one token through a stack of wide layers, beside onnxruntime's own MatMulNBits quantizer; and
  bits per byte of the GPT in `models/` beside that quantizer's three methods.
- `large`: memory needed to quantize a model of 3.5 GB to 4 bits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import harness
import networks
import numpy as np
import older
import onnx
import peers
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.measure import benchmark, compare, kernel_map
from onnxq.numerics import agreement, centred, sqnr_db

NEAREST = {"rounding": "nearest", "restore": "none", "objective": "tensor", "equalize": "none"}
# By name, what `accuracy` compares; the first two are what other tools do.
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int4 min-max": {"weights": "int4", "weight_range": "minmax", **NEAREST},
    "int4 least squares": {"weights": "int4", **NEAREST},
    "int4 output, nearest": {"weights": "int4", "rounding": "nearest"},
    "int4": {"weights": "int4"},
    "int4:32": {"weights": "int4:32"},
    "codebook4": {"weights": "codebook4"},
    "int3": {"weights": "int3"},
    "int3:32": {"weights": "int3:32"},
    "codebook3": {"weights": "codebook3"},
    "int2:32": {"weights": "int2:32"},
}
NETWORKS = ("resnet50", "mobilenet_v2", "regnet_y_040", "convnext_t")
INT8, ENDS8, ALL4, BOOK, NATIVE = "int8", "int4, ends int8", "int4", "codebook4", "quantize_static int4"
FILES: dict[str, dict[str, Any]] = {
    INT8: {},
    ENDS8: {"weights": "int4"},
    ALL4: {"weights": "int4", "first_last": "int4"},
    BOOK: {"weights": "codebook4", "first_last": "codebook4"},
    "int4:32": {"weights": "int4:32", "first_last": "int4:32"},
    "int4 tensors": {"weights": "int4", "first_last": "int4", "int4_storage": "native"},
}
LOADS = 7
WIDTH, LAYERS = 2048, 2


def main() -> None:
    """Run the chosen parts."""
    parts = {"accuracy": accuracy, "files": files, "decoder": decoder, "large": large}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(parts)} (default: all)")
    parser.add_argument("--models", nargs="+", help="for accuracy and files: only these")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples for accuracy")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each latency comparison")
    parser.add_argument("--presets", nargs="+", default=["w4", "w4a8"], help="for the large model")
    parser.add_argument("--limit", type=float, default=2.0, help="GB that quantizing the large model is confined to")
    parser.add_argument("--layers", type=int, default=15, help="of the large model, 0.2 GB each")
    options = parser.parse_args()
    for part in harness.chosen(options.parts or None, list(parts)):
        header, rows, results = parts[part](options)
        if options.models and part in ("accuracy", "files"):  # the others are kept
            path = harness.RESULTS / f"int4_{part}.json"
            earlier = json.loads(path.read_text()) if path.exists() else {}
            results = {key: {**earlier.get(key, {}), **found} for key, found in results.items()}
        path = harness.write(f"int4_{part}", vars(options), results)
        print(f"\n{harness.markdown(header, rows)}\n\nwritten: {path.relative_to(harness.ROOT)}", flush=True)


Part = tuple[list[str], list[list[str]], dict[str, Any]]


def accuracy(options: argparse.Namespace) -> Part:
    """SQNR and score of every variant on every model."""
    results: dict[str, Any] = {}
    for name in harness.chosen(options.models, list(harness.TASKS)):
        task = harness.TASKS[name]
        calibration = harness.cast(task.inputs("calib", options.samples), task.path)
        test = task.arrays("test")
        labels = test.pop("labels")
        inputs = harness.cast({task.array: test[task.array]}, task.path)
        reference = harness.outputs(task.path, inputs)
        found: dict[str, Any] = {"float": {"score": harness.score(task.metric, reference, labels)}}
        for variant, choices in VARIANTS.items():

            def judged(  # bound: the loops rebuild them
                choices: Mapping[str, Any] = choices,
                task: harness.Task = task,
                calibration: dict[str, np.ndarray] = calibration,
                inputs: dict[str, np.ndarray] = inputs,
                reference: np.ndarray = reference,
                labels: np.ndarray = labels,
            ) -> dict[str, Any]:
                with tempfile.TemporaryDirectory(prefix="onnxq-int4-") as folder:
                    start = time.perf_counter()
                    result = onnxq.quantize(
                        task.path, calibration, config=onnxq.Config(samples=options.samples, **choices)
                    )
                    seconds = time.perf_counter() - start
                    (path, *_) = result.save(Path(folder) / "q.onnx")
                    logits = harness.outputs(path, inputs)
                    same, rows = agreement(reference, logits)
                    return {
                        "sqnr_db": sqnr_db(centred(reference), centred(logits)),
                        "agreement": same / rows,
                        "score": harness.score(task.metric, logits, labels),
                        "size": path.stat().st_size / task.path.stat().st_size,
                        "seconds": seconds,
                    }

            figures, error = harness.attempt(f"{variant} on {name}", judged)
            found[variant] = figures or {"error": error}
        results[name] = found
        print(name, {v: round(f.get("sqnr_db", 0.0), 1) for v, f in found.items()}, flush=True)
    header = ["model", "float", *(f"{v}: dB" for v in VARIANTS), *(f"{v}: score" for v in VARIANTS)]
    rows = [
        [
            name,
            f"{found['float']['score']:.2f}",
            *(harness.number(found[v].get("sqnr_db"), ".1f") for v in VARIANTS),
            *(harness.number(found[v].get("score"), ".2f") for v in VARIANTS),
        ]
        for name, found in results.items()
    ]
    return header, rows, {"models": results}


def files(options: argparse.Namespace) -> Part:
    """Size, kernels, load time and latency of every kind of file."""
    results, rows = {}, []
    for name in harness.chosen(options.models, NETWORKS):
        model = networks.build(name)
        calibration, unseen = networks.inputs(name, 64, 1001), networks.inputs(name, 8, 1002)
        with tempfile.TemporaryDirectory(prefix="onnxq-int4-") as scratch:
            paths, found = {}, {}
            for kind, choices in FILES.items():
                config = onnxq.Config(samples=64, **{**harness.UNGUARDED, **choices})
                (paths[kind], *_) = onnxq.quantize(model, calibration, config=config).save(
                    Path(scratch) / f"{len(paths)}.onnx"
                )
            made, error = harness.attempt(NATIVE, partial(static_int4, model, Path(scratch), calibration))
            if made is not None:
                paths[NATIVE] = made
            else:
                found[NATIVE] = {"error": error}
            timed = benchmark(
                list(paths.values()), list(harness.feeds(unseen)), threads=[1], seconds=options.seconds, memory=False
            )
            loads = load_times(paths)
            for (kind, path), row in zip(paths.items(), timed.rows, strict=True):
                seen = kernel_map(path)
                few = {key: array[:4] for key, array in unseen.items()}
                old, error = harness.attempt(
                    f"{kind} in onnxruntime {older.VERSION}", partial(older.outputs, path, few)
                )
                found[kind] = {
                    "size": path.stat().st_size / model.stat().st_size,
                    "integer": len(seen.integer_compute),
                    "float": len(seen.float_compute),
                    "ms": row.median_ms,
                    "ratio_to_int8": row.ratio,
                    "load_ms": loads[kind],
                    "load_ratio": loads[kind] / loads[INT8],
                    "sqnr_db": compare(model, path, harness.feeds(unseen)).sqnr_db,
                    "older": {"error": error} if old is None else {"sqnr_db": sqnr_db(harness.outputs(path, few), old)},
                }
        results[name] = found
        rows += [
            [
                name,
                kind,
                f"{f['size']:.3f}",
                f"{f['integer']} / {f['float']}",
                f"{f['ms']:.2f}",
                f"{f['ratio_to_int8']:.3f}",
                f"{f['load_ratio']:.2f}",
                f"{f['sqnr_db']:.1f}",
                "runs" if "sqnr_db" in f["older"] else "fails",
            ]
            for kind, f in found.items()
            if "size" in f
        ]
        print(harness.markdown(FILE_HEADER, rows[-len(paths) :]), flush=True)
    return FILE_HEADER, rows, {"networks": results}


FILE_HEADER = [
    "network",
    "file",
    "size / float",
    "kernels int / float",
    "ms",
    "time / int8",
    "load / int8",
    "dB",
    older.VERSION,
]


def load_times(paths: Mapping[str, Path]) -> dict[str, float]:
    """Median milliseconds of making a session, all files in turn."""
    seen: dict[str, list[float]] = {kind: [] for kind in paths}
    for _ in range(LOADS):
        for kind, path in paths.items():
            start = time.perf_counter()
            harness.session(path)
            seen[kind].append((time.perf_counter() - start) * 1e3)
    return {kind: statistics.median(times) for kind, times in seen.items()}


def static_int4(model: Path, folder: Path, calibration: Mapping[str, np.ndarray]) -> Path:
    """What onnxruntime's `quantize_static` writes for 4-bit weights: native INT4 tensors at opset 21."""
    from onnx import version_converter
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    raised = version_converter.convert_version(onnx.load(model), 21)
    raised.ir_version = 10
    onnx.save(raised, folder / "raised.onnx")
    out = folder / "native.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            str(folder / "raised.onnx"),
            str(out),
            peers.Reader(harness.feeds(calibration)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt4,
        )
    return out


# -- weights only ---------------------------------------------------------------------------------------------------


def stack(layers: int, path: Path) -> Path:
    """Feed-forward and projection layers of a decoder, `WIDTH` wide, without attention: 50 M weights a layer."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def linear(x: str, inputs: int, outputs: int, name: str) -> str:
        weight = (rng.standard_normal((inputs, outputs), np.float32) / np.float32(np.sqrt(inputs))).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"{name}_w"))
        nodes.append(helper.make_node("MatMul", [x, f"{name}_w"], [name], name=name))
        return name

    tensors += [
        numpy_helper.from_array(np.ones(WIDTH, np.float32), "one"),
        numpy_helper.from_array(np.zeros(WIDTH, np.float32), "zero"),
    ]
    x = "x"
    for i in range(layers):
        for part, (wide, op) in enumerate(((3 * WIDTH, "Tanh"), (4 * WIDTH, "Relu"))):
            here = f"l{i}p{part}"
            nodes.append(helper.make_node("LayerNormalization", [x, "one", "zero"], [f"{here}_n"], name=f"{here}_n"))
            y = linear(f"{here}_n", WIDTH, wide, f"{here}_up")
            nodes.append(helper.make_node(op, [y], [f"{here}_a"], name=f"{here}_a"))
            y = linear(f"{here}_a", wide, WIDTH, f"{here}_down")
            nodes.append(helper.make_node("Add", [x, y], [f"{here}_out"], name=f"{here}_add"))
            x = f"{here}_out"
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", WIDTH])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    return path


def nbits(model: Path, out: Path, method: str, calibration: list[dict[str, np.ndarray]]) -> Path:
    """The file of onnxruntime's own MatMulNBits quantizer: 4 bits, blocks of 32, symmetric, accuracy level 4."""
    from onnxruntime.quantization import matmul_nbits_quantizer as peer

    loaded = onnx.load(model)
    algorithm = {
        "round to nearest": lambda: peer.DefaultWeightOnlyQuantConfig(
            block_size=32, is_symmetric=True, accuracy_level=4
        ),
        "HQQ": lambda: peer.HQQWeightOnlyQuantConfig(block_size=32),
        "GPTQ": lambda: peer.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=peers.Reader(calibration), block_size=32
        ),
    }[method]()
    with contextlib.redirect_stdout(io.StringIO()):
        made = peer.MatMulNBitsQuantizer(loaded, accuracy_level=4, algo_config=algorithm)
        made.process()
    onnx.save(made.model.model, out, save_as_external_data=out.stem == "stack", location=f"{out.name}.data")
    return out


def decoder(options: argparse.Namespace) -> Part:
    """Milliseconds a token, and bits per byte."""
    with tempfile.TemporaryDirectory(prefix="onnxq-int4-") as scratch:
        folder = Path(scratch)
        model = stack(LAYERS, folder / "float.onnx")
        rng = np.random.default_rng(1)
        data = {"x": rng.standard_normal((64, WIDTH)).astype(np.float32)}
        paths = {"float": model}
        for kind, weights in (
            ("onnxq w4", "int4:32"),
            ("onnxq w4, blocks of 128", "int4:128"),
            ("onnxq w4, zero points", "uint4:32"),
        ):
            # Rounding changes numbers, not speed.
            config = onnxq.Config(weights=weights, first_last=weights, activations="none", rounding="nearest")
            (paths[kind], *_) = onnxq.quantize(model, data, config=config).save(folder / f"{len(paths)}.onnx")
        paths["MatMulNBitsQuantizer"] = nbits(model, folder / "stack.onnx", "round to nearest", [])
        token = [{"x": rng.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(4)]
        timed = {
            threads: benchmark(list(paths.values()), token, threads=[threads], seconds=options.seconds, memory=False)
            for threads in (1, 2)
        }
        speed = {
            kind: {
                "size": path.stat().st_size / model.with_name(f"{model.name}.data").stat().st_size,
                **{f"ms_{t}": report.rows[i].median_ms for t, report in timed.items()},
                **{f"times_float_{t}": 1 / report.rows[i].ratio for t, report in timed.items()},
            }
            for i, (kind, path) in enumerate(paths.items())
        }
        text = gpt(folder)
    header = ["file", "ms a token, 1 thread", "times float", "2 threads", "bits per byte", "over float %"]
    rows = [
        [k, f"{f['ms_1']:.2f}", f"{f['times_float_1']:.2f}", f"{f['times_float_2']:.2f}", "", ""]
        for k, f in speed.items()
    ]
    whole = text["float"]["bits_per_byte"]
    rows += [
        [
            f"gpt_bytes: {k}",
            "",
            "",
            "",
            harness.number(f.get("bits_per_byte"), ".4f"),
            harness.number(100 * (f["bits_per_byte"] / whole - 1) if "bits_per_byte" in f else None),
        ]
        for k, f in text.items()
    ]
    return header, rows, {"speed": speed, "gpt_bytes": text}


def gpt(folder: Path) -> dict[str, Any]:
    """Bits per byte of the GPT with 4-bit weights in blocks of 32, by method; the peer leaves embeddings in float."""
    task = harness.TASKS["gpt_bytes"]
    test = task.arrays("test")
    labels = test.pop("labels")
    inputs = harness.cast({task.array: test[task.array]}, task.path)
    calibration = harness.cast(task.inputs("calib", 512), task.path)

    def judged(path: Path) -> dict[str, Any]:
        return {
            "bits_per_byte": harness.score(task.metric, harness.outputs(path, inputs), labels),
            "bytes": path.stat().st_size,
        }

    def ours(**choices: Any) -> Callable[[], Path]:
        def make() -> Path:
            config = onnxq.Config(activations="none", first_last=choices["weights"], **choices)
            return onnxq.quantize(task.path, calibration, config=config).save(folder / "gpt.onnx")[0]

        return make

    makers: dict[str, Callable[[], Path]] = {
        "float": lambda: task.path,
        "onnxq int4:32": ours(weights="int4:32"),
        "onnxq int4:32, nearest": ours(weights="int4:32", rounding="nearest"),
        "onnxq uint4:32": ours(weights="uint4:32"),
        **{
            f"MatMulNBitsQuantizer, {method}": lambda method=method: nbits(
                task.path, folder / "peer.onnx", method, list(harness.feeds(calibration, 8))[:16]
            )
            for method in ("round to nearest", "HQQ", "GPTQ")
        },
    }
    results = {}
    for name, make in makers.items():
        found, error = harness.attempt(name, lambda make=make: judged(make()))
        results[name] = found or {"error": error}
        print(name, results[name], flush=True)
    return results


def large(options: argparse.Namespace) -> Part:
    """Memory that `onnxq quantize` needs for a stack of many layers with external data, in a process of its own.

    `anonymous`: the most that the process held of its own; the rest of what is resident is mapped from files, and the
    kernel may drop it. Where this user may make control groups, the process is confined to `--limit` and dies if that
    is not enough; `limit_bytes` says so.
    """
    with tempfile.TemporaryDirectory(prefix="onnxq-int4-") as scratch:
        folder = Path(scratch)
        stack_in_child = f"import int4, pathlib; int4.stack({options.layers}, pathlib.Path({str(folder / 'm.onnx')!r}))"
        subprocess.run([sys.executable, "-c", stack_in_child], cwd=Path(__file__).parent, check=True)
        np.savez(folder / "calib.npz", x=np.random.default_rng(2).standard_normal((64, WIDTH)).astype(np.float32))
        results = {}
        for preset in options.presets:
            arguments = ["quantize", str(folder / "m.onnx"), "--calib", str(folder / "calib.npz"), "--preset", preset]
            limit = int(options.limit * 1e9)
            start = time.perf_counter()
            with memory_limit(limit) as group:
                entered = "" if group is None else f"open({str(group)!r}, 'w').write(str(os.getpid()))"
                code = WATCHED.format(entered=entered, arguments=[*arguments, "--latency", "0", "--json"])
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{preset} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            out = folder / f"m.{preset}.onnx"
            results[preset] = {
                "float_bytes": (folder / "m.onnx.data").stat().st_size,
                "bytes": sum(p.stat().st_size for p in folder.glob(f"{out.name}*")),
                **json.loads(done.stderr.strip().splitlines()[-1]),
                "limit_bytes": None if group is None else limit,
                "seconds": time.perf_counter() - start,
                "sqnr_db": json.loads(done.stdout)["comparison"]["sqnr_db"],
            }
            print(preset, results[preset], flush=True)
    header = ["preset", "float GB", "result GB", "anonymous memory GB", "confined to GB", "seconds"]
    rows = [
        [
            k,
            f"{f['float_bytes'] / 1e9:.2f}",
            f"{f['bytes'] / 1e9:.2f}",
            f"{f['anonymous'] / 1e9:.2f}",
            "no limit" if f["limit_bytes"] is None else f"{f['limit_bytes'] / 1e9:.1f}",
            f"{f['seconds']:.0f}",
        ]
        for k, f in results.items()
    ]
    return header, rows, {"presets": results}


WATCHED = """
import json, os, sys, threading, time
{entered}
from onnxq.cli.app import main
most = [0]
def watch():
    while True:
        with open("/proc/self/status") as file:
            now = next((int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon")), 0)
        most[0] = max(most[0], now)
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
sys.argv[1:] = {arguments}
code = 0
try:
    main()
except SystemExit as exit:
    code = exit.code
print(json.dumps({{"anonymous": most[0]}}), file=sys.stderr)
sys.exit(0 if code in (0, 3) else code)
"""


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Path | None]:
    """The file that a process writes its number to, to be confined to `limit` bytes; None where that is not allowed."""
    known = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
    for root, name in known:
        group = root / f"onnxq-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group / "cgroup.procs"
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield None


if __name__ == "__main__":
    main()

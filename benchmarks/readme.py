"""Writes the tables of the main README and of `docs/` from `benchmarks/results/`: `python benchmarks/readme.py`.

Each table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; nothing else of a page is touched. This is
the only way a figure gets there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promises as promised
from starts import tables

from onnxq.kernels.costs import cost_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COSTS = ROOT / "onnxq" / "kernels" / "cost_tables" / "x86-vnni"

Rows = list[list[str]]


def markdown(header: list[str], rows: Rows) -> str:
    """A markdown table, first column left, the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def accuracy(data: dict[str, Any]) -> str:
    """One line a model: score of float, onnxq and the peer's best; agreement and SQNR of the two; size."""
    rows: Rows = []
    for row in data["models"]:
        ours, peer = row["onnxq"], row["static"].get(row["static_best"] or "minmax", {})
        if row["static_best"] and row["static"]["minmax"].get("sqnr_db", -1e9) > peer.get("sqnr_db", -1e9):
            peer = row["static"]["minmax"]
        digits = ".2f" if row["metric"] == "top-1" else ".4f"
        unit = "" if row["metric"] == "top-1" else " bits/byte"
        rows.append(
            [
                row["model"],
                *(_number(way.get("score"), digits) + unit for way in (row["float"], ours, peer)),
                *(_number(_percent(way.get("agreement")), ".2f") for way in (ours, peer)),
                *(_number(way.get("sqnr_db"), ".1f") for way in (ours, peer)),
                _number(ours["bytes"] / row["float"]["bytes"], ".2f"),
            ]
        )
    return markdown(
        [
            "model",
            "float top-1 %",
            "onnxq",
            "quantize_static",
            "agreement %, onnxq",
            "quantize_static",
            "SQNR dB, onnxq",
            "quantize_static",
            "onnxq size / float",
        ],
        rows,
    )


def promises(data: dict[str, Any]) -> str:
    """By model and way of quantizing, the lower ends that were printed and those that are violated."""
    return promised.table(data["runs"])


TOOLS = ("onnxq", "onnxq --tune", "quantize_static")


SHOWN = ("int8", "int4 min-max", "int4", "codebook4", "int3")


def few_bits(data: dict[str, Any]) -> str:
    """One line a model: SQNR and score of some weight formats."""
    rows: Rows = []
    for name, found in data["models"].items():
        digits = ".4f" if name == "gpt_bytes" else ".2f"
        rows.append(
            [
                name,
                *(_number(found[variant].get("sqnr_db"), ".1f") for variant in SHOWN),
                *(_number(found[variant].get("score"), digits) for variant in ("float", *SHOWN[1:])),
            ]
        )
    header = ["model", *(f"{v}, dB" for v in SHOWN), "float score", *SHOWN[1:]]
    return markdown(header, rows)


def files(data: dict[str, Any]) -> str:
    """One line a file: size, kernels, time and load time by those of INT8."""
    rows: Rows = []
    for name, found in data["networks"].items():
        for kind, f in found.items():
            if "size" not in f:
                continue
            rows.append(
                [
                    f"{name}: {kind}",
                    _number(f["size"], ".3f"),
                    f"{f['integer']} / {f['float']}",
                    _number(f["ms"], ".2f"),
                    _number(f["ratio_to_int8"], ".2f"),
                    _number(f["load_ratio"], ".2f"),
                ]
            )
    return markdown(["file", "size / float", "kernels int / float", "ms", "time / INT8", "load time / INT8"], rows)


def large(data: dict[str, Any]) -> str:
    """Memory and time that a large model takes, by preset."""
    rows = [
        [
            preset,
            f"{f['float_bytes'] / 1e9:.2f}",
            f"{f['bytes'] / 1e9:.2f}",
            f"{f['anonymous'] / 1e9:.2f}",
            "-" if f["limit_bytes"] is None else f"{f['limit_bytes'] / 1e9:.1f}",
            f"{f['seconds'] / 60:.0f}",
        ]
        for preset, f in data["presets"].items()
    ]
    return markdown(["preset", "float, GB", "result, GB", "anonymous, GB", "confined to, GB", "minutes"], rows)


def decoder(data: dict[str, Any]) -> str:
    """One line a file: a token through a stack of wide layers; then bits per byte of the GPT."""
    rows: Rows = [
        [kind, _number(f["ms_1"], ".2f"), _number(f["times_float_1"], ".2f"), _number(f["times_float_2"], ".2f"), ""]
        for kind, f in data["speed"].items()
    ]
    rows += [
        [f"GPT: {kind}", "", "", "", _number(f.get("bits_per_byte"), ".4f")] for kind, f in data["gpt_bytes"].items()
    ]
    return markdown(["file", "ms a token, 1 thread", "times float", "times float, 2 threads", "bits per byte"], rows)


ADAPTED = ("min-max", "exact MSE", "onnxq", "fast", "iterative", "full")


def adaptation(data: dict[str, Any]) -> str:
    """One line a model and width: SQNR, score and seconds of every level that was measured."""
    levels = [x for x in ADAPTED if any(x in w for m in data["models"].values() for w in m["widths"].values())]
    rows: Rows = []
    for width in dict.fromkeys(w for m in data["models"].values() for w in m["widths"]):
        for name, found in data["models"].items():
            row = found["widths"].get(width)
            if row is None:
                continue
            digits = ".4f" if name == "gpt_bytes" else ".2f"
            rows.append(
                [
                    f"{width} {name}",
                    *(_number(row.get(level, {}).get("sqnr_db"), ".1f") for level in levels),
                    _number(found["float"]["score"], digits),
                    *(_number(row.get(level, {}).get("score"), digits) for level in levels),
                    *(_number(row.get(level, {}).get("seconds"), ".0f") for level in ("fast", "iterative")),
                ]
            )
    header = ["width and model", *(f"{x}, dB" for x in levels), "float score", *levels, "fast, s", "iterative, s"]
    return markdown(header, rows)


def counted(data: dict[str, Any]) -> str:
    """One line a model: SQNR of `fast` by number of calibration samples."""
    numbers = list(dict.fromkeys(n for widths in data["counts"].values() for row in widths.values() for n in row))
    rows = [
        [f"{width} {name}", *(_number(row.get(n, {}).get("sqnr_db"), ".1f") for n in numbers)]
        for name, widths in data["counts"].items()
        for width, row in widths.items()
    ]
    return markdown(["width and model", *(f"{n} samples, dB" for n in numbers)], rows)


def ablated(data: dict[str, Any]) -> str:
    """One line a variant: SQNR on the test set, and in brackets on the samples that judged its steps."""
    runs = data.get("ablations", {})
    variants = list(dict.fromkeys(what for row in runs.values() for what in row))

    def cell(found: dict[str, Any]) -> str:
        if not found.get("steps"):
            return "-"
        last = found["steps"][-1]
        return f"{found['sqnr_db']:.1f} ({last['after_db' if last['kept'] else 'before_db']:.1f})"

    rows = [[what, *(cell(row.get(what, {})) for row in runs.values())] for what in variants]
    return markdown(["", *(f"{name}, dB" for name in runs)], rows)


def labelled(data: dict[str, Any]) -> str:
    """One line a model and what it was adapted with: labels and samples, noise and score."""
    rows = []
    for name, found in data["models"].items():
        for run in found["runs"]:
            rows.append(
                [
                    f"{name}, {run['what']}",
                    f"{run['samples']}",
                    f"{run['sqnr_db']:.1f}",
                    f"{found['float_score']:.2f}",
                    f"{run['score']:.2f}",
                    f"{run['seconds']:.0f}",
                ]
            )
    return markdown(["W4A4", "samples", "SQNR, dB", "float score", "score", "seconds"], rows)


def adapted(data: dict[str, Any]) -> str:
    """One line a model: 3-bit weights and 4-bit weights and activations, without and with adaptation."""
    rows: Rows = []
    shown = ("min-max", "onnxq", "fast", "iterative")
    for name, found in data["models"].items():
        digits = ".4f" if name == "gpt_bytes" else ".2f"
        line = [name]
        for width in ("W3A8", "W4A4"):
            row = found["widths"].get(width, {})
            line += [_number(row.get(level, {}).get("sqnr_db"), ".1f") for level in shown]
        line.append(_number(found["float"]["score"], digits))
        for width in ("W3A8", "W4A4"):
            row = found["widths"].get(width, {})
            line += [_number(row.get(level, {}).get("score"), digits) for level in ("min-max", "iterative")]
        rows.append(line)
    header = ["model", *(f"{w} {x}, dB" for w in ("W3A8", "W4A4") for x in shown), "float score"]
    return markdown([*header, *(f"{w} {x}" for w in ("W3A8", "W4A4") for x in ("min-max", "iterative"))], rows)


def equalization(data: dict[str, Any]) -> str:
    """One line a model: SQNR without equalized channels and what they add, for each width."""
    widths = list(next(iter(data["models"].values()))["widths"])
    rows: Rows = []
    for name, found in data["models"].items():
        line = [name]
        for width in widths:
            none, auto = (found["widths"][width][how]["sqnr_db"] for how in ("none", "auto"))
            line += [_number(none, ".1f"), f"{auto - none:+.2f}"]
        rows.append(line)
    return markdown(["model", *(x for w in widths for x in (f"{w}, dB", "gain"))], rows)


def latency(data: dict[str, Any]) -> str:
    """One line a network: float milliseconds, how many times faster all tools are, with one and with all threads."""
    rows: Rows = []
    counts = sorted({threads for row in data["models"] for threads in row["latency"]}, key=int)
    tools = [tool for tool in TOOLS if any(tool in row["tools"] for row in data["models"])]
    for row in data["models"]:
        line = [row["model"].removeprefix("net:"), _number(row["latency"][counts[0]]["float"]["median_ms"], ".2f")]
        for threads in counts:
            for tool in tools:
                cell = row["latency"][threads].get(tool)
                line.append("fails" if cell is None else _number(1 / cell["ratio"], ".2f"))
        line += [_number(row["tools"][tool].get("sqnr_db"), ".1f") for tool in ("onnxq", "quantize_static")]
        rows.append(line)
    means = {(m["tool"], str(m["threads"])): m["speedup"] for m in data["geometric_means"]}
    mean = [_number(means.get((tool, threads)), ".2f") for threads in counts for tool in tools]
    rows.append(["**geometric mean, eleven networks**", "", *mean, "", ""])
    header = ["network", "float ms"]
    for threads in counts:
        header += [f"{tools[0]} x, {threads} thread{'s' if threads != '1' else ''}", *(f"{t} x" for t in tools[1:])]
    return markdown([*header, "SQNR dB, onnxq", "quantize_static"], rows)


# Of each application: what its row is called, and its measure of the worst single case, if it has one.
SHIPPED = {
    "file_types": ("file-type detector (magika), labels", ""),
    "ocr_rec": ("text recogniser (PP-OCRv4), character errors", ""),
    "ocr_det": ("text detector (PP-OCRv4), overlap", "iou_worst"),
    "ocr5_rec": ("text recogniser (PP-OCRv5), character errors", ""),
    "ocr5_det": ("text detector (PP-OCRv5), overlap", "iou_worst"),
    "ocr_cls": ("text direction (PP-OCR), labels", ""),
    "orientation": ("page orientation (PP-LCNet), labels", ""),
    "layout": ("page layout (PicoDet), places", ""),
    "voice": ("voice detector (silero, If branches), frames", "largest_gap"),
    "voice_16k": ("voice detector (silero, 16 kHz), frames", "largest_gap"),
    "sentences": ("sentence embedding (MiniLM-L6), cosine", "cosine_worst"),
    "lite1": ("ImageNet classes (EfficientNet-Lite1), labels", ""),
    "lite2": ("ImageNet classes (EfficientNet-Lite2), labels", ""),
    "bodies": ("faces and bodies (YOLOv8 of nudenet), average precision", "surest_lost"),
    "captcha_det": ("characters found (YOLOX of ddddocr), average precision", "surest_lost"),
    "captcha_rec": ("captchas read (ddddocr), strings", ""),
    "speakers": ("who speaks (Resemblyzer), labels", "cosine_worst"),
    "super_resolution": ("super resolution (ESRGAN of UpscalerJS), % of the scale", "worst_block"),
}


def applications(data: dict[str, Any]) -> str:
    """One line an application: points lost, worst case, size and speed of onnxq, and points lost by its peers."""
    rows: Rows = []
    for name, (title, worst) in SHIPPED.items():
        if name not in data:
            continue
        variants = data[name]
        ours = variants.get("onnxq", {})
        figures = ours.get("figures", {})
        peers = [variants.get(v, {}).get("figures", {}).get("loss") for v in ("ort_default", "ort_linear", "nncf")]
        rows.append(
            [
                title,
                _number(figures.get("loss"), ".2f"),
                f"{figures[worst]:g} ({worst.replace('_', ' ')})" if worst in figures else "-",
                _number(ours.get("size_ratio"), ".2f"),
                _number(ours.get("speedup"), ".2f"),
                *(_number(loss, ".2f") for loss in peers),
            ]
        )
    return markdown(
        [
            "application",
            "points lost, onnxq",
            "its worst case",
            "size / float",
            "times faster",
            "points lost, quantize_static",
            "its Conv, MatMul, Gemm only",
            "NNCF, accuracy control",
        ],
        rows,
    )


def cost(data: dict[str, Any]) -> str:
    """One line a network and number of samples: seconds and peak memory of both tools."""
    rows: Rows = []
    for run in data["runs"]:
        medians = {
            (tool, key): sorted(r[key] for r in run["runs"][tool])[len(run["runs"][tool]) // 2]
            for tool in ("onnxq", "quantize_static")
            for key in ("seconds", "peak_mb")
            if run["runs"][tool]
        }
        rows.append(
            [
                run["network"],
                str(run["samples"]),
                *(_number(medians.get((t, "seconds")), ".1f") for t in ("onnxq", "quantize_static")),
                *(_number(medians.get((t, "peak_mb")), ".0f") for t in ("onnxq", "quantize_static")),
            ]
        )
    header = ["network", "samples", "seconds, onnxq", "quantize_static", "peak MB, onnxq", "quantize_static"]
    return markdown(header, rows)


def memory(data: dict[str, Any]) -> str:
    """One line a model and tool: processor time and peak memory."""
    rows = [
        [name, f"{run['model_mb']:.0f}", str(run["samples"]), f"{run['cpu_seconds']:.0f}", f"{run['peak_mb']:.0f}"]
        for name, run in data["runs"].items()
        if run["error"] is None
    ]
    return markdown(["model", "MB", "samples", "processor seconds", "peak MB"], rows)


def cost_adapted(data: dict[str, Any]) -> str:
    """One line a network: what adapting 4-bit weights takes."""
    rows = [
        [name, found["level"], f"{found['samples']}", f"{found['seconds']:.0f}", f"{found['peak_mb'] / 1e3:.1f}"]
        for name, found in data["networks"].items()
    ]
    return markdown(["network", "level", "samples", "seconds", "peak memory, GB"], rows)


def study(render: Callable[[dict[str, Any]], tables.Table], part: str) -> Callable[[dict[str, Any]], str]:
    """A table of one part of `initialisation.json` as markdown."""
    return lambda data: markdown(*render(data[part]))


def rewrites(data: dict[str, Any]) -> str:
    """One line a rewrite and network: how many times faster the network is with it."""
    rows = [
        [r["rewrite"], r["network"], *(f"{f['times']:.2f}" for f in r["faster"].values())] for r in data["rewrites"]
    ]
    threads = [f"times faster, {n} thread{'s' if n != '1' else ''}" for n in data["rewrites"][0]["faster"]]
    return markdown(["left out", "network", *threads], rows)


# By kernel: what is shown, and its sizes in the cost table.
SHOWN_COSTS = {
    "1x1 convolution, 16 / 256 / 1024 channels, 16x16": [("conv.pointwise", (c, c, 256)) for c in (16, 256, 1024)],
    "3x3 convolution, 16 / 64 / 256 channels, 16x16": [("conv.spatial", (9 * c, c, 256)) for c in (16, 64, 256)],
    "depthwise 3x3, 64 / 256 / 1024 channels, 16x16": [("conv.depthwise", (c, 9, 256)) for c in (64, 256, 1024)],
    "depthwise 7x7, 64 / 256 / 1024 channels, 8x8": [("conv.depthwise", (c, 49, 64)) for c in (64, 256, 1024)],
    "first convolution, 3 to 64 channels, 3x3 / 7x7 / 16x16, 32x32 out": [
        ("conv.few", (k, 64, 1024)) for k in (27, 147, 768)
    ],
    "matrix product, 256 rows, 32 / 128 / 2048 squared": [("matmul", (256, n, n)) for n in (32, 128, 2048)],
    "sum of two maps, 16 / 64 / 1024 thousand elements": [("Add", (n,)) for n in (16384, 65536, 1048576)],
}


def kernel_costs(data: dict[str, Any]) -> str:
    """Float time divided by int8 time for a few kernels and sizes of a cost table."""
    table = cost_table(data["target"])
    assert table is not None
    rows = [
        [title, *(f"{table.cost(k, 'float', *sizes) / table.cost(k, 'int8', *sizes):.1f}" for k, sizes in cases)]
        for title, cases in SHOWN_COSTS.items()
    ]
    return markdown(["kernel", "first", "second", "third"], rows)


def rivals(data: dict[str, Any]) -> str:
    """One line a tool over all models: what runs, what is lost, how fast, how large, what it takes."""
    models = data["models"]
    tools = list(dict.fromkeys(tool for row in models for tool in row["tools"]))
    rows: Rows = []
    for tool in tools:
        good = [(row["float"], row["tools"][tool]) for row in models if "latency" in row["tools"].get(tool, {})]
        if not good:
            rows.append([tool, f"0 of {len(models)}", *["-"] * 8])
            continue
        lost = [
            before["score"] - after["score"]
            for before, after in good
            if before.get("score", 0.0) > 20.0  # top-1 in percent; what is below are bits per byte
        ]
        speed = [1 / after["latency"]["ratio"] for _, after in good]
        rows.append(
            [
                tool,
                f"{len(good)} of {len(models)}",
                _number(sum(lost) / len(lost) if lost else None, ".2f"),
                _number(max(lost) if lost else None, ".2f"),
                _number(sum(after["sqnr_db"] for _, after in good) / len(good), ".1f"),
                _number(math.exp(sum(map(math.log, speed)) / len(speed)), ".2f"),
                _number(min(speed), ".2f"),
                _number(sum(after["bytes"] / before["bytes"] for before, after in good) / len(good), ".2f"),
                _number(sum(after["seconds"] for _, after in good) / len(good), ".0f"),
                _number(max(after["peak_mb"] for _, after in good), ".0f"),
            ]
        )
    header = ["tool", "models that run", "points lost, mean", "worst", "SQNR dB, mean", "times float, mean", "slowest"]
    return markdown([*header, "size / float", "seconds", "peak MB"], rows)


def rivals_by_model(data: dict[str, Any]) -> str:
    """One line a model, a column a tool: SQNR and times float, or what went wrong."""
    tools = list(dict.fromkeys(tool for row in data["models"] for tool in row["tools"]))
    rows: Rows = []
    for row in data["models"]:
        cells = []
        for tool in tools:
            found = row["tools"].get(tool)
            speed = None if found is None else found.get("latency", {}).get("ratio")
            missing = "-" if found is None else "fails"  # not run, or run without success
            cells.append(missing if found is None or speed is None else f"{found['sqnr_db']:.1f}, {1 / speed:.2f}")
        rows.append([row["model"].removeprefix("net:"), *cells])
    return markdown(["model: SQNR dB, times float", *tools], rows)


STUDY = {
    "ranges_objective": study(tables.by_objective, "whole"),
    "ranges_errors": study(tables.error_ratios, "errors"),
    "ranges_methods": study(tables.by_method, "whole"),
    "ranges_convergence": study(tables.convergence_short, "convergence"),
    "ranges_speed": study(tables.speed, "speed"),
    "ranges_unseen": study(tables.unseen, "unseen"),
}


# By page, the tables that it shows and the JSON that each comes from.
def backend_tests(data: dict[str, Any]) -> str:
    """One line a form and kind of weights, one column an outcome."""
    outcomes = list(data["letters"].values())
    rows = [[name, *(str(counts.get(o, 0)) for o in outcomes)] for name, counts in data["counts"].items()]
    each = ["each model in its best form", *(str(data["models_by_outcome"].get(o, 0)) for o in outcomes)]
    return markdown([f"form, weights ({data['tried']} of {data['models']} models)", *outcomes], [*rows, each])


PAGES: dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "README.md": {"rivals": ("rivals", rivals)},
    "docs/results.md": {
        "accuracy": ("accuracy", accuracy),
        "latency": ("latency", latency),
        "applications": ("applications", applications),
        "few_bits": ("int4_accuracy", few_bits),
        "adapted": ("adaptation", adapted),
        "cost": ("cost", cost),
        "promises": ("promises", promises),
        "memory": ("memory", memory),
        "backend_tests": ("backend_tests", backend_tests),
        **{
            name: ("initialisation", STUDY[name])
            for name in ("ranges_objective", "ranges_errors", "ranges_convergence")
        },
    },
    "docs/adaptation.md": {
        "adaptation": ("adaptation", adaptation),
        "adaptation_counts": ("adaptation", counted),
        "adaptation_ablations": ("adaptation", ablated),
        "cost_adapted": ("cost_adapted", cost_adapted),
        "labels": ("adaptation_labels", labelled),
    },
    "docs/rivals.md": {"rivals": ("rivals", rivals), "rivals_by_model": ("rivals", rivals_by_model)},
    "docs/equalization.md": {"equalization": ("equalization", equalization)},
    "docs/bits.md": {
        "files": ("int4_files", files),
        "large": ("int4_large", large),
        "decoder": ("int4_decoder", decoder),
    },
    "docs/placement.md": {
        "kernel_costs": (str(COSTS), kernel_costs),
        "rewrites": ("rewrites", rewrites),
    },
    "docs/ranges.md": {
        **{name: ("initialisation", STUDY[name]) for name in ("ranges_methods", "ranges_speed", "ranges_unseen")},
        "ranges_models": ("initialisation", study(tables.by_objective_and_model, "whole")),
        "ranges_made": ("initialisation", study(tables.error_ratios_made, "errors")),
        "ranges_convergence_all": ("initialisation", study(tables.convergence, "convergence")),
    },
}


# By page, the marks where it says what machine the figures of a JSON were taken on.
MACHINES = {
    "README.md": {"machine:rivals": "rivals"},
    "docs/results.md": {"machine": "accuracy", "machine:latency": "latency"},
}


def main() -> None:
    """Fill every table whose JSON is there."""
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")


def filled(page: str) -> str:
    """The text of `page` with every table, and every sentence about a machine, as its JSON has it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, (source, render) in PAGES[page].items():
        path = RESULTS / f"{source}.json"
        if path.exists():
            text = replaced(text, f"table:{name}", render(json.loads(path.read_text())), page)
    for mark, source in MACHINES.get(page, {}).items():
        text = replaced(text, mark, machine(json.loads((RESULTS / f"{source}.json").read_text())["machine"]), page)
    return text


def machine(taken: dict[str, Any]) -> str:
    """One sentence about where figures were taken."""
    extensions = [name for name, there in taken["instructions"].items() if there]
    return (
        f"Measured on {taken['cores']} cores of an {taken['cpu']} ({', '.join(extensions)}), onnxruntime "
        f"{taken['onnxruntime']}, {taken['date'][:10]}."
    )


def replaced(text: str, mark: str, content: str, page: str) -> str:
    """`text` with what stands between the comments of `mark` replaced by `content`."""
    pattern = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- /{re.escape(mark)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page} has no <!-- {mark} -->")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()

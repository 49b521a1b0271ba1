"""Adapting to quantization noise: SQNR and score of every level on every model, at several widths; and ablations.

All are judged on the whole test set, which calibration never saw; calibration takes 512 inputs without labels. The
results of models that are not run again are kept: `--models` may be split over several runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import harness
import numpy as np

import onnxq
from onnxq.adapt.samples import joined
from onnxq.numerics import centred, sqnr_db

WIDTHS: dict[str, dict[str, Any]] = {
    "W8A8": {},
    "W6A6": {"weights": "int6", "activations": "uint6"},
    "W4A8": {"weights": "int4"},
    "W3A8": {"weights": "int3"},
    "W2A8": {"weights": "int2"},
    "W4A4": {"weights": "int4", "activations": "uint4"},
}
PLAIN = {"rounding": "nearest", "restore": "none", "objective": "tensor", "equalize": "none"}
LEVELS: dict[str, dict[str, Any]] = {
    "min-max": {"weight_range": "minmax", "activation_range": "minmax", **PLAIN},
    "percentile": {"weight_range": "minmax", "activation_range": "percentile:99.99", **PLAIN},
    "entropy": {"weight_range": "minmax", "activation_range": "entropy", **PLAIN},
    "exact MSE": {**PLAIN},
    "onnxq": {},
    "fast": {"adapt": "fast"},
    "iterative": {"adapt": "iterative"},
    "full": {"adapt": "full"},
}
COUNTS = (32, 64, 128, 256, 512)
# What `iterative` is without one of its parts: choices of the configuration, and what stands for names in `adapt`.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "iterative": ({}, {}),
    "starts from min-max": ({"weight_range": "minmax", "activation_range": "minmax"}, {}),
    "without the closed form": ({}, {"adapter.Adapter._closed_form": lambda *_: None}),
    "channels rounded apart": ({}, {"adapter.output_costs": lambda *_, **__: {}}),
    "no made-up inputs": ({}, {"adapter.Adapter._with_generated": lambda _, fit, aside: joined([aside, fit])}),
    "one part": ({}, {"levels._PARTS": 1}),
    "six parts": ({}, {"levels._PARTS": 6}),
}
ABLATED = (("keyword_spotter", "W3A8"), ("resnet", "W4A4"))


def main() -> None:
    """Run the chosen part on the chosen models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(harness.TASKS)} (default: all)")
    parser.add_argument("--widths", nargs="+", help=f"any of {', '.join(WIDTHS)} (default: all)")
    parser.add_argument("--levels", nargs="+", help=f"any of {', '.join(LEVELS)} (default: all but full)")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--counts", action="store_true", help="the ablation: numbers of calibration samples, for fast")
    parser.add_argument("--ablations", action="store_true", help="the ablation: iterative without one of its parts")
    parser.add_argument("--plot", action="store_true", help="draw what was measured, and measure nothing")
    parser.add_argument("--name", default="adaptation", help="of the file in results/")
    options = parser.parse_args()
    path = harness.RESULTS / f"{options.name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if options.plot:
        plot(known["models"])
        return
    results: dict[str, Any] = known.get("models", {})
    counts: dict[str, Any] = known.get("counts", {})
    ablations: dict[str, Any] = known.get("ablations", {})
    everything = {"models": results, "counts": counts, "ablations": ablations}
    if options.ablations:
        for name, width in ABLATED:
            if options.models is None or name in options.models:
                judge = Judge(harness.TASKS[name], options.samples)
                row = ablations.setdefault(f"{width} {name}", {})
                for what in ABLATIONS:
                    row[what] = ablated(judge, width, what, options.samples)
                    print(width, name, what, {k: v for k, v in row[what].items() if k != "steps"}, flush=True)
                    harness.write(options.name, vars(options), everything)
        return
    for name in harness.chosen(options.models, list(harness.TASKS)):
        judge = Judge(harness.TASKS[name], options.samples)
        if options.counts:
            for width in harness.chosen(options.widths or ["W3A8"], list(WIDTHS)):
                for count in COUNTS:
                    found = judge.figures({**WIDTHS[width], **LEVELS["fast"]}, count)
                    counts.setdefault(name, {}).setdefault(width, {})[str(count)] = found
                    print(name, width, count, found, flush=True)
        else:
            of_model = results.setdefault(name, {"float": {"score": judge.score}, "widths": {}})
            for width in harness.chosen(options.widths, list(WIDTHS)):
                row = of_model["widths"].setdefault(width, {})
                for level in harness.chosen(options.levels or [x for x in LEVELS if x != "full"], list(LEVELS)):
                    choices = {**WIDTHS[width], **LEVELS[level]}
                    found, error = harness.attempt(
                        f"{level}, {width} on {name}", lambda c=choices, j=judge: j.figures(c, options.samples)
                    )
                    row[level] = found or {"error": error}
                    print(name, width, level, {k: v for k, v in row[level].items() if k != "steps"}, flush=True)
                    harness.write(options.name, vars(options), everything)
        harness.write(options.name, vars(options), everything)


def ablated(judge: Judge, width: str, what: str, samples: int) -> dict[str, Any]:
    """The figures of `iterative` at `width` without one of its parts."""
    choices, others = ABLATIONS[what]
    with ExitStack() as stack:
        for name, value in others.items():
            stack.enter_context(patch(f"onnxq.adapt.{name}", value))
        return judge.figures({**WIDTHS[width], **LEVELS["iterative"], **choices}, samples)


SHOWN = ("min-max", "onnxq", "fast", "iterative")
COLOURS = ("#b5b5b5", "#9ecae1", "#4292c6", "#08519c")


def plot(models: dict[str, Any]) -> None:
    """`docs/images/adaptation.png`: SQNR of every level, a group of bars for each model, a panel for each width."""
    import matplotlib.pyplot as plt

    widths = [w for w in ("W4A8", "W3A8", "W4A4") if any(w in m["widths"] for m in models.values())]
    figure, axes = plt.subplots(len(widths), 1, figsize=(9, 2.6 * len(widths)), sharex=True, squeeze=False)
    for axis, width in zip(axes[:, 0], widths, strict=True):
        for i, (level, colour) in enumerate(zip(SHOWN, COLOURS, strict=True)):
            found = [m["widths"].get(width, {}).get(level, {}).get("sqnr_db") for m in models.values()]
            places = [k + (i - 1.5) * 0.2 for k, value in enumerate(found) if value is not None]
            axis.bar(places, [value for value in found if value is not None], 0.2, color=colour, label=level)
        axis.set_ylabel("SQNR, dB")
        axis.set_title(f"{width}: {width[1]}-bit weights, {width[3]}-bit activations", loc="left", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1, 0].set_xticks(range(len(models)), list(models), rotation=15)
    axes[0, 0].legend(ncols=len(SHOWN), frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1.0, 1.25))
    figure.tight_layout()
    path = harness.ROOT / "docs" / "images" / "adaptation.png"
    figure.savefig(path, dpi=110)
    print(f"written: {path.relative_to(harness.ROOT)}")


class Judge:
    """One model with its data, and what its float version answers to the test set."""

    def __init__(self, task: harness.Task, samples: int) -> None:
        self.task = task
        self.calibration = harness.cast(task.inputs("calib", samples), task.path)
        test = task.arrays("test")
        self.labels = test.pop("labels")
        self.inputs = harness.cast({task.array: test[task.array]}, task.path)
        self.reference = harness.outputs(task.path, self.inputs)
        self.score = harness.score(task.metric, self.reference, self.labels)

    def figures(self, choices: dict[str, Any], samples: int) -> dict[str, Any]:
        """What one configuration loses, and how long it takes."""
        few = {name: array[:: max(1, len(array) // samples)][:samples] for name, array in self.calibration.items()}
        start = time.perf_counter()
        # Nothing is given back to float: what is compared is what adapting does.
        config = onnxq.Config(samples=samples, min_agreement=0.0, guard_sqnr=-200.0, **choices)
        result = onnxq.quantize(self.task.path, few, config=config)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory(prefix="onnxq-adapt-") as folder:
            (path, *_) = result.save(Path(folder) / "q.onnx")
            logits = harness.outputs(path, self.inputs)
        adaptation = result.report.adaptation
        return {
            "sqnr_db": sqnr_db(centred(self.reference), centred(logits)),
            "score": harness.score(self.task.metric, logits, self.labels),
            "seconds": seconds,
            "steps": []
            if adaptation is None
            else [
                {
                    "what": s.what,
                    "before_db": -10 * float(np.log10(max(s.before, 1e-20))),
                    "after_db": -10 * float(np.log10(max(s.after, 1e-20))),
                    "kept": bool(s.kept),
                    "seconds": s.seconds,
                }
                for s in adaptation.steps
            ],
        }


if __name__ == "__main__":
    main()

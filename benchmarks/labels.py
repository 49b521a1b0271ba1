"""Adaptation to 4-bit weights and activations without labels, and quantization-aware training on them, on new glyphs.

The pictures are rendered by `models/data/make_glyphs.py` from the fonts for training (see there for the packages; needs
torch), with a seed of their own. Writes `benchmarks/results/adaptation_labels.json`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np

import onnxq
from onnxq.numerics import centred, sqnr_db

SEED = 77
MODELS = ("resnet", "mobilenet_v2", "efficientnet", "vit", "convnext")
# By name: level, whether with labels, and samples.
RUNS: dict[str, tuple[str, bool, int]] = {
    "no adaptation": ("none", False, 512),
    "fast": ("fast", False, 512),
    "iterative": ("iterative", False, 512),
    "fast, more inputs": ("fast", False, 4096),
    "iterative, more inputs": ("iterative", False, 4096),
    "labels": ("full", True, 512),
    "labels, more inputs": ("full", True, 4096),
}


def main() -> None:
    """Run the chosen runs on the chosen models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--runs", nargs="+", help=f"any of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of training, at most")
    options = parser.parse_args()
    data = glyphs(max(count for _, _, count in RUNS.values()))
    results: dict[str, Any] = {}
    for name in harness.chosen(options.models, list(MODELS)):
        task = harness.TASKS[name]
        test = task.arrays("test")
        labels = test.pop("labels")
        inputs = harness.cast(test, task.path)
        reference = harness.outputs(task.path, inputs)
        found: dict[str, Any] = {"float_score": harness.score(task.metric, reference, labels), "runs": []}
        results[name] = found
        for what in harness.chosen(options.runs, list(RUNS)):
            level, labelled, count = RUNS[what]
            config = onnxq.Config(
                weights="int4",
                activations="uint4",
                adapt=level,
                adapt_seconds=options.budget,
                labels="labels" if labelled else "",
                samples=count,
                **harness.UNGUARDED,
            )
            few = {key: array[:count] for key, array in data.items()}
            start = time.perf_counter()
            result = onnxq.quantize(task.path, few, config=config)
            seconds = time.perf_counter() - start
            with tempfile.TemporaryDirectory(prefix="onnxq-labels-") as folder:
                (path, *_) = result.save(Path(folder) / "q.onnx")
                logits = harness.outputs(path, inputs)
            found["runs"].append(
                {
                    "what": what,
                    "samples": count,
                    "sqnr_db": sqnr_db(centred(reference), centred(logits)),
                    "score": harness.score(task.metric, logits, labels),
                    "seconds": seconds,
                }
            )
            print(name, found["runs"][-1], flush=True)
        path = harness.write("adaptation_labels", vars(options), {"models": results})
    print(f"written: {path.relative_to(harness.ROOT)}")


def glyphs(count: int) -> dict[str, np.ndarray]:
    """`image` float32 [count, 3, 32, 32] and `labels` int64 [count], from fonts that no test picture uses."""
    sys.path.insert(0, str(harness.MODELS / "data"))
    import make_glyphs

    (_, masks), _ = make_glyphs.load_split()
    image, labels = make_glyphs.GlyphRenderer(masks, SEED).batch(count)
    return {"image": image.numpy().astype(np.float32), "labels": labels.numpy()}


if __name__ == "__main__":
    main()

"""Child process, in NNCF's environment: quantize a model once, by NNCF's own control of accuracy.

    python controlled.py MODEL FEEDS.npz OUT MEASURE MAX_DROP

FEEDS holds the arrays `<number>/<input>`. The even ones calibrate, the odd ones validate: what is asked to drop by no
more than MAX_DROP is the mean, over them and over the outputs, of MEASURE against what the float model gives: "labels",
the share of rows whose arg-max over the last axis is the same, or "cosine". The last line printed is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray]
VALIDATED = 64
RANKED = 32


def read(path: str) -> list[Feed]:
    """The feeds in the order of their numbers."""
    found: dict[int, Feed] = defaultdict(dict)
    with np.load(path) as archive:
        for key in archive.files:
            number, name = key.split("/", 1)
            found[int(number)][name] = archive[key]
    return [found[i] for i in sorted(found)]


def labels(wanted: np.ndarray, got: np.ndarray) -> float:
    """Share of rows whose arg-max is the same."""
    return float((wanted.argmax(-1) == got.argmax(-1)).mean())


def cosine(wanted: np.ndarray, got: np.ndarray) -> float:
    """Cosine of the angle between two outputs."""
    a, b = wanted.ravel().astype(np.float64), got.ravel().astype(np.float64)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


MEASURES = {"labels": labels, "cosine": cosine}


def main(model: str, feeds: str, out: str, measure: str, most: str) -> None:
    import nncf
    import onnx
    import onnxruntime

    samples, judge = read(feeds), MEASURES[measure]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4

    def outputs(source: str | bytes, feeds: Iterable[Feed]) -> list[list[np.ndarray]]:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return [session.run(names, feed) for feed in feeds]

    validated = samples[1::2][:VALIDATED]
    checked = list(zip(validated, outputs(model, validated), strict=True))

    def validate(prepared: Any, items: Iterable[tuple[Feed, list[np.ndarray]]]) -> tuple[float, list[float]]:
        feeds, wanted = zip(*items, strict=True)
        found = outputs(prepared.SerializeToString(), feeds)
        figures = []
        for before, after in zip(wanted, found, strict=True):
            figures.append(float(np.mean([judge(a, b) for a, b in zip(before, after, strict=True)])))
        return float(np.mean(figures)), figures

    begun = time.perf_counter()
    made = nncf.quantize_with_accuracy_control(
        onnx.load(model),
        calibration_dataset=nncf.Dataset(samples[::2]),
        validation_dataset=nncf.Dataset(checked, lambda item: item[0]),
        validation_fn=validate,
        max_drop=float(most),
        subset_size=len(samples[::2]),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=RANKED),
    )
    onnx.save(made, out)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])

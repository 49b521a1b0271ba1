"""Whether what the report says of accuracy is true: every lower end that it prints, on 2,000 fresh inputs.

Each model in `models/` is quantized with a few hundred samples of its test set, a few times with others, and compared
with float on 2,000 further ones. A lower end is violated where fewer decisions stay there than it promised; of all that
are printed at most 5 % should be. Prints a markdown table and writes `benchmarks/results/promises.json`; runs that it
holds already are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import harness
import numpy as np

import onnxq

FRESH = 2000
SAMPLES = (100, 256, 512)
# What onnxq does by itself; and four bits, rounded badly, where eight are promised: layers go back to float until the
# promise just seems to hold, which is where a judge is tempted most.
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "worse": {
        "rules": (onnxq.Rule("*", weights="int4"),),
        "objective": "tensor",
        "rounding": "nearest",
        "restore": "none",
    },
}

HEADER = ["model", "", "runs", "lower ends", "violated", "beyond chance", "with made ones", "violated", "proven"]


def main() -> None:
    """Measure every chosen model, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(harness.TASKS)} (default: all)")
    parser.add_argument("--samples", nargs="+", type=int, default=list(SAMPLES), help="samples given to onnxq")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="which samples those are")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS), help="how to quantize")
    parser.add_argument("--anew", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    path = harness.RESULTS / "promises.json"
    runs = [] if options.anew or not path.exists() else json.loads(path.read_text())["runs"]
    for name in harness.chosen(options.models, list(harness.TASKS)):
        for samples, seed, config in itertools.product(options.samples, options.seeds, options.configs):
            key = {"model": name, "samples": samples, "seed": seed, "config": config}
            if any(key.items() <= run.items() for run in runs):
                continue
            found, error = harness.attempt(f"{key}", lambda key=key: measure(**key))  # type: ignore[misc]
            runs.append({**key, "error": error} if found is None else {**key, **found})
            harness.write("promises", {"fresh": FRESH}, {"runs": runs})
            print(f"done {key}: {len(runs[-1].get('lower_ends', ()))} lower ends", flush=True)
    print(f"\n{table(runs)}\n\nwritten: {path.relative_to(harness.ROOT)}")


def measure(model: str, samples: int, seed: int, config: str) -> dict[str, Any]:
    """All lower ends that are printed for one quantized model, with what became of them on fresh inputs."""
    task = harness.TASKS[model]
    inputs = harness.cast(task.inputs("test"), task.path)
    count = len(next(iter(inputs.values())))
    order = np.random.default_rng([seed, samples]).permutation(count)
    given, fresh = order[:samples], order[samples : samples + FRESH]
    chosen = onnxq.Config(seed=seed, **CONFIGS[config])
    result = onnxq.quantize(task.path, {n: a[given] for n, a in inputs.items()}, config=chosen)
    found = onnxq.evaluate(
        task.path,
        result.proto(),
        {n: a[fresh] for n, a in inputs.items()},
        layer_samples=0,
        feed_options=onnxq.FeedOptions(batch_size=20),
    )
    promises = {(o.name, p.what): p for o in found.comparison.outputs for p in o.promises if p.share is not None}
    ends = []
    for certainty in result.report.certainties:
        promise = promises[certainty.output, certainty.what]
        assert promise.share is not None
        ways = {"held out": certainty.real.lower}
        if certainty.made is not None:
            ways["with made ones"] = certainty.lower
        for way, lower in ways.items():
            ends.append(
                {
                    "output": certainty.output,
                    "what": certainty.what,
                    "way": way,
                    "made": 0 if certainty.made is None else certainty.made.samples,
                    "promised": certainty.promised,
                    "lower": lower,
                    "fresh": promise.share.value,
                    "rows": promise.share.rows,
                    "violated": promise.share.value < lower,
                    "beyond_chance": promise.share.upper < lower,
                }
            )
    return {"good": result.good, "fresh": len(fresh), "lower_ends": ends}


def table(runs: list[dict[str, Any]]) -> str:
    """By model, how many lower ends were printed and how many of them are violated, of the data alone and with more."""
    lines = []
    models = list(dict.fromkeys(run["model"] for run in runs))
    for name, config in [*itertools.product(models, CONFIGS), *(("all", config) for config in CONFIGS)]:
        some = [run for run in runs if name in ("all", run["model"]) and run["config"] == config]
        if some:
            ends = [end for run in some for end in run.get("lower_ends", ())]
            lines.append([name, config, str(len(some)), *_cells(ends)])
    return harness.markdown(HEADER, lines)


def _cells(ends: list[dict[str, Any]]) -> list[str]:
    more = [end for end in ends if end["way"] != "held out"]
    last = [end for end in ends if end["way"] != "held out" or not end["made"]]
    proven = [end for end in last if end["lower"] >= end["promised"]]
    return [
        str(len(ends)),
        str(sum(end["violated"] for end in ends)),
        str(sum(end["beyond_chance"] for end in ends)),
        str(len(more)),
        str(sum(end["violated"] for end in more)),
        f"{len(proven)} of {len(last)}",
    ]


if __name__ == "__main__":
    main()

"""Where learned and unlearned quantizers should start: the study of range methods, in five parts (see `starts/`).

    errors         squared error of every method against the exact optimum, on made data and on all of `models/`
    whole          output SQNR and accuracy of whole networks at 8, 6, 4 (and 3) bits, nothing learned
    convergence    LSQ, LSQ+ and companding learned from every start: loss against steps, spread, runs that diverge
    unseen         what ranges from 8 to 512 samples lose on samples of the test set
    speed          seconds for 25 M weights, milliseconds for a histogram (run it on a machine that does nothing else)

Prints markdown tables and writes `benchmarks/results/initialisation.json`; parts that are not asked for keep their
figures. `--plots` draws the JSON into `docs/images/` (needs matplotlib).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import harness
from starts import convergence, errors, plots, speed, tables, unseen, whole

PARTS = ("errors", "whole", "convergence", "unseen", "speed")


def main() -> None:
    """Measure the chosen parts, write the JSON, print the tables, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", help="of the parts `whole` and `unseen` (default: all)")
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--tests", type=int, default=2048, help="test samples")
    parser.add_argument("--seeds", type=int, default=5, help="of the part `convergence`")
    parser.add_argument("--repeats", type=int, default=3, help="of the part `speed`")
    parser.add_argument("--plots", action="store_true", help="draw what the JSON holds")
    options = parser.parse_args()
    path = harness.RESULTS / "initialisation.json"
    for part in options.parts:
        measured = _measured(part, options)
        found = _read(path)  # only now: parts may be measured side by side
        taken = {**found.get("taken", {}), part: {**harness.machine(), "settings": vars(options)}}
        kept = {p: found[p] for p in PARTS if p in found}
        harness.write("initialisation", {}, {"taken": taken, **kept, part: measured})
    found = _read(path)
    for title, table in tables.all_of(found):
        print(f"\n{title}\n\n{harness.markdown(*table)}")
    if options.plots:
        for drawn in plots.draw(found, harness.ROOT / "docs" / "images"):
            print(f"drawn: {drawn.relative_to(harness.ROOT)}")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    if part == "errors":
        return errors.measure(options.samples)
    if part == "whole":
        return whole.measure(options.samples, options.tests, harness.chosen(options.models, list(harness.TASKS)))
    if part == "unseen":
        return unseen.measure(harness.chosen(options.models, list(harness.TASKS)))
    if part == "convergence":
        return convergence.measure(options.seeds)
    return speed.measure(options.repeats)


if __name__ == "__main__":
    main()

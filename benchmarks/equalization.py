"""What equalizing channels is worth: SQNR and score with and without it on every model of `models/`, at several widths.

Judged on the whole test sets, which calibration never saw. The results of models that are not run again are kept.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import harness
from adaptation import Judge

WIDTHS: dict[str, dict[str, Any]] = {
    "W8A8": {},
    "W4A8": {"weights": "int4"},
    "W4A4": {"weights": "int4", "activations": "uint4"},
    "W4": {"weights": "int4:32", "activations": "none"},
}


def main() -> None:
    """Measure the chosen models, print what was found, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help=f"any of {', '.join(harness.TASKS)} (default: all)")
    parser.add_argument("--widths", nargs="+", help=f"any of {', '.join(WIDTHS)} (default: all)")
    parser.add_argument("--samples", type=int, default=512)
    options = parser.parse_args()
    path = harness.RESULTS / "equalization.json"
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    for name in harness.chosen(options.models, list(harness.TASKS)):
        judge = Judge(harness.TASKS[name], options.samples)
        of_model = models.setdefault(name, {"float": judge.score, "widths": {}})
        for width in harness.chosen(options.widths, list(WIDTHS)):
            row = of_model["widths"].setdefault(width, {})
            for how in ("none", "auto"):
                found = judge.figures({**WIDTHS[width], "equalize": how, "placement": "all"}, options.samples)
                row[how] = {key: found[key] for key in ("sqnr_db", "score", "seconds")}
                print(name, width, how, row[how], flush=True)
        harness.write("equalization", vars(options), {"models": models})


if __name__ == "__main__":
    main()

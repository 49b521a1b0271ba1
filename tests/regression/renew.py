"""``python -m tests.regression.renew [NETWORK...]``: measures the networks (default: all), commits the figures to
``models.json`` and prints what changed. Run it where a change is meant, and say in the commit why it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

# As pytest does for the tests of this folder.
sys.path.insert(0, str(Path(__file__).parent))

from model_figures import CASES, COMMITTED, DATA, can_compute, commit, committed, measure


def main(names: list[str]) -> int:
    """Exit code 2 where a network is unknown or this CPU cannot measure all there is."""
    if unknown := sorted(set(names) - set(DATA)):
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(DATA)}", file=sys.stderr)
        return 2
    if not all(can_compute(target) for target, _ in CASES):
        print("8-bit products saturate on this CPU: renew the figures on one with VNNI", file=sys.stderr)
        return 2
    figures = committed() if COMMITTED.exists() else {}
    changed = 0
    for target, preset in CASES:
        rows = figures.setdefault(f"{target} {preset}", {})
        for name in names or DATA:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(name, target, preset, Path(folder))
            if name not in rows:
                print(f"{target} {preset} {name}: new, {found}")
            elif changes := found.changes(rows[name]):
                beyond = " (beyond the tolerance)" if found.moved(rows[name]) else ""
                print(f"{target} {preset} {name}: {'; '.join(changes.values())}{beyond}")
            changed += rows.get(name) != found
            rows[name] = found
    commit(figures)
    print(f"{changed} of {len(CASES) * len(names or DATA)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

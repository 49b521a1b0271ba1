"""The long run: ``python tests/fuzz/fuzz.py --cases 10000``. Prints what is not right; exit code 1 if there is any.

Each case is made from its kind and its number alone, so that ``--only structure --first 17 --cases 1`` is the same
one again; ``--keep`` says where the files of those that are not right go.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz_cases import CASES, make
from fuzz_harness import Outcome, load_all, run

SHARES = {"structure": 10, "model_bytes": 4, "arrays": 3, "config": 1, "preprocessor": 2, "texts": 1, "options": 1}


def one(kind: str, number: int, *, keep: Path | None = None) -> Outcome:
    """The outcome of one case; its files go to ``keep`` where it is not right."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        arguments = make(kind, number, folder)
        outcome = run(arguments, folder)
        if not outcome.right and keep is not None:
            (folder / "command.txt").write_text(" ".join(arguments))
            shutil.copytree(folder, keep / f"{kind}_{number}", dirs_exist_ok=True, symlinks=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", choices=sorted(CASES))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--tell", action="store_true", help="print every case")
    asked = parser.parse_args()
    load_all()
    order = [asked.only] if asked.only else [kind for kind, share in SHARES.items() for _ in range(share)]
    counts: Counter[tuple[str, str]] = Counter()
    places: Counter[str] = Counter()
    began = time.monotonic()
    for i in range(asked.cases):
        kind, number = order[i % len(order)], asked.first + i // len(order) * order.count(order[i % len(order)])
        number += order[: i % len(order)].count(kind)
        outcome = one(kind, number, keep=asked.keep)
        counts[kind, outcome.kind] += 1
        if not outcome.right:
            place = f"{outcome.kind} {outcome.where}"
            places[place] += 1
            print(f"{kind} {number}: {place} ({outcome.seconds:.1f} s)", flush=True)
        if asked.tell:
            print(f"{kind} {number}: {outcome.kind} {outcome.text[:300].strip()} ({outcome.seconds:.1f} s)", flush=True)
        if i % 500 == 499:
            print(f"{i + 1} cases, {time.monotonic() - began:.0f} s", flush=True)
    for (kind, what), count in sorted(counts.items()):
        print(f"{kind:14} {what:8} {count}")
    for place, count in places.most_common():
        print(f"{count} x {place}")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main())

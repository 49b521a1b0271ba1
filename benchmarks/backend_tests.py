"""Every model of onnx's own backend tests under quantization: what becomes of it, in several forms, int8 and 4 bits.

    python benchmarks/backend_tests.py                               # all, an hour on two cores
    python benchmarks/backend_tests.py --only 'node/test_resize*'    # some, printed one by one, nothing written

Each model runs in a child process that is ended after `--limit` seconds of computing; what is done is kept in the cache
folder, so that a run that was broken off goes on (`--fresh` begins anew, `--table` writes what there is). The forms are
listed in `backend/forms.py`. Outputs of floats agree from 20 dB on (8 dB with 4-bit weights); of integers and booleans,
which jump where rounding tips a value over a threshold, if four fifths are equal (three).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
from backend import models
from backend.forms import FORMS, form
from backend.verdict import CONFIGS, OUTCOMES, verdict

LIMIT = 60.0
START = 90.0  # seconds until a child has loaded what it needs
CACHE = Path(os.environ.get("ONNXQ_BENCHMARKS_CACHE", Path.home() / ".cache" / "onnxq-benchmarks"))
RIGHT = OUTCOMES[:4]
LETTERS = "qprfdoukh"  # of the outcomes, in their order
Key = tuple[str, str, str]
Row = dict[str, Any]


def main() -> None:
    """Run what is missing, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of models, with * and ?")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one model in one form")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="run nothing: write what earlier runs have done")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has done")
    options = parser.parse_args()
    names = [n for n in models.names() if not options.only or any(fnmatch.fnmatch(n, p) for p in options.only)]
    keys = [(n, f, c) for c in options.configs for n in names for f in options.forms]
    kept = None if options.only else CACHE / "backend_tests.jsonl"
    done = {} if kept is None or options.fresh else read(kept)
    if kept is not None and options.fresh:
        kept.unlink(missing_ok=True)
    missing = [] if options.table else [k for k in keys if k not in done]
    for key, row in run(missing, options.limit, options.workers):
        done[key] = row
        if kept is None:
            print(*key, row, flush=True)
        else:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("a") as file:
                file.write(json.dumps([*key, row]) + "\n")
    rows = [{"model": n, "form": f, "config": c, **done[n, f, c]} for n, f, c in keys if done.get((n, f, c))]
    print(table(rows))
    if not options.only:
        path = harness.write("backend_tests", {"limit": options.limit}, summary(names, rows))
        print(f"written: {path.relative_to(harness.ROOT)}")


def read(path: Path) -> dict[Key, Row]:
    """What earlier runs have done."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(n, f, c): row for n, f, c, row in map(json.loads, lines)}


def run(keys: Sequence[Key], limit: float, workers: int) -> Iterator[tuple[Key, Row]]:
    """Each of ``keys`` with its row, which is empty where the model has no such form, as they come."""
    waiting: queue.SimpleQueue[Key] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Key, Row]] = queue.SimpleQueue()
    for key in keys:
        waiting.put(key)
    for _ in range(min(workers, len(keys))):
        threading.Thread(target=_serve, args=(waiting, results, limit), daemon=True).start()
    for _ in keys:
        yield results.get()


class _Child:
    """A process that answers one key after another."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.answer(START)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, key: Key) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(key) + "\n")
        self.process.stdin.flush()

    def _computed(self) -> float:
        """Seconds of processor time that it has used, where the system tells; else those on the clock."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def answer(self, limit: float) -> Row:
        """What it says within ``limit`` seconds of computing, or ten times as many on the clock; else it is ended."""
        start, computed, line = time.monotonic(), self._computed(), None
        while line is None:
            with contextlib.suppress(queue.Empty):
                line = self.lines.get(timeout=1.0)
            passed = time.monotonic() - start
            if line is None and (self._computed() - computed > limit or passed > 10 * limit):
                self.process.kill()
                self.process.wait()
                return {"outcome": "hangs", "why": f"no answer in {limit:.0f} s"}
        if not line:
            return {"outcome": "killed", "why": f"exit code {self.process.wait()}"}
        answer: Row = json.loads(line)
        return answer


def _serve(waiting: queue.SimpleQueue[Key], results: queue.SimpleQueue[tuple[Key, Row]], limit: float) -> None:
    child = _Child()
    while True:
        try:
            key = waiting.get_nowait()
        except queue.Empty:
            child.process.kill()
            child.process.wait()
            return
        child.ask(key)
        row = child.answer(limit)
        if row.get("outcome") in ("hangs", "killed"):
            child = _Child()
        results.put((key, row))


def _answer_all() -> None:
    """Child process: answers on the stdout that it was given, whatever else is printed there."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    models.names()
    out.write("{}\n")
    out.flush()
    for line in sys.stdin:
        name, kind, config = json.loads(line)
        case = form(models.load(name), kind)
        out.write(json.dumps({} if case is None else verdict(case, config)) + "\n")
        out.flush()


def summary(names: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """The counts by form and configuration, the reasons of refusals, and all that is not as it should be."""
    counts = {f"{f}, {c}": Counter(r["outcome"] for r in _of(rows, f, c)) for f in FORMS for c in CONFIGS}
    by_name: dict[str, dict[str, str]] = {n: {} for n in names}
    for row in rows:
        by_name[row["model"]][f"{row['form']}, {row['config']}"] = row["outcome"]
    return {
        "models": len(names),
        "tried": sum(1 for outcomes in by_name.values() if outcomes),
        "counts": counts,
        "models_by_outcome": Counter(_of_model(list(outcomes.values())) for outcomes in by_name.values() if outcomes),
        "letters": dict(zip(LETTERS, OUTCOMES, strict=True)),
        "columns": [f"{f}, {c}" for f in FORMS for c in CONFIGS],
        "outcomes": {n: _letters(outcomes) for n, outcomes in by_name.items()},
        "refusals": Counter(_reason(r["why"]) for r in rows if r["outcome"] == "refused").most_common(),
        "jumps": {_name(r): round(r["equal"], 3) for r in rows if r.get("equal", 1.0) not in (None, 1.0)},
        "not_so": [{"what": _name(r), **_told(r)} for r in rows if r["outcome"] not in RIGHT],
    }


def _of_model(outcomes: list[str]) -> str:
    """The worst of the ``outcomes`` of a model if that must not be, else the best."""
    worst = max(outcomes, key=OUTCOMES.index)
    return worst if worst not in RIGHT else min(outcomes, key=OUTCOMES.index)


def _letters(outcomes: dict[str, str]) -> str:
    """A letter for each column; a dash where there is no such form, or where it was not tried."""
    of = dict(zip(OUTCOMES, LETTERS, strict=True))
    return "".join(of.get(outcomes.get(f"{f}, {c}", ""), "-") for f in FORMS for c in CONFIGS)


def _of(rows: Sequence[Row], kind: str, config: str) -> list[Row]:
    return [r for r in rows if (r["form"], r["config"]) == (kind, config)]


def _name(row: Row) -> str:
    return f"{row['model']}, {row['form']}, {row['config']}"


def _told(row: Row) -> Row:
    return {k: v for k, v in row.items() if k not in ("model", "form", "config")}


def _reason(why: str) -> str:
    """The sentence of a refusal without the names in it."""
    import re

    return re.sub(r"'[^']*'", "'..'", why)[:160]


def table(rows: Sequence[Row]) -> str:
    """The counts as markdown."""
    lines = []
    for kind in FORMS:
        for config in CONFIGS:
            counts = Counter(r["outcome"] for r in _of(rows, kind, config))
            lines.append([kind, config, *(str(counts[outcome]) for outcome in OUTCOMES)])
    return harness.markdown(["form", "weights", *OUTCOMES], lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        _answer_all()
    else:
        main()

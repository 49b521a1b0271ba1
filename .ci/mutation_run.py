"""Runs the mutants of a cosmic-ray session and writes the score of the module into the results file.

In place of `cosmic-ray exec`, whose every mutant pays for importing onnxruntime, hypothesis and the rest: here they are
imported once, and each mutant is tested in a fork of this process. Run it in a copy of the tree (`.ci/mutation` does):
the module is overwritten with one mutant after the other.
"""

from __future__ import annotations

import ast
import difflib
import gc
import json
import os
import shlex
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.config import load_config
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db

# What is asked of each module.
LEAST_SCORE = 0.9


def import_what_tests_import(arguments: list[str]) -> None:
    """Imports what the tests do; only what is not of this tree remains, the rest each fork imports anew."""
    if pytest.main([*arguments, "--collect-only", "-qq"]):
        sys.exit("the tests cannot be collected")
    here = str(Path.cwd())
    for name, imported in list(sys.modules.items()):
        if (getattr(imported, "__file__", None) or "").startswith(here):
            del sys.modules[name]
    gc.freeze()  # or pytest has every fork walk all of it


def passes(arguments: list[str], seconds: float, *, keep_bytecode: bool = False) -> bool:
    """Whether the tests pass in a fork of this process; a mutant that hangs or crashes does not."""
    child = os.fork()
    if not child:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        signal.alarm(int(seconds))
        sys.dont_write_bytecode = not keep_bytecode
        os._exit(pytest.main(arguments))
    return os.waitpid(child, 0)[1] == 0


def changed(code: str, mutant: str) -> dict[str, Any]:
    """The first line of ``code`` that ``mutant`` changes, and what stands there in each."""
    before, after = code.splitlines(), mutant.splitlines()
    _, start, end, new_start, new_end = next(
        op for op in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if op[0] != "equal"
    )

    def text(lines: list[str]) -> str:
        return " ".join(line.strip() for line in lines)

    return {"line": start + 1, "code": text(before[start:end]), "mutant": text(after[new_start:new_end])}


def is_python(mutant: str) -> bool:
    """Whether ``mutant`` can be parsed; the star of a signature that became a minus cannot, and is nobody's catch."""
    try:
        ast.parse(mutant)
    except SyntaxError:
        return False
    return True


def survivors(session: str, module: Path, arguments: list[str], seconds: float) -> tuple[int, list[dict[str, Any]]]:
    """How many mutants were tested, and those that the tests do not notice."""
    code = module.read_text()
    # Bytecode is matched to its source by size and second: the original's must not be taken for a mutant's.
    os.utime(module, (1, 1))
    if not passes(arguments, 10 * seconds, keep_bytecode=True):
        sys.exit("the tests fail without any mutant")
    count, found = 0, []
    with use_db(session, WorkDB.Mode.open) as db:
        skipped = {job for job, _ in db.results}
        items = sorted((i for i in db.work_items if i.job_id not in skipped), key=lambda i: i.mutations[0].start_pos)
    for item in items:
        mutation = item.mutations[0]
        operator = get_operator(mutation.operator_name)(**mutation.operator_args)
        mutant = mutate_code(code, operator, mutation.occurrence)
        if mutant is None or mutant == code or not is_python(mutant):
            continue
        count += 1
        module.write_text(mutant)
        if passes(arguments, seconds):
            found.append(changed(code, mutant))
            print(f"survived: {module}:{found[-1]['line']}: {found[-1]['mutant']}", flush=True)
    module.write_text(code)
    return count, found


def main(name: str, config_file: str, session: str, results_file: str) -> None:
    config = load_config(config_file)
    command = shlex.split(config["test-command"])
    module = Path(config["module-path"])
    arguments = command[command.index("pytest") + 1 :]
    import_what_tests_import(arguments)
    count, found = survivors(session, module, arguments, config["timeout"])

    reasons = {(e["code"], mutant): e["why"] for e in config.get("equivalent", []) for mutant in e["mutants"]}
    equivalent = [{**s, "why": reasons[s["code"], s["mutant"]]} for s in found if (s["code"], s["mutant"]) in reasons]
    stale = reasons.keys() - {(s["code"], s["mutant"]) for s in found}
    survived = [s for s in found if (s["code"], s["mutant"]) not in reasons]
    mutants = count - len(equivalent)
    killed = mutants - len(survived)
    score = killed / mutants

    results = Path(results_file)
    known = json.loads(results.read_text()) if results.exists() else {}
    known[name] = {
        "module": str(module),
        "tool": f"cosmic-ray {version('cosmic-ray')}",
        "mutants": mutants,
        "killed": killed,
        "score": round(score, 4),
        "survived": survived,
        "equivalent": equivalent,
    }
    results.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n")
    print(f"{name}: {killed} of {mutants} mutants killed ({score:.1%}), {len(equivalent)} more are equivalent")
    for code, mutant in sorted(stale):
        print(f"called equivalent, but killed or no longer made: {code} -> {mutant}", file=sys.stderr)
    if stale or score < LEAST_SCORE:
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

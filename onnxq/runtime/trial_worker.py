"""The process in which a model is tried: a script with the arguments ``MODEL FEEDS.npz FIRST SECONDS BYTES``.

It runs the feeds from number ``FIRST`` on, in order, until the model has run on one. Behind each it prints one line of
JSON: ``ran`` with its number, or the reason ``why`` it does not, and whether ``memory`` was lacking. It may use
``BYTES`` more than it has when onnxruntime is imported and, for each feed, ``SECONDS`` of the processor besides what
loading the model took many times over. Beyond that it is ended by the system, as it is where an operator divides by 0.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - before memory is limited
import onnxruntime  # noqa: F401

from onnxq.errors import OnnxqError, one_line
from onnxq.runtime.limits import limit_memory, limit_processor
from onnxq.runtime.session import open_to_look, run
from onnxq.runtime.stored_feeds import load_feeds

# To load a model may take long, and is over at some time.
_LOADING_S = 300
# A run takes no more than so many times what loading took, where that was long.
_LOADS = 20


def main(model: Path, feeds: Path, first: int, seconds: float, memory: int) -> None:
    limit_memory(memory)
    limit_processor(_LOADING_S)
    given = load_feeds(feeds)
    start = time.process_time()
    try:
        session = open_to_look(model, threads=1)
    except OnnxqError as error:
        for _ in range(first, len(given)):
            tell_failure(error)
        return
    loading = time.process_time() - start
    for number in range(first, len(given)):
        limit_processor(seconds + _LOADS * loading)
        try:
            run(session, given[number])
        except OnnxqError as error:
            tell_failure(error)
            continue
        tell(ran=number)
        return


def tell_failure(error: OnnxqError) -> None:
    cause = str(error.__cause__)
    memory = any(sign in cause for sign in ("bad_alloc", "Failed to allocate memory"))
    tell(why=one_line(error.what), memory=memory)


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))

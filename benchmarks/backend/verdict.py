"""What becomes of one model: quantized and agreeing, passed through, or refused, and all that must not be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from backend.forms import Case
from backend.models import Value
from onnxq import quantize
from onnxq.config import Config, preset
from onnxq.errors import OnnxqError, RuntimeFailure
from onnxq.runtime.contents import contents

CONFIGS = ("int8", "w4")
LEAST_DB = {"int8": 20.0, "w4": 8.0}
LEAST_SHARE = {"int8": 0.8, "w4": 0.6}  # of equal elements, where rounding decides: one may tip over among a few
OUTCOMES = (
    "quantized, agrees",
    "passed through",
    "refused",
    "float model not run",
    "disagrees",
    "onnxruntime's error",
    "unclean",
    "killed",
    "hangs",
)


def config(name: str) -> Config:
    """`int8`: whatever has an integer kernel runs in it, small as it is. `w4`: the preset."""
    return preset("w4") if name == "w4" else Config(placement="all")


def verdict(case: Case, name: str) -> dict[str, Any]:
    """The `outcome` under the configuration called `name`, with what there is to say about it."""
    try:
        session = _session(case.model.SerializeToString())
        wanted = [session.run(None, feed) for feed in case.feeds]
    except Exception as error:
        return {"outcome": "float model not run", "why": _line(error)}
    try:
        result = quantize(case.model, case.feeds or None, config=config(name))
        proto = result.proto()
    except RuntimeFailure as error:
        return {"outcome": "onnxruntime's error", "why": _line(error)}
    except OnnxqError as error:
        return {"outcome": "refused", "why": _line(error)}
    except Exception as error:
        return {"outcome": "unclean", "why": f"{type(error).__name__}: {_line(error)}"}
    if _signature(proto) != _signature(case.model):
        return {"outcome": "unclean", "why": "inputs or outputs are others"}
    made = _session(proto.SerializeToString())
    found = {"integer": len(result.report.integer), "layers": len(result.plan.weights)}
    answers = [made.run(None, feed) for feed in case.feeds]
    judged = [_agreement(*pair) for pair in zip(*(zip(*runs, strict=True) for runs in (wanted, answers)), strict=True)]
    found |= {"sqnr_db": _least(judged, "sqnr_db"), "equal": _least(judged, "equal")}
    low = found["sqnr_db"] is not None and found["sqnr_db"] < LEAST_DB[name]
    off = found["equal"] is not None and found["equal"] < LEAST_SHARE[name]
    done = "quantized, agrees" if found["layers"] else "passed through"
    return {"outcome": "disagrees" if low or off else done, **found}


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _signature(model: onnx.ModelProto) -> list[list[bytes]]:
    """Inputs that must be fed, and outputs, as they are written: names, types, dimensions."""
    initialized = {t.name for t in model.graph.initializer}
    ends = ([v for v in model.graph.input if v.name not in initialized], model.graph.output)
    return [[v.name.encode() + v.type.SerializeToString(deterministic=True) for v in end] for end in ends]


def _agreement(wanted: Sequence[Value], found: Sequence[Value]) -> dict[str, float]:
    """Of one output over all feeds: `sqnr_db` of floats, or the share of `equal` elements."""
    a, b = (np.concatenate([contents(value).reshape(-1) for value in values]) for values in (wanted, found))
    if a.shape != b.shape:
        return {"equal": 0.0}
    if a.dtype.kind != "f":
        return {"equal": float(np.mean(a == b)) if a.size else 1.0}
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return {"sqnr_db": -200.0}
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    signal, error = float(a @ a), float(np.square(a - b).sum())
    return {"sqnr_db": 200.0 if error == 0 else 10 * math.log10(max(signal, 1e-30) / error)}


def _least(judged: Sequence[dict[str, float]], key: str) -> float | None:
    return min((one[key] for one in judged if key in one), default=None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]

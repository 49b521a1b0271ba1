"""Claims in the place of measurements, so that a decision is tested at its limits.

Only here does a test of the search know where it measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from zoo import Net

from onnxq.config import Config
from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.measure.kinds import Promise
from onnxq.measure.latency import Latency, LatencyReport
from onnxq.measure.outputs import COUNTERPARTS, PICKED_ROWS_A_DECISION
from onnxq.measure.size import ModelSize, model_size
from onnxq.numerics import Share
from onnxq.search import gains, judging, strategies
from onnxq.search.acceptance import Verdict


def counted(agreement: float, rows: int = 1000) -> Share:
    """A share of ``rows`` decisions of as many samples."""
    return Share(round(agreement * rows), rows, rows)


def scores(
    *,
    agreement: float | None = 1.0,
    rows: int = 1000,
    sure: float | None = None,
    near_ties: int = 2,
    kept: float | None = None,
    rule: str = "arg-max",
    **changes: Any,
) -> OutputComparison:
    """An output of 1000 scores of classes at 25 dB, all alike, with ``changes``; ``level``: its SQNR either way.

    ``sure``: the agreement where the float model is sure, by default that of all. ``kept``: a level that is promised.
    """
    if "level" in changes:
        level = changes.pop("level")
        changes |= {"sqnr_db": level, "centred_sqnr_db": level}
    promises: list[Promise] = []
    share = None if agreement is None else counted(agreement, rows)
    surely = share if sure is None else counted(sure, rows)
    if share is not None and rule == COUNTERPARTS:
        promises = [Promise(COUNTERPARTS, share, PICKED_ROWS_A_DECISION)]
    elif share is not None:
        promises = [Promise("decisions", share, near_ties), Promise("sure decisions", surely)]
    promises += [] if kept is None else [Promise("level", level=kept)]
    figures: dict[str, Any] = {"sqnr_db": 25.0, "centred_sqnr_db": 25.0, "max_abs_error": 0.1, **changes}
    made = OutputComparison(name="y", elements=10_000, sqnr_db=None, centred_sqnr_db=None, max_abs_error=None)
    counts = {"share": share, "sure": surely, "agreement_rule": "" if share is None else rule}
    return replace(made, kind="classes", **counts, promises=tuple(promises), **figures)


SCORES = scores()


def compared(*outputs: OutputComparison) -> Comparison:
    return Comparison("float", "int8", 1, outputs)


def verdict(config: Config, *outputs: OutputComparison) -> Verdict:
    """What is said of a candidate whose outputs compare like this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "compare", lambda *_, **__: compared(*outputs))
        return judging.judge(b"", b"", [], config)


def accepted(config: Config, *outputs: OutputComparison) -> bool:
    """Whether a candidate whose outputs compare like this is good."""
    return verdict(config, *outputs).good


# -- claims about whole candidates ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """What a claim is made about.

    ``layers``: how many compute with integers; ``stored``: how many int8 weights there are; ``together``: whether
    weights are rounded otherwise than in the first candidate of all; ``steps``: the scales of all tensors, added up;
    ``feeds``: what it is compared on.
    """

    layers: int
    stored: int
    together: bool
    steps: float
    feeds: list[Any]


def claim(monkeypatch: pytest.MonkeyPatch, says: Callable[[Candidate], OutputComparison]) -> list[Candidate]:
    """From here on every comparison with the float model gives what ``says`` says; those compared, in order."""
    heard: list[Candidate] = []
    first: dict[str, np.ndarray] = {}

    def fake(float_model: Any, quantized: bytes | Path, feeds: Any, **_: Any) -> Comparison:
        proto = onnx.load_model_from_string(quantized) if isinstance(quantized, bytes) else onnx.load_model(quantized)
        makers = {name: node.op_type for node in proto.graph.node for name in node.output}
        products = [n for n in proto.graph.node if n.op_type == "Gemm"]
        constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        weights = {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim == 2}
        if not heard:
            first.update(weights)
        steps = {n.input[1] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
        found = Candidate(
            sum(makers.get(n.input[2]) == "DequantizeLinear" for n in products),  # only then is a bias of integers
            len(weights),
            any(not np.array_equal(weights[name], first[name]) for name in weights.keys() & first.keys()),
            float(sum(constants[name] for name in steps)),
            list(feeds),
        )
        heard.append(found)
        return compared(says(found))

    monkeypatch.setattr(judging, "compare", fake)
    return heard


def time_as(monkeypatch: pytest.MonkeyPatch, *high: float, low: float | None = None) -> list[int]:
    """From here on the second of two models is timed like this, call by call: the upper end of its ratio's interval.

    ``low``: the lower end, by default a tenth below. What was timed: by call, the number of models.
    """
    calls: list[int] = []

    def fake(models: Any, timed: Any, *, threads: Sequence[int] = (1,), **_: Any) -> LatencyReport:
        upper = high[len(calls)]
        lower = upper - 0.1 if low is None else low
        calls.append(len(models))
        middle = math.sqrt(upper * lower)
        rows = [
            row
            for count in threads
            for row in (
                Latency("first", count, 20, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
                Latency("second", count, 20, middle, middle, middle, middle, middle, lower, upper),
            )
        ]
        return LatencyReport(tuple(rows), (), False, 0)

    for module in (strategies, gains):
        monkeypatch.setattr(module, "benchmark", fake)
    return calls


def size_as(monkeypatch: pytest.MonkeyPatch, *, of_float: int, quantized: int) -> None:
    """From here on files have these sizes, by whether there are 8-bit constants in them."""

    def fake(model: bytes | Path) -> ModelSize:
        measured = model_size(model)
        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load_model(model)
        changed = any(t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for t in proto.graph.initializer)
        return replace(measured, file_bytes=quantized if changed else of_float)

    monkeypatch.setattr(gains, "model_size", fake)


INPUTS = 1160


def chain(count: int) -> onnx.ModelProto:
    """``count`` linear layers l0, l1, ... with a Relu behind all but the last.

    The first has so many inputs that its weights are rounded each for itself, if nothing else is asked for.
    """
    n, x = Net(3), "x"
    for i in range(count):
        weight, bias = n.weight(f"w{i}", 16, 16 if i else INPUTS), n.vector(f"b{i}", 16)
        x = n("Gemm", x, weight, bias, name=f"l{i}", transB=1, out="y" if i == count - 1 else None)
        x = n("Relu", x, name=f"r{i}") if i < count - 1 else x
    return n.model({"x": ["n", INPUTS]}, {"y": ["n", 16]})


def rows(count: int = 64) -> dict[str, np.ndarray]:
    """Inputs of ``chain`` whose columns go together: weights that are rounded together are not the nearest codes."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((count, 8)) @ rng.standard_normal((8, INPUTS)) * 0.3
    return {"x": (common + 0.1 * rng.standard_normal((count, INPUTS))).astype(np.float32)}

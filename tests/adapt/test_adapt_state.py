"""What a checkpoint holds of weights: codes, and how they are stored, which no two fits have alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bench import bench
from zoo import feeds, gemm, prepared

from onnxq.adapt.checkpoint import Checkpoint, State
from onnxq.build.candidate import Draft
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.graph.io import serialize
from onnxq.kernels.targets import TARGETS
from onnxq.parameters.choose import Parameters


def built(model: ir.Model, config: Config, folder: Path, seed: int) -> Draft:
    data = feeds(gemm(), 16, seed=seed)
    for feed in data:
        feed["x"] *= np.linspace(seed, 1.0, feed["x"].shape[1], dtype=np.float32)
    return bench(model, config, TARGETS["x86-vnni"], data, folder).draft({})


def stored(parameters: Parameters) -> list[np.ndarray]:
    return [a for w in parameters.weights.values() for a in w.representation.state().values()]


@pytest.mark.parametrize("text", ["int4", "int4:16", "codebook4", "int8"])
def test_weights_come_back_as_they_were_stored(text: str, tmp_path: Path) -> None:
    config, model = Config(weights=text, first_last=text, adapt="fast"), prepared(gemm())
    base = built(model, config, tmp_path, 4).parameters
    draft = built(model, config, tmp_path, 1)
    best = draft.parameters
    if text in ("int4:16", "codebook4"):
        assert any(not np.array_equal(a, b) for a, b in zip(stored(base), stored(best), strict=True))
    checkpoint = Checkpoint(base, config)
    assert checkpoint.save(State(best, (0.1,), (), ())) is None
    found = Checkpoint(base, replace(config, resume=True)).load()
    assert found is not None
    for one, other in zip(stored(found.best), stored(best), strict=True):
        np.testing.assert_array_equal(one, other)
    again = emit(model, draft.plan, **vars(found.best))
    assert serialize(again) == serialize(emit(model, draft.plan, **vars(best)))

"""A quantized toy and what adapting it needs; the training runtime, installed once for all tests of a process."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from bench import Bench, bench
from zoo import Net, prepared

from onnxq.adapt.runtime import training_runtime
from onnxq.build.candidate import Built
from onnxq.calibrate.feeds import Feed, open_feed
from onnxq.config import Config
from onnxq.graph.signature import signature
from onnxq.kernels.targets import target_of

Array = npt.NDArray[Any]


@cache
def runtime() -> Path:
    """The training runtime: the one named by the environment, else one installed into a folder that tests share."""
    if os.environ.get("ONNXQ_TRAINING_RUNTIME"):
        return training_runtime()
    before = os.environ.get("ONNXQ_CACHE")
    os.environ["ONNXQ_CACHE"] = str(Path(tempfile.gettempdir()) / f"onnxq-tests-{os.getuid()}")
    try:
        return training_runtime()
    finally:
        if before is None:
            del os.environ["ONNXQ_CACHE"]
        else:
            os.environ["ONNXQ_CACHE"] = before


def built(proto: onnx.ModelProto, data: Any, folder: Path, config: Config) -> tuple[Bench, Built, Feed]:
    """``proto`` quantized, and its calibration data."""
    model = prepared(proto)
    feed = open_feed(data, signature(model).inputs)  # whatever that takes
    toy = bench(model, config, target_of(config), feed, folder)
    return toy, toy.build(), feed


def correlated(count: int, width: int, seed: int) -> Array:
    """As inputs are: a few directions hold most of the energy."""
    mix = np.random.default_rng(0).standard_normal((width, width)) * np.linspace(2.0, 0.05, width)[:, None]
    return (np.random.default_rng(seed).standard_normal((count, width)) @ mix).astype(np.float32)


def deep(seed: int = 6) -> Net:
    """x [n, 32] -> three residual blocks of two layers each -> y [n, 10]."""
    n = Net(seed)
    x = n("Relu", n.linear("x", 32, 64, name="a"), name="ra")
    for name in ("b", "c", "d"):
        y = n("Relu", n.linear(x, 64, 64, name=name), name=f"r{name}")
        x = n("Add", x, n.linear(y, 64, 64, name=f"{name}2"), name=f"s{name}")
    n.linear(x, 64, 10, name="e", out="y")
    return n

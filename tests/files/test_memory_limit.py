"""A model that is larger than the memory of its process: its tensors stay on the disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH = 44, 1024  # 185 MB
# What the process may allocate beside what it holds with everything imported; the system counts threads' stacks too.
ALLOWED = 180_000_000

CHILD = """
import re, resource, sys
import onnxruntime
from onnxq import Config, quantize
source, target, weights, allowed = sys.argv[1:]
held = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(allowed),) * 2)
activations = "none" if weights != "int8" else "uint8"
config = Config(weights=weights, activations=activations, first_last=weights, memory=200, placement="all")
result = quantize(source, config=config)
print(*result.report.warnings)
result.save(target)
"""


def external(folder: Path) -> Path:
    """A stack of products whose weights lie beside the model."""
    rng, nodes, weights, last = np.random.default_rng(0), [], [], "x"
    for i in range(LAYERS):
        data = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)
        weights.append(numpy_helper.from_array(data, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"y{i}"], name=f"layer{i}"))
        last = f"y{i}"
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "stack", shapes[:1], shapes[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data")
    return folder / "m.onnx"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the kind are Linux's")
@pytest.mark.slow
@pytest.mark.parametrize(("weights", "noise"), [("int8", 0.2), ("int4:32", 0.4)])  # of 44 layers, one behind the other
def test_a_model_is_quantized_within_a_limit_of_the_process(tmp_path: Path, weights: str, noise: float) -> None:
    source, target = external(tmp_path), tmp_path / "q.onnx"
    command = [sys.executable, "-c", CHILD, str(source), str(target), weights, str(ALLOWED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    real, found = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (source, target)
    )
    lost = float(np.square(found - real).sum() / np.square(real).sum())
    assert lost < noise

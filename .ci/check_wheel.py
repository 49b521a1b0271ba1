"""Checks an installed wheel: what is inside, the command line, and a small model quantized. Run by `.ci/wheel`.

`python -I check_wheel.py onnxq-VERSION.whl`, with the Python that has it installed and nothing of the tree on its path.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def contents(wheel: Path) -> None:
    """Fails unless the files that are no code are inside, and nothing that does not belong there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tables = {Path(name).stem for name in names if "/cost_tables/" in name and name.endswith(".json")}
    assert tables >= {"x86-amx", "x86-avx2", "x86-vnni"}, f"cost tables in the wheel: {sorted(tables)}"
    assert "onnxq/py.typed" in names, "py.typed is missing"
    assert any(name.endswith("/licenses/LICENSE") for name in names), "the licence is missing"
    strange = [name for name in names if not name.startswith(("onnxq/", "onnxq-"))]
    assert not strange, f"does not belong in the wheel: {strange}"


def small_model(folder: Path) -> tuple[Path, Path]:
    """A Gemm, a Relu and a Gemm with random weights in `folder`, and inputs for it."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0.0, 0.1, shape).astype(np.float32)
        for name, shape in {"w1": (64, 128), "b1": (128,), "w2": (128, 16), "b2": (16,)}.items()
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "small.onnx")
    np.savez(folder / "inputs.npz", x=rng.normal(size=(64, 64)).astype(np.float32))
    return folder / "small.onnx", folder / "inputs.npz"


def command(*arguments: str) -> str:
    """What `onnxq ARGUMENTS` prints; fails with its messages where it does."""
    script = Path(sys.executable).with_name("onnxq")
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"onnxq {' '.join(arguments)} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def main() -> None:
    """All checks, the cheap ones first."""
    contents(Path(sys.argv[1]))

    import onnxq

    home = Path(onnxq.__file__)
    assert "site-packages" in home.parts, f"this is not the installed package: {home}"
    assert onnxq.__version__ in command("--version")
    assert "quantize" in command("--help")
    with tempfile.TemporaryDirectory() as name:
        model, data = small_model(Path(name))
        command("quantize", str(model), "--calib", str(data), "--latency", "0", "--quiet")
        assert model.with_name("small.int8.onnx").stat().st_size < model.stat().st_size
        # Every integer there is: whether they pay on a network so small depends on the CPU.
        result = onnxq.quantize(model, str(data), config=onnxq.Config(placement="all"))
        assert len(result.report.integer) == 2, result.report.left_float
        assert result.report.sqnr_db is not None
        assert result.report.sqnr_db > 30.0, result.report.sqnr_db
    print(f"the wheel is good: onnxq {onnxq.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()

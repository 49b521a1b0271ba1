"""Runs a model in another release of onnxruntime, installed into a folder of its own and loaded by a child process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from networks import cache_folder

VERSION = "1.19.2"
BATCH = 64


def install(version: str = VERSION) -> Path:
    """The folder that holds onnxruntime `version`, installed by pip (without dependencies) unless it is there."""
    folder = cache_folder() / f"onnxruntime-{version}"
    if not (folder / "onnxruntime" / "__init__.py").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"onnxruntime=={version}"], check=True)
    return folder


def outputs(model: Path, arrays: Mapping[str, np.ndarray], version: str = VERSION) -> np.ndarray:
    """The first output of `model` for `arrays` (already cast) in onnxruntime `version`.

    Raises RuntimeError with the last line that the child process wrote where the model does not load or run.
    """
    packages = install(version)
    with tempfile.TemporaryDirectory(prefix="onnxq-older-") as name:
        folder = Path(name)
        np.savez(folder / "feeds.npz", **dict(arrays))
        command = [sys.executable, __file__, str(packages), str(model), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        if (found := done.stdout.strip()) != version:
            raise RuntimeError(f"wanted onnxruntime {version}, loaded {found}")
        result: np.ndarray = np.load(folder / "output.npy")
    return result


def _worker(packages: str, model: str, folder: Path) -> None:
    """Child process: run the model on feeds.npz, write output.npy, print the version that ran it."""
    sys.path.insert(0, packages)
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(folder / "feeds.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = len(next(iter(arrays.values())))
    parts = [
        session.run(None, {name: array[start : start + BATCH] for name, array in arrays.items()})[0]
        for start in range(0, count, BATCH)
    ]
    np.save(folder / "output.npy", np.concatenate(parts))
    print(ort.__version__)


if __name__ == "__main__":
    _worker(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

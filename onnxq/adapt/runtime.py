"""The training runtime: onnxruntime-training in a private folder, installed on first use.

It ships the same package as onnxruntime, so it must never enter the environment. ``$ONNXQ_TRAINING_RUNTIME`` names a
folder made beforehand.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from onnxq.errors import RuntimeFailure
from onnxq.files.cache import cache_folder

VARIABLE = "ONNXQ_TRAINING_RUNTIME"
PACKAGE, VERSION = "onnxruntime-training-cpu", "1.19.2"
# By interpreter, the SHA-256 of its wheel for Linux on x86-64: there are no others.
HASHES = {
    "cp310": "3c62273370c6d4a459b30144353f8893f0cc8dfd02575b97deb38d2582aec21f",
    "cp311": "9b3cde497eb76af75ecae2eb2a4e3a8b2477da0b833315a3d5e2c63f0dc8d5d6",
    "cp312": "4c8d4806c5070dc6c175e1a968e45d948588edbfe590b5ef9d42d3511d80e220",
}
_TIMEOUT_S = 600


class NoTrainingRuntime(RuntimeFailure):
    """The level of adapting that was asked for needs the training runtime, and there is none to be had."""


def training_runtime(tell: Callable[[str], None] | None = None) -> Path:
    """The folder of the training runtime, installed now if need be; ``tell`` is given one line before that.

    Raises ``NoTrainingRuntime`` where there is none and none can be had, with what to do.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not _is_runtime(Path(chosen)):
            raise NoTrainingRuntime(f"{VARIABLE} is {chosen}, which holds no {PACKAGE}: {_by_hand(chosen)}")
        return Path(chosen)
    folder = default_folder()
    if not _is_runtime(folder):
        if tell is not None:
            tell(f"installing {PACKAGE} {VERSION} (9 MB) into {folder}, once")
        _install(folder)
    return folder


def default_folder() -> Path:
    """Where it is installed."""
    return cache_folder() / f"training-{VERSION}-{_interpreter()}"


def _is_runtime(folder: Path) -> bool:
    return (folder / "onnxruntime" / "training" / "api").is_dir()


def _interpreter() -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def _by_hand(folder: str) -> str:
    return f"run 'pip install --no-deps --target {folder} {PACKAGE}=={VERSION}'"


def _install(folder: Path) -> None:
    digest = HASHES.get(_interpreter())
    if digest is None or platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise NoTrainingRuntime(
            f"{PACKAGE} {VERSION} exists for Python 3.10 to 3.12 on Linux x86-64 only, this is Python "
            f"{platform.python_version()} on {platform.system()} {platform.machine()}; --adapt fast needs no training"
        )
    if importlib.util.find_spec("pip") is None:
        raise NoTrainingRuntime(
            f"cannot install {PACKAGE}: this Python has no pip; {_by_hand('DIR')} elsewhere and set {VARIABLE}=DIR"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="onnxq-", dir=folder.parent) as name:
            wanted = Path(name) / "wanted.txt"
            wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{digest}\n", encoding="utf-8")
            made = Path(name) / "made"
            options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--target", str(made)]
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", *options, "-r", str(wanted)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if done.returncode or not _is_runtime(made):
                lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
                reason = lines[-1].strip()[-200:] if lines else "pip said nothing"
                raise NoTrainingRuntime(
                    f"cannot install {PACKAGE} {VERSION} ({reason}); {_by_hand('DIR')} where that works and set "
                    f"{VARIABLE}=DIR, or use --adapt fast, which needs no training"
                )
            if folder.exists():
                shutil.rmtree(folder)
            made.replace(folder)  # in one stroke: never half a runtime
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoTrainingRuntime(
            f"cannot install {PACKAGE} into {folder} ({error}); set {VARIABLE} to a folder that holds it"
        ) from error

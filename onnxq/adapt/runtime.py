"""The training runtime: onnxruntime-training in a private folder, installed on first use.

It ships the same package as onnxruntime, so it must never enter the environment. ``$ONNXQ_TRAINING_RUNTIME`` names a
folder made beforehand, which is trusted as it is. What lies in the cache is run only where it is, file by file, what
the wheel holds, and where nobody else can change it: anybody may have left it there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from onnxq.errors import RuntimeFailure
from onnxq.files.cache import cache_folder
from onnxq.files.temporary import temporary_folder
from onnxq.runtime.child import run_child

VARIABLE = "ONNXQ_TRAINING_RUNTIME"
PACKAGE, VERSION = "onnxruntime-training-cpu", "1.19.2"
# By interpreter, the SHA-256 of its wheel for Linux on x86-64: there are no others.
HASHES = {
    "cp310": "3c62273370c6d4a459b30144353f8893f0cc8dfd02575b97deb38d2582aec21f",
    "cp311": "9b3cde497eb76af75ecae2eb2a4e3a8b2477da0b833315a3d5e2c63f0dc8d5d6",
    "cp312": "4c8d4806c5070dc6c175e1a968e45d948588edbfe590b5ef9d42d3511d80e220",
}
# By interpreter, what ``contents`` says of the files in that wheel.
CONTENTS = {
    "cp310": "567aa2c79bdda91deee14ccd61812ee740faa114e20c91ae283f553c42aa72b6",
    "cp311": "a6f8bd82a1155c73f7b68f206655808e85ab2a9906e9035d8f850238ab1dfb3e",
    "cp312": "50d8c77d8278103c9aa34f99891987dae55ba41a5edd4f8557ce339b59ae7826",
}
_TIMEOUT_S = 600
# What pip puts beside the package, none of which can be imported by a name that anything imports.
_BESIDE = frozenset({f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info", "bin"})


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
    if not is_genuine(folder):
        if tell is not None:
            if folder.exists():
                tell(f"{folder} is not what onnxq installs, and is replaced")
            tell(f"installing {PACKAGE} {VERSION} (9 MB) into {folder}, once")
        _install(folder)
    return folder


def default_folder() -> Path:
    """Where it is installed."""
    return cache_folder() / f"training-{VERSION}-{_interpreter()}"


def _is_runtime(folder: Path) -> bool:
    return (folder / "onnxruntime" / "training" / "api").is_dir()


def is_genuine(folder: Path) -> bool:
    """Whether ``folder`` holds what the wheel of this interpreter holds, no more, and others cannot write to it."""
    try:
        owned = _ours(folder.parent.resolve()) and all(map(_ours, (folder, *folder.rglob("*"))))
        others = {path.name for path in folder.iterdir()} - _BESIDE
        return owned and others == {"onnxruntime"} and contents(folder) == CONTENTS.get(_interpreter())
    except OSError:
        return False


def contents(folder: Path) -> str:
    """SHA-256 of the names and the SHA-256 of all files of the package in ``folder``, but for compiled modules.

    Those depend on who installed it, and the worker looks for its own elsewhere. Raises ``OSError``.
    """
    total = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in (folder / "onnxruntime").rglob("*")}
    for name, path in sorted(files.items()):
        if path.is_dir() or "/__pycache__/" in name:
            continue
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _ours(path: Path) -> bool:
    """Whether ``path`` is a file or folder, no link, of this user or root, that not everybody can write to."""
    state = path.lstat()
    plain = stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)
    # Windows has no owners of this kind; there is no training runtime for it either.
    mine = not hasattr(os, "getuid") or state.st_uid in (0, os.getuid())
    shared = state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX
    return plain and mine and not shared


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
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with temporary_folder(folder.parent) as name:
            wanted = Path(name) / "wanted.txt"
            wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{digest}\n", encoding="utf-8")
            made = Path(name) / "made"
            options = ["--quiet", "--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:"]
            arguments = ["install", *options, "--target", str(made), "-r", str(wanted)]
            done = run_child("pip", arguments, timeout_s=_TIMEOUT_S)
            for path in made.rglob("*"):
                path.chmod(path.stat().st_mode & ~0o022)  # whatever the umask says
            if done.returncode or not is_genuine(made):
                lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
                reason = lines[-1].strip()[-200:] if lines else "pip said nothing"
                raise NoTrainingRuntime(
                    f"cannot install {PACKAGE} {VERSION} ({reason}); {_by_hand('DIR')} where that works and set "
                    f"{VARIABLE}=DIR, or use --adapt fast, which needs no training"
                )
            _remove(folder)
            made.replace(folder)  # in one stroke: never half a runtime
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoTrainingRuntime(
            f"cannot install {PACKAGE} into {folder} ({error}); set {VARIABLE} to a folder that holds it"
        ) from error


def _remove(path: Path) -> None:
    """Removes whatever lies at ``path``, of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

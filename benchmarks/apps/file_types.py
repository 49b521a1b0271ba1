"""magika: the type of a file from its first and last bytes.

The features are made as the package makes them: of the first 4096 bytes, stripped on the left, the first 1024; of the
last 4096, stripped on the right, the last 1024; token 256 where there are too few. Files come from the machine's system
folders and Python packages; a folder (a Debian or Python package, in most cases) lies in one half only.
"""

from __future__ import annotations

import json
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.base import Answers, Application, Array, Feed, cached_arrays, package_folder, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "magika==1.0.3"
MODEL = "magika/models/standard_v3_3/model.onnx"
SIDE, BLOCK, PADDING = 1024, 4096, 256
LEAST_BYTES = 8
WANTED = {"calib": 384, "test": 4096}
PER_SUFFIX = {"calib": 16, "test": 256}
PER_FOLDER_AND_SUFFIX = {"calib": 4, "test": 16}
BATCH = 32


def features(content_start: bytes, content_end: bytes) -> Array | None:
    """Tokens [2048] int32 of a file, or None for one that the package answers without its model."""
    start, end = content_start.lstrip()[:SIDE], content_end.rstrip()[-SIDE:]
    if len(start) < LEAST_BYTES:
        return None
    tokens = np.full(2 * SIDE, PADDING, np.int32)
    tokens[: len(start)] = np.frombuffer(start, np.uint8)
    if end:
        tokens[-len(end) :] = np.frombuffer(end, np.uint8)
    return tokens


def read(path: Path) -> Array | None:
    """The features of a file on disk, or None for one that cannot be read or is too short."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(BLOCK)
            stream.seek(max(0, size - BLOCK))
            return features(start, stream.read(BLOCK))
    except OSError:
        return None


def rank(path: Path) -> int:
    """A number that looks random but depends on the path alone."""
    return zlib.crc32(str(path).encode(errors="replace"))


def candidates() -> Iterator[tuple[str, Path]]:
    """(half, file) of the machine's files in an order that looks random; every fourth folder is for calibration."""
    roots = [Path("/usr/lib"), Path("/usr/share"), Path("/usr/include"), Path(sysconfig.get_paths()["purelib"])]
    files = {p for root in roots for p in root.rglob("*") if not p.is_symlink() and p.is_file()}
    for path in sorted(files, key=lambda p: (rank(p), p)):
        root = next(root for root in reversed(roots) if path.is_relative_to(root))
        group = Path(*path.parts[: len(root.parts) + (2 if root.name in ("lib", "share") else 1)])
        yield ("calib" if rank(group) % 4 == 0 else "test"), path


def collect() -> dict[str, Array]:
    """Tokens of both halves, [N, 2048] int16: many suffixes, few files of each folder."""
    chosen: dict[str, list[Array]] = {"calib": [], "test": []}
    seen: Counter[tuple[str, ...]] = Counter()
    for half, path in candidates():
        by_suffix, by_folder = (half, path.suffix), (half, str(path.parent), path.suffix)
        if len(chosen[half]) == WANTED[half] or seen[by_folder] == PER_FOLDER_AND_SUFFIX[half]:
            continue
        if seen[by_suffix] == PER_SUFFIX[half] or (tokens := read(path)) is None:
            continue
        seen.update([by_suffix, by_folder])
        chosen[half].append(tokens.astype(np.int16))
    return {half: np.stack(rows) for half, rows in chosen.items()}


def tokens(half: str) -> Array:
    """The tokens of a half: [N, 2048] int32."""
    return cached_arrays("file_types", collect, __file__)[half].astype(np.int32)


def calibration() -> list[Feed]:
    """One file a feed."""
    return [{"bytes": row[None]} for row in tokens("calib")]


def predict(session: InferenceSession) -> Answers:
    """Class probabilities of the test files: [N, 214]."""
    rows = tokens("test")
    batches = [session.run(None, {"bytes": rows[i : i + BATCH]})[0] for i in range(0, len(rows), BATCH)]
    return {"scores": np.concatenate(batches)}


@lru_cache(maxsize=1)
def described() -> tuple[list[str], Array, Array]:
    """Of each class: its name in the package, the score it needs (else "txt" or "unknown"), and whether it is text."""
    folder = package_folder(PACKAGE) / "magika"
    config = json.loads((folder / "models/standard_v3_3/config.min.json").read_text())
    kinds = json.loads((folder / "config/content_types_kb.min.json").read_text())
    classes = config["target_labels_space"]
    names = [config["overwrite_map"].get(name, name) for name in classes]
    least = np.array([config["thresholds"].get(name, config["medium_confidence_threshold"]) for name in classes])
    return names, least, np.array([kinds[name]["is_text"] for name in names])


def answers_of(scores: Array) -> Array:
    """What the package answers by default: [N] names."""
    names, least, text = described()
    first = scores.argmax(1)
    unsure = np.where(text[first], "txt", "unknown")
    return np.where(scores.max(1) >= least[first], np.array(names)[first], unsure)


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Share of first classes kept, that of the package's answers, and how many different classes the float model gives.

    The package does not answer with a class that scores less than its threshold, so near ties there are not seen.
    """
    wanted, got = reference["scores"].argmax(1), answers["scores"].argmax(1)
    kept = percent(float((wanted == got).mean()))
    said, now = answers_of(reference["scores"]), answers_of(answers["scores"])
    return {
        "loss": round(100 - kept, 2),
        "labels_kept": kept,
        "answers_kept": percent(float((said == now).mean())),
        "files": len(wanted),
        "labels": len(set(wanted)),
    }


APPLICATIONS = (
    Application(
        name="file_types",
        title="magika, file types",
        model_path=lambda: package_folder(PACKAGE) / MODEL,
        calibration=calibration,
        predict=predict,
        compare=compare,
        latency_feed=lambda: {"bytes": tokens("test")[:1]},
        kept_by="labels",
    ),
)

"""Collect the byte-level text corpus that `gpt_bytes` is trained, calibrated and tested on.

The text is what a Debian machine with manual pages carries anyway: the package documentation, the manual pages, the
Python standard library's docstrings and Perl's pods. It is real technical English (with markup, tables and change
logs), needs no download, and is far from trivially predictable.

Two precautions keep the held-out text honest:

* The split is by package (by manual-page family, by Python or Perl module), never by line or by window.
* A paragraph is kept once only, in whichever package came first, so that licence boilerplate and change logs shared
  by many packages cannot stand in both halves.

Another machine has other packages and hence another corpus; the two .npz files in this folder are the record of the
one that the shipped network was trained against.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "onnxq-models"
SEED = 20261
CONTEXT = 128
N_CALIB = 512
N_TEST = 1024
TEST_PERCENT = 6
SOURCE_LIMIT = {"man": 12_000_000, "doc": 10_000_000, "python": 8_000_000, "perl": 8_000_000}
FILE_LIMIT = 120_000
NOT_DEBIAN = {"gcloud", "bq", "gsutil", "kubectl", "docker"}  # vendors' manual pages, not from the distribution
DOC_SUFFIXES = {"", ".txt", ".md", ".rst", ".gz", ".Debian", ".README", ".html"}


def read_text(path: Path) -> str:
    """The file as text, gunzipped where needed; empty for what is not mostly ASCII text."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile):
        return ""
    if b"\0" in raw[:4096]:
        return ""
    text = raw[:FILE_LIMIT].decode("utf-8", errors="ignore")
    if not text or sum(ch > "~" for ch in text[:4096]) > 0.05 * len(text[:4096]):
        return ""
    return text


def strip_troff(text: str) -> str:
    """Manual-page source without comment lines and without the font escapes that would dominate the bytes."""
    lines = [line for line in text.splitlines() if not line.startswith(('.\\"', "'\\\"", "'br", ".ds", ".if", ".ie"))]
    text = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)", "", "\n".join(lines))
    text = text.replace("\\-", "-").replace("\\&", "").replace("\\(aq", "'")
    return re.sub(r"^\.(?:PP|P|LP|sp|br)\b.*$", "", text, flags=re.MULTILINE)


def docstrings(source: str) -> str:
    """Every docstring of a Python module, one paragraph block each."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(doc for doc in found if doc)


def pods(source: str) -> str:
    """The plain-old-documentation blocks of a Perl file."""
    return "\n\n".join(re.findall(r"^=\w+.*?(?=^=cut\b|\Z)", source, flags=re.MULTILINE | re.DOTALL))


def documents() -> Iterator[tuple[str, str, str]]:
    """(source, group, text) of every usable file, in a fixed order; a group is never split between the halves."""
    for path in sorted(Path("/usr/share/man").glob("man[1-8]/*.gz")):
        family = re.split(r"[-._:]", path.name)[0]
        if not path.is_symlink() and family not in NOT_DEBIAN:
            yield "man", family, strip_troff(read_text(path))
    root = Path("/usr/share/doc")
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix in DOC_SUFFIXES:
            group = re.split(r"[-_.0-9]", path.relative_to(root).parts[0])[0]
            text = read_text(path)
            yield "doc", group, re.sub(r"<[^>]*>", "", text) if ".html" in path.suffixes else text
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {"test", "tests", "site-packages", "dist-packages"} & set(parts):
            yield "python", parts[0].removesuffix(".py"), docstrings(read_text(path))
    root = Path("/usr/share/perl")
    for path in sorted([*root.rglob("*.pod"), *root.rglob("*.pm")]):
        if not path.is_symlink():
            yield "perl", "/".join(path.relative_to(root).parts[1:3]), pods(read_text(path))


def fresh_paragraphs(text: str, seen: set[bytes]) -> str:
    """The paragraphs of a text not met before in any file (compared without regard to white space and digits).

    Runs of blanks longer than an indent are cut: tables padded with them would make the bytes cheap to predict.
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"[ \t]{5,}", "    ", text)):
        key = hashlib.blake2b(re.sub(r"[\s\d]+", "", paragraph).encode(), digest_size=8).digest()
        if paragraph.strip() and key not in seen:
            seen.add(key)
            kept.append(paragraph.strip("\n"))
    return "\n\n".join(kept)


def is_test(source: str, group: str) -> bool:
    """Whether a group is held out, from a hash of its name: independent of what else is installed."""
    return hashlib.sha256(f"{source}/{group}".encode()).digest()[0] * 100 < TEST_PERCENT * 256


def collect() -> tuple[bytes, bytes]:
    """The train and the test half as bytes, files joined by a form feed, each source under its size limit."""
    seen: set[bytes] = set()
    texts: dict[str, list[tuple[str, bytes]]] = {source: [] for source in SOURCE_LIMIT}
    for source, group, text in documents():
        body = fresh_paragraphs(text, seen).encode()
        if len(body) >= 400:
            texts[source].append((group, body + b"\n\f\n"))
    rng = np.random.default_rng(SEED)
    train, test = [], []
    for source, files in texts.items():
        used = 0
        for index in rng.permutation(len(files)):
            group, body = files[index]
            if used + len(body) > SOURCE_LIMIT[source]:
                break
            used += len(body)
            (test if is_test(source, group) else train).append(body)
        print(f"{source}: {used} bytes of {sum(len(body) for _, body in files)}")
    order = rng.permutation(len(train))
    return b"".join(train[i] for i in order), b"".join(test)


def windows(text: bytes, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` windows of CONTEXT + 1 bytes at spread, jittered positions, uint8."""
    data = np.frombuffer(text, dtype=np.uint8)
    stride = (len(data) - CONTEXT - 1) / count
    starts = (np.arange(count) * stride + rng.uniform(0, max(stride - CONTEXT - 1, 0), count)).astype(np.int64)
    return np.stack([data[start : start + CONTEXT + 1] for start in starts])


def main() -> None:
    """Write the train text to the cache and the calibration and test windows next to this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the training text")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    train, test = collect()
    rng = np.random.default_rng(SEED)
    calib, held_out = windows(train, N_CALIB, rng), windows(test, N_TEST, rng)
    (args.cache / "text_train.bin").write_bytes(train)
    np.savez_compressed(HERE / "text_calib.npz", tokens=calib[:, :-1])
    np.savez_compressed(HERE / "text_test.npz", tokens=held_out[:, :-1], labels=held_out[:, 1:])
    print(f"train {len(train)} bytes, test {len(test)} bytes, {N_CALIB} calibration and {N_TEST} test windows")


if __name__ == "__main__":
    main()

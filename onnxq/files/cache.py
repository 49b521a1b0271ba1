"""Where onnxq keeps what it need not find twice: ``$ONNXQ_CACHE``, else ``$XDG_CACHE_HOME/onnxq``, else
``~/.cache/onnxq``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "ONNXQ_CACHE"


def cache_folder() -> Path:
    """The folder; it need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxq"


@contextmanager
def in_one_stroke(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` when it is whole; nothing is left of it where writing fails.

    Raises ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)

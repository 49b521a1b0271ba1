"""Where onnxq keeps what it need not find twice: ``$ONNXQ_CACHE``, else the user's cache folder of this system."""

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
    from platformdirs import user_cache_path

    return user_cache_path("onnxq", appauthor=False)


@contextmanager
def in_one_stroke(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` when it is whole; nothing is left of it where writing fails.

    Unlike ``atomic.staged`` it makes the folder, and neither waits for the disk nor turns errors into onnxq's: what
    is cached may be lost. Raises ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield half
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)

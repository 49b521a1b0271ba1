"""Where onnxq keeps what it need not find twice: ``$ONNXQ_CACHE``, else ``$XDG_CACHE_HOME/onnxq``, else
``~/.cache/onnxq``."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ONNXQ_CACHE"


def cache_folder() -> Path:
    """The folder; it need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxq"

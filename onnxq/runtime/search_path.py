"""Where Python looks for modules, without the current folder: what lies there is data of a user, not code of onnxq.

Imports nothing that Python has not loaded by itself, as it runs while the current folder can still be on the path.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def without_current(entries: Iterable[str]) -> list[str]:
    """``entries`` without the current folder, relative ones and repetitions.

    The current folder stays where it is one that this Python keeps its own packages in.
    """
    try:
        current = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        current = ""
    own = _own_folders()
    found: dict[str, None] = {}
    for entry in entries:
        if os.path.isabs(entry) and ((real := os.path.realpath(entry)) != current or real in own):
            found[entry] = None
    return list(found)


def _own_folders() -> set[str]:
    site = sys.modules.get("site")
    packages = [*site.getsitepackages(), site.getusersitepackages()] if site is not None else []
    return {os.path.realpath(folder) for folder in (os.path.dirname(os.__file__), *packages)}

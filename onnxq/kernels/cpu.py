"""What CPU this is: the instructions it has, on Linux, macOS and Windows alike (archspec asks the system)."""

from __future__ import annotations

import os
import platform
from functools import lru_cache


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """Names of instructions as Linux spells them (``avx512_vnni``); empty where the system does not tell.

    ``archspec.cpu.host()`` would name the nearest known CPU and forget what that lacks: on a virtual machine with VNNI
    whose other flags are masked it names one without.
    """
    from archspec.cpu import detect

    try:
        return frozenset(detect.detected_info().features)
    except Exception:  # whatever a system answers that archspec cannot read: nothing is known then
        return frozenset()


def is_arm64() -> bool:
    """Whether this is a 64-bit ARM."""
    return platform.machine().lower() in ("arm64", "aarch64")


def identity() -> str:
    """Model, instructions and number of cores: what a measurement on this machine holds for."""
    from archspec.cpu import brand_string

    try:
        brand = brand_string()
    except Exception:  # as above
        brand = None
    return repr([platform.machine(), brand or platform.processor(), sorted(features()), os.cpu_count()])

"""Presets: names for choices that go together."""

from __future__ import annotations

from typing import Any

from onnxq.config.config import Config
from onnxq.errors import ConfigError

# What a preset changes of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "int8": {},
    "w4a8": {"weights": "int4"},
    "w4": {"weights": "int4:32", "activations": "none"},
    "w4a4": {"weights": "int4", "activations": "uint4"},
    "w6a6": {"weights": "int6", "activations": "uint6"},
}


def preset(name: str) -> Config:
    """The defaults as the preset ``name`` changes them. Raises ``ConfigError`` listing the presets for another name."""
    if name not in PRESETS:
        raise ConfigError(f"no preset '{name}'", hint=f"choose one of {', '.join(PRESETS)}")
    return Config(**PRESETS[name])

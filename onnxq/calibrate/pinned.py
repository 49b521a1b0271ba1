"""Inputs with some of their symbolic dimensions made numbers, as the user asks for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxq.errors import ConfigError
from onnxq.graph.signature import TensorSpec


def pinned(inputs: Sequence[TensorSpec], dims: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    """``inputs`` with the symbolic dimensions that ``dims`` names made numbers."""
    known: set[str] = set()
    found: list[TensorSpec] = []
    for spec in inputs:
        shape: list[int | str | None] = []
        for axis, dim in enumerate(spec.shape or ()):
            name = dim if isinstance(dim, str) else f"{spec.name}.{axis}"
            if not isinstance(dim, int):
                known.add(name)
            shape.append(dim if isinstance(dim, int) else dims.get(name, dim))
        found.append(spec if spec.shape is None else replace(spec, shape=tuple(shape)))
    for name in dims:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"the model has no symbolic dimension {name!r}", hint=advice)
    return tuple(found)

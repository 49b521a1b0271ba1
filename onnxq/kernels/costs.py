"""What kernels cost: tables of microseconds by operator and size, measured once for each kind of CPU.

``benchmarks/kernel_costs.py`` writes the tables that ship in ``cost_tables/``: one thread, batch 1. A plan only
compares costs with each other, so that their ratios matter and a faster or slower machine of the same kind does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import product

import numpy as np
import numpy.typing as npt

from onnxq.errors import ConfigError

FORMAT = 1


@dataclass(frozen=True)
class Grid:
    """Microseconds measured at every combination of some sizes: ``microseconds[i, j, ...]`` at ``axes[0][i], ...``.

    ``axes``: names and increasing sizes, one for each axis of ``microseconds``, which are positive.
    """

    axes: tuple[tuple[str, tuple[float, ...]], ...]
    microseconds: npt.NDArray[np.float64]

    def at(self, *sizes: float) -> float:
        """Microseconds at ``sizes``: multilinear in logarithms between the points of the grid.

        Beyond its ends the nearest point, times how much larger (in proportion) or times 1 where smaller: a kernel with
        less work than the smallest that was measured takes its overhead.
        """
        if len(sizes) != len(self.axes):
            raise ValueError(f"{len(self.axes)} sizes are needed ({', '.join(n for n, _ in self.axes)}): {sizes}")
        beyond, corners = 1.0, []
        for size, (_, points) in zip(sizes, self.axes, strict=True):
            beyond *= max(1.0, size / points[-1])
            corners.append(_weights(min(max(size, points[0]), points[-1]), points))
        total = 0.0
        for corner in product(*corners):
            weight = math.prod(w for _, w in corner)
            total += weight * math.log(float(self.microseconds[tuple(i for i, _ in corner)]))
        return beyond * math.exp(total)


def _weights(size: float, points: tuple[float, ...]) -> list[tuple[int, float]]:
    """The neighbours of ``size`` among ``points`` and their shares, linear in logarithms."""
    right = int(np.searchsorted(points, size))
    if points[right] == size:
        return [(right, 1.0)]
    share = math.log(size / points[right - 1]) / math.log(points[right] / points[right - 1])
    return [(right - 1, 1.0 - share), (right, share)]


@dataclass(frozen=True)
class CostTable:
    """The costs on one kind of CPU: ``grids`` by kernel (``conv.pointwise``, ``Add``) and number (``float``, ...)."""

    target: str
    grids: Mapping[tuple[str, str], Grid]

    def cost(self, kernel: str, number: str, *sizes: float) -> float:
        """Microseconds of ``kernel`` on ``float`` or ``int8``; see ``Grid.at``."""
        return self.grids[kernel, number].at(*sizes)


@lru_cache(maxsize=4)
def cost_table(target: str) -> CostTable | None:
    """The table that was measured for ``target``; None where there is none yet."""
    file = resources.files("onnxq.kernels").joinpath("cost_tables").joinpath(f"{target}.json")
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ConfigError(f"the cost table of {target} has format {content.get('format')}; reinstall onnxq")
    return CostTable(target, {(g["kernel"], g["number"]): _grid(g) for g in content["grids"]})


def conversion_table(target: str) -> CostTable:
    """The table of ``target`` or, for want of one, another: where kernels are measured, only its conversions count."""
    own = cost_table(target)
    found = cost_table(_WELL_KNOWN) if own is None else own
    assert found is not None
    return found


_WELL_KNOWN = "x86-avx2"


def _grid(entry: Mapping[str, object]) -> Grid:
    axes = entry["axes"]
    assert isinstance(axes, dict)
    points = tuple((name, tuple(float(x) for x in sizes)) for name, sizes in axes.items())
    times = np.asarray(entry["microseconds"], np.float64).reshape([len(sizes) for _, sizes in points])
    return Grid(points, times)

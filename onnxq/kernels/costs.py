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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxq.errors import ConfigError

FORMAT = 1
# The kernels of a table that are costs of no operator in the plan: conversions, changes of layout, and what one pass
# over a tensor takes (that of LeakyRelu).
QUANTIZE, DEQUANTIZE, COPY = "QuantizeLinear", "DequantizeLinear", "Transpose"
ENTER_BLOCKS, LEAVE_BLOCKS, A_PASS = "ReorderInput", "ReorderOutput", "LeakyRelu"

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


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
        """Microseconds of ``kernel`` on ``float`` or ``int8``; see ``Grid.at``.

        What was not measured on integers costs what it costs in float, so that conversions alone decide; what was not
        measured at all costs nothing either way, for the same reason.
        """
        grid = self.grids.get((kernel, number)) or self.grids.get((kernel, "float"))
        return 0.0 if grid is None else grid.at(*sizes)

    def knows(self, kernel: str) -> bool:
        """Whether ``kernel`` was measured in float or on integers."""
        return not {(kernel, "float"), (kernel, "int8")}.isdisjoint(self.grids)


@dataclass(frozen=True)
class Work:
    """A kernel's name in the cost table and its sizes there; an empty name costs nothing.

    ``direct``: whether onnxruntime's direct int8 convolution can do it. ``integer``: names and sizes of what it is
    spelled as on integers, where that is something else. ``otherwise``: what comes nearest in a table without it.
    """

    kernel: str
    sizes: tuple[float, ...]
    direct: bool = True
    integer: tuple[tuple[str, tuple[float, ...]], ...] = ()
    otherwise: Work | None = None

    def cost(self, table: CostTable, number: str) -> float:
        """Microseconds on ``float`` or ``int8``; 0 for views."""
        if self.otherwise is not None and (self.kernel, number) not in table.grids:
            return self.otherwise.cost(table, number)
        return table.cost(self.kernel, number, *self.sizes) if self.kernel else 0.0

    def on_integers(self, table: CostTable) -> float:
        """Microseconds of the integer kernels that it gets."""
        if self.otherwise is not None and (self.kernel, "int8") not in table.grids:
            return self.otherwise.on_integers(table)
        if self.integer:
            return sum(table.cost(kernel, "int8", *sizes) for kernel, sizes in self.integer)
        products = self.force_gemm(table) or (not self.direct and (self.kernel, "int8-gemm") in table.grids)
        return self.cost(table, "int8-gemm" if products else "int8")

    def known(self, table: CostTable) -> bool:
        """Whether ``table`` has the kernel, or what comes nearest; views are known to cost nothing."""
        nearest = self.otherwise is not None and self.otherwise.known(table)
        return not self.kernel or table.knows(self.kernel) or nearest

    def force_gemm(self, table: CostTable) -> bool:
        """Whether the integer convolution is faster by matrix products than by onnxruntime's direct kernel."""
        other = self.direct and not self.integer and (self.kernel, "int8-gemm") in table.grids
        return other and self.cost(table, "int8-gemm") < _FORCE_GEMM_BELOW * self.cost(table, "int8")


# What forcing matrix products must gain: less is within what a table can tell of a network.
_FORCE_GEMM_BELOW = 0.9


@lru_cache(maxsize=4)
def cost_table(target: str) -> CostTable | None:
    """The table that was measured for ``target``; None where there is none yet."""
    file = resources.files("onnxq.kernels").joinpath("cost_tables").joinpath(f"{target}.json")
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ConfigError(f"the cost table of {target} has format {content.get('format')}", hint="reinstall onnxq")
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

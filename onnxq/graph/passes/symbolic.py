"""Dimensions as a number times symbols, and what small integer tensors hold in those terms.

A dimension is written into shapes as text that reads back: ``4*batch``. onnx's own inference passes such names along
without looking inside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxq.graph.edit import constant, integer, is_op


@dataclass(frozen=True)
class Product:
    """``number`` times every one of ``symbols``, which are sorted and may repeat."""

    number: int
    symbols: tuple[str, ...] = ()

    def __mul__(self, other: Product) -> Product:
        return Product(self.number * other.number, tuple(sorted((*self.symbols, *other.symbols))))

    def divided_by(self, other: Product) -> Product | None:
        """The exact quotient; None where there is none."""
        above, below = Counter(self.symbols), Counter(other.symbols)
        if other.number == 0 or self.number % other.number or below - above:
            return None
        return Product(self.number // other.number, tuple(sorted((above - below).elements())))

    @property
    def dim(self) -> int | str:
        """As a dimension of an ``ir.Shape``."""
        if not self.symbols:
            return self.number
        return "*".join(([] if self.number == 1 else [str(self.number)]) + list(self.symbols))


def read_dim(dim: object) -> Product | None:
    """The ``Product`` that a dimension of an ``ir.Shape`` says; None for one without a name."""
    if isinstance(dim, int):
        return Product(dim)
    name = getattr(dim, "value", dim)
    if not isinstance(name, str) or not name:
        return None
    if not re.fullmatch(r"\w[\w.]*(\*\w[\w.]*)*", name):
        return Product(1, (name,))  # an exporter's own arithmetic: a name like any other
    parts = name.split("*")
    numbers = [int(p) for p in parts if p.isdecimal()]
    return Product(prod(numbers), tuple(sorted(p for p in parts if not p.isdecimal())))


def put(product: Product, found: Mapping[str, Product]) -> Product:
    """``product`` with every symbol in ``found`` replaced by what it stands for."""
    result = Product(product.number)
    for symbol in product.symbols:
        result *= found.get(symbol, Product(1, (symbol,)))
    return result


def dims_of(value: ir.Value | None) -> list[Product] | None:
    """The dimensions of ``value``; None where one is unknown."""
    if value is None or value.shape is None:
        return None
    return _complete(read_dim(d) for d in value.shape)


def contents(value: ir.Value | None) -> list[Product] | None:
    """What a scalar or vector of integers holds, computed from shapes; None where that cannot be told."""
    if value is None:
        return None
    known = constant(value)
    if known is not None:
        return [Product(int(x)) for x in known.reshape(-1)] if known.dtype.kind == "i" and known.ndim < 2 else None
    node = value.producer()
    if node is None or node.domain:
        return None
    if is_op(node, "Shape") and not node.attributes:
        return dims_of(node.inputs[0])
    if is_op(node, "Cast", "Identity", "Unsqueeze", "Squeeze"):
        rank = None if value.shape is None else len(value.shape)
        return contents(node.inputs[0]) if rank in (0, 1) else None
    if is_op(node, "Concat"):
        parts = [contents(v) for v in node.inputs]
        return None if any(p is None for p in parts) else [x for p in parts if p is not None for x in p]
    if is_op(node, "Gather") and integer(node, "axis", 0) == 0:
        return _gathered(node)
    if is_op(node, "Slice"):
        return _sliced(node)
    if is_op(node, "Mul", "Div"):
        return _elementwise(node)
    return None


def _gathered(node: ir.Node) -> list[Product] | None:
    data, indices = contents(node.inputs[0]), constant(node.inputs[1])
    if data is None or indices is None or indices.ndim > 1:
        return None
    wanted = [int(i) for i in indices.reshape(-1)]
    return [data[i] for i in wanted] if all(-len(data) <= i < len(data) for i in wanted) else None


def _sliced(node: ir.Node) -> list[Product] | None:
    data = contents(node.inputs[0])
    given = [constant(v) for v in node.inputs[1:]]
    if data is None or len(given) < 2 or any(g is None or g.size != 1 for g in given):
        return None
    start, end, _, step = [int(g.item()) for g in given if g is not None] + [0, 1][len(given) - 2 :]
    return data[start:end:step] if step > 0 else None


def _elementwise(node: ir.Node) -> list[Product] | None:
    first, second = (contents(v) for v in node.inputs)
    if first is None or second is None or not first or not second:
        return None
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        return None
    count = max(len(first), len(second))
    pairs = zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    if is_op(node, "Mul"):
        return [a * b for a, b in pairs]
    return _complete(a.divided_by(b) for a, b in pairs)


def _complete(items: Iterable[Product | None]) -> list[Product] | None:
    found = list(items)
    return None if any(x is None for x in found) else [x for x in found if x is not None]


def reshaped(given: Sequence[Product], target: Sequence[Product]) -> list[Product] | None:
    """The dimensions after a Reshape to ``target`` (0 copies, -1 is what is left); None where that is no number."""
    dims: list[Product | None] = []
    for i, t in enumerate(target):
        if t == Product(0):
            if i >= len(given):
                return None
            dims.append(given[i])
        else:
            dims.append(None if t == Product(-1) else t)
    known = [d for d in dims if d is not None]
    if len(known) == len(dims):
        return known
    left = product(given).divided_by(product(known))
    if left is None or len(known) < len(dims) - 1:
        return None
    return [left if d is None else d for d in dims]


def product(items: Iterable[Product]) -> Product:
    """All of ``items`` multiplied."""
    result = Product(1)
    for item in items:
        result *= item
    return result

"""The operators: ``operator(node)`` is what is known of the operator of a node, in one place for all who ask.

To add one is to write its record into a family (``linear``, ``pointwise``, ``pooling``, ``movement``, ``recurrent``,
``quantized``), its costs into the tables of the targets, and a test. Sources: onnxruntime's QDQ selectors
(core/optimizer/qdq_transformer) and our own measurements of the kernels.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from onnxq.kernels import linear, movement, pointwise, pooling, quantized, recurrent
from onnxq.kernels.record import Operator

if TYPE_CHECKING:
    import onnx_ir as ir

_FAMILIES = (linear, pointwise, pooling, movement, recurrent, quantized)
OPERATORS: dict[str, Operator] = {record.name: record for family in _FAMILIES for record in family.OPERATORS}


def operator(node: ir.Node) -> Operator:
    """The record of the operator of ``node``; for an unknown one, what holds for those."""
    return find(node.op_type, node.domain)


def find(name: str, domain: str) -> Operator:
    """The record of the operator ``name`` of ``domain``; for an unknown one, what holds for those."""
    record = OPERATORS.get(name)
    if record is not None:
        return record if domain in record.domains else _unknown(name, domain)
    return named(name) if domain in ("", *quantized.FAMILIES["QLinear"].domains) else _unknown(name, domain)


def named(name: str) -> Operator:
    """The record of the operator ``name`` of whatever domain, as the optimised graph and profiles tell it."""
    record = OPERATORS.get(name)
    return _unlisted(name) if record is None else record


@cache
def _unlisted(name: str) -> Operator:
    return quantized.of_family(name) or Operator(name)


@cache
def _unknown(name: str, domain: str) -> Operator:
    return Operator(name, domains=(domain,))

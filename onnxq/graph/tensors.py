"""Whether a stored tensor has the data that its shape and type ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.serde import TensorProtoTensor

# The field of a TensorProto that holds elements of a type, where they are not raw bytes; int32_data for all others.
_FIELDS: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}
_ALL_FIELDS = ("int32_data", "float_data", "int64_data", "double_data", "uint64_data")


def obstacle(tensor: ir.TensorProtocol) -> str | None:
    """Why the data of ``tensor`` cannot be read, as the end of a sentence about it; None where they can.

    Tensors that hold numpy arrays are what they are; those of files say one thing and may hold another.
    """
    if not isinstance(tensor, (TensorProtoTensor, ir.ExternalTensor, ir.StringTensor)):
        return None
    if isinstance(tensor, TensorProtoTensor) and tensor.raw.data_type not in _KNOWN:
        return f"has an unknown element type, {tensor.raw.data_type}"
    if tensor.dtype == ir.DataType.UNDEFINED:
        return "has no element type"
    dims = tuple(tensor.shape.numpy())
    if any(dim < 0 for dim in dims):
        return f"has the shape {list(dims)}"
    if isinstance(tensor, ir.ExternalTensor):
        return _external_obstacle(tensor)
    if isinstance(tensor, ir.StringTensor):
        return _count_obstacle(len(tensor.string_data()), math.prod(dims), dims, "texts")
    return _stored_obstacle(tensor, dims)


_KNOWN = frozenset(member.value for member in ir.DataType)


def _external_obstacle(tensor: ir.ExternalTensor) -> str | None:
    if tensor.dtype == ir.DataType.STRING:
        return "keeps texts in another file, which ONNX does not allow"
    if (tensor.offset or 0) < 0 or (tensor.length or 0) < 0:
        return "lies before the beginning of its file"
    if tensor.length and tensor.length != tensor.nbytes:
        return f"takes {tensor.nbytes} bytes by its shape, and {tensor.length} in its file"
    return None


def _stored_obstacle(tensor: TensorProtoTensor, dims: tuple[int, ...]) -> str | None:
    proto, bits = tensor.raw, tensor.dtype.bitwidth
    if proto.HasField("raw_data"):
        return _count_obstacle(len(proto.raw_data), math.ceil(math.prod(dims) * bits / 8), dims, "bytes")
    field = _FIELDS.get(tensor.dtype, "int32_data")
    for other in _ALL_FIELDS:
        if other != field and len(getattr(proto, other)):
            return f"keeps {tensor.dtype.name} in {other}"
    wanted = math.prod(dims)
    if tensor.dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        wanted *= 2
    elif bits in (2, 4):
        wanted = math.ceil(wanted * bits / 8)
    return _count_obstacle(len(getattr(proto, field)), wanted, dims, "numbers")


def _count_obstacle(found: int, wanted: int, dims: tuple[int, ...], unit: str) -> str | None:
    if found == wanted:
        return None
    return f"has {found} {unit}, and its shape {list(dims)} takes {wanted}"

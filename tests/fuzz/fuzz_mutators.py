"""Ways to spoil a model or a file, each by chance: functions of what is given and a ``random.Random``."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

NUMBERS = (-1, 0, 1, 2, 3, 7, -2, 255, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -1.0, 1e-45, 1e20, -1e38, float("inf"), float("-inf"), float("nan"))
OPERATORS = tuple(sorted({s.name for s in onnx.defs.get_all_schemas()}))
NAMES = ("", "x", "y", "a b", "ä", "n" * 300, "/a/b.c:0", "'", "%s", "\n", "..")


def number(rng: random.Random) -> int:
    return rng.choice(NUMBERS)


def mutated(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A copy of ``proto`` with one to four faults of structure."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        graph = rng.choice(_graphs(copy.graph))
        for _ in range(8):  # a fault may find nothing to spoil
            if rng.choice(FAULTS)(graph, copy, rng) is not False:
                break
    return copy


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found += _graphs(attribute.g)
    return found


def _names(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return [*(v.name for v in graph.input), *(t.name for t in graph.initializer), *made]


def _node(graph: onnx.GraphProto, rng: random.Random) -> onnx.NodeProto | None:
    return rng.choice(graph.node) if graph.node else None


def drop_node(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    return bool(graph.node) and graph.node.pop(rng.randrange(len(graph.node)))


def repeat_node(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    if (node := _node(graph, rng)) is None:
        return False
    copy = graph.node.add()
    copy.CopyFrom(node)
    if rng.random() < 0.7:
        copy.output[:] = [f"{name}_again" for name in copy.output]
    return True


def swap_nodes(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    nodes = list(graph.node)
    rng.shuffle(nodes)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def other_operator(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    if (node := _node(graph, rng)) is None:
        return False
    same_arity = [n.op_type for n in graph.node if len(n.input) == len(node.input)]
    node.op_type = rng.choice((*OPERATORS, *same_arity * 5, "Nothing"))
    if rng.random() < 0.1:
        node.domain = rng.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "acme", ""))
    return True


def spoil_inputs(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    node = _node(graph, rng)
    if node is None or not node.input:
        return False
    index = rng.randrange(len(node.input))
    how = rng.randrange(6)
    if how == 0:
        del node.input[index]
    elif how == 1:
        node.input[index] = ""
    elif how == 2:
        node.input.append(rng.choice(("", *_names(graph))))
    elif how == 3:
        node.input.insert(index, rng.choice(_names(graph)))
    else:
        node.input[index] = rng.choice(_names(graph))
    return True


def spoil_outputs(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    if (node := _node(graph, rng)) is None or not node.output:
        return False
    index = rng.randrange(len(node.output))
    how = rng.randrange(4)
    if how == 0:
        del node.output[index]
    elif how == 1:
        node.output.append(f"more{rng.randrange(100)}")
    else:
        node.output[index] = rng.choice(("", "other", *_names(graph)))
    return True


def spoil_attribute(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    node = rng.choice([n for n in graph.node if n.attribute] or [None])
    if node is None:
        return False
    attribute = rng.choice(node.attribute)
    how = rng.randrange(4)
    if how == 0:
        node.attribute.remove(attribute)
    elif how == 1:
        attribute.type = rng.randrange(15)
    elif how == 2:
        values = (number(rng), rng.choice(REALS), "text", [1], [0.5], ["a"])
        attribute.CopyFrom(helper.make_attribute(attribute.name, rng.choice(values)))
    else:
        _other_value(attribute, rng)
    return True


def _other_value(attribute: onnx.AttributeProto, rng: random.Random) -> None:
    kind = attribute.type
    if kind == AttributeProto.INT:
        attribute.i = number(rng)
    elif kind == AttributeProto.FLOAT:
        attribute.f = rng.choice(REALS)
    elif kind == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"linear", b"SAME_UPPER", b"\xff\xfe", b"ij,jk->ik", b"...", b"tanh"))
    elif kind == AttributeProto.INTS:
        _other_list(attribute.ints, rng, number(rng))
    elif kind == AttributeProto.FLOATS:
        _other_list(attribute.floats, rng, rng.choice(REALS))
    elif kind == AttributeProto.TENSOR:
        _other_tensor(attribute.t, rng)


def _other_list(values: object, rng: random.Random, new: object) -> None:
    how = rng.randrange(4)
    if how == 0 and len(values):  # type: ignore[arg-type]
        values.pop()  # type: ignore[attr-defined]
    elif how == 1:
        values.append(new)  # type: ignore[attr-defined]
    elif how == 2:
        del values[:]  # type: ignore[attr-defined]
    elif len(values):  # type: ignore[arg-type]
        values[rng.randrange(len(values))] = new  # type: ignore[index,arg-type]


def add_attribute(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    if (node := _node(graph, rng)) is None:
        return False
    names = sorted({a.name for n in graph.node for a in n.attribute} | {"axis", "axes", "to", "perm", "alpha"})
    value = rng.choice((number(rng), [number(rng), 1], 0.5, "text"))
    node.attribute.append(helper.make_attribute(rng.choice(names), value))
    return True


def spoil_constant(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    if not graph.initializer:
        return False
    _other_tensor(rng.choice(graph.initializer), rng)
    return True


def _other_tensor(tensor: TensorProto, rng: random.Random) -> None:
    how = rng.randrange(8)
    if how == 0:
        _other_list(tensor.dims, rng, number(rng))
    elif how == 1:
        tensor.data_type = rng.choice((*range(26), 77))
    elif how == 2:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif how == 3:
        tensor.ClearField(rng.choice(("raw_data", "float_data", "dims")))
    elif how == 4:
        tensor.int32_data.extend([1, 2, 3])
    else:  # still in itself right: another shape or other values
        try:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(_other_array(array, rng), tensor.name))
        except Exception:
            tensor.ClearField("raw_data")


def _other_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    array = np.asarray(array)
    how = rng.randrange(8)
    if how == 0:
        return array.ravel()
    if how == 1:
        return array[None]
    if how == 2:
        return array.reshape(-1)[:1].reshape(())
    if how == 3:
        return np.atleast_1d(array)[..., :0]
    if how == 4:
        return np.concatenate([array.ravel(), array.ravel()])
    if how == 5:
        return array.astype(rng.choice((np.float16, np.float64, np.int64, np.int8, np.bool_)))
    if how == 6:
        return array.T.copy()
    copy = array.copy()
    flat = copy.reshape(-1)
    if flat.size:
        some = rng.choice(REALS if copy.dtype.kind == "f" else (0, 1, 100))
        flat[: rng.choice((1, flat.size))] = some
    return copy


def spoil_value(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return False
    value = rng.choice(values)
    tensor = value.type.tensor_type
    how = rng.randrange(6)
    if how == 0:
        tensor.elem_type = rng.randrange(20)
    elif how == 1:
        tensor.ClearField("shape")
    elif how == 2 and tensor.shape.dim:
        dim = rng.choice(tensor.shape.dim)
        dim.dim_value = number(rng)
    elif how == 3 and tensor.shape.dim:
        dim = rng.choice(tensor.shape.dim)
        dim.dim_param = rng.choice(NAMES)
    elif how == 4:
        tensor.shape.dim.add().dim_value = rng.choice((0, 1, 2, -1))
    else:
        value.name = rng.choice((*NAMES, *_names(graph)))
    return True


def add_value(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    where = rng.choice((graph.input, graph.output, graph.value_info, graph.value_info))
    shape = rng.choice((None, [], [2], ["n", 3], [1, 2, 3, 4]))
    name = rng.choice((*_names(graph), "new"))
    where.append(helper.make_tensor_value_info(name, rng.choice((1, 1, 1, 7, 9)), shape))
    return True


def drop_value(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    where = rng.choice((graph.input, graph.output, graph.initializer))
    return bool(where) and where.pop(rng.randrange(len(where)))


def rename(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    """A value by another name wherever it stands, or a node."""
    if rng.random() < 0.3 and (node := _node(graph, rng)) is not None:
        node.name = rng.choice((*NAMES, *(n.name for n in graph.node)))
        return True
    old, new = rng.choice(_names(graph) or ["x"]), rng.choice(NAMES)
    for value in (*graph.input, *graph.output, *graph.initializer):
        if value.name == old:
            value.name = new
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return True


def insert(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    """A node between two: most of these run."""
    node = _node(graph, rng)
    if node is None or not any(node.input):
        return False
    index = rng.choice([i for i, name in enumerate(node.input) if name])
    source, name = node.input[index], f"inserted{len(graph.node)}"
    op, attributes = rng.choice(
        (
            ("Identity", {}),
            ("Relu", {}),
            ("Neg", {}),
            ("Cast", {"to": rng.choice((1, 10, 11, 7, 16))}),
            ("Transpose", {}),
            ("Flatten", {"axis": rng.choice((0, 1, 2))}),
            ("Softmax", {"axis": -1}),
            ("Dropout", {}),
            ("Sigmoid", {}),
        )
    )
    extra = helper.make_node(op, [source], [name], name=name, **attributes)
    node.input[index] = name
    graph.node.insert(0 if rng.random() < 0.2 else list(graph.node).index(node), extra)
    return True


def other_version(graph: onnx.GraphProto, model: onnx.ModelProto, rng: random.Random) -> object:
    how = rng.randrange(4)
    if how == 0:
        model.ir_version = rng.choice((0, 3, 8, 13, 99, 2**40))
    elif how == 1:
        del model.opset_import[:]
    else:
        rng.choice(model.opset_import or [model.opset_import.add()]).version = rng.choice((-1, 0, 1, *range(7, 30)))
    return True


Fault = Callable[[onnx.GraphProto, onnx.ModelProto, random.Random], object]
FAULTS: Sequence[Fault] = (
    *(drop_node, repeat_node, swap_nodes, other_operator, spoil_inputs, spoil_inputs, spoil_outputs),
    *(spoil_attribute, spoil_attribute, add_attribute, spoil_constant, spoil_constant, spoil_value, add_value),
    *(drop_value, rename, insert, insert, other_version),
)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """``content`` with a few bytes changed, moved, left out or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at, length = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64))
        how = rng.randrange(7)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = bytes(rng.randrange(256) for _ in range(length))
        elif how == 4:
            data[at:at] = data[at : at + length] * rng.choice((1, 3))
        elif how == 5:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


WORDS = (
    *("null", "true", "-1", "0", "1e999", "-1e999", "NaN", "1e400", "99999999999999999999", "1.5", '""', "[]", "{}"),
    *("[1, 2, 3]", "[[1]]", '"text"', '"\\ud800"', '{"a": 1}', "'x'", "1979-05-27", "0x10", '"224x224"', "[1e999]"),
)


def mutated_text(text: str, rng: random.Random) -> bytes:
    """``text`` (JSON, TOML) with values, keys or bytes replaced."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tokens = list(re.finditer(r'"[^"]*"|-?\d[\d.eE+-]*|\btrue\b|\bfalse\b|\[[^\[\]]*\]', text))
        if not tokens or rng.random() < 0.1:
            return mutated_bytes(text.encode(), rng)
        token = rng.choice(tokens)
        word = rng.choice((*WORDS, *(t.group() for t in tokens)))
        text = text[: token.start()] + word + text[token.end() :]
    return text.encode("utf-8", "surrogatepass")


def mutated_arrays(arrays: dict[str, np.ndarray], rng: random.Random) -> dict[str, np.ndarray]:
    """``arrays`` with other shapes, types, values or names."""
    found = dict(arrays)
    for _ in range(rng.choice((1, 1, 2))):
        if not found:
            break
        name = rng.choice(list(found))
        how = rng.randrange(6)
        if how == 0:
            found[rng.choice((*NAMES[1:], *(f"{name}/{n}" for n in NAMES)))] = found.pop(name)
        elif how == 1:
            found["more"] = _other_array(found[name], rng)
        elif how == 2:
            kinds = ("f2", "f8", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", "O", ">f4", "V4")
            found[name] = np.zeros(found[name].shape, rng.choice(kinds))
        elif how == 3:
            found[name] = found[name][: rng.choice((0, 1, 2, 3))] if found[name].ndim else found[name]
        else:
            found[name] = _other_array(found[name], rng)
    return found


def npz(arrays: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """An archive of ``arrays`` in which, now and then, a header says something else."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=True)
            content = entry.getvalue()
            if rng.random() < 0.3:
                head = mutated_text(content[10:128].decode("latin1"), rng)  # behind magic, version and length
                content = content[:10] + head[:118].ljust(118) + content[128:]
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()

"""Models that are traps: one line, exit code 2, within 10 s and 500 MB."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from limited import MEMORY_BYTES, SECONDS, Done, Limited
from onnx import TensorProto, helper, numpy_helper
from zoo import Net, loop_body

from onnxq.errors import ModelError
from onnxq.graph.io import load, serialize
from onnxq.graph.sizes import check_sizes
from onnxq.runtime.skeleton import TooMany, check_skeleton
from onnxq.runtime.wire import NoModel

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are those of Linux")


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    with Limited() as run:
        yield run


def check_refused(done: Done) -> str:
    assert done.code == 2, (done.code, done.stderr[-2000:])
    assert done.stdout == ""
    line, *hint = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert [text.partition(":")[0] for text in hint] in ([], ["hint"])
    assert "bug" not in line
    assert done.peak_bytes < MEMORY_BYTES
    assert done.seconds < SECONDS
    return done.stderr


# Files that are no models, or hold millions of entries.

HEAD = b"\x08\x08" + b"\x42\x02\x10\x12"  # IR version 8, opset 18


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def nested(levels: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    body = b""
    for _ in range(levels):
        body = field(1, field(5, field(6, body)))
    return HEAD + field(7, body)


MANY = 2_000_000
FILES: dict[str, tuple[str, bytes, str]] = {
    "empty initializers": (".onnx", HEAD + field(7, field(5, b"") * MANY), "more than 500,000 entries"),
    "empty nodes": (".onnx", HEAD + field(7, field(1, b"") * MANY), "more than 500,000 entries"),
    "inputs of a node": (".onnx", HEAD + field(7, field(1, field(1, b"") * MANY)), "more than 10,000 entries"),
    "operator sets": (".onnx", HEAD + field(8, b"") * MANY + field(7, b""), "more than 500,000 entries"),
    "numbers of an attribute": (".onnx", HEAD + field(7, field(1, field(5, b"\x40\x01" * MANY))), "more than 500,000"),
    "dimensions": (".onnx", HEAD + field(7, field(5, b"\x08\x01" * MANY)), "more than 500,000 entries"),
    "metadata": (".onnx", HEAD + field(7, b"") + field(14, b"") * MANY, "more than 500,000 entries"),
    "nested graphs": (".onnx", nested(3000), "not an ONNX model"),
    "nested onnxtxt": (".onnxtxt", b'<ir_version: 8, opset_import: ["" : 17]>\ng (' + b"seq(" * 100_000, "levels deep"),
    "nested JSON": (".json", b'{"graph":' * 100_000, "levels deep"),
    "nested list of JSON": (".json", b"[" * 100_000, "levels deep"),
    "nested textproto": (".textproto", b"graph { node { attribute { g { " * 30_000, "levels deep"),
    "zeros": (".onnx", bytes(1 << 20), "not an ONNX model"),
    "nothing": (".onnx", b"", "not an ONNX model"),
}


@on_linux
@pytest.mark.parametrize("case", FILES)
def test_files_that_are_traps(limited: Limited, tmp_path: Path, case: str) -> None:
    suffix, content, says = FILES[case]
    (tmp_path / f"m{suffix}").write_bytes(content)
    assert says in check_refused(limited(tmp_path, "quantize", f"m{suffix}"))


@on_linux
@pytest.mark.parametrize(("start", "size"), [(b"", 3 << 30), (b"", 19 << 26), (HEAD, 19 << 26)])
def test_files_that_take_no_room_on_the_disk(limited: Limited, tmp_path: Path, start: bytes, size: int) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.write(start)
        file.truncate(size)
    assert "error" in check_refused(limited(tmp_path, "inspect", "m.onnx"))


def test_the_skeleton_of_a_model_is_taken_and_of_a_cut_one_not() -> None:
    content = serialize(load(loop_body()))
    check_skeleton(content)
    for size in (*range(1, 40), len(content) // 2, len(content) - 1):
        with pytest.raises(NoModel):
            check_skeleton(content[:size])


def test_entries_are_counted_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.runtime import skeleton

    monkeypatch.setattr(skeleton, "MOST_OF_A_KIND", 10)
    check_skeleton(HEAD + field(7, field(1, b"") * 10))
    with pytest.raises(TooMany):
        check_skeleton(HEAD + field(7, field(1, b"") * 11))
    monkeypatch.setattr(skeleton, "MOST_ENTRIES", 12)
    with pytest.raises(TooMany):
        check_skeleton(HEAD + field(7, field(1, b"") * 10))


# Models that compute far more than they are given.


class Trap(Net):
    """x [N, 64] -> MatMul -> ``first``; what a case adds -> y."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self("MatMul", "x", self.weight("w", 64, 64, fan=64), name="first")

    def numbers(self, name: str, *values: int) -> str:
        return self.const(name, values, np.int64)

    def done(self, last: str) -> onnx.ModelProto:
        """The model with the sum of ``last`` added to ``first``."""
        total = self("ReduceSum", last, name="total", keepdims=0)
        self("Add", self.first, total, name="end", out="y")
        return self.model({"x": ["N", 64]}, {"y": ["N", 64]}, opset=18)


def constant_of_shape() -> onnx.ModelProto:
    n = Trap()
    return n.done(n("ConstantOfShape", n.numbers("shape", 1024, 1024, 1024), name="big"))


def expanded() -> onnx.ModelProto:
    n = Trap()
    return n.done(n("Expand", n.first, n.numbers("shape", 10**7, 1, 64), name="big"))


def tiled() -> onnx.ModelProto:
    n = Trap()
    return n.done(n("Tile", n.first, n.numbers("times", 10**7, 1), name="big"))


def ranged() -> onnx.ModelProto:
    n = Trap()
    ends = (n.const(name, value, np.int64) for name, value in (("start", 0), ("limit", 10**9), ("delta", 1)))
    return n.done(n("Cast", n("Range", *ends, name="big"), name="cast", to=TensorProto.FLOAT))


def padded() -> onnx.ModelProto:
    n = Trap()
    return n.done(n("Pad", n.first, n.numbers("pads", 0, 0, 10**8, 0), name="big"))


def one_hot() -> onnx.ModelProto:
    n = Trap()
    ids = n("Cast", n.first, name="ids", to=TensorProto.INT64)
    return n.done(n("OneHot", ids, n.numbers("depth", 10**8), n.const("values", [0, 1]), name="big"))


def chain_of_products() -> onnx.ModelProto:
    """Six outer products: each makes 64 times what it reads."""
    n = Trap()
    row = n("ReduceSum", n.first, n.numbers("rows", 0), name="row", keepdims=0)
    last = row
    for i in range(6):
        column = n("Reshape", row, n.numbers(f"shape{i}", -1, *[1] * (i + 1)), name=f"column{i}")
        last = n("Mul", last, column, name=f"product{i}")
    return n.done(last)


def chain_of_joins(*, constant: bool) -> onnx.ModelProto:
    n = Trap()
    last = n.vector("c", 64) if constant else n.first
    for i in range(32):
        last = n("Concat", last, last, name=f"join{i}", axis=0)
    return n.done(last)


def chain_of_joined_shapes() -> onnx.ModelProto:
    """onnx's own inference works these out number by number."""
    n = Trap()
    last = n("Shape", n.first, name="shape")
    for i in range(32):
        last = n("Concat", last, last, name=f"join{i}", axis=0)
    return n.done(n("Cast", last, name="cast", to=TensorProto.FLOAT))


def sized_by_values() -> onnx.ModelProto:
    n = Trap()
    most = n("ReduceMax", "x", name="most", keepdims=0)
    size = n("Mul", n("Ceil", n("Abs", most, name="abs"), name="ceil"), n.const("factor", 1e9), name="size")
    shape = n("Reshape", n("Cast", size, name="whole", to=TensorProto.INT64), n.numbers("one", 1), name="shape")
    return n.done(n("ConstantOfShape", shape, name="big"))


def endless(turns: int | None, *, collects: bool = False) -> onnx.ModelProto:
    """A Loop whose condition is what it was."""
    n, b = Trap(), Net()
    b("Identity", "again", name="same", out="still")
    b("Mul", "state", b.const("half", 0.5), name="half_state", out="next")
    outputs: dict[str, object] = {"still": (TensorProto.BOOL, []), "next": ["N", 64]}
    if collects:
        b("Identity", "next", name="copy", out="kept")
        outputs["kept"] = ["N", 64]
    types = {"turn": (TensorProto.INT64, []), "again": (TensorProto.BOOL, []), "state": (TensorProto.FLOAT, ["N", 64])}
    inputs = [helper.make_tensor_value_info(name, *spec) for name, spec in types.items()]
    most = "" if turns is None else n.const("turns", turns, np.int64)
    true = n.const("true", True, np.bool_)
    body = b.body("body", inputs, outputs)
    last = n.many("Loop", most, true, n.first, name="loop", count=1 + collects, body=body)
    return n.done(last[-1])


def doubling() -> onnx.ModelProto:
    """A Loop of thirty turns, in each of which the state becomes twice as long."""
    n, b = Trap(), Net()
    b("Identity", "again", name="same", out="still")
    b("Concat", "state", "state", name="join", out="next", axis=0)
    types = {"turn": (TensorProto.INT64, []), "again": (TensorProto.BOOL, []), "state": (TensorProto.FLOAT, ["n", 64])}
    inputs = [helper.make_tensor_value_info(name, *spec) for name, spec in types.items()]
    body = b.body("body", inputs, {"still": (TensorProto.BOOL, []), "next": ["m", 64]})
    turns, true = n.const("turns", 30, np.int64), n.const("true", True, np.bool_)
    return n.done(n("Loop", turns, true, n.first, name="loop", body=body))


def functions(levels: int) -> onnx.ModelProto:
    """Each function calls the one before ten times."""
    n = Trap()
    proto = n.done(n("Identity", n.first, name="same"))
    for i in range(levels):
        calls = [
            helper.make_node(
                "Tanh" if i == 0 else f"f{i - 1}", [f"t{k}"], [f"t{k + 1}"], domain="" if i == 0 else "mine"
            )
            for k in range(10)
        ]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        proto.functions.append(helper.make_function("mine", f"f{i}", ["t0"], ["t10"], calls, opsets))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    (same,) = (node for node in proto.graph.node if node.name == "same")
    same.op_type, same.domain = f"f{levels - 1}", "mine"
    return proto


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "constant": (constant_of_shape, "node 'big' would make a tensor of 4.29 GB, [1024, 1024, 1024]"),
    "expanded": (expanded, "would make a tensor"),
    "tiled": (tiled, "would make a tensor"),
    "range": (ranged, "would make a tensor of 8 GB"),
    "padded": (padded, "would make a tensor"),
    "one-hot": (one_hot, "would make a tensor"),
    "products": (chain_of_products, "would make a tensor"),
    "joins": (lambda: chain_of_joins(constant=False), "would make a tensor"),
    "joins of constants": (lambda: chain_of_joins(constant=True), "would make a tensor"),
    "joined shapes": (chain_of_joined_shapes, "would make a tensor"),
    "sized by values": (sized_by_values, "does not run on the first inputs"),
    "loop without end": (lambda: endless(None), "it did not end within"),
    "loop of 2^62 turns": (lambda: endless(2**62), "it did not end within"),
    "loop that collects": (lambda: endless(None, collects=True), "of memory"),
    "loop that doubles": (doubling, "of memory"),
    "functions": (lambda: functions(6), "functions expand to 1e+06 nodes"),
}


@on_linux
@pytest.mark.parametrize("case", MODELS)
def test_models_that_are_traps(limited: Limited, tmp_path: Path, case: str) -> None:
    make, says = MODELS[case]
    onnx.save(make(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32))
    assert says in check_refused(limited(tmp_path, "quantize", "m.onnx", "-c", "data.npz"))


@on_linux
@pytest.mark.parametrize("case", ["constant", "products", "joins", "loop without end", "functions"])
def test_models_that_are_traps_without_data(limited: Limited, tmp_path: Path, case: str) -> None:
    make, says = MODELS[case]
    onnx.save(make(), tmp_path / "m.onnx")
    assert says in check_refused(limited(tmp_path, "quantize", "m.onnx"))


@on_linux
@pytest.mark.parametrize("command", ["run", "evaluate", "benchmark"])
def test_no_command_runs_such_a_model(limited: Limited, tmp_path: Path, command: str) -> None:
    onnx.save(constant_of_shape(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((4, 64), np.float32))
    more = {"run": ("-o", "o.npz"), "evaluate": ("m.onnx",), "benchmark": ()}[command]
    assert "would make a tensor" in check_refused(limited(tmp_path, command, "m.onnx", *more, "--data", "data.npz"))


def test_functions_that_expand_to_what_models_have_are_taken() -> None:
    from onnxq.graph.passes.functions import inline_functions

    model = load(functions(3))
    assert inline_functions(model, []) == 3
    assert sum(node.op_type == "Tanh" for node in model.graph) == 1_000


def test_what_comes_from_something_is_not_too_large() -> None:
    """Large outputs of large inputs, attention over long sequences, a decoder's loop over its inputs."""
    n = Net()
    n("MatMul", "q", "k", name="scores", out="y")
    attention = load(n.model({"q": ["N", 8, "T", 64], "k": ["N", 8, 64, "T"]}, {"y": ["N", 8, "T", "T"]}))
    assert not check_sizes(attention, {"q": (1, 8, 8192, 64), "k": (1, 8, 64, 8192)})
    with pytest.raises(ModelError, match="node 'scores' would make a tensor"):
        check_sizes(attention, {"q": (1, 8, 80_000, 64), "k": (1, 8, 64, 80_000)})


def test_what_cannot_be_told_is_said() -> None:
    unknown = check_sizes(load(endless(None, collects=True)), {"x": (4, 64)})
    assert (unknown.sizes, unknown.end) == (True, True)
    unknown = check_sizes(load(endless(100)), {"x": (4, 64)})
    assert not unknown.end
    unknown = check_sizes(load(sized_by_values()), {"x": (4, 64)})
    assert (unknown.sizes, unknown.end) == (True, False)


# External data.


def with_data(folder: Path, location: str) -> Path:
    """A model in ``folder`` whose weight lies in the file ``location``."""
    n = Net()
    n.linear("x", 64, 64, name="layer", out="y")
    proto = n.model({"x": ["N", 64]}, {"y": ["N", 64]})
    (weight,) = (t for t in proto.graph.initializer if t.name == "layer_w")
    content = numpy_helper.to_array(weight).tobytes()
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    (folder.parent / "weights").write_bytes(content)
    return folder / "m.onnx"


@pytest.mark.parametrize("target", ["../weights", "/etc/passwd", "/proc/self/maps", "/dev/zero"])
def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    path = with_data(tmp_path / "model", "w")
    (tmp_path / "model" / "w").symlink_to(target)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(path)


def test_external_data_in_a_linked_folder_is_refused(tmp_path: Path) -> None:
    path = with_data(tmp_path / "model", "sub/weights")
    (tmp_path / "model" / "sub").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(path)


def test_external_data_may_be_a_link_within_the_folder_or_lie_beside_the_real_model(tmp_path: Path) -> None:
    path = with_data(tmp_path / "model", "w")
    os.replace(tmp_path / "weights", tmp_path / "model" / "real")
    (tmp_path / "model" / "w").symlink_to("real")
    load(path)
    (tmp_path / "snapshot").mkdir()  # a hub: both are links, to what lies in one folder
    (tmp_path / "snapshot" / "m.onnx").symlink_to(path)
    (tmp_path / "snapshot" / "w").symlink_to(tmp_path / "model" / "real")
    load(tmp_path / "snapshot" / "m.onnx")


def test_external_data_is_never_waited_for(tmp_path: Path) -> None:
    path = with_data(tmp_path / "model", "w")
    os.mkfifo(tmp_path / "model" / "w")
    with pytest.raises(ModelError, match="a named pipe"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-8"), ("length", "-1"), ("offset", str(2**62)), ("offset", "x")]
)
def test_places_in_external_data_that_are_none(tmp_path: Path, key: str, value: str) -> None:
    path = with_data(tmp_path / "model", "w")
    os.replace(tmp_path / "weights", tmp_path / "model" / "w")
    proto = onnx.load(path, load_external_data=False)
    (weight,) = (t for t in proto.graph.initializer if t.name == "layer_w")
    weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError):
        load(path)

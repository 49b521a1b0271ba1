"""``onnxq.inspect``: facts, the outlook for float models, the kernels of quantized ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import toys

import onnxq
from onnxq.errors import ConfigError

# A toy is too small for integers to pay on any CPU.
INTEGERS = onnxq.Config(placement="all")


def test_facts_of_a_float_model(tmp_path: Path) -> None:
    found = onnxq.inspect(toys.write(toys.classifier(), tmp_path / "net.onnx"))
    assert found.name == "net.onnx"
    assert not found.quantized
    assert [f"{t.name} {t}" for t in (*found.inputs, *found.outputs)] == [
        "image float32[batch, 3, 8, 8]",
        "logits float32[batch, 6]",
    ]
    assert found.opsets == {"ai.onnx": 17}
    assert found.ir_version == 8
    assert found.nodes == 5
    assert found.size.parameters == 16 * 27 + 16 + 6 * 16 + 6
    assert found.kernels is None


def test_outlook_counts_integers_and_what_they_absorb() -> None:
    outlook = onnxq.inspect(toys.classifier(), config=INTEGERS).outlook
    assert outlook is not None
    ops = {o.op: o for o in outlook.ops}
    assert ops["Conv"].integer == ops["Gemm"].integer == 1
    assert ops["Relu"].absorbed == 1
    assert sum(o.left_float for o in outlook.ops) == 0
    assert outlook.integer_bytes == 4 * (16 * 27 + 6 * 16)
    assert outlook.weight_bytes == outlook.integer_bytes + 4 * (16 + 6)


def test_rules_show_in_the_outlook() -> None:
    outlook = onnxq.inspect(toys.classifier(), config=INTEGERS.with_excluded(("fc", "nosuch"))).outlook
    assert outlook is not None
    (group,) = outlook.left
    assert group.nodes == ("fc",)
    assert "rule 'fc'" in group.reason
    assert any("nosuch" in note for note in outlook.notes)


def test_a_model_that_cannot_be_quantized_is_described_all_the_same() -> None:
    found = onnxq.inspect(toys.adder())
    assert found.outlook is None
    assert "nothing to quantize" in (found.refusal or "")


def test_quantized_model_shows_the_kernels_that_run() -> None:
    result = onnxq.quantize(toys.classifier(), {"image": toys.images()}, config=INTEGERS)
    found = onnxq.inspect(result.model)
    assert found.quantized
    assert found.outlook is None
    assert found.kernels is not None
    assert {k.op for k in found.kernels.integer_compute} == {"QLinearConv", "QGemm"}
    assert not found.left_float
    assert json.loads(found.to_json())["kernels"]["counts"]["integer compute"] == {"QGemm": 1, "QLinearConv": 1}
    assert onnxq.inspect(result.model, kernels="never").kernels is None


def test_float_kernels_are_told_with_their_reason() -> None:
    found = onnxq.inspect(toys.classifier(), kernels="always")
    assert {g.op for g in found.left_float} == {"Conv", "Gemm"}
    assert all(g.reason for g in found.left_float)


def test_all_kinds_of_models_are_taken_and_left_as_they_are(tmp_path: Path) -> None:
    proto = toys.classifier()
    before = proto.SerializeToString()
    value = ir.from_proto(proto)
    path = toys.write(proto, tmp_path / "net.onnx")
    found = [onnxq.inspect(m) for m in (proto, value, path, str(path))]
    assert len({f.outlook for f in found}) == 1
    assert proto.SerializeToString() == before


def test_unknown_target() -> None:
    with pytest.raises(ConfigError, match="z80"):
        onnxq.inspect(toys.classifier(), config=onnxq.Config(target="z80"))


# -- node by node -----------------------------------------------------------------------------------------------------


def test_every_node_before_and_after() -> None:
    proto = toys.classifier()
    images = {"image": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)}
    config = INTEGERS.with_excluded(("fc",))
    result = onnxq.quantize(proto, images, config=config)
    table = onnxq.inspect(proto, result.model, data=images).node_table
    assert table is not None
    rows = {row.node: row for row in table.rows}
    assert set(rows) == {"conv", "relu", "pool", "flatten", "fc"}
    assert (rows["conv"].becomes, rows["conv"].after and rows["conv"].after.kernel) == ("integer", "QLinearConv")
    assert rows["relu"].becomes == "absorbed"
    assert rows["relu"].before is None  # within the convolution's kernel
    assert rows["fc"].becomes == "float"
    assert rows["fc"].reason == "kept float by rule 'fc'"  # read back from the file
    shares = [row.before.share for row in table.rows if row.before is not None]
    rest = sum(table.others_before.values()) / table.total_before_us
    assert sum(shares) + rest == pytest.approx(1.0)
    assert table.total_after_us is not None
    assert table.others_after["QuantizeLinear"] > 0


def test_every_node_beside_what_quantizing_would_do() -> None:
    found = onnxq.inspect(toys.classifier(), by_node=True, config=INTEGERS.with_excluded(("conv",)))
    assert found.node_table is not None
    becomes = {row.node: (row.becomes, row.reason) for row in found.node_table.rows}
    assert becomes["conv"] == ("float", "kept float by rule 'conv'")
    assert becomes["fc"] == ("integer", "")
    assert found.node_table.total_after_us is None
    assert "node_table" in found.to_dict()


def test_the_float_model_comes_first() -> None:
    images = {"image": np.zeros((8, 3, 8, 8), np.float32)}
    result = onnxq.quantize(toys.classifier(), images, config=INTEGERS)
    with pytest.raises(onnxq.ModelError, match="quantized already; give the float model first"):
        onnxq.inspect(result.model, toys.classifier())


def test_a_graph_of_too_many_nodes_is_looked_at_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.analysis.running._MOST_TO_RUN", 3)
    monkeypatch.setattr("onnxq.analysis.running.open_session", None)
    outlook = onnxq.inspect(toys.classifier()).outlook
    assert outlook is not None
    assert any("nodes are too many to run for a look" in note for note in outlook.notes)

"""Which weights are stored how: ends of the model, rules."""

from __future__ import annotations

from zoo import Net, prepared, residual

from onnxq.config import Config, Rule
from onnxq.plan.stored import stored_formats


def formats(proto: object, **choices: object) -> dict[str, str]:
    found = stored_formats(prepared(proto), Config(**choices))  # type: ignore[arg-type]
    return {name: str(stored) for name, stored in found.items()}


def test_first_and_last_layers_keep_eight_bits_where_the_others_have_few() -> None:
    proto = residual()
    assert formats(proto, weights="int4") == {"stem": "int8", "conv1": "int4", "conv2": "int4", "fc": "int8"}
    assert formats(proto, weights="int4", first_last="int4") == dict.fromkeys(("stem", "conv1", "conv2", "fc"), "int4")
    assert set(formats(proto, weights="int6").values()) == {"int6"}
    assert set(formats(proto).values()) == {"int8"}


def test_all_that_see_the_input_and_all_that_make_outputs_are_ends() -> None:
    n = Net()
    left, right = n.conv("x", 3, 8, name="left"), n.conv("x", 3, 8, name="right")
    y = n.conv(n("Add", left, right, name="add"), 8, 8, name="middle")
    n.conv(y, 8, 4, name="boxes", out="b")
    n.conv(y, 8, 4, name="scores", out="s")
    proto = n.model({"x": [1, 3, 8, 8]}, {"b": [1, 4, 8, 8], "s": [1, 4, 8, 8]})
    found = formats(proto, weights="int4")
    assert [name for name, stored in found.items() if stored == "int8"] == ["left", "right", "boxes", "scores"]


def test_a_second_input_does_not_make_a_later_layer_the_first() -> None:
    n = Net()
    y = n("Add", n.linear("x", 16, 16, name="a"), "mask", name="masked")
    n.linear(n.linear(y, 16, 16, name="b"), 16, 16, name="c", out="y")
    proto = n.model({"x": ["n", 16], "mask": ["n", 16]}, {"y": ["n", 16]})
    assert formats(proto, weights="int4") == {"a": "int8", "b": "int4", "c": "int8"}


def test_rules_say_it_for_single_layers() -> None:
    rules = (Rule("conv*", weights="codebook3"), Rule("fc", weights="int4:32"))
    found = formats(residual(), weights="int4", rules=rules)
    assert found == {"stem": "int8", "conv1": "codebook3", "conv2": "codebook3", "fc": "int4:32"}

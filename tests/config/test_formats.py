"""Names of weight formats."""

from __future__ import annotations

import pytest

from onnxq.config import PRESETS, Config, Rule, preset
from onnxq.config.formats import WeightFormat, weight_format
from onnxq.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", WeightFormat(8)),
        ("int5", WeightFormat(5)),
        ("int4:64", WeightFormat(4, block=64)),
        ("uint4:32", WeightFormat(4, block=32, offset=True)),
        ("codebook3", WeightFormat(3, codebook=True)),
    ],
)
def test_a_name_and_its_format(text: str, expected: WeightFormat) -> None:
    assert weight_format(text) == expected
    assert str(expected) == text
    assert expected.packed == (text != "int8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int1",
        "int7",
        "int9",
        "float4",
        "int4:",
        "int4:33",
        "codebook5",
        "codebook4:32",
        "int6:32",
        "uint4",
        "uint3:32",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="weight format"):
        weight_format(text)


def test_zero_points_of_weights_need_float_activations() -> None:
    assert Config(weights="uint4:32", activations="none").weights == "uint4:32"
    with pytest.raises(ConfigError, match="zero points"):
        Config(weights="uint4:32")
    with pytest.raises(ConfigError, match="zero points"):
        Config(rules=(Rule("a", weights="uint4:32"),))


def test_presets() -> None:
    assert {name: preset(name).activation_bits for name in PRESETS} == {
        "int8": 8,
        "w4a8": 8,
        "w4": 8,
        "w4a4": 4,
        "w6a6": 6,
    }
    assert [name for name in PRESETS if preset(name).simulated] == ["w4a4", "w6a6"]
    assert preset("int8") == Config()
    with pytest.raises(ConfigError, match="no preset 'w5'; choose one of int8, w4a8"):
        preset("w5")

"""Names of weight formats."""

from __future__ import annotations

import pytest

from onnxq.config import PRESETS, Config, Rule, preset
from onnxq.config.formats import FormatName, format_name
from onnxq.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", FormatName("int", 8)),
        ("int5", FormatName("int", 5)),
        ("int4:64", FormatName("int", 4, 64)),
        ("uint4:32", FormatName("uint", 4, 32)),
        ("codebook3", FormatName("codebook", 3)),
    ],
)
def test_a_name_and_what_it_says(text: str, expected: FormatName) -> None:
    assert format_name(text) == expected
    assert str(expected) == text


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
        "int4:0",
        "int4:032x",
        "codebook5",
        "codebook4:32",
        "int6:32",
        "uint4",
        "uint3:32",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="weight format"):
        format_name(text)


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

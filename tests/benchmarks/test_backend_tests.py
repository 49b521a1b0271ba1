"""A sample of onnx's backend tests: kinds of models that once stopped the run, or that a runtime could easily break."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from backend import forms, models, verdict

BETWEEN_CONVOLUTIONS = (
    *("averagepool_2d_ceil", "averagepool_2d_ceil_last_window_starts_on_pad", "averagepool_2d_dilations"),
    *("averagepool_2d_precomputed_pads_count_include_pad", "maxpool_2d_ceil", "maxpool_2d_dilations"),
    *(
        "maxpool_2d_ceil_output_size_reduce_by_one",
        "lppool_2d_dilations",
        "globalmaxpool",
        "lrn",
        "depthtospace_crd_mode",
    ),
    *("resize_downsample_scales_cubic", "resize_downsample_sizes_cubic", "resize_upsample_scales_cubic"),
    *("resize_downsample_scales_cubic_antialias", "resize_downsample_scales_linear_antialias"),
    *("resize_upsample_scales_nearest_axes_2_3", "resize_upsample_scales_nearest_axes_3_2"),
    *("resize_tf_crop_and_resize_axes_2_3", "resize_tf_crop_and_resize_axes_3_2", "resize_tf_crop_and_resize"),
    *("resize_upsample_sizes_nearest_not_larger", "resize_downsample_sizes_nearest_not_smaller"),
    *("constant_pad", "gridsample", "instancenorm_example", "upsample_nearest"),
)
BETWEEN_PRODUCTS = (
    *("transpose_all_permutations_0", "split_to_sequence_1", "split_to_sequence_2", "split_to_sequence_nokeepdims"),
    *("center_crop_pad_crop_axes_hwc", "constant_pad_axes", "layer_normalization_2d_axis1", "spacetodepth_example"),
    *(
        "attention_4d_softcap_neginf_mask",
        "softmax_axis_1",
        "reduce_max_keepdims_example",
        "argmax_default_axis_example",
    ),
    *("top_k", "where_example", "reshape_negative_dim", "identity", "clip"),
    *("greater_bcast", "gru_defaults", "lstm_defaults"),
)


@pytest.fixture(scope="module")
def known() -> set[str]:
    return set(models.names())


def outcome(name: str, form: str, config: str) -> str:
    case = forms.form(models.load(name), form)
    assert case is not None
    found = verdict.verdict(case, config)
    return f"{found['outcome']}: {found.get('why', '')}".removesuffix(": ")


@pytest.mark.parametrize(
    ("name", "form"),
    [*((n, "cv") for n in BETWEEN_CONVOLUTIONS), *((n, "mm") for n in BETWEEN_PRODUCTS)],
)
def test_what_stands_between_layers_agrees(name, form, known):
    name = f"node/test_{name}"
    if name not in known:
        pytest.skip("not among the tests of this onnx")
    assert outcome(name, form, "int8") in ("quantized, agrees", "passed through")


@pytest.mark.parametrize(
    "name", ["averagepool_2d_dilations", "constant_pad", "resize_upsample_scales_nearest_axes_2_3"]
)
def test_4_bits_agree_between_convolutions(name, known):
    assert outcome(f"node/test_{name}", "cv", "w4") in ("quantized, agrees", "passed through")


@pytest.mark.parametrize(
    ("name", "form", "why"),
    [
        ("node/test_relu", "as it is", "the model has no Conv, Gemm or MatMul with constant weights"),
        ("node/test_conv_with_autopad_same", "as it is", "multiplies two activations"),
        ("node/test_spacetodepth_crd_mode_example", "mm", "no QuantizeLinear"),
        ("node/test_dynamicquantizelinear_min_adjusted", "mm", "already quantized"),
    ],
)
def test_a_refusal_has_its_reason(name, form, why, known):
    if name not in known:
        pytest.skip("not among the tests of this onnx")
    found = outcome(name, form, "int8")
    assert found.startswith("refused")
    assert why in found

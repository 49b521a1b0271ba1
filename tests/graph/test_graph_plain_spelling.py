"""Resize and Pad with an entry for every axis."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import check, make, node, ops, rand

X = (2, 3, 5, 7)


def resized(opset: int = 18, **how: object) -> tuple[list, dict[str, np.ndarray]]:
    """One Resize of ``x`` and its constants; ``roi``, ``scales`` and ``sizes`` are arrays, the rest attributes."""
    arrays = {key: np.asarray(how.pop(key)) for key in ("roi", "scales", "sizes") if key in how}
    arrays = {k: a.astype(np.int64 if k == "sizes" else np.float32) for k, a in arrays.items()}
    inputs = " ".join(key if key in arrays else "-" for key in ("roi", "scales", "sizes")).removesuffix(" -")
    return [node("Resize", f"x {inputs}", "y", **how)], arrays


def only(prepared, op_type: str):
    (found,) = [n for n in prepared.model.graph if n.op_type == op_type]
    return found


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "how",
    [
        {"scales": [2.0, 3.0], "axes": [2, 3]},
        {"scales": [1.5, 0.6], "axes": [-1, -2]},
        {"sizes": [4, 9], "axes": [3, 2]},
        {"sizes": [4], "axes": [3]},
        {"sizes": [10, 14], "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
        {"sizes": [15, 14], "axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"},
    ],
)
def test_resize_has_an_entry_for_every_axis(how, mode):
    nodes, constants = resized(mode=mode, **how)
    prepared = check(make(nodes, {"x": X}, ["y"], constants, opset=18), {"x": rand(*X)})
    found = only(prepared, "Resize")
    assert not {"axes", "keep_aspect_ratio_policy"} & found.attributes.keys()
    assert found.inputs[-1].const_value.shape == [4]
    assert ops(prepared.model) == ["Resize"]


def test_what_axes_a_crop_leaves_out_are_whole():
    how = {"scales": [1.2, 0.7], "axes": [3, 2], "roi": [0.1, 0.2, 0.8, 0.9], "mode": "linear"}
    nodes, constants = resized(coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.5, **how)
    prepared = check(make(nodes, {"x": X}, ["y"], constants, opset=18), {"x": rand(*X)})
    roi = only(prepared, "Resize").inputs[1].const_value.numpy()
    np.testing.assert_allclose(roi, [0, 0, 0.2, 0.1, 1, 1, 0.9, 0.8], rtol=1e-6)


@pytest.mark.parametrize("how", [{"sizes": [4, 9], "axes": [2, 3]}, {"sizes": [10, 14], "axes": [-2, -1]}])
def test_a_common_factor_that_rounds_or_that_the_runtime_overlooks_stays(how):
    nodes, constants = resized(keep_aspect_ratio_policy="not_larger", mode="linear", **how)
    prepared = check(make(nodes, {"x": X}, ["y"], constants, opset=18), {"x": rand(*X)})
    assert "axes" in only(prepared, "Resize").attributes


@pytest.mark.parametrize("mode", ["nearest", "cubic"])
def test_computed_sizes_are_put_in_their_places(mode):
    nodes = [node("Resize", "x - - sizes", "y", axes=[-1, 2], mode=mode)]
    feeds = {"x": rand(*X), "sizes": np.array([9, 4])}
    prepared = check(make(nodes, {"x": X, "sizes": (2,)}, ["y"], opset=18, types={"sizes": 7}), feeds)
    assert "axes" not in only(prepared, "Resize").attributes


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(("roi", "scales"), [([], [1, 1, 2, 2]), ([0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 2, 2])])
def test_an_unread_roi_is_left_out(opset, roi, scales):
    nodes, constants = resized(roi=roi, scales=scales, mode="linear")
    prepared = check(make(nodes, {"x": X}, ["y"], constants, opset=opset), {"x": rand(*X)})
    assert only(prepared, "Resize").inputs[1] is None


def test_empty_scales_beside_sizes_are_left_out():
    nodes, constants = resized(roi=[], scales=[], sizes=[2, 3, 9, 9])
    prepared = check(make(nodes, {"x": X}, ["y"], constants, opset=12), {"x": rand(*X)})
    assert [v is None for v in only(prepared, "Resize").inputs] == [False, True, True, False]


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant", "wrap"])
@pytest.mark.parametrize(
    ("pads", "axes", "full"),
    [
        ([1, 2, 3, 1], [2, 3], [0, 0, 1, 2, 0, 0, 3, 1]),
        ([1, 2, 3, 1], [-1, -2], [0, 0, 2, 1, 0, 0, 1, 3]),
        ([2, 1], [3], [0, 0, 0, 2, 0, 0, 0, 1]),
        ([-1, 0, 0, -2], [3, 1], [0, 0, 0, -1, 0, -2, 0, 0]),
    ],
)
def test_pad_has_an_entry_for_every_axis(pads, axes, full, mode):
    constants = {"pads": np.array(pads), "axes": np.array(axes)}
    proto = make([node("Pad", "x pads - axes", "y", mode=mode)], {"x": X}, ["y"], constants, opset=19)
    found = only(check(proto, {"x": rand(*X)}), "Pad")
    assert len(found.inputs) <= 3
    assert found.inputs[1].const_value.numpy().tolist() == full


def test_computed_pads_and_axes_are_put_in_their_places():
    feeds = {"x": rand(*X), "pads": np.array([1, 2, 1, 0]), "axes": np.array([-1, 2])}
    types = {"pads": 7, "axes": 7}
    for inputs, constants in (("pads axes", {}), ("pads", {"axes": feeds["axes"]}), ("axes", {"pads": feeds["pads"]})):
        shapes = {"x": X, **{name: feeds[name].shape for name in inputs.split()}}
        proto = make([node("Pad", "x pads - axes", "y", mode="edge")], shapes, ["y"], constants, opset=18, types=types)
        prepared = check(proto, {k: v for k, v in feeds.items() if k not in constants})
        assert len(only(prepared, "Pad").inputs) <= 3


def test_dilations_of_one_are_left_out_of_an_average():
    for dilations, kept in (([1, 1], False), ([2, 1], True)):
        pool = node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=dilations)
        prepared = check(make([pool], {"x": X}, ["y"], opset=19), {"x": rand(*X)})
        assert ("dilations" in only(prepared, "AveragePool").attributes) is kept

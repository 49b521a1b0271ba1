"""UpscalerJS's esrgan-medium: photographs made twice as large (a residual dense network).

The npm package holds the network as layers of Keras for the browser; its layers are written as ONNX here (opset 17,
images of any size, NHWC as in the browser). Its pictures go in and out as 0 to 255. A test picture is a square of a
photograph, made half as large by averaging.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from apps.base import Answers, Application, Array, Feed, cache_folder, npm_folder, percent
from apps.photographs import SCENES, squares

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE, FOLDER = "@upscalerjs/esrgan-medium@1.0.0", "models/x2"
OPSET, IR_VERSION = 17, 8
SQUARES = {"calib": 96, "test": 90}
SIDE, SCALE = 96, 2
SHARE = (0.3, 0.7)
SEED = 15
BLOCK = 16


def model_path() -> Path:
    """The network as ONNX; written to the cache at the first call."""
    path = cache_folder() / "esrgan-medium-x2.onnx"
    if not path.exists():
        partial = path.with_suffix(".part")
        onnx.save(converted(npm_folder(PACKAGE) / FOLDER), partial)
        partial.rename(path)
    return path


def weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, Array]:
    """Name -> values, of float32 weights that lie one behind the other in the files of each group."""
    found = {}
    for group in manifest:
        data, start = b"".join((folder / name).read_bytes() for name in group["paths"]), 0
        for entry in group["weights"]:
            count = int(np.prod(entry["shape"]))
            found[entry["name"]] = np.frombuffer(data, np.float32, count, start).reshape(entry["shape"])
            start += 4 * count
    return found


def written(
    layer: dict[str, Any], inputs: list[str], values: dict[str, Array]
) -> tuple[onnx.NodeProto, dict[str, Array]]:
    """The node that a layer is, and the constants that it reads."""
    kind, config, name = layer["class_name"], layer["config"], layer["config"]["name"]
    if kind == "Conv2D":
        kernel, bias = values[f"{name}/kernel"].transpose(3, 2, 0, 1), values[f"{name}/bias"]
        margin = [side // 2 for side in config["kernel_size"]]
        constants = {f"{name}.weight": np.ascontiguousarray(kernel), f"{name}.bias": bias}
        return helper.make_node("Conv", [*inputs, *constants], [name], name=name, pads=margin * 2), constants
    if kind == "UpSampling2D":
        constants = {f"{name}.scales": np.array([1, 1, *config["size"]], np.float32)}
        form = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return helper.make_node("Resize", [inputs[0], "", *constants], [name], name=name, **form), constants
    operators = {"Activation": "Relu", "Concatenate": "Concat", "Add": "Add"}
    form = {"axis": 1} if kind == "Concatenate" else {}
    return helper.make_node(operators[kind], inputs, [name], name=name, **form), {}


def converted(folder: Path) -> onnx.ModelProto:
    """The network in `folder` as ONNX: `image` [batch, rows, columns, 3] to `larger`, float32."""
    described = json.loads((folder / "model.json").read_text())
    values = weights(folder, described["weightsManifest"])
    network = described["modelTopology"]["model_config"]["config"]
    (source, *_), (last, *_) = network["input_layers"][0], network["output_layers"][0]
    nodes, constants = [helper.make_node("Transpose", ["image"], [source], perm=[0, 3, 1, 2])], {}
    for layer in network["layers"]:
        if layer["class_name"] != "InputLayer":
            node, read = written(layer, [entry[0] for entry in layer["inbound_nodes"][0]], values)
            nodes.append(node)
            constants |= read
    nodes.append(helper.make_node("Transpose", [last], ["larger"], perm=[0, 2, 3, 1]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", f"{name}_rows", f"{name}_columns", 3])
        for name in ("image", "larger")
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "esrgan", ends[:1], ends[1:], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(made, full_check=True)
    return made


@lru_cache(maxsize=2)
def pictures(half: str) -> tuple[list[Feed], list[Array]]:
    """(feeds, what they were made of) of a half."""
    feeds, originals = [], []
    for pixels in squares(SCENES, half, SQUARES[half], SIDE * SCALE, share=SHARE, seed=SEED):
        small = pixels.reshape(SIDE, SCALE, SIDE, SCALE, 3).mean((1, 3))
        feeds.append({"image": np.rint(small)[None].astype(np.float32)})
        originals.append(pixels)
    return feeds, originals


def predict(session: InferenceSession) -> Answers:
    """The larger pictures: [N, rows, columns, 3] uint8."""
    made = np.concatenate([session.run(None, feed)[0] for feed in pictures("test")[0]])
    return {"pictures": np.clip(np.rint(made), 0, 255).astype(np.uint8)}


def psnr(wanted: Array, got: Array) -> float:
    """Peak signal-to-noise ratio of all pixels together, in dB."""
    noise = float(np.mean((wanted.astype(np.float64) - got) ** 2))
    return round(float(10 * np.log10(255**2 / noise)), 2) if noise else 99.0


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Root of the mean square error against the float model's pictures in percent of the scale, over all and worst."""
    wanted, got = reference["pictures"], answers["pictures"]
    truth = np.stack(pictures("test")[1])
    square = (wanted.astype(np.float64) - got) ** 2
    count, rows, columns, _ = square.shape
    blocks = square.reshape(count, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK, 3).mean((2, 4, 5))
    return {
        "loss": percent(float(np.sqrt(square.mean()) / 255)),
        "worst_block": percent(float(np.sqrt(blocks.max()) / 255)),
        "worst_pixel": float(np.sqrt(square.max())),
        "psnr": psnr(wanted, got),
        "psnr_to_original": psnr(truth, got),
        "psnr_to_original_float": psnr(truth, wanted),
    }


APPLICATIONS = (
    Application(
        name="super_resolution",
        title="ESRGAN of UpscalerJS, photographs twice as large",
        model_path=model_path,
        calibration=lambda: pictures("calib")[0],
        predict=predict,
        compare=compare,
        latency_feed=lambda: pictures("test")[0][0],
    ),
)

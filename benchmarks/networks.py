"""Known network shapes as ONNX files, built from transformers configurations (one: by hand) with random weights.

No weights are downloaded, so these files answer questions about speed, size and numerical noise, never about accuracy
on a task. `python benchmarks/networks.py [NAME ...]` builds all of them (or those named) into the cache and prints a
table; to have one built anew, delete its file.

Every file is one `.onnx` of opset 17 and IR version 8 with a dynamic batch axis, written by torch's TorchScript
exporter, which folds BatchNormalization into the convolution before it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

OPSET = 17
CACHE_VARIABLE = "ONNXQ_BENCHMARKS_CACHE"
IMAGE_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
IMAGE_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]
VOCABULARY = 30522
TOKENS = 128
LAYER_SCALE = (
    0.3  # ConvNeXt starts training at 1e-6, where its branches do not matter; trained values are about this size
)
VECTOR_NOISE = 0.05
STATISTICS_BATCHES = 4
STATISTICS_BATCH = 8


@dataclass(frozen=True)
class Network:
    """One network: the transformers classes, the configuration's arguments and what goes in and comes out.

    Without a `config`, `model` is a class of the module `mobilenet_v3`, and the arguments are its own.
    """

    title: str
    config: str
    model: str
    arguments: dict[str, Any]
    output: str = "logits"
    image: int = 224  # side in pixels; 0: token ids


NETWORKS: dict[str, Network] = {
    "resnet50": Network("ResNet-50", "ResNetConfig", "ResNetForImageClassification", {"num_labels": 1000}),
    "mobilenet_v2": Network(
        "MobileNetV2", "MobileNetV2Config", "MobileNetV2ForImageClassification", {"num_labels": 1000}
    ),
    "efficientnet_b0": Network(
        "EfficientNet-B0",
        "EfficientNetConfig",
        "EfficientNetForImageClassification",
        {"num_labels": 1000, "image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    "regnet_y_040": Network(  # the configuration's defaults are facebook/regnet-y-040
        "RegNet-Y 4GF", "RegNetConfig", "RegNetForImageClassification", {"num_labels": 1000}
    ),
    "vit_s16": Network(
        "ViT-S/16",
        "ViTConfig",
        "ViTForImageClassification",
        {"num_labels": 1000, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    ),
    "convnext_t": Network(
        "ConvNeXt-T",
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"num_labels": 1000, "layer_scale_init_value": LAYER_SCALE},
    ),
    "swin_t": Network("Swin-T", "SwinConfig", "SwinForImageClassification", {"num_labels": 1000}),
    "mobilevit_s": Network("MobileViT-S", "MobileViTConfig", "MobileViTForImageClassification", {"num_labels": 1000}),
    "segformer_b0": Network(  # ADE20K's 150 classes; 256 pixels rather than its usual 512 keep one run under a second
        "SegFormer-B0", "SegformerConfig", "SegformerForSemanticSegmentation", {"num_labels": 150}, image=256
    ),
    "yolos_tiny": Network(  # COCO's 91 classes; 256 pixels rather than its usual 800 x 1333
        "YOLOS-tiny",
        "YolosConfig",
        "YolosForObjectDetection",
        {
            "num_labels": 91,
            "hidden_size": 192,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "image_size": [256, 256],
        },
        image=256,
    ),
    "bert_6": Network(
        "BERT, 6 layers",
        "BertConfig",
        "BertModel",
        {
            "num_hidden_layers": 6,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": VOCABULARY,
        },
        output="last_hidden_state",
        image=0,
    ),
    "mobilenet_v3": Network("MobileNetV3-L", "", "MobileNetV3", {"num_labels": 1000}),
}
# Means are over these, whatever comes to the others.
ELEVEN = tuple(NETWORKS)[:11]


def cache_folder() -> Path:
    """The folder built networks are kept in: $ONNXQ_BENCHMARKS_CACHE, else ~/.cache/onnxq-benchmarks."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "onnxq-benchmarks")


def images(n: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Structured random images, normalised as ImageNet's are: [n, 3, side, side] float32.

    Noise at octaves from the whole image down to the pixel (weights falling at random rates, as in photographs), two
    flat rectangles (edges), mapped to 0..1 with a random brightness and contrast.
    """
    out = np.empty((n, 3, side, side), dtype=np.float32)
    for sample in out:
        sample[:] = 0
        slope = rng.uniform(0.5, 1.0)
        for octave in range(1, int(np.log2(side)) + 1):
            sample += slope**octave * _enlarge(rng.standard_normal((3, 2**octave, 2**octave)), side)
        for _ in range(2):
            top, left = rng.integers(0, side // 2, 2)
            height, width = rng.integers(side // 8, side // 2, 2)
            sample[:, top : top + height, left : left + width] = rng.normal(0, 1, (3, 1, 1))
        sample -= sample.mean()
        sample *= rng.uniform(0.1, 0.3) / sample.std()
        sample += rng.uniform(0.3, 0.7)
    return (np.clip(out, 0, 1) - IMAGE_MEAN) / IMAGE_STD


def _enlarge(small: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement of `small: [C, s, s]` to [C, side, side] float32."""
    s = small.shape[-1]
    at = np.clip((np.arange(side) + 0.5) * s / side - 0.5, 0, s - 1)
    low = np.minimum(at.astype(int), s - 2)
    weights = np.zeros((side, s), dtype=np.float32)
    weights[np.arange(side), low] = 1 - (at - low)
    weights[np.arange(side), low + 1] = at - low
    return weights @ small.astype(np.float32) @ weights.T


def sentences(n: int, rng: np.random.Generator) -> np.ndarray:
    """Random token ids with a Zipf-like frequency and some repetition, as text has: [n, TOKENS] int64."""
    ids = 999 + rng.zipf(1.3, (n, TOKENS)) % (VOCABULARY - 999)
    repeat = rng.random((n, TOKENS)) < 0.2
    shifted = np.roll(ids, 3, axis=1)
    ids = np.where(repeat, shifted, ids)
    ids[:, 0], ids[:, -1] = 101, 102  # [CLS] and [SEP]
    return ids.astype(np.int64)


def inputs(name: str, n: int, seed: int) -> dict[str, np.ndarray]:
    """Structured random inputs of network `name`, first axis samples: pixel_values, or input_ids and attention_mask."""
    rng = np.random.default_rng([seed, list(NETWORKS).index(name)])
    network = NETWORKS[name]
    if network.image:
        return {"pixel_values": images(n, network.image, rng)}
    lengths = rng.integers(TOKENS // 2, TOKENS + 1, (n, 1))
    mask = (np.arange(TOKENS) < lengths).astype(np.int64)
    return {"input_ids": sentences(n, rng) * mask, "attention_mask": mask}


def build(name: str, folder: str | Path | None = None) -> Path:
    """The path of network `name` as ONNX in `folder` (default: the cache folder), exported unless it is there."""
    folder = Path(folder) if folder is not None else cache_folder()
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _export(name, partial)
        partial.replace(path)
    return path


def _export(name: str, path: Path) -> None:
    """Write network `name` to `path`."""
    import torch

    network = NETWORKS[name]
    model = _model(network)
    arrays = {key: torch.from_numpy(value) for key, value in inputs(name, STATISTICS_BATCH, seed=0).items()}
    _set_batch_statistics(model, name)
    names = list(arrays)

    class Positional(torch.nn.Module):
        """`model` taking tensors by position and giving the one output that is wanted."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.model(**dict(zip(names, tensors, strict=True)))[network.output]
            return output

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracer warnings: every shape but the batch is fixed on purpose
        torch.onnx.export(
            Positional().eval(),
            tuple(value[:2] for value in arrays.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=[network.output],
            dynamic_axes={key: {0: "batch"} for key in [*names, network.output]},
        )


def _model(network: Network) -> torch.nn.Module:
    """The torch module of `network` with random weights (seed 0), in evaluation mode.

    They are those of its own initialisation, except where that is unlike any trained network:
    - in networks that hold a BatchNormalization, all convolutions are drawn by He's rule: with a standard deviation of
      0.02, signals sink below the normalisation's epsilon (EfficientNet's output would be 0);
    - vectors (biases, scales of normalisations) are moved off 0 and 1, because the exporter stores equal vectors once
      and would write a chain of Identity nodes that no trained network has. The classifier's bias stays 0: random, it
      would outweigh what the image says.
    """
    import mobilenet_v3
    import torch
    import transformers

    torch.manual_seed(0)
    model: torch.nn.Module
    if network.config:
        config = getattr(transformers, network.config)(**network.arguments, attn_implementation="eager")
        model = getattr(transformers, network.model)(config)
    else:
        model = getattr(mobilenet_v3, network.model)(**network.arguments)
    normalised = any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    for module in model.modules():
        if normalised and isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.inference_mode():
        for name, vector in model.named_parameters():
            if vector.ndim == 1 and "classifier" not in name:
                vector.add_(torch.randn_like(vector), alpha=VECTOR_NOISE)
    return model.eval()


def _set_batch_statistics(model: torch.nn.Module, name: str) -> None:
    """Set BatchNormalization's running statistics to the mean over a few batches; without them outputs vanish."""
    import torch

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.inference_mode():
        for batch in range(STATISTICS_BATCHES):
            arrays = inputs(name, STATISTICS_BATCH, seed=1 + batch)
            model(**{key: torch.from_numpy(value) for key, value in arrays.items()})
    model.eval()


def parameters(path: Path) -> int:
    """How many numbers the initialisers and Constant nodes of the model at `path` hold, float ones only."""
    import onnx

    graph = onnx.load(path).graph
    tensors = list(graph.initializer)
    tensors += [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)


def main(report: Callable[[str], None] = print) -> None:
    """Build every network (or those named on the command line) and print name, size and parameters."""
    report("| network | file | MB | million parameters |\n|---|---|---|---|")
    for name in sys.argv[1:] or NETWORKS:
        path = build(name)
        title, size, count = NETWORKS[name].title, path.stat().st_size / 1e6, parameters(path) / 1e6
        report(f"| {title} | {path.name} | {size:.1f} | {count:.2f} |")


if __name__ == "__main__":
    main()

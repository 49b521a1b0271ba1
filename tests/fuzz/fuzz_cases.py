"""Cases by kind and number: what lies in the folder, and the command that meets it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import fuzz_mutators as spoil
import numpy as np
from fuzz_seeds import SEEDS, samples

QUICK = ("--latency", "0", "-o", "out.onnx", "--quiet")
CHOICES = (
    (),
    (),
    (),
    ("--placement", "all"),
    ("--placement", "all"),
    ("--preset", "w4"),
    ("--preset", "w4a8", "--placement", "all"),
    ("--target", "arm64"),
    ("--equalize", "all", "--placement", "all"),
    ("--activations", "none"),
    ("--guard-sqnr", "60", "--placement", "all"),
)


def _place(folder: Path, rng: random.Random) -> tuple[str, np.random.Generator]:
    """A good model and good data in ``folder``; the name of the seed."""
    name = rng.choice(sorted(SEEDS))
    proto = SEEDS[name]()
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    numbers = np.random.default_rng(rng.randrange(2**32))
    np.savez(folder / "data.npz", **samples(proto, 8, numbers))
    return name, numbers


def _command(rng: random.Random, *more: str) -> list[str]:
    """A command that takes ``model.onnx``, in most cases quantize with data."""
    chance = rng.random()
    if chance < 0.1:
        return ["inspect", "model.onnx"]
    if chance < 0.15:
        return ["evaluate", "model.onnx", "model.onnx", "-d", "data.npz"]
    if chance < 0.2:
        return ["run", "model.onnx", "-d", "data.npz", "-o", "out.npz"]
    data = ("-c", "data.npz") if chance < 0.8 else ()
    return ["quantize", "model.onnx", *data, *QUICK, *rng.choice(CHOICES), *more]


def structure(folder: Path, rng: random.Random) -> list[str]:
    """A model with faults of structure, and data of the shapes that it declares."""
    proto = SEEDS[rng.choice(sorted(SEEDS))]()
    proto = spoil.mutated(proto, rng)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    arrays = samples(proto, 8, np.random.default_rng(rng.randrange(2**32)))
    _save(folder / "data.npz", arrays)
    return _command(rng)


def model_bytes(folder: Path, rng: random.Random) -> list[str]:
    """A model file with spoiled bytes."""
    _place(folder, rng)
    path = folder / "model.onnx"
    path.write_bytes(spoil.mutated_bytes(path.read_bytes(), rng))
    return _command(rng)


def arrays(folder: Path, rng: random.Random) -> list[str]:
    """An archive with other arrays, or with spoiled headers or bytes."""
    name, numbers = _place(folder, rng)
    good = samples(SEEDS[name](), 8, numbers)
    content = spoil.npz(spoil.mutated_arrays(good, rng), rng)
    if rng.random() < 0.3:
        content = spoil.mutated_bytes(content, rng)
    (folder / "data.npz").write_bytes(content)
    return ["quantize", "model.onnx", "-c", "data.npz", *QUICK]


CONFIG = """
weights = "int8"
activations = "uint8"
weight_range = "mse"
activation_range = "percentile:99.9"
granularity = "channel"
placement = "all"
equalize = "auto"
exclude = ["n_c0", "Gemm"]
min_agreement = 0.9
guard_sqnr = 10.0
samples = 64
held_out = 0.25
seed = 1
threads = [1]
target = "x86-vnni"
rounding = "auto"
restore = "mean+gain"

[[rules]]
match = "n_*"
weights = "int4"

[[rules]]
op = "Conv"
exclude = true
"""


def config(folder: Path, rng: random.Random) -> list[str]:
    """A configuration file with spoiled values."""
    _place(folder, rng)
    text = CONFIG
    if rng.random() < 0.7:  # one or two of the lines, so that most of the rest is right
        lines = CONFIG.split("\n\n")[0].strip().splitlines()
        text = "\n".join(rng.sample(lines, rng.choice((1, 2, 3))))
    (folder / "c.toml").write_bytes(spoil.mutated_text(text, rng))
    return ["quantize", "model.onnx", "-c", "data.npz", *QUICK, "--config", "c.toml"]


PREPROCESSOR = {
    "crop_size": {"height": 8, "width": 8},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 9},
    "crop_pct": 0.875,
    "image_processor_type": "ViTImageProcessor",
}


def preprocessor(folder: Path, rng: random.Random) -> list[str]:
    """A folder of images and a preprocessor_config.json with spoiled values."""
    from PIL import Image

    _image_model(folder)
    (folder / "photos").mkdir()
    numbers = np.random.default_rng(rng.randrange(2**32))
    for i in range(4):
        pixels = numbers.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    if rng.random() < 0.1:
        path = folder / "photos" / "0.png"
        path.write_bytes(spoil.mutated_bytes(path.read_bytes(), rng))
    keys = rng.sample(sorted(PREPROCESSOR), rng.randrange(3, len(PREPROCESSOR) + 1))
    text = json.dumps({key: PREPROCESSOR[key] for key in keys}, indent=1)
    (folder / "preprocessor_config.json").write_bytes(spoil.mutated_text(text, rng))
    return ["quantize", "model.onnx", "-c", "photos", *QUICK]


def _image_model(folder: Path) -> None:
    from fuzz_seeds import graph, model, node, weights

    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "y")]
    proto = model(graph(nodes, {"x": ("n", 3, 8, 8)}, ["y"], {"w": weights(4, 3, 3, 3)}))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())


def texts(folder: Path, rng: random.Random) -> list[str]:
    """Lines of JSON and a tokenizer, one of which is spoiled."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    proto = SEEDS["recurrent"]()
    proto.graph.input[0].name = "input_ids"
    proto.graph.node[0].input[1] = "input_ids"
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "s"
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    lines = "\n".join(
        json.dumps({"text": " ".join(rng.choices("abcdefghij", k=rng.randrange(1, 9)))}) for _ in range(8)
    )
    description = tokenizer.to_str()
    spoiled = rng.random() < 0.5
    (folder / "lines.jsonl").write_bytes(spoil.mutated_text(lines, rng) if spoiled else lines.encode())
    (folder / "tokenizer.json").write_bytes(description.encode() if spoiled else spoil.mutated_text(description, rng))
    return ["quantize", "model.onnx", "-c", "lines.jsonl", *QUICK]


OPTIONS = (
    *("--samples", "--held-out", "--seed", "--batch-size", "--min-agreement", "--guard-sqnr", "--min-sqnr"),
    *("--weights", "--activations", "--range", "--preset", "--target", "--equalize", "--rounding", "--restore"),
    *("--exclude", "--first-last", "--objective", "--size-budget", "--placement", "--dim", "--accuracy-level"),
)
VALUES = (
    *("-1", "0", "1", "0.5", "nan", "inf", "1e999", "99999999999999999999", "", "x", "int4:32", "int4:0", "int99"),
    *("mse", "percentile:nan", "percentile:50", "weights=", "auto", "n=4", "n=-1", "n=", "*", "[", "w4", "y" * 5000),
)


def options(folder: Path, rng: random.Random) -> list[str]:
    """Options with values of other options."""
    _place(folder, rng)
    more = [part for _ in range(rng.choice((1, 2))) for part in (rng.choice(OPTIONS), rng.choice(VALUES))]
    return ["quantize", "model.onnx", "-c", "data.npz", *QUICK, *more]


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(spoil.npz(arrays, random.Random(0)) if "file" in arrays else _plain(arrays))


def _plain(arrays: dict[str, np.ndarray]) -> bytes:
    import io

    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


Case = Callable[[Path, random.Random], list[str]]
CASES: dict[str, Case] = {f.__name__: f for f in (structure, model_bytes, arrays, config, preprocessor, texts, options)}


def make(kind: str, number: int, folder: Path) -> list[str]:
    """The arguments of case ``number`` of ``kind``, whose files are written to ``folder``."""
    return CASES[kind](folder, random.Random(f"{kind} {number}"))

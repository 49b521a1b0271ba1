"""Train, export and evaluate one of the five vision networks.

    python models/vision/train.py resnet                # train, export, evaluate
    python models/vision/train.py resnet --resume       # go on from the last checkpoint
    python models/vision/train.py resnet --export-only  # export and evaluate the last checkpoint again

Training pictures are rendered on the fly from the training fonts, so no picture is seen twice. The last step writes
`models/<name>.onnx`, compares it with PyTorch, measures its top-1 accuracy in onnxruntime on `glyphs_test.npz` and
records the figures in `models/vision/results.json`. The test pictures play no part in training or in choosing a
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from networks import NETWORKS
from torch import nn

MODELS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(MODELS / "data"))

from make_glyphs import ALPHABET, GlyphRenderer, load_split  # noqa: E402

RESULTS = MODELS / "vision" / "results.json"
WARM_UP = 0.2


@dataclass(frozen=True)
class Recipe:
    """How one network is trained and exported.

    `bf16` trains under bfloat16 autocast, where that is faster. The exporters, opsets and `keep_bn` differ from
    network to network on purpose: the quantizer has to read all of these dialects. `stem_of` names the network
    whose trained first layers become the fixed stem, `teacher` one whose predictions are learnt along with the
    labels; they must have been trained on this machine before.
    """

    lr: float
    steps: int
    bf16: bool
    dynamo: bool
    opset: int
    keep_bn: bool = False
    batch: int = 128
    stem_of: str | None = None
    teacher: str | None = None


RECIPES = {
    "resnet": Recipe(lr=4e-3, steps=2400, bf16=True, dynamo=False, opset=13, keep_bn=True),
    "mobilenet_v2": Recipe(lr=5e-3, steps=1700, bf16=False, dynamo=False, opset=12),
    "efficientnet": Recipe(lr=5e-3, steps=1600, bf16=False, dynamo=True, opset=18, keep_bn=True),
    "vit": Recipe(lr=1.5e-3, steps=2800, bf16=True, dynamo=True, opset=20, batch=64, stem_of="resnet"),
    "convnext": Recipe(lr=2.5e-3, steps=2400, bf16=True, dynamo=False, opset=17, batch=64, teacher="resnet"),
}


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only; not for biases, norms, layer scales and position embeddings."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and "position" not in name]
    others = [p for name, p in trained if p.ndim <= 1 or "position" in name]
    return [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def one_cycle(progress: float) -> float:
    """Fraction of the peak learning rate: a linear rise, then half a cosine down to nearly nothing."""
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 1e-3 + 0.5 * (1 + np.cos(np.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def checkpoint_path(name: str) -> Path:
    """Where the weights of network `name` are kept between training and export."""
    return Path(tempfile.gettempdir()) / f"onnxq-{name}.pt"


def freeze_stem(model: nn.Module, source: str) -> None:
    """Copy the first layers of the trained network `source` into `model.stem` and keep them as they are."""
    weights = torch.load(checkpoint_path(source))["weights"]
    model.stem.load_state_dict({key: weights[key] for key in model.stem.state_dict()})
    model.stem.requires_grad_(False).eval()


def load_trained(name: str) -> nn.Module:
    """Network `name` with the weights of its checkpoint, ready for inference."""
    model = NETWORKS[name](len(ALPHABET))
    model.load_state_dict(torch.load(checkpoint_path(name))["weights"])
    return model.eval()


def train(name: str, seed: int, minutes: float, resume: bool) -> None:
    """Train network `name` and leave its weights in its checkpoint, which is also refreshed on the way.

    Training ends after the recipe's number of steps or after `minutes`, whichever comes first; the learning rate
    follows whichever of the two is nearer to its end. A resumed training counts its steps and minutes anew, starts
    halfway down the slope of the learning rate and sees pictures not seen before.
    """
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    model = NETWORKS[name](len(ALPHABET)).to(memory_format=torch.channels_last).train()
    earlier = {"steps": 0, "seconds": 0.0}
    if resume:
        earlier = torch.load(checkpoint_path(name))
        model.load_state_dict(earlier["weights"])
    renderer = GlyphRenderer(load_split()[0][1], seed + 1000 + earlier["steps"])
    if recipe.stem_of:
        freeze_stem(model, recipe.stem_of)
    teacher = load_trained(recipe.teacher).to(memory_format=torch.channels_last) if recipe.teacher else None
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=recipe.lr)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    start = time.time()
    begin = (1 + WARM_UP) / 2 if resume else 0.0
    step, progress, hits, seen = 0, begin, 0, 0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * one_cycle(progress)
        image, labels = renderer.batch(recipe.batch)
        pixels = image.float().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            logits = model(pixels).float()
        loss = criterion(logits, labels)
        if teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                targets = teacher(pixels).float().softmax(1)
            loss = 0.3 * loss + 0.7 * nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        step += 1
        hits, seen = hits + int((logits.argmax(1) == labels).sum()), seen + len(labels)
        seconds = time.time() - start
        progress = begin + (1 - begin) * max(step / recipe.steps, seconds / (60 * minutes))
        if step % 100 == 0 or progress >= 1:
            print(f"{name} step {step} {seconds:.0f} s: accuracy {hits / seen:.4f}, loss {loss.item():.3f}", flush=True)
            hits, seen = 0, 0
            total = {"steps": earlier["steps"] + step, "seconds": earlier["seconds"] + seconds}
            torch.save({"weights": model.state_dict(), **total}, checkpoint_path(name))


def export(model: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write one self-contained ONNX file with a dynamic batch size and an IR version that runtimes accept."""
    example = torch.rand(2, 3, 32, 32) * 255
    names = {"input_names": ["image"], "output_names": ["logits"], "opset_version": recipe.opset}
    if recipe.dynamo:
        batch = {0: torch.export.Dim("batch")}
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=(batch,), optimize=not recipe.keep_bn, **names
        )
        if recipe.keep_bn:  # `optimize=True` would fold the normalisation too; older exporters only did this much
            onnxscript.optimizer.fold_constants(program.model)
            onnxscript.optimizer.remove_unused_nodes(program.model)
        proto = program.model_proto
        for entry in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
            del entry.metadata_props[:]  # stack traces, which name the paths of this machine
    else:
        mode = torch.onnx.TrainingMode.PRESERVE if recipe.keep_bn else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            training=mode,
            do_constant_folding=not recipe.keep_bn,
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            **names,
        )
        proto = onnx.load(path)
    proto.ir_version = min(proto.ir_version, 8 if recipe.opset <= 17 else 9)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def session_for(path: Path) -> onnxruntime.InferenceSession:
    """A single-threaded CPU session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def largest_difference(model: nn.Module, session: onnxruntime.InferenceSession) -> float:
    """Largest absolute difference of the logits of PyTorch and of the exported file, at batch sizes 1 and 7."""
    worst = 0.0
    for n in (1, 7):
        image = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(n)).float()
        with torch.no_grad():
            expected = model(image).numpy()
        (actual,) = session.run(["logits"], {"image": image.numpy()})
        worst = max(worst, float(np.abs(actual - expected).max()))
    return worst


def top1(session: onnxruntime.InferenceSession) -> tuple[float, int]:
    """Top-1 accuracy on the test pictures, and their number."""
    with np.load(MODELS / "data" / "glyphs_test.npz") as data:
        image, labels = data["image"].astype(np.float32), data["labels"]
    parts = [session.run(["logits"], {"image": image[i : i + 256]})[0] for i in range(0, len(image), 256)]
    return float((np.concatenate(parts).argmax(1) == labels).mean()), len(labels)


def finish(name: str) -> None:
    """Export the checkpoint, check and evaluate the file, and record the figures."""
    recipe = RECIPES[name]
    state = torch.load(checkpoint_path(name))
    model = load_trained(name)
    path = MODELS / f"{name}.onnx"
    export(model, recipe, path)
    session = session_for(path)
    accuracy, n_test = top1(session)
    proto = onnx.load(path)
    bn_nodes = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    has_bn = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {
        "top1": round(accuracy, 4),
        "n_test": n_test,
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": path.stat().st_size,
        "opset": proto.opset_import[0].version,
        "ir_version": proto.ir_version,
        "exporter": "dynamo" if recipe.dynamo else "torchscript",
        "batch_norm": ("kept" if bn_nodes else "folded") if has_bn else "none",
        "batch_norm_nodes": bn_nodes,
        "max_abs_difference": float(f"{largest_difference(model, session):.2g}"),
        "training_steps": state["steps"],
        "training_seconds": round(state["seconds"]),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(name, json.dumps(results[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and evaluate one vision network.")
    parser.add_argument("name", choices=sorted(NETWORKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="end training after this long at latest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="start from the last checkpoint")
    parser.add_argument("--export-only", action="store_true", help="use the last checkpoint instead of training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.export_only:
        train(args.name, args.seed, args.minutes, args.resume)
    finish(args.name)


if __name__ == "__main__":
    main()

"""Train, export and measure `keyword_spotter` and `recurrent`.

The two files differ on purpose in what an exporter leaves behind: the spotter keeps its BatchNormalization nodes (opset
13), the recurrent network holds real LSTM nodes with dynamic initial states (opset 17).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from networks import KeywordSpotter, Recurrent
from torch import Tensor, nn

MODELS = Path(__file__).resolve().parents[1]
DATA = MODELS / "data"
RESULTS = Path(__file__).resolve().parent / "results.json"
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "onnxq-models"
SEED = 11
IR_VERSION = 9
BATCH = 64
VALID = 1024
EVAL_EVERY = 250
NETWORKS = {"keyword_spotter": KeywordSpotter, "recurrent": Recurrent}
OPSET = {"keyword_spotter": 13, "recurrent": 17}
STEPS = {"keyword_spotter": 1600, "recurrent": 2200}
PEAK_LR = {"keyword_spotter": 6e-3, "recurrent": 3e-3}


def augment(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each picture in time by up to 3 frames and blank one band of mels and one stretch of frames."""
    batch, frames, mels = codes.shape
    shift = torch.randint(-3, 4, (batch, 1), generator=generator)
    index = (torch.arange(frames) + shift) % frames
    codes = torch.gather(codes, 1, index.unsqueeze(2).expand(-1, -1, mels))
    for axis, size, widest in ((1, frames, 8), (2, mels, 7)):
        width = torch.randint(0, widest + 1, (batch, 1), generator=generator)
        start = (torch.rand(batch, 1, generator=generator) * (size - width)).long()
        position = torch.arange(size)
        blank = (position >= start) & (position < start + width)
        codes = codes.masked_fill(blank.unsqueeze(2 if axis == 1 else 1), 115.0)
    return codes


@torch.no_grad()
def top1(model: nn.Module, codes: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips a torch model gets right, in percent."""
    model.eval()
    hits = 0
    for at in range(0, len(codes), 256):
        logits = model(torch.from_numpy(codes[at : at + 256]).float())
        hits += int((logits.argmax(1).numpy() == labels[at : at + 256]).sum())
    model.train()
    return 100.0 * hits / len(codes)


def train(name: str, model: nn.Module, cache: Path, steps: int) -> None:
    """AdamW with a one-cycle schedule; leaves the state best on VALID training-voice clips in the cache."""
    with np.load(cache / "speech_train.npz") as archive:
        order = np.random.default_rng(SEED).permutation(len(archive["labels"]))
        codes, labels = archive["features"][order], archive["labels"][order]
    valid_x, valid_y, codes, labels = codes[:VALID], labels[:VALID], codes[VALID:], labels[VALID:]
    generator = torch.Generator().manual_seed(SEED)
    if name == "keyword_spotter":
        model.to(memory_format=torch.channels_last)  # convolutions on a CPU: a third faster than NCHW or bfloat16
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LR[name], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR[name], total_steps=steps, pct_start=0.12, cycle_momentum=False, final_div_factor=1000
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    best, smooth, start = -1.0, 3.5, time.process_time()
    queue = torch.empty(0, dtype=torch.int64)
    for index in range(steps):
        if len(queue) < BATCH:
            queue = torch.randperm(len(codes), generator=generator)
        rows, queue = queue[:BATCH].numpy(), queue[BATCH:]
        x = augment(torch.from_numpy(codes[rows]).float(), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "recurrent"):
            logits = model(x)
        loss = criterion(logits.float(), torch.from_numpy(labels[rows]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        smooth += 0.02 * (loss.item() - smooth)
        if index + 1 == steps or (index + 1) % EVAL_EVERY == 0:
            score = top1(model, valid_x, valid_y)
            seconds = time.process_time() - start
            print(f"{name} step {index + 1} {seconds:.0f} s loss {smooth:.3f} valid {score:.2f} %", flush=True)
            if score >= best:
                best = score
                torch.save({"model": model.state_dict(), "seconds": seconds}, cache / f"{name}.pt")


def export(name: str, model: nn.Module, path: Path) -> None:
    """Write the ONNX file with the TorchScript-based exporter, batch dynamic.

    The recurrent network's one BatchNorm is folded into its convolution, the spotter's are all kept.
    """
    fold = name == "recurrent"
    torch.onnx.export(
        model,
        (torch.zeros(2, 49, 40),),
        path,
        dynamo=False,
        opset_version=OPSET[name],
        input_names=["features"],
        output_names=["logits"],
        dynamic_axes={"features": {0: "batch"}, "logits": {0: "batch"}},
        training=torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=fold,
    )
    proto = onnx.load(path)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    for node in proto.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def measure(name: str, model: nn.Module, path: Path, seconds: float) -> dict[str, object]:
    """Compare the file with torch and measure it on the test clips in onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(DATA / "speech_test.npz") as archive:
        codes, labels = archive["features"], archive["labels"]
    difference = 0.0
    for batch in (1, 5):
        x = codes[:batch].astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        difference = max(difference, float(np.abs(session.run(None, {"features": x})[0] - expected).max()))
    hits = 0
    for at in range(0, len(codes), 250):
        logits = session.run(None, {"features": codes[at : at + 250].astype(np.float32)})[0]
        hits += int((logits.argmax(1) == labels[at : at + 250]).sum())
    proto = onnx.load(path)
    norms = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    return {
        "metric": "top1",
        "top1": round(100.0 * hits / len(codes), 2),
        "n_test": len(codes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": path.stat().st_size,
        "opset": next(o.version for o in proto.opset_import if o.domain == ""),
        "ir_version": proto.ir_version,
        "exporter": "dynamo=False",
        "batch_norm": f"{norms} BatchNormalization nodes, not folded" if norms else "folded into the convolution",
        "input": {"name": "features", "type": "float32", "shape": ["batch", 49, 40]},
        "train_cpu_seconds": round(seconds),
        "max_abs_diff_torch": float(f"{difference:.3g}"),
    }


def main() -> None:
    """Train the named network unless told to reuse its checkpoint, then export and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(NETWORKS))
    parser.add_argument("--steps", type=int, help="training steps (default: per network)")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of speech_train.npz and checkpoints")
    parser.add_argument("--export-only", action="store_true", help="export the cached checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = NETWORKS[args.name]()
    if not args.export_only:
        train(args.name, model, args.cache, args.steps or STEPS[args.name])
    state = torch.load(args.cache / f"{args.name}.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.eval()
    path = MODELS / f"{args.name}.onnx"
    export(args.name, model, path)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[args.name] = measure(args.name, model, path, float(state["seconds"]))
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    print(json.dumps(results[args.name], indent=2))


if __name__ == "__main__":
    main()

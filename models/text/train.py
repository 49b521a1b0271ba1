"""Train, export and measure `gpt_bytes`, a byte-level GPT.

The attention is written out (MatMul, masked_fill, Softmax, MatMul) rather than left to the fused kernel, so that the
exported graph holds the mask in front of the Softmax: a tensor with values near -3.4e38 that a quantizer must not take
for an activation range. The head shares its weight with the token embedding, which a quantizer must not quantize in
one place and forget in the other.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

MODELS = Path(__file__).resolve().parents[1]
DATA = MODELS / "data"
ONNX_FILE = MODELS / "gpt_bytes.onnx"
RESULTS = Path(__file__).resolve().parent / "results.json"
DEFAULT_CACHE = Path(tempfile.gettempdir()) / "onnxq-models"
SEED = 7
OPSET = 18
IR_VERSION = 9
CONTEXT = 128
BATCH = 8
PEAK_LR = 1.5e-3
EVAL_EVERY = 200
VALID = 64


class Block(nn.Module):
    """A pre-LayerNorm transformer block with causal attention spelled out in elementary operators."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """x [batch, sequence, dim]; `future` [sequence, sequence] is true where a key lies after the query."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(q, k.transpose(-2, -1)) * (1.0 / math.sqrt(dim // self.heads))
        weights = torch.softmax(scores.masked_fill(future, torch.finfo(scores.dtype).min), dim=-1)
        x = x + self.proj(torch.matmul(weights, v).transpose(1, 2).reshape(batch, length, dim))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class GptBytes(nn.Module):
    """Bytes in, the logits of the next byte out; learned positions, head tied to the embedding."""

    def __init__(self, dim: int = 192, heads: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, dim)
        self.position = nn.Parameter(torch.zeros(CONTEXT, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("future", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, sequence], sequence <= CONTEXT; logits float32 [batch, sequence, 256]."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position[:length]
        future = self.future[:length, :length]
        for block in self.blocks:
            x = block(x, future)
        return torch.matmul(self.norm(x), self.embed.weight.t())


def random_batch(data: np.ndarray, index: int) -> tuple[Tensor, Tensor]:
    """One random batch of windows and of their next bytes, a function of the step alone."""
    rng = np.random.default_rng((SEED, index))
    starts = rng.integers(0, len(data) - CONTEXT - 1, BATCH)
    rows = torch.from_numpy(np.stack([data[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def bits_per_byte(model: nn.Module, tokens: np.ndarray, labels: np.ndarray) -> float:
    """Mean bits per byte of a torch model over windows [N, CONTEXT]."""
    total = 0.0
    for at in range(0, len(tokens), BATCH):
        x = torch.from_numpy(tokens[at : at + BATCH].astype(np.int64))
        y = torch.from_numpy(labels[at : at + BATCH].astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(x)
        total += nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / tokens.size / math.log(2)


def train(model: GptBytes, cache: Path, steps: int) -> None:
    """Train for a number of steps and leave the best state in the cache.

    The state is chosen on the last VALID windows of the training text, which no batch is drawn from; never on the test
    set.
    """
    data = np.fromfile(cache / "text_train.bin", dtype=np.uint8)
    cut = len(data) - VALID * (CONTEXT + 1)
    tail = data[cut:].reshape(VALID, CONTEXT + 1)
    data = data[:cut]
    decay = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LR, total_steps=steps, pct_start=0.05, cycle_momentum=False, final_div_factor=100
    )
    best, smooth, start = math.inf, 8 * math.log(2), time.process_time()
    for index in range(steps):
        tokens, labels = random_batch(data, index)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        smooth += 0.02 * (loss.item() - smooth)
        if index + 1 == steps or (index + 1) % EVAL_EVERY == 0:
            score = bits_per_byte(model, tail[:, :-1], tail[:, 1:])
            seconds = time.process_time() - start
            print(f"step {index + 1} {seconds:.0f} s train {smooth / math.log(2):.4f} tail {score:.4f}", flush=True)
            if score < best:
                best = score
                torch.save({"model": model.state_dict(), "seconds": seconds}, cache / "gpt_bytes.pt")


def export(model: GptBytes, path: Path) -> None:
    """Write the ONNX file with the torch.export-based exporter, both axes of the tokens dynamic."""
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", min=2, max=CONTEXT)
    program = torch.onnx.export(
        model,
        (torch.zeros(3, 96, dtype=torch.int64),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_shapes={"tokens": {0: batch, 1: sequence}},
        verbose=False,
    )
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        value.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def measure(model: GptBytes, path: Path, seconds: float) -> dict[str, object]:
    """Compare the file with torch and measure it on the test windows in onnxruntime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(DATA / "text_test.npz") as archive:
        tokens, labels = archive["tokens"], archive["labels"]
    difference = 0.0
    for batch, length in ((1, CONTEXT), (5, CONTEXT), (5, 17)):
        x = tokens[:batch, :length].astype(np.int64)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        difference = max(difference, float(np.abs(session.run(None, {"tokens": x})[0] - expected).max()))
    total = 0.0
    for at in range(0, len(tokens), BATCH):
        logits = session.run(None, {"tokens": tokens[at : at + BATCH].astype(np.int64)})[0].astype(np.float64)
        log_norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        picked = np.take_along_axis(logits, labels[at : at + BATCH, :, None].astype(np.int64), -1)[..., 0]
        total += float((log_norm - picked).sum())
    proto = onnx.load(path)
    return {
        "metric": "bits_per_byte",
        "bits_per_byte": round(total / tokens.size / math.log(2), 4),
        "n_test": int(tokens.size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": path.stat().st_size,
        "opset": next(o.version for o in proto.opset_import if o.domain == ""),
        "ir_version": proto.ir_version,
        "exporter": "dynamo=True",
        "batch_norm": "none",
        "input": {"name": "tokens", "type": "int64", "shape": ["batch", "sequence"]},
        "train_cpu_seconds": round(seconds),
        "max_abs_diff_torch": float(f"{difference:.3g}"),
    }


def main() -> None:
    """Train unless told to reuse the checkpoint, then export and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2400, help="training steps of 1024 bytes")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of text_train.bin and checkpoints")
    parser.add_argument("--export-only", action="store_true", help="export the cached checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = GptBytes()
    if not args.export_only:
        train(model, args.cache, args.steps)
    state = torch.load(args.cache / "gpt_bytes.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.eval()
    export(model, ONNX_FILE)
    result = measure(model, ONNX_FILE, float(state["seconds"]))
    RESULTS.write_text(json.dumps({"gpt_bytes": result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

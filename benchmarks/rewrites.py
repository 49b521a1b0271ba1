"""What every float rewrite is worth: networks quantized with all of them against all but one, timed in pairs.

Ranges come from few samples, since only latency is asked for. Prints a markdown table and writes
`benchmarks/results/rewrites.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import networks

import onnxq
from onnxq.graph.prepare import PASSES
from onnxq.measure import benchmark

SAMPLES, SEED = 8, 1001
THREADS = (1, 2)


@dataclass(frozen=True)
class Rewrite:
    """`without` leaves it out for as long as its context lasts, or `config` does; `networks` are those it is for."""

    what: str
    networks: tuple[str, ...]
    without: Callable[[], Any] | None = None
    config: tuple[tuple[str, Any], ...] = ()


def nothing(name: str) -> Callable[[], Any]:
    """A context in which `onnxq.graph.prepare` leaves a pass out."""
    kept = tuple(p for p in PASSES if p.name != name)
    if len(kept) == len(PASSES):
        raise ValueError(f"no pass '{name}'")
    return lambda: mock.patch("onnxq.graph.prepare.PASSES", kept)


REWRITES = (
    Rewrite("bias inside the integer product", ("swin_t", "bert_6"), config=(("operators", "standard"),)),
    Rewrite(
        "GELU and layer normalisation kept whole",
        ("convnext_t",),
        lambda: mock.patch("onnxq.graph.passes.fold_affine.completes_fusion", return_value=False),
    ),
    Rewrite("constant shapes (and what they make possible)", ("segformer_b0",), nothing("fix_shapes")),
    Rewrite("chains of movement", ("segformer_b0", "mobilevit_s"), nothing("tidy_movement")),
    Rewrite("pointwise convolutions moved", ("segformer_b0",), nothing("move_pointwise")),
    Rewrite("global means", ("efficientnet_b0",), nothing("use_global_pool")),
    Rewrite("HardSwish on integers", ("mobilenet_v3",), nothing("spell_hard_sigmoid")),
    Rewrite("depthwise channels a multiple of 16", ("mobilenet_v3",), nothing("pad_channels")),
    Rewrite("masks without subnormal numbers", ("swin_t",), nothing("deepen_masks")),
    Rewrite("placement by cost", ("mobilenet_v2", "segformer_b0"), config=(("placement", "all"),)),
)


def main() -> None:
    """Measure every rewrite on its networks, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each pair and number of threads")
    options = parser.parse_args()
    rows = []
    for rewrite in REWRITES:
        for name in rewrite.networks:
            with tempfile.TemporaryDirectory(prefix="onnxq-rewrites-") as folder:
                rows.append(measure(rewrite, name, Path(folder), options.seconds))
            print(table(rows[-1:]), flush=True)
    path = harness.write("rewrites", vars(options), {"rewrites": rows})
    print(f"\n{table(rows)}\n\nwritten: {path.relative_to(harness.ROOT)}")


def measure(rewrite: Rewrite, name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """By number of threads, how many times faster the network is with the rewrite than without."""
    model, arrays = networks.build(name), networks.inputs(name, SAMPLES, SEED)
    files = (folder / "with.onnx", folder / "without.onnx")
    onnxq.quantize(model, arrays, config=onnxq.Config(**harness.UNGUARDED)).save(files[0])
    config = onnxq.Config(**harness.UNGUARDED, **dict(rewrite.config))
    with contextlib.nullcontext() if rewrite.without is None else rewrite.without():
        onnxq.quantize(model, arrays, config=config).save(files[1])
    feeds = list(harness.feeds({key: array[:4] for key, array in arrays.items()}))
    report = benchmark(list(files), feeds, threads=THREADS, seconds=seconds, memory=False)
    faster = {}
    for count in THREADS:
        row = report.of(threads=count)[1]
        faster[str(count)] = {"times": row.ratio, "low": row.ratio_low, "high": row.ratio_high}
    return {"rewrite": rewrite.what, "network": name, "faster": faster}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as markdown."""
    lines = [
        [
            row["rewrite"],
            row["network"],
            *(f"{f['times']:.2f} ({f['low']:.2f}-{f['high']:.2f})" for f in row["faster"].values()),
        ]
        for row in rows
    ]
    return harness.markdown(["rewrite", "network", *(f"times faster, {n} thread(s)" for n in THREADS)], lines)


if __name__ == "__main__":
    main()

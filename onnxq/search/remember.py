"""What tuning found, kept: in a cache of this machine, by graph, CPU and runtime, and as a configuration.

Weights are no part of the key: how fast a network runs depends on its shapes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxq._version import __version__
from onnxq.build.candidate import Built
from onnxq.config import Config, Rule
from onnxq.files.cache import cache_folder, in_one_stroke
from onnxq.kernels import cpu
from onnxq.plan import KeptFloat, ReasonCode, Storage
from onnxq.plan.place import Placement
from onnxq.query import nodes
from onnxq.report.report import Trial
from onnxq.search.tune import Tuning

Feed = Mapping[str, npt.NDArray[Any]]

_FORMAT = 2
_log = logging.getLogger(__name__)


def tuning_key(model: ir.Model, config: Config, feed: Feed, threads: tuple[int, ...]) -> str:
    """What a tuning depends on, as a hash: graph, sizes, choices, CPU, threads, onnxruntime and onnxq."""
    import onnxruntime

    graph = [
        (
            node.domain,
            node.op_type,
            node.name,
            [_known(value) for value in node.inputs],
            [value.name for value in node.outputs],
            sorted((key, str(attribute.value)) for key, attribute in node.attributes.items()),
        )
        for node in nodes(model)
    ]
    choices = (config.target, config.rules, config.activation_range, config.weight_range)
    sizes = sorted((name, array.shape) for name, array in feed.items())
    parts = (_FORMAT, graph, sizes, choices, threads, cpu.identity(), onnxruntime.__version__, __version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _known(value: ir.Value | None) -> object:
    if value is None or value.const_value is None:
        return None if value is None else value.name
    return value.name, str(value.const_value.dtype), str(value.const_value.shape)


def recall(key: str, seconds: float) -> Tuning | None:
    """The tuning kept under ``key`` if as much time was spent on it; None where there is none that can be read."""
    try:
        content = json.loads((cache_folder() / "tuning" / f"{key}.json").read_text(encoding="utf-8"))
        if content["seconds"] < seconds:
            return None
        kept = {
            name: KeptFloat(reason, None if storage is None else Storage[storage], ReasonCode(code))
            for name, (reason, storage, code) in content["keep_float"].items()
        }
        trials = tuple(Trial(**trial) for trial in content["trials"])
        placement = Placement(kept, frozenset(content["force_gemm"]), frozenset(content["slower"]))
        return Tuning(placement, content["operators"], trials, reused=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("no tuning under %s: %s", key, error)
        return None


def remember(key: str, tuning: Tuning, seconds: float) -> None:
    """Keeps ``tuning`` under ``key``; a cache that cannot be written costs the next call its time, no more."""
    content = {
        "seconds": seconds,
        "operators": tuning.operators,
        "force_gemm": sorted(tuning.placement.force_gemm),
        "slower": sorted(tuning.placement.slower),
        "keep_float": {
            name: (kept.reason, None if kept.weight is None else kept.weight.name, kept.code.value)
            for name, kept in tuning.placement.keep_float.items()
        },
        "trials": [asdict(trial) for trial in tuning.trials],
    }
    path = cache_folder() / "tuning" / f"{key}.json"
    try:
        with in_one_stroke(path) as half:
            half.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        _log.debug("tuning not kept: %s", error)


# What a rule says of a node that was kept from the usual kernels, by what became of its weight.
_PRECISIONS = {None: "float", Storage.TWO_PARTS: "int8-two-parts"}


def as_config(config: Config, built: Built, placement: Placement, prepared: Iterable[ir.Node]) -> Config:
    """``config`` with what became of every node of ``built`` spelled out as rules, so that it holds without measuring.

    ``placement``: what costs decided. ``prepared``: the nodes of the float graph. The rules of ``config`` come first
    and stay as they are.
    """
    force_gemm = {w.node for w in built.plan.weights if w.shift}
    slower = placement.slower & set(built.plan.integer)
    rules = list(config.rules)
    for node in prepared:
        name = node.name or ""
        if config.precision_of(name, node.op_type) is not None:
            continue
        if name in built.kept_float:
            rules.append(Rule.of(name, _PRECISIONS.get(built.kept_float[name].weight, "stored")))
        elif name in force_gemm:
            rules.append(Rule.of(name, "int8-gemm"))
        elif name in slower:
            rules.append(Rule.of(name, "int8"))
    return replace(config, placement="all", rules=tuple(rules), tune_seconds=0.0)

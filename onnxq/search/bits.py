"""Mixed precision: bits for each layer from what its weight's noise does to the outputs, within a budget.

Each layer's weight alone is rounded to ``PROBE`` in the float model, and the relative noise energy at the outputs is
measured. Noise of small independent sources adds up and grows as the layer's own output error does, so that its other
formats are judged by their local error, ``tr(E H E^T)``, in proportion: one run of the model a layer, not one a layer
and format. What is left is a multiple-choice knapsack: bytes against noise. Going up the lower convex hulls of all
layers by the best gain a byte solves its linear relaxation exactly (Sinha and Zoltners, Operations Research 1979,
section 3); what the last step leaves over is filled with smaller ones. (Per-layer sensitivities: Dong et al., HAWQ-V2,
NeurIPS 2020, section 3; there by Hessian traces, which need gradients.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.build.builder import Builder
from onnxq.calibrate.feeds import Feed
from onnxq.config import AUTO, Config, Rule
from onnxq.errors import ConfigError
from onnxq.files.scratch import discard
from onnxq.graph.copying import copy_model
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.references import References, references
from onnxq.measure.size import model_size
from onnxq.parameters.weights import rounded_as
from onnxq.plan import Plan, Weight
from onnxq.query import values_by_name
from onnxq.weights import WeightFormat, weight_format

Tell: TypeAlias = "Callable[[str, int, int | None], None]"

# Calibration samples that rank layers: one run of the model a layer.
_RANKED_FEEDS = 8
# Times that a budget of bytes or noise is corrected by what the model made within it turned out to take.
_MOST_ROUNDS = 5

PROBE = "int4"
FORMATS = ("int2", "int3", "int4", "int5", "int6", "int8")
# Unpacking the others takes tables of several kilobytes, which in a small file weigh more than they save.
_WITHOUT_TABLES = ("int2", "int4", "int8")


@dataclass(frozen=True)
class Option:
    """A format for one layer: bytes of its weight in the file, relative noise energy at the outputs."""

    stored: str
    nbytes: int
    noise: float


@dataclass(frozen=True)
class Chosen:
    """What a layer got, of the options that it had."""

    node: str
    option: Option
    options: tuple[Option, ...]


def with_bits(
    builder: Builder,
    reference: bytes | Path,
    calibration: Feed,
    folder: Path,
    tell: Tell,
    *,
    added_bytes: Callable[[Config, Plan], int] = lambda config, plan: 0,
) -> tuple[Builder, tuple[Chosen, ...]]:
    """``builder`` with a weight format for each layer, by its sensitivity, and what each of them was given.

    ``reference`` is the float model; ``added_bytes`` what the file of a draft is going to grow by. Raises
    ``ConfigError`` where no budget was given, or none of the formats keeps it.
    """
    config = builder.config
    if config.weights != AUTO:
        return builder, ()
    if config.size_budget is None and config.min_sqnr is None:
        raise ConfigError("weights = 'auto' needs a size_budget or a min_sqnr to keep to")
    # Rounded together at every width: what is compared must be what is built.
    builder = replace(builder, config=replace(config, rounding="compensated"))
    seen = references(reference, calibration.limit(_RANKED_FEEDS))
    wide = builder.draft({})
    base = seen.noise(wide.runtime_model)
    progress = partial(tell, "sensitivity")
    options = layer_options(builder, wide.plan, seen, folder, progress=progress)
    widest = {node: next(o for o in of if o.stored == builder.config.usual_weights) for node, of in options.items()}
    rest = max(0.0, base - sum(o.noise for o in widest.values()))  # what activations lose

    def with_formats(chosen: tuple[Chosen, ...]) -> Builder:
        rules = (*config.rules, *as_rules(chosen))
        return replace(builder, config=replace(builder.config, rules=rules))

    if config.size_budget is not None:

        def size_of(chosen: tuple[Chosen, ...]) -> int:
            candidate = with_formats(chosen)
            draft = candidate.draft({})
            size = model_size(draft.runtime_model).file_bytes + added_bytes(candidate.config, draft.plan)
            discard(draft.runtime_model)
            return size

        rest_bytes = model_size(wide.runtime_model).file_bytes - sum(o.nbytes for o in widest.values())
        budget = int(config.size_budget * model_size(reference).file_bytes)
        for formats in (FORMATS, _WITHOUT_TABLES):
            few = {node: tuple(o for o in of if o.stored in formats) for node, of in options.items()}
            chosen = _within_file(few, budget, rest_bytes, size_of)
            if chosen is not None:
                return with_formats(chosen), chosen
        smallest = tuple(Chosen(node, of[0], of) for node, of in options.items())
        least = size_of(smallest)
        if least <= budget:
            return with_formats(smallest), smallest
        raise ConfigError(
            f"size_budget {config.size_budget:g} cannot be kept: with {FORMATS[0]} everywhere the file has "
            f"{least / 1e6:.3f} MB of {model_size(reference).file_bytes / 1e6:.3f}"
        )
    assert config.min_sqnr is not None
    allowed = 10.0 ** (-config.min_sqnr / 10.0)
    within = allowed
    for _ in range(_MOST_ROUNDS):
        found = within_noise(options, within - rest)
        candidate = with_formats(found)
        noise = seen.noise_once(candidate.draft({}).runtime_model)
        if noise <= allowed or within <= rest:
            break
        within *= 0.9 * allowed / noise
    return candidate, found


def _within_file(
    options: Mapping[str, tuple[Option, ...]], budget: int, rest: int, size_of: Callable[[tuple[Chosen, ...]], int]
) -> tuple[Chosen, ...] | None:
    """The best formats whose file, by ``size_of``, has at most ``budget`` bytes; None where none was found.

    ``rest``: what the file holds beside the weights; corrected by the files that come out.
    """
    for _ in range(_MOST_ROUNDS):
        chosen = within_bytes(options, budget - rest)
        if chosen is None:
            return None
        excess = size_of(chosen) - budget
        if excess <= 0:
            return chosen
        rest += excess
    return None


def layer_options(
    builder: Builder,
    plan: Plan,
    references: References,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Option, ...]]:
    """By node, what each format costs and loses: the weights of ``plan`` that integer kernels compute with."""
    weights = [w for w in plan.weights if w.storage.computes]
    found = {}
    for done, weight in enumerate(weights, start=1):
        known = (builder.prepared, plan, builder.statistics, builder.config, weight)
        losses = {text: rounded_as(*known, weight_format(text)) for text in FORMATS}
        probe = losses[PROBE]
        noise = references.noise_once(_with_weight(builder.prepared, weight, probe.real, folder))
        found[weight.node] = tuple(
            Option(
                text,
                stored_bytes(weight_format(text), probe.real.shape, weight),
                noise * loss.error / probe.error if probe.error > 0 else 0.0,
            )
            for text, loss in losses.items()
        )
        if progress is not None:
            progress(done, len(weights))
    return found


def stored_bytes(stored: WeightFormat, shape: Sequence[int], weight: Weight) -> int:
    """Bytes of a weight of ``shape`` in the file: codes, a scale and a zero point for each channel."""
    channels = int(np.prod(weight.granularity.scale_shape(tuple(shape))))
    return stored.nbytes(channels, int(np.prod(shape)) // channels)


def within_bytes(options: Mapping[str, tuple[Option, ...]], budget: int) -> tuple[Chosen, ...] | None:
    """The formats of least noise that take at most ``budget`` bytes together; None where the smallest take more."""
    hulls = {node: _hull(of) for node, of in options.items()}
    at = dict.fromkeys(hulls, 0)
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > budget:
        return None
    for node, step in _steps(hulls):
        more = hulls[node][step].nbytes - hulls[node][at[node]].nbytes
        if used + more <= budget:
            at[node], used = step, used + more
    return _chosen(options, hulls, at)


def within_noise(options: Mapping[str, tuple[Option, ...]], budget: float) -> tuple[Chosen, ...]:
    """The formats of fewest bytes whose noise adds up to at most ``budget``; where none is enough, the best of all."""
    hulls = {node: _hull(of) for node, of in options.items()}
    at = dict.fromkeys(hulls, 0)
    noise = sum(hull[0].noise for hull in hulls.values())
    for node, step in _steps(hulls):
        if noise <= budget:
            break
        noise -= hulls[node][at[node]].noise - hulls[node][step].noise
        at[node] = step
    # The last step may have gone further than needed: the largest layers that can do with less come down again.
    for node in sorted(at, key=lambda n: -hulls[n][at[n]].nbytes):
        while at[node] and noise + hulls[node][at[node] - 1].noise - hulls[node][at[node]].noise <= budget:
            noise += hulls[node][at[node] - 1].noise - hulls[node][at[node]].noise
            at[node] -= 1
    return _chosen(options, hulls, at)


def as_rules(chosen: Sequence[Chosen]) -> tuple[Rule, ...]:
    """Rules that give every layer its format. Names with wildcards in them are taken literally."""
    return tuple(Rule(_literal(c.node), weights=c.option.stored) for c in chosen)


def summary(chosen: Sequence[Chosen]) -> str:
    """One line: how many layers and bytes each format has."""
    parts = []
    for text in FORMATS:
        of = [c for c in chosen if c.option.stored == text]
        if of:
            parts.append(f"{len(of)} layers {text} ({sum(c.option.nbytes for c in of) / 1e6:.2f} MB)")
    return f"bits by sensitivity: {', '.join(parts)}"


def _steps(hulls: Mapping[str, Sequence[Option]]) -> list[tuple[str, int]]:
    """All steps up the hulls, (node, option), the best gain a byte first; those of one node stay in order."""
    steps = []
    for node, hull in hulls.items():
        for i in range(1, len(hull)):
            gain = (hull[i - 1].noise - hull[i].noise) / max(1, hull[i].nbytes - hull[i - 1].nbytes)
            steps.append((-gain, node, i))
    return [(node, i) for _, node, i in sorted(steps)]


def _hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of noise over bytes, the smallest first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.noise)):
        if hull and option.noise >= hull[-1].noise:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Option, b: Option) -> float:
    return (b.noise - a.noise) / max(1, b.nbytes - a.nbytes)


def _chosen(
    options: Mapping[str, tuple[Option, ...]], hulls: Mapping[str, Sequence[Option]], at: Mapping[str, int]
) -> tuple[Chosen, ...]:
    return tuple(Chosen(node, hulls[node][at[node]], of) for node, of in options.items())


def _with_weight(model: ir.Model, weight: Weight, real: npt.NDArray[np.float32], folder: Path) -> bytes | Path:
    """The float ``model`` with another value of one weight, for the runtime."""
    changed = copy_model(model)
    value = values_by_name(changed)[weight.tensor]
    value.const_value = ir.Tensor(real, name=weight.tensor)
    return to_runtime(changed, folder)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

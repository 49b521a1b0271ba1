"""Mixed precision: bits for each layer from what its weight's noise does to the outputs, within a budget.

Each layer's weight alone is rounded to ``PROBE`` in the float model, and the relative noise energy at the outputs is
measured. Noise of small independent sources adds up and grows as the layer's own output error does, so that its other
formats are judged by their local error, ``tr(E H E^T)``, in proportion: one run of the model a layer, not one a layer
and format. What is left is a multiple-choice knapsack (``knapsack``). (Per-layer sensitivities: Dong et al., HAWQ-V2,
NeurIPS 2020, section 3; there by Hessian traces, which need gradients.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.build.build import Context, draft, statistics
from onnxq.build.candidate import Candidate
from onnxq.calibrate.feeds import Feed
from onnxq.config import AUTO, Config, Rule
from onnxq.errors import ConfigError
from onnxq.files.scratch import discard
from onnxq.graph.copying import copy_model
from onnxq.graph.runtime_model import to_runtime
from onnxq.measure.references import References, references
from onnxq.measure.size import model_size
from onnxq.parameters.rounded import rounded_as
from onnxq.plan import Plan, Weight
from onnxq.query import values_by_name
from onnxq.search.knapsack import Chosen, Option, within_bytes, within_noise
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


def with_bits(
    candidate: Candidate,
    context: Context,
    reference: bytes | Path,
    calibration: Feed,
    tell: Tell,
    *,
    added_bytes: Callable[[Config, Plan], int] = lambda config, plan: 0,
) -> tuple[Candidate, tuple[Chosen, ...]]:
    """``candidate`` with a weight format for each layer, by its sensitivity, and what each of them was given.

    ``reference`` is the float model; ``added_bytes`` what the file of a draft is going to grow by. Raises
    ``ConfigError`` where no budget was given, or none of the formats keeps it.
    """
    config = candidate.config
    if config.weights != AUTO:
        return candidate, ()
    if config.size_budget is None and config.min_sqnr is None:
        raise ConfigError(
            "weights = 'auto' needs a size_budget or a min_sqnr to keep to", hint="add --size-budget or --min-sqnr"
        )
    # Rounded together at every width: what is compared must be what is built.
    candidate = replace(candidate, config=replace(config, rounding="compensated"))
    seen = references(reference, calibration.limit(_RANKED_FEEDS))
    wide = draft(candidate, context)
    base = seen.noise(wide.runtime_model)
    options = layer_options(candidate, context, wide.plan, seen, progress=partial(tell, "sensitivity"))
    widest = {node: next(o for o in of if o.stored == config.usual_weights) for node, of in options.items()}
    bits = _Bits(candidate, context, seen, options, added_bytes)
    if config.size_budget is not None:
        rest_bytes = model_size(wide.runtime_model).file_bytes - sum(o.nbytes for o in widest.values())
        return bits.within_size(config.size_budget, model_size(reference).file_bytes, rest_bytes)
    rest = max(0.0, base - sum(o.noise for o in widest.values()))  # what activations lose
    assert config.min_sqnr is not None
    return bits.within_noise(10.0 ** (-config.min_sqnr / 10.0), rest)


@dataclass(frozen=True)
class _Bits:
    """Formats for the layers of ``candidate``, which have ``options``; ``seen``: what noise is measured against."""

    candidate: Candidate
    context: Context
    seen: References
    options: Mapping[str, tuple[Option, ...]]
    added_bytes: Callable[[Config, Plan], int]

    def within_size(self, share: float, whole: int, rest: int) -> tuple[Candidate, tuple[Chosen, ...]]:
        """The formats of least noise whose file is at most ``share`` of ``whole`` bytes.

        ``rest``: bytes of the file beside the weights.
        """
        budget = int(share * whole)
        for formats in (FORMATS, _WITHOUT_TABLES):
            few = {node: tuple(o for o in of if o.stored in formats) for node, of in self.options.items()}
            chosen = _within_file(few, budget, rest, self._file_bytes)
            if chosen is not None:
                return self._with(chosen), chosen
        smallest = tuple(Chosen(node, of[0], of) for node, of in self.options.items())
        least = self._file_bytes(smallest)
        if least <= budget:
            return self._with(smallest), smallest
        raise ConfigError(
            f"size_budget {share:g} cannot be kept: with {FORMATS[0]} everywhere the file has "
            f"{least / 1e6:.3f} MB of {whole / 1e6:.3f}",
            hint=f"ask for --size-budget {math.ceil(1000 * least / whole) / 1000:g} or more",
        )

    def within_noise(self, allowed: float, rest: float) -> tuple[Candidate, tuple[Chosen, ...]]:
        """The formats of fewest bytes that make at most ``allowed`` noise, ``rest`` of which activations make."""
        within = allowed
        for _ in range(_MOST_ROUNDS):
            found = within_noise(self.options, within - rest)
            candidate = self._with(found)
            noise = self.seen.noise_once(draft(candidate, self.context).runtime_model)
            if noise <= allowed or within <= rest:
                break
            within *= 0.9 * allowed / noise
        return candidate, found

    def _with(self, chosen: tuple[Chosen, ...]) -> Candidate:
        config = self.candidate.config
        return replace(self.candidate, config=replace(config, rules=(*config.rules, *as_rules(chosen))))

    def _file_bytes(self, chosen: tuple[Chosen, ...]) -> int:
        candidate = self._with(chosen)
        made = draft(candidate, self.context)
        size = model_size(made.runtime_model).file_bytes + self.added_bytes(candidate.config, made.plan)
        discard(made.runtime_model)
        return size


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
    candidate: Candidate,
    context: Context,
    plan: Plan,
    references: References,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Option, ...]]:
    """By node, what each format costs and loses: the weights of ``plan`` that integer kernels compute with."""
    weights = [w for w in plan.weights if w.storage.computes and not w.at_load]
    seen, found = statistics(candidate, context, plan), {}
    for done, weight in enumerate(weights, start=1):
        known = (candidate.graph, plan, seen, candidate.config, weight)
        losses = {text: rounded_as(*known, weight_format(text)) for text in FORMATS}
        probe = losses[PROBE]
        noise = references.noise_once(_with_weight(candidate.graph, weight, probe.real, context.folder))
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


def _with_weight(model: ir.Model, weight: Weight, real: npt.NDArray[np.float32], folder: Path) -> bytes | Path:
    """The float ``model`` with another value of one weight, for the runtime."""
    changed = copy_model(model)
    value = values_by_name(changed)[weight.tensor]
    value.const_value = ir.Tensor(real, name=weight.tensor)
    return to_runtime(changed, folder)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

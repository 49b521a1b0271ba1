"""From a plan and samples to a model whose channels are equalized."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.runner import Feeds
from onnxq.equalize.factors import best_factors, best_without, from_steps, to_steps, trial
from onnxq.equalize.reads import Read
from onnxq.equalize.scaling import Site
from onnxq.equalize.seen import MOST_ROWS, Planned, Trial, beside_others, see
from onnxq.equalize.sites import find_sites
from onnxq.files.scratch import Scratch
from onnxq.graph.copying import copy_model
from onnxq.graph.passes.unused import remove_unused
from onnxq.graph.runtime_model import set_aside
from onnxq.plan import Plan

F64 = npt.NDArray[np.float64]

# The most and the fewest rows of a tensor that a feed adds to those that are kept.
_ROWS_OF_A_FEED = (128, 16)
# Less is gained by chance; and what pays for a pass over the tensor.
_WORTH_IT = 0.97
_WORTH_A_PASS = 0.5
# A depthwise convolution of few channels takes several times as long as the Add in whose place it comes.
_WORTH_A_SLOW_PASS = 0.1
_FEW_CHANNELS = 64
# The part of all noise that pays for the nodes that carry channels past a layer.
_WORTH_NODES = 0.1


@dataclass(frozen=True)
class Equalized:
    """What became of a model.

    | field   | meaning                                                                                  |
    |---------|------------------------------------------------------------------------------------------|
    | `model` | computes what the model did; names of nodes and tensors are as they were                 |
    | `steps` | by tensor, what its channels were multiplied by, as ``factors.to_steps`` tells it, base64 |
    | `notes` | lines for the report, where something was changed                                        |
    | `added` | names of nodes that were added and must stay float, and what they are there for          |
    | `gates` | by added layer that only serves another one, the name of that                            |
    | `costs` | whether it computes more than the model did                                              |
    """

    model: ir.Model
    steps: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    added: Mapping[str, str] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    costs: bool = False


@dataclass(frozen=True)
class Terms:
    """What equalizing may change, and what it must gain.

    | field       | meaning                                                                                          |
    |-------------|--------------------------------------------------------------------------------------------------|
    | `untouched` | names of nodes that must keep their weights                                                      |
    | `costly`    | whether more may be computed where that halves the noise of what reads a tensor                  |
    | `simulated` | whether speed does not count, since activations are only simulated: then any gain is worth it    |
    """

    untouched: Collection[str] = ()
    costly: bool = False
    simulated: bool = False


@dataclass
class _Found:
    """What is best for a site, and how much less noise it makes; ``noise``: what is left, relative to the signal."""

    site: Site
    reads: list[Read]
    factors: F64
    gain_db: float
    noise: float

    @property
    def taken(self) -> bool:
        """Whether channels are taken out."""
        return bool((self.factors == 0).any())


def equalized(
    model: ir.Model,
    plan: Plan,
    feeds: Feeds,
    *,
    method: str,
    terms: Terms = Terms(),
    feeds_hint: int | None = None,
    scratch: Scratch | None = None,
) -> Equalized:
    """The prepared ``model`` with channels equalized where that makes less noise; the model itself where nowhere.

    Args:
        model: as ``plan`` was made for; it is not changed.
        plan: says what is quantized, and with how many bits.
        feeds: a few dozen inputs to see the channels with.
        method: for ranges of activations.
        terms: what may be changed.
        feeds_hint: the number of feeds, where it is known.
        scratch: holds the new weights.

    Raises ``RuntimeFailure`` where the model does not run on the feeds.
    """
    copy = copy_model(model)
    planned, untouched = Planned(plan), set(terms.untouched)
    sites = [site for site in find_sites(copy, costly=terms.costly) if planned.counts(site, untouched)]
    if not sites:
        return Equalized(model)
    most, fewest = _ROWS_OF_A_FEED
    each = min(most, max(fewest, MOST_ROWS // (feeds_hint or 1)))
    bounded = {bound.tensor for site in sites for bound in site.bounds}
    axes = {tensor: axis for site in sites for tensor, axis in site.seen.items()}
    seen = see(copy, axes, feeds, each, bounded, workspace=None if scratch is None else scratch.workspace)
    every: list[_Found] = []
    scaled: dict[str, F64] = {}
    for site in sites:
        found = _tried(site, Trial(planned, seen, scaled), method, _worth(site, terms))
        if found is not None:
            every.append(found)
            scaled.update(beside_others(site, found.factors, scaled))
    _take_out(every, method)
    return _scaled(copy, [found for found in every if found.gain_db > 0.0], scratch) or Equalized(model)


def _tried(site: Site, given: Trial, method: str, worth: float) -> _Found | None:
    """What is best for ``site`` where that gets below ``worth``; None where it must not change, or was not seen.

    What is not finite observing ranges will find, with the name of the first such tensor.
    """
    reads = given.reads(site)
    if reads is None:
        return None
    factors, relative = best_factors(reads, site.channels, method=method)
    if relative >= worth:
        factors, relative = np.ones(site.channels), 1.0
    return _Found(site, reads, factors, -10.0 * np.log10(relative), trial(reads, factors, method))


def _scaled(copy: ir.Model, changed: Sequence[_Found], scratch: Scratch | None) -> Equalized | None:
    """``copy`` with the factors of ``changed`` in its weights; None, and nothing changed, where none can be scaled."""
    steps, added, done = {}, {}, []
    for found in changed:
        names = found.site.scale(found.factors)
        if names is None:
            continue
        done.append(found)
        added.update(names)
        if scratch is not None:
            set_aside((*found.site.writers, *(reader.node for reader in found.site.readers)), scratch)
        steps[found.site.tensor] = b64encode(to_steps(found.factors).tobytes()).decode()
    if not done:
        return None
    remove_unused(copy)
    gates = {f.site.gate.scaled: f.site.writers[0].name or "" for f in done if f.site.gate is not None}
    return Equalized(copy, steps, _notes(done), added, gates, any(found.site.costs for found in done))


def _worth(site: Site, terms: Terms) -> float:
    """The noise, relative to that without factors, that factors for ``site`` must get below."""
    if terms.simulated or not site.costs:
        return _WORTH_IT
    return _WORTH_A_SLOW_PASS if site.gate is not None and site.channels < _FEW_CHANNELS else _WORTH_A_PASS


def _take_out(every: Sequence[_Found], method: str) -> None:
    """Takes channels out where a noticeable part of all noise comes from them.

    Noises of readers, relative to what they carry, add up: what one makes beside much noisier ones is not worth nodes.
    """
    noticeable = _WORTH_NODES * sum(found.noise for found in every)
    for found in every:
        linear = all(reader.linear is not None for reader in found.site.readers)
        if found.site.between and linear and found.noise > noticeable:
            factors, noise = best_without(found.reads, method=method)
            if found.noise - noise > noticeable and noise < _WORTH_A_PASS * found.noise:
                found.gain_db += 10.0 * np.log10(found.noise / max(noise, 1e-12))
                found.factors, found.noise = factors, noise


def _notes(changed: Sequence[_Found]) -> tuple[str, ...]:
    """Lines for the report."""
    kinds: dict[str, list[float]] = {
        "": [],
        " by a multiplication in front": [],
        " through their activation function": [],
        "; the largest stay float": [],
    }
    free, in_front, gated, apart = kinds.values()
    for found in changed:
        priced = in_front if found.site.between else gated
        (apart if found.taken else priced if found.site.costs else free).append(found.gain_db)
    return tuple(
        f"channels of {'1 tensor' if len(gains) == 1 else f'{len(gains)} tensors'} equalized{how}: "
        f"{np.mean(gains):.1f} dB less noise in what reads them"
        for how, gains in kinds.items()
        if gains
    )


def equalized_as(model: ir.Model, steps: Mapping[str, str]) -> ir.Model:
    """A copy of the prepared ``model`` with channels multiplied as an earlier call found best (``Equalized.steps``)."""
    copy = copy_model(model)
    for site in find_sites(copy, costly=True):
        if site.tensor in steps:
            site.scale(from_steps(np.frombuffer(b64decode(steps[site.tensor]), np.int8)))
    remove_unused(copy)
    return copy

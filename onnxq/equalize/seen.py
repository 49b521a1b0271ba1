"""What a site's channels were seen to be, and what its readers do with them under a plan."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibrate.runner import Feeds, values_of
from onnxq.equalize.reads import Read, spread
from onnxq.equalize.scaling import WEIGHT, Reader, Site
from onnxq.numerics import PerBlock
from onnxq.numerics.sampling import spread_step
from onnxq.plan import Own, Plan, Point, Storage, Weight

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Rows of a tensor that are kept.
MOST_ROWS = 8192
# A channel that was seen below the end of its Clip by less than this ratio is taken to reach it.
MARGIN = 2.0


@dataclass(frozen=True)
class Seen:
    """What was seen of tensors.

    ``rows``: by tensor ``[R, channels]``, those of every other feed and then those of the rest, if there were more
    than one; ``peaks``: by tensor with a bound, the largest number of each channel in all places.
    """

    rows: dict[str, tuple[F32, ...]]
    peaks: dict[str, F32] = field(default_factory=dict)


def see(
    model: ir.Model,
    axes: Mapping[str, int],
    feeds: Feeds,
    each: int,
    bounded: Collection[str] = (),
    *,
    workspace: int | None = None,
) -> Seen:
    """What ``feeds`` make of tensors, with ``each`` rows of every feed; ``axes`` tells where channels are.

    ``workspace``: as for ``values_of``.
    """
    kept: dict[str, list[F32]] = {tensor: [] for tensor in axes}
    peaks: dict[str, F32] = {}
    for arrays in values_of(model, list(axes), feeds, workspace=workspace):
        for tensor in tuple(arrays):
            array = arrays.pop(tensor)
            if array.ndim < 2:
                continue  # of a branch that did not run
            rows = np.moveaxis(array, axes[tensor], -1)
            count = math.prod(rows.shape[:-1])
            if rows.size:  # the map as a whole would be copied to have its rows behind one another
                places = np.arange(0, count, spread_step(count, each))
                thin = rows[np.unravel_index(places, rows.shape[:-1])]
                kept[tensor].append(thin[~np.isnan(thin).any(axis=1)])
            if rows.size and tensor in bounded:
                peak = rows.max(axis=tuple(range(rows.ndim - 1)))
                peaks[tensor] = np.maximum(peaks.get(tensor, peak), peak)
            del array, rows
    # Without rows that hold a missing value, of which there may be none left.
    sound = {tensor: [part for part in parts if len(part)] for tensor, parts in kept.items()}
    halves = {tensor: [h for h in (parts[::2], parts[1::2]) if h] for tensor, parts in sound.items()}
    rows_of = {tensor: tuple(_thinned(np.concatenate(half)) for half in of) for tensor, of in halves.items() if of}
    return Seen(rows_of, peaks)


def _thinned(rows: F32) -> F32:
    return rows[:: spread_step(len(rows), MOST_ROWS // 2)]


def stays_below(site: Site, seen: Seen) -> bool:
    """Whether no channel of ``site`` comes near the upper end of a Clip, in any place of any feed.

    An end for each channel would be a Min in float between two integer layers. And one that is kept as it is cuts off
    channels that grow at a part of it: calibration sees too little of what a channel may do (of EfficientNet-Lite1,
    factors that leave every channel a fourth of the range to spare took 17 dB of noise on other photographs; that is
    more than all that rounding makes).
    """
    return all((MARGIN * seen.peaks[b.tensor][b.of >= 0] <= b.ceiling).all() for b in site.bounds)


def beside_others(site: Site, factors: F64, before: Mapping[str, F64]) -> dict[str, F64]:
    """By tensor in which the channels of ``site`` lie beside others, all factors that what it holds has by now.

    ``before``: those without ``site``. One site after the other goes down a function of all that is convex.
    """
    found = {}
    for reader in site.readers:
        if reader.of is not None and (reader.of < 0).any():
            own = spread(factors, reader.of)
            found[reader.tensor] = own * before.get(reader.tensor, np.ones_like(own))
    return found


class Planned:
    """What a plan says of single tensors and nodes."""

    def __init__(self, plan: Plan) -> None:
        self._integer = set(plan.integer)
        self._weights: dict[str, list[Weight]] = defaultdict(list)
        self.points: dict[str, list[Point]] = defaultdict(list)
        for point in plan.points:
            self.points[point.tensor].append(point)
        for weight in plan.weights:
            self._weights[weight.node].append(weight)

    def weight(self, node: str) -> Weight | None:
        """The weight of ``node`` that meets what it reads; None where that stays float."""
        return next((w for w in self._weights.get(node, ()) if w.index == WEIGHT), None)

    def counts(self, site: Site, untouched: Collection[str]) -> bool:
        """Whether anything that reads ``site`` is quantized, and nothing of it must stay as it is.

        A node is only added where activations are converted to integers in any case, and a gate only changed where it
        computes with integers.
        """
        readers = {reader.node.name or "": reader for reader in site.readers}
        if site.between:
            value = site.readers[0].node.inputs[0]
            writer = None if value is None else value.producer()
            converted = any(isinstance(p.source, Own) for p in self.points.get(site.tensor, ()))
            at_run = any(r.linear is None and self._at_run(name) for name, r in readers.items())
            if not (converted or at_run) or (writer is not None and writer.name in self._integer):
                return False
        if site.gate is not None and not {site.gate.function.name, site.gate.product.name} <= self._integer:
            return False
        if any(name in untouched for name in readers) or any(node.name in untouched for node in site.writers):
            return False
        return any(name in self._weights for name in readers)

    def _at_run(self, node: str) -> bool:
        """Whether the range of what ``node`` reads is found when it runs."""
        weight = self.weight(node)
        return weight is not None and weight.storage is Storage.DYNAMIC


@dataclass(frozen=True)
class Trial:
    """What factors are tried on: what is ``planned``, what was ``seen``, and the factors ``scaled`` into it by now."""

    planned: Planned
    seen: Seen
    scaled: MutableMapping[str, F64]

    def reads(self, site: Site) -> list[Read] | None:
        """What the readers of ``site`` do; None where they must not change or that was not seen, or not finite."""
        rows = self.seen.rows
        for reader in (*site.readers, *site.summed):
            parts = rows.get(reader.tensor)
            width = site.channels if reader.of is None else len(reader.of)
            if parts is None or parts[0].shape[1] != width:  # in a branch that did not run
                return None
            if not all(np.isfinite(part).all() for part in parts):
                return None
        if any(len(self.seen.peaks.get(b.tensor, ())) != len(b.of) for b in site.bounds):
            return None
        found = {reader.node: self._read(reader) for reader in site.readers}
        if not stays_below(site, self.seen):
            return None
        return [*found.values(), *(self._passing(r, found[r.node]) for r in site.summed if self._rounded(r, found))]

    def _rounded(self, reader: Reader, reads: Mapping[ir.Node, Read]) -> bool:
        """Whether what is ``summed`` is rounded by itself, and was seen in the places where its sum was."""
        points = bool(self.planned.points.get(reader.tensor))
        parts, whole = self.seen.rows[reader.tensor], reads[reader.node]
        sizes = (len(whole.rows), *(() if whole.unseen is None else (len(whole.unseen),)))
        return points and tuple(len(part) for part in parts) == sizes

    def _passing(self, reader: Reader, whole: Read) -> Read:
        """What reads the sum, of one of its operands: rounding it makes noise, its weight makes none once more."""
        parts = self.seen.rows[reader.tensor]
        bits = self.planned.points[reader.tensor][0].qtype.bits
        return Read(parts[0], whole.weight, bits, None, 0, parts[1] if len(parts) > 1 else None, whole, reader.of)

    def _read(self, reader: Reader) -> Read:
        """What ``reader`` does with the rows that it was seen to read."""
        name = reader.node.name or ""
        parts, weight_values = self.seen.rows[reader.tensor], reader.weight()
        if reader.tensor in self.scaled:
            factors = self.scaled[reader.tensor].astype(np.float32)
            groups, inner = weight_values.shape[:2]
            parts = tuple(part * factors for part in parts)
            weight_values = weight_values / factors.reshape(groups, inner, 1, 1)
        rows, unseen = parts[0], parts[1] if len(parts) > 1 else None
        points = [p for p in self.planned.points.get(reader.tensor, ()) if p.consumers is None or name in p.consumers]
        activation_bits = points[0].qtype.bits if points else None
        weight = self.planned.weight(name)
        if weight is None:
            return Read(rows, weight_values, activation_bits, None, unseen=unseen, of=reader.of)
        if weight.storage is Storage.DYNAMIC:
            activation_bits = weight.qtype.bits
        block = weight.granularity.size if isinstance(weight.granularity, PerBlock) else weight.stored.block
        bits = weight.stored.code_type(weight.qtype).bits
        return Read(rows, weight_values, activation_bits, bits, block, unseen, of=reader.of)

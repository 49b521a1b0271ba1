"""Where the noise of a candidate comes from: the rounding of each tensor where it is read, measured at the outputs.

Everything else is in float meanwhile. Noise of independent sources adds up, so that one pass each says what any choice
of them comes to; what makes little noise is measured together with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxq.build.candidate import Built
from onnxq.numerics import QuantParams
from onnxq.plan import KeptFloat, Own, Point
from onnxq.plan.tradeoff import Noise, Reading
from onnxq.query import values_by_name

Progress = Callable[[int, int], None]

# Points that are measured together first; what makes so many times the noise of the mean group, or such a share of all,
# is measured point by point.
TOGETHER = 4
_MUCH = 1.5
_SHARE = 0.1
# Ranges are tried so many times as wide, one after another, of so many points and of a point with at least such a share
# of all noise, and taken where they leave less than this share of its noise.
_WIDER = (1.25, 1.6)
_MOST_WIDENED = 8
_WORTH_WIDENING = 0.01
_LESS = 0.9
# What a pass that does not run says: as much noise as there is signal.
_NOT_RUN = 1.0


class Meter(Protocol):
    """Measures the relative noise energy of each float output; nothing where that does not run."""

    def noises(self, kept: Mapping[str, KeptFloat]) -> Noise:
        """That with ``kept`` float."""

    def rounded(self, first: Built, points: Sequence[Point], tensors: Mapping[str, QuantParams] | None = None) -> Noise:
        """That where ``points``, of the plan of ``first``, are all that is rounded; ``tensors``: as these say."""


class Readings:
    """The noise of ``first``, a plan of ``graph``, tensor by tensor. ``progress`` is told of each pass."""

    def __init__(self, first: Built, meter: Meter, graph: ir.Model, progress: Progress | None = None) -> None:
        self.first, self.meter = first, meter
        self._progress = progress
        self._values = values_by_name(graph)
        self._outputs = 1
        self._single: dict[int, Point] = {}  # by the place of a reading, the point that was measured by itself

    @cached_property
    def found(self) -> tuple[Reading, ...]:
        """The noise of each point where it is read: of a few together first, of each where those make much of it."""
        points = list(self._points())
        groups = [points[i : i + TOGETHER] for i in range(0, len(points), TOGETHER)]
        found, done, total = [], 0, len(groups)
        for group in groups:
            done += 1
            found.append(self._rounded(point for point, _ in group))
            self.tell(done, total)
        much = much_of(found)
        total += sum(len(group) for group, noise in zip(groups, found, strict=True) if loudness(noise) > much)
        readings: list[Reading] = []
        for group, noise in zip(groups, found, strict=True):
            for point, readers in group:
                own = tuple(of / len(group) for of in noise)
                if loudness(noise) > much and len(group) > 1:
                    done += 1
                    own = self._rounded([point])
                    self.tell(done, total)
                if loudness(noise) > much or len(group) == 1:
                    self._single[len(readings)] = point
                readings.append(Reading(point.tensor, readers, own))
        return tuple(readings)

    def wider(self) -> dict[str, QuantParams]:
        """Wider ranges for the tensors that make most noise, where these leave less of it at the outputs.

        The error of the tensor itself is least with another range; what is clipped may weigh more behind it.
        """
        readings = list(self.found)
        least = _WORTH_WIDENING * sum(loudness(r.noise) for r in readings)
        loud = sorted(self._single, key=lambda at: -loudness(readings[at].noise))[:_MOST_WIDENED]
        found: dict[str, QuantParams] = {}
        for at in loud:
            point, noise = self._single[at], readings[at].noise
            # A quantizer with a ceiling stands for a Clip.
            if point.ceiling is not None or point.tensor in found or loudness(noise) < least:
                continue
            known = self.first.parameters.tensors[point.tensor]
            for factor in _WIDER:
                trial = replace(known, scale=np.float32(factor) * known.scale)
                less = self._known(self.meter.rounded(self.first, [point], {point.tensor: trial}))
                if loudness(less) > _LESS * loudness(noise):
                    break
                found[point.tensor], noise = trial, less
            readings[at] = replace(readings[at], noise=noise)
        self.__dict__["found"] = tuple(readings)
        return found

    def of(self, first: Built) -> Readings:
        """The same from ``first``, which has other ranges for what ``wider`` found and is planned alike."""
        other = copy(self)
        other.first = first
        return other

    def _points(self) -> list[tuple[Point, tuple[str, ...]]]:
        """The points with ranges of their own, each for those that read it alike, and the names of these.

        A layer rounds what it reads whoever else does; what adds it on hands the noise on to everything behind.
        """
        anchors = set(self.first.plan.anchors)
        by_layers, by_others = [], []
        for point in self.first.plan.points:
            if not isinstance(point.source, Own):
                continue
            value = self._values[point.tensor]
            readers = {use.node.name or "" for use in value.uses()}
            if point.consumers is not None:
                readers &= set(point.consumers)
            layers, others = tuple(sorted(readers & anchors)), tuple(sorted(readers - anchors))
            if layers and others and not value.is_graph_output():
                by_layers.append((replace(point, consumers=layers), layers))
                by_others.append((replace(point, consumers=others), others))
            else:
                (by_layers if layers else by_others).append((point, (*layers, *others)))
        return [*by_layers, *by_others]

    def _rounded(self, points: Iterable[Point]) -> Noise:
        return self._known(self.meter.rounded(self.first, list(points)))

    def noise(self, kept: Mapping[str, KeptFloat]) -> Noise:
        """The noise with ``kept`` float too."""
        return self._known(self.meter.noises({**self.first.kept_float, **kept}))

    def _known(self, noise: Noise) -> Noise:
        """``noise``, or as much as there is signal in every output."""
        self._outputs = len(noise) or self._outputs
        return noise or (_NOT_RUN,) * self._outputs

    def tell(self, done: int, total: int) -> None:
        """Says that so many passes are done."""
        if self._progress is not None:
            self._progress(done, total)


def loudness(noise: Noise) -> float:
    """The noise of the worst output."""
    return max(noise, default=0.0)


def much_of(found: Sequence[Noise]) -> float:
    """What a group of sources must make to be looked at source by source, where groups make what was ``found``."""
    return min(_MUCH / max(len(found), 1), _SHARE) * sum(map(loudness, found))

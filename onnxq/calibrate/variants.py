"""Samples made of held-out ones: mixes, crops and noise of floats, splices of tokens.

The float model says what is right of any input, so that more of them need no labels. Values stay in the range and the
type of the data; what means something else than its value (codes, sizes, masks) stays as it is in the sample that most
of a made one comes from, its dominant sample. (What ``adapt`` trains on is made more freely: there nothing is counted.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sample = Mapping[str, Array]

# The least and the most of the dominant sample in a mix (Zhang et al., mixup, ICLR 2018).
_DOMINANT = (0.6, 0.9)
# The most that an image is shifted by, and the least of it that a crop shows, as shares of an axis.
_SHIFT, _SHOWN = 0.1, 0.8
# The standard deviation of noise as a share of that of the input, least and most.
_NOISE = (0.01, 0.05)
# An input with a smaller share of the elements of the largest one is about it (its size, a scale), no data of its own.
_ASIDE = 0.01
# Whole numbers of fewer different values are codes, not measures such as pixels.
_MEASURES = 17
# The most channels of an image.
_CHANNELS = 4


class Role(Enum):
    """What can be done with an input."""

    VALUES = "values"  # of a measure: mixed, and given noise
    TOKENS = "tokens"  # codes in an order: spliced
    FIXED = "fixed"  # neither


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a model are, by name, as its samples show them; ``low``, ``high``, ``spread``: of values."""

    roles: Mapping[str, Role]
    low: Mapping[str, float]
    high: Mapping[str, float]
    spread: Mapping[str, float]
    whole: frozenset[str]  # values that are whole numbers
    codes: Mapping[str, Array]  # of rows of values: which columns are whole numbers, and stay as they are

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Inputs:
        """Those of ``samples``, which are all that is known."""
        largest = max((array.size for sample in samples for array in sample.values()), default=0)
        roles, low, high, spread, whole, codes = {}, {}, {}, {}, set(), {}
        for name in samples[0]:
            arrays = [sample[name] for sample in samples if name in sample]
            roles[name] = _role(arrays, largest)
            if roles[name] is not Role.VALUES:
                continue
            low[name] = min(float(a.min()) for a in arrays if a.size)
            high[name] = max(float(a.max()) for a in arrays if a.size)
            spread[name] = float(np.mean([a.std(dtype=np.float64) for a in arrays]))
            if all(_are_whole(a) for a in arrays):
                whole.add(name)
            elif arrays[0].ndim < 4 and len({a.shape[-1] for a in arrays}) == 1:
                rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
                codes[name] = (np.floor(rows) == rows).all(axis=0)
        return cls(roles, low, high, spread, frozenset(whole), codes)

    @property
    def any(self) -> bool:
        """Whether samples can be made at all."""
        return any(role is not Role.FIXED for role in self.roles.values())

    def fitted(self, name: str, values: Array, like: Array) -> Array:
        """``values`` in the range of the data, whole where that is, in the type and the layout of ``like``."""
        found = np.clip(values, self.low[name], self.high[name])
        found = (np.floor(found + 0.5) if name in self.whole else found).astype(like.dtype)
        return np.ascontiguousarray(np.where(self.codes[name], like, found) if name in self.codes else found)


def _role(arrays: Sequence[Array], largest: int) -> Role:
    kind, rank = arrays[0].dtype.kind, arrays[0].ndim
    size = max(array.size for array in arrays)
    if kind not in "fiu" or size < 2 or size < _ASIDE * largest or not all(np.isfinite(a).all() for a in arrays):
        return Role.FIXED
    if kind == "f" and not all(_are_whole(array) for array in arrays):
        return Role.VALUES
    # Masks, flags and classes are few numbers; pixels are many, and lie in two axes or more.
    several = len(np.unique(np.concatenate([np.unique(array) for array in arrays]))) >= _MEASURES
    if several and rank >= 3 and (kind == "f" or arrays[0].dtype.itemsize == 1):
        return Role.VALUES
    return Role.TOKENS if kind != "f" and rank == 2 else Role.FIXED


def _are_whole(array: Array) -> bool:
    return array.dtype.kind != "f" or bool((np.floor(array) == array).all())


def variants(samples: Sequence[Sample], *, seed: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """Made samples without end, each with the number of its dominant sample; the same for the same ``seed``.

    Every sample in turn is dominant. Nothing where nothing can be made of the ``samples``.
    """
    if len(samples) < 2 or not (inputs := Inputs.of(samples)).any:
        return
    for turn in itertools.count():
        made = 0
        for number in np.random.default_rng([seed, turn]).permutation(len(samples)).tolist():
            found = _variant(samples, number, inputs, np.random.default_rng([seed, turn, number]))
            if _differs(found, samples[number]):
                made += 1
                yield number, found
        if not made:
            return


def _variant(samples: Sequence[Sample], number: int, inputs: Inputs, random: np.random.Generator) -> dict[str, Array]:
    """One made sample, of one or two kinds of changes."""
    found = dict(samples[number])
    other = samples[(number + int(random.integers(1, len(samples)))) % len(samples)]
    if any(role is Role.TOKENS for role in inputs.roles.values()):
        found |= _spliced(found, other, inputs, random)
    values = [name for name, role in inputs.roles.items() if role is Role.VALUES]
    if not values:
        return found
    kind = random.random()
    if kind < 0.6:
        found |= _mixed(found, other, values, inputs, random)
    if kind > 0.4:
        found |= _cropped(found, values, random)
    if kind > 0.8 or not _differs(found, samples[number]):
        found |= _noisy(found, values, inputs, random)
    return found


def _differs(one: Sample, other: Sample) -> bool:
    """Whether anything was made anew."""
    return any(one[name] is not other[name] for name in one)


def _mixed(
    one: Sample, other: Sample, values: Sequence[str], inputs: Inputs, random: np.random.Generator
) -> dict[str, Array]:
    """Values of ``one`` with some of ``other``, the same share of all; where shapes are the same."""
    share = random.uniform(*_DOMINANT)
    if any(one[name].shape != other[name].shape for name in values):
        return {}
    return {
        name: inputs.fitted(name, share * one[name].astype(np.float64) + (1.0 - share) * other[name], one[name])
        for name in values
    }


def _noisy(one: Sample, values: Sequence[str], inputs: Inputs, random: np.random.Generator) -> dict[str, Array]:
    """Values with noise."""
    size = random.uniform(*_NOISE)
    return {
        name: inputs.fitted(
            name, one[name] + size * inputs.spread[name] * random.standard_normal(one[name].shape), one[name]
        )
        for name in values
    }


def _cropped(one: Sample, values: Sequence[str], random: np.random.Generator) -> dict[str, Array]:
    """Images shifted and enlarged, all of one size alike, to the pixel that is nearest."""
    shown, shift = random.uniform(_SHOWN, 1.0), random.uniform(-_SHIFT, _SHIFT, 2)
    found = {}
    for name in values:
        array = one[name]
        axes = _spatial(array)
        for axis, moved in zip(axes, shift, strict=False):
            length = array.shape[axis]
            middle = (np.arange(length) + 0.5 - length / 2) * shown + length / 2 + moved * length
            array = array.take(np.clip(np.floor(middle).astype(np.intp), 0, length - 1), axis=axis)
        if axes:
            found[name] = np.ascontiguousarray(array)
    return found


def _spatial(array: Array) -> tuple[int, ...]:
    """The axes of height and width of a batch of images; none where it is no such thing."""
    if array.ndim != 4:
        return ()
    first, last = array.shape[1] <= _CHANNELS, array.shape[3] <= _CHANNELS
    return () if first == last else (2, 3) if first else (1, 2)


def _spliced(one: Sample, other: Sample, inputs: Inputs, random: np.random.Generator) -> dict[str, Array]:
    """The start of the tokens of ``one`` and the rest of those of ``other``, all that are as long cut at one place.

    The place lies where both have tokens, as far as a mask tells.
    """
    tokens = [name for name, role in inputs.roles.items() if role is Role.TOKENS]
    shape = max((one[name].shape for name in tokens), key=math.prod)
    alike = [
        name for name, array in one.items() if array.shape == shape and other[name].shape == shape and _are_whole(array)
    ]
    if not alike or shape[1] < 3:
        return {}
    free = np.ones(shape[1] - 1, bool)
    for name in (name for name in alike if "mask" in name.lower()):
        free &= (one[name][:, :-1] != 0).all(axis=0) & (other[name][:, 1:] != 0).all(axis=0)
    places = np.flatnonzero(free) + 1
    # Most of it is of the dominant sample.
    late = places[places >= len(places) // 2 + (places[0] if len(places) else 0)]
    if not len(late):
        return {}
    cut = int(random.choice(late))
    return {name: np.concatenate([one[name][:, :cut], other[name][:, cut:]], axis=1) for name in alike}

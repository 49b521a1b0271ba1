"""A multiple-choice knapsack: for each layer one of its formats, bytes against noise.

Going up the lower convex hulls of all layers by the best gain a byte solves its linear relaxation exactly (Sinha and
Zoltners, Operations Research 1979, section 3); what the last step leaves over is filled with smaller ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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

"""How sure a promise is that counted decisions keep: by samples that nothing was fitted to, and by made ones.

Made samples (``calibrate.variants``) hold more near ties than the data. So of them only those decisions count of which
the float model is sure; and, where all decisions are promised, near ties by as much as the data has of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxq.measure.compared import OutputComparison, share_dict
from onnxq.measure.kinds import Promise
from onnxq.numerics import Share, Strata
from onnxq.runtime.plain import plain


@dataclass(frozen=True)
class Made:
    """What made samples add: how many there are, made of how many others, and the decisions that count in them.

    ``strata``: those and near ties, where these count by as much as the data has of them.
    """

    samples: int
    of: int
    share: Share
    strata: Strata | None = None


@dataclass(frozen=True)
class Certainty:
    """One promise of ``output``, that so many of ``what`` stay: ``promised``, as far as ``real`` and ``made`` tell.

    ``real``: of samples of the data that nothing was fitted to. ``made``: None where there are none that count.
    """

    output: str
    what: str
    promised: float
    real: Share
    made: Made | None = None

    @property
    def lower(self) -> float:
        """What can be promised: the lower end of the 95 % interval."""
        if self.made is None:
            return self.real.lower
        if self.made.strata is not None:
            return self.made.strata.lower
        return (self.real + self.made.share).lower

    @property
    def kept(self) -> bool:
        """Whether the interval says that the promise is kept."""
        return self.lower >= self.promised

    @property
    def counted(self) -> Share:
        """All that counts, added up: what may contradict the promise."""
        return self.real if self.made is None or self.made.strata is not None else self.real + self.made.share

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        made = None
        if self.made is not None:
            made = {"samples": self.made.samples, "of": self.made.of, **share_dict(self.made.share)}
        return {
            "output": self.output,
            "what": self.what,
            "promised": plain(self.promised),
            "real": share_dict(self.real),
            "made": made,
            "lower": plain(self.lower),
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Evidence:
    """The counted promises of all outputs over some samples, by output and what is counted; what is added adds up."""

    promises: Mapping[tuple[str, str], Promise]

    @classmethod
    def of(cls, outputs: Iterable[OutputComparison]) -> Evidence:
        """That of one comparison."""
        return cls({(o.name, p.what): p for o in outputs for p in o.promises if p.share is not None and p.share.rows})

    def __add__(self, other: Evidence) -> Evidence:
        found = dict(self.promises)
        for key, promise in other.promises.items():
            found[key] = _added(found[key], promise) if key in found else promise
        return Evidence(found)

    def certainties(
        self, promised: Callable[[int], float], made: Evidence | None = None, *, samples: int = 0, of: int = 0
    ) -> tuple[Certainty, ...]:
        """How sure each promise is by this, evidence of the data, and that of ``made`` samples.

        ``promised``: by how many may change for one decision that may, the share that must stay; 0 or less is no
        promise. ``samples`` were made of so many (``of``).
        """
        found = []
        for (output, what), promise in self.promises.items():
            least = promised(promise.times)
            if least > 0.0 and promise.share is not None:
                more = None if made is None else made.promises.get((output, what))
                adds = None if more is None else _made(promise, more, samples, of)
                found.append(Certainty(output, what, least, promise.share, adds))
        return tuple(found)


def _added(one: Promise, other: Promise) -> Promise:
    strata = one.strata if other.strata is None else other.strata if one.strata is None else one.strata + other.strata
    return replace(one, share=(one.share or Share()) + (other.share or Share()), strata=strata)


def _made(real: Promise, made: Promise, samples: int, of: int) -> Made | None:
    """What ``made`` adds to ``real``; None where it does not count."""
    if real.sure and made.share is not None:
        return Made(samples, of, _alike(made.share, of))
    if real.strata is None or made.strata is None or made.share is None:
        return None
    parts = (_alike(part, of) for part in (made.strata.sure, made.strata.near))
    sure, near = (a + b for a, b in zip((real.strata.sure, real.strata.near), parts, strict=True))
    return Made(samples, of, made.share, Strata(sure, near, real.strata.sureness))


def _alike(share: Share, of: int) -> Share:
    """``share`` of samples made of so many others: no more of them stand for themselves."""
    return replace(share, samples=min(share.samples, of))

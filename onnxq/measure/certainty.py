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
    ``spare``: how many that changed speak against nothing.
    """

    output: str
    what: str
    promised: float
    real: Share
    made: Made | None = None
    spare: int = 0

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

    def certainties(self, promised: Callable[[int], float], made: MadeEvidence | None = None) -> tuple[Certainty, ...]:
        """How sure each promise is by this, evidence of the data, and that of ``made`` samples.

        ``promised``: by how many may change for one decision that may, the share that must stay; 0 or less is no
        promise.
        """
        found = []
        for key, promise in self.promises.items():
            least = promised(promise.times)
            if least > 0.0 and promise.share is not None:
                more = None if made is None else made.to(key, promise)
                found.append(Certainty(*key, least, promise.share, more, promise.spare))
        return tuple(found)


@dataclass(frozen=True)
class MadeEvidence:
    """That of ``samples`` made of so many others (``of``).

    ``seen``: of samples that the quantized model was fitted to, which tell as well how often the float one is sure.
    """

    evidence: Evidence
    samples: int
    of: int
    seen: Evidence

    def to(self, key: tuple[str, str], real: Promise) -> Made | None:
        """What is added to the promise ``key``, of which the data says ``real``; None where nothing counts."""
        made = self.evidence.promises.get(key)
        if made is None or made.share is None:
            return None
        if real.sure:
            return Made(self.samples, self.of, self._alike(made.share))
        if real.strata is None or made.strata is None:
            return None
        sure, near = real.strata.sure + self._alike(made.strata.sure), real.strata.near + self._alike(made.strata.near)
        seen = self.seen.promises.get(key)
        more = Share() if seen is None or seen.strata is None else seen.strata.sureness
        return Made(self.samples, self.of, made.share, Strata(sure, near, real.strata.sureness + more))

    def _alike(self, share: Share) -> Share:
        """``share``, of which no more samples stand for themselves than others were made of."""
        return replace(share, samples=min(share.samples, self.of))


def _added(one: Promise, other: Promise) -> Promise:
    strata = one.strata if other.strata is None else other.strata if one.strata is None else one.strata + other.strata
    both = (one.share or Share()) + (other.share or Share())
    return replace(one, share=both, strata=strata, spare=max(one.spare, other.spare))

"""Which of two candidates stays: what held-out samples say of them, and calibration samples as second_check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

from onnxq.build.builder import Builder, Built
from onnxq.calibrate.feeds import Feed
from onnxq.config import Config
from onnxq.measure.references import References, references
from onnxq.ranges.registry import find_method
from onnxq.search.guard import End, Verdict, judge, repair

# The most held-out feeds that a judgement runs, and the fewer that rank layers: each costs a run for every layer, and
# where one has many activations it says much by itself.
JUDGED_FEEDS = 64
_RANKED_FEEDS = (2, 8)
_RANKED_ELEMENTS = 1 << 26
# Calibration samples that witness disagreement: at most so many, and of large models only what this many counted
# elements of activations allow, for each costs a run of both models.
_SECOND_CHECK = 256
_SECOND_CHECK_ELEMENTS = 1 << 24


@dataclass
class Trial:
    """Judges the candidates for one float model, each once; ``reference`` is that model as the runtime loads it.

    ``second_check``: calibration samples that may object to what is good, for a few held-out samples show wrong
    decisions too seldom. (Ranges fit hundreds of samples with two numbers a tensor, so that those are almost as good.)
    None where the held-out samples are the calibration samples.
    """

    reference: bytes | Path
    config: Config
    held_out: Feed
    second_check: Feed | None
    _heard: WeakKeyDictionary[Built, Verdict] = field(default_factory=WeakKeyDictionary)
    _confirmed: WeakKeyDictionary[Built, bool] = field(default_factory=WeakKeyDictionary)
    _ranked: References | None = None

    def verdict(self, built: Built) -> Verdict:
        """What is said of ``built``; its figures are those of the held-out samples alone."""
        verdict = self._held_out(built)
        if not verdict.good or self.second_check is None:
            return verdict
        if built not in self._confirmed:
            self._confirmed[built] = judge(self.reference, built.runtime_model, self.second_check, self.config).good
        return replace(verdict, good=self._confirmed[built])

    def better(self, first: tuple[Builder, Built], second: tuple[Builder, Built]) -> tuple[Builder, Built]:
        """The one that loses less on the held-out samples, by SQNR; ``first`` where they are equal."""
        return second if self._held_out(second[1]).sqnr_db > self._held_out(first[1]).sqnr_db else first

    def repaired(
        self,
        first: Built,
        builder: Builder,
        progress: Callable[[int, int], None],
        *,
        goes_with: Mapping[str, str] | None = None,
    ) -> End:
        """``first`` with as few layers given back to float as it takes, its verdict, and their names.

        ``goes_with``: by layer that only serves another one, the name of that.
        """
        return repair(
            first,
            self._as_asked(self.verdict(first)),
            builder.build,
            lambda built: self._as_asked(self.verdict(built)),
            lambda kept: self._ranked_by(builder).noise_once(builder.draft(kept).runtime_model),
            goes_with=goes_with,
            progress=progress,
        )

    def _held_out(self, built: Built) -> Verdict:
        if built not in self._heard:
            self._heard[built] = judge(
                self.reference, built.runtime_model, self.held_out.limit(JUDGED_FEEDS), self.config
            )
        return self._heard[built]

    def _as_asked(self, verdict: Verdict) -> Verdict:
        """``verdict`` where nothing is to be given back for accuracy: then only what is broken counts."""
        return verdict if self.config.guarded else replace(verdict, good=not verdict.comparison.problems)

    def _ranked_by(self, builder: Builder) -> References:
        """What layers are ranked by, the same for all candidates."""
        if self._ranked is None:
            fewest, most = _RANKED_FEEDS
            count = int(min(most, max(fewest, _RANKED_ELEMENTS // max(1.0, _elements(builder)))))
            self._ranked = references(self.reference, self.held_out.limit(count))
        return self._ranked


def _elements(builder: Builder) -> float:
    """Activations that were counted for one feed."""
    feeds = builder.feeds.len_hint if isinstance(builder.feeds, Feed) else None
    return sum(h.total for h in builder.statistics.histograms.values()) / (feeds or JUDGED_FEEDS)


def second_check(builder: Builder) -> int:
    """How many calibration samples a model of this size can be judged on too."""
    return int(min(_SECOND_CHECK, max(1.0, _SECOND_CHECK_ELEMENTS / max(_elements(builder), 1.0))))


def with_extrapolated_ranges(builder: Builder, first: Built) -> tuple[Builder, Built] | None:
    """``builder`` and ``first`` with ranges for samples that are yet to come; None where those are the same.

    In every tensor less is lost on such samples; at the outputs not always, where what is clipped matters little.
    """
    if not find_method(builder.config.activation_range).extrapolated or not first.plan.points:
        return None
    other = builder.with_extrapolated_ranges()
    second = other.build(first.kept_float)
    return None if second.parameters.tensors == first.parameters.tensors else (other, second)

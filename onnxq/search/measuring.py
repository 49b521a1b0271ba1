"""The user's own measure as a judge of candidates: each is measured once, the float model once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from onnxq.build.candidate import Built
from onnxq.calibrate.feeds import Feed
from onnxq.calibrate.unused import LabelledFeed
from onnxq.measure.metric import Answering, Metric, MetricComparison, measured_by, seen
from onnxq.measure.references import Answers
from onnxq.runtime.session import QUIET, open_session, run


@dataclass(frozen=True, eq=False)
class MetricJudge:
    """Measures candidates by ``metric`` on ``feeds``, as many of them as it takes: what calibration did not see first.

    ``labels``: the array of the data that holds them; empty: there are none. ``max_drop``: None for the usual one.
    """

    metric: Metric
    feeds: Sequence[Feed]
    labels: str
    max_drop: float | None
    _before: list[list[tuple[Any, Any]]] = field(default_factory=list)  # by feed, by sample: what was seen, the label
    _found: dict[Built, MetricComparison] = field(default_factory=dict)

    def of(self, built: Built, answers: Answers) -> MetricComparison:
        """What the metric says of ``built``; ``answers``: those of the float model."""
        if built not in self._found:
            self._found[built] = self._measured(built, answers)
        return self._found[built]

    def _measured(self, built: Built, answers: Answers) -> MetricComparison:
        session = open_session(built.runtime_model, config=QUIET)
        quantized = Answering("the quantized model", answers.names, partial(run, session, outputs=answers.names))
        truth = None if self.labels else _answering(answers)
        before: list[Any] = []
        after: list[Any] = []
        labels: list[Any] = []
        for number, feed in enumerate(self.feeds):
            known = self.known(answers, number)
            before += [value for value, _ in known]
            labels += [label for _, label in known]
            after += [value for value, _ in seen(self.metric, quantized, LabelledFeed(feed, self.labels), truth)]
            found = measured_by(self.metric, before, after, labels if self.labels else None, self.max_drop)
            if found.hopeless:
                break
        answers.close()
        return found

    def known(self, answers: Answers, number: int = 0) -> list[tuple[Any, Any]]:
        """By sample of feed ``number``, what the metric sees of the float model, and the label."""
        if number == len(self._before):
            model, truth = _answering(answers), None if self.labels else _answering(answers)
            self._before.append(list(seen(self.metric, model, LabelledFeed(self.feeds[number], self.labels), truth)))
        return self._before[number]


def _answering(answers: Answers) -> Answering:
    return Answering("the float model", answers.names, answers.of)

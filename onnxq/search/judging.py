"""The judge of candidates: what held-out samples say of them, and calibration samples as the second check set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.build.build import Context, build, draft
from onnxq.build.candidate import Built, Candidate
from onnxq.calibrate.feeds import Feed
from onnxq.config import Config
from onnxq.emit import emit
from onnxq.errors import RuntimeFailure
from onnxq.files.scratch import Scratch
from onnxq.graph.lengths import ValueLengths
from onnxq.graph.runtime_model import to_runtime
from onnxq.kernels.lengths import Length
from onnxq.kernels.meaning import Head
from onnxq.measure.accuracy import Accuracy, Scorer
from onnxq.measure.compare import Comparison, compare
from onnxq.measure.kinds import KindGuess, guessed
from onnxq.measure.references import Answers, References, references, seen_of
from onnxq.numerics import QuantParams
from onnxq.plan import KeptFloat, Own, Plan, Point
from onnxq.runtime.session import QUIET, open_session, run
from onnxq.search.acceptance import (
    JUDGED_FEEDS,
    Shortfall,
    Verdict,
    accepts,
    affordable_samples,
    as_asked,
    less_noise,
    ranked_feeds,
    second_check_samples,
)
from onnxq.search.measuring import MetricJudge
from onnxq.search.proof import Proof

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]


def judge(
    float_model: bytes | Path | Answers,
    quantized: bytes | Path,
    held_out: Feeds,
    config: Config,
    *,
    lengths: Mapping[str, Length] | None = None,
    kinds: Mapping[str, KindGuess] | None = None,
) -> Verdict:
    """The ``Verdict`` on ``quantized`` over ``held_out``, data that calibration never saw.

    ``lengths``: how those outputs are as long as values say that are. ``kinds``: what each output is for.
    """
    answers = float_model if isinstance(float_model, Answers) else Answers(float_model)
    try:
        return accepts(compare(answers, quantized, held_out, lengths=lengths, kinds=kinds), config)
    finally:
        answers.close()


@dataclass(frozen=True, eq=False)
class CandidateJudge:
    """Judges the candidates for one float model, each once; ``reference`` is that model as the runtime loads it.

    ``second_check``: calibration samples that may object to what is good, for a few held-out samples show wrong
    decisions too seldom. (Ranges fit hundreds of samples with two numbers a tensor, so that those are almost as good.)
    None where the held-out samples are the calibration samples. ``lengths``: how outputs are as long as values say.
    ``scratch`` holds the float model's answers. ``heads``: what stands behind each output. ``metric``: the user's own
    measure, which decides where there is one. ``proof``: what more can be asked of what is good.
    """

    reference: bytes | Path
    config: Config
    held_out: Feed
    second_check: Feed | None
    lengths: ValueLengths = field(default_factory=ValueLengths)
    scratch: Scratch | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    metric: MetricJudge | None = None
    proof: Proof | None = None
    _verdicts: dict[Built, Verdict] = field(default_factory=dict)
    _confirmed: dict[Built, Verdict] = field(default_factory=dict)
    _proven: dict[Built, Verdict] = field(default_factory=dict)
    _ranked: list[References] = field(default_factory=list)  # one at most: the same for all candidates
    _answers: list[Answers] = field(default_factory=list)  # likewise
    _kinds: list[dict[str, KindGuess]] = field(default_factory=list)  # likewise

    def by(self, samples: Feed) -> CandidateJudge:
        """A judge by ``samples`` alone."""
        return CandidateJudge(
            self.reference, self.config, samples, None, self.lengths, self.scratch, self.heads, _kinds=[self.kinds]
        )

    @property
    def answers(self) -> Answers:
        """What the float model answers: known once it was asked, for all candidates."""
        if not self._answers:
            self._answers.append(Answers(self.reference, self.scratch))
        return self._answers[0]

    @property
    def kinds(self) -> dict[str, KindGuess]:
        """What each output is for, by what the float model answers to the first held-out samples."""
        if not self._kinds:
            seen = seen_of(self.answers, self.held_out)
            asked = dict(self.config.judge)
            self._kinds.append(guessed(seen, heads=self.heads, lengths=self.lengths.outputs, asked=asked))
        return self._kinds[0]

    def verdict(self, built: Built) -> Verdict:
        """What is said of ``built``; its figures are those of the held-out samples alone."""
        verdict = self.restated(built)
        if self.metric is not None or not verdict.good or self.second_check is None:
            return verdict
        if built not in self._confirmed:
            self._confirmed[built] = self._on(self.second_check, built)
        second = self._confirmed[built]
        if second.good:
            return self._weighed(built, verdict)
        return verdict.contradicted(Shortfall.LENGTHS) if second.good_but_for_lengths else verdict.contradicted()

    def _weighed(self, built: Built, verdict: Verdict) -> Verdict:
        """``verdict`` on what is good so far, with how sure that is; more samples may contradict it."""
        if self.proof is None or not self.config.guarded:
            return verdict
        if built not in self._proven:
            seen = self._confirmed[built].comparison
            found = self.proof.of(verdict.comparison, seen, partial(self._compared, built))
            self._proven[built] = verdict.weighed(found)
        return self._proven[built]

    def restated(self, built: Built) -> Verdict:
        """What is said of ``built``, which makes less of what was good: no second check set objects to it."""
        verdict = self.on_held_out(built)
        return verdict if self.metric is None else verdict.measured(self.metric.of(built, self.answers))

    def on_held_out(self, built: Built) -> Verdict:
        """What the held-out samples say of ``built``."""
        if built not in self._verdicts:
            self._verdicts[built] = self._on(self.held_out.limit(JUDGED_FEEDS), built)
        return self._verdicts[built]

    def _on(self, feed: Feed, built: Built) -> Verdict:
        return judge(
            self.answers, built.runtime_model, feed, self.config, lengths=self.lengths.outputs, kinds=self.kinds
        )

    def _compared(self, built: Built, feeds: Feeds) -> Comparison:
        """What more samples show of ``built``."""
        try:
            return compare(self.answers, built.runtime_model, feeds, lengths=self.lengths.outputs, kinds=self.kinds)
        finally:
            self.answers.close()

    def accuracy(self, built: Built, feeds: Iterable[Feed]) -> Accuracy:
        """How often ``built`` and the float model are right about the labels of ``feeds``."""
        session, names, key = open_session(built.runtime_model, config=QUIET), self.answers.names, self.config.labels
        parts = list(feeds)
        scorer = Scorer(np.concatenate([feed.labels(key) for feed in parts]), None)
        for part in parts:
            for feed in part:
                scorer.add(names, self.answers.of(feed), run(session, feed, outputs=names))
        self.answers.close()
        return scorer.result()

    def loses_less(self, second: Built, first: Built) -> bool:
        """Whether ``second`` loses less than ``first`` on the held-out samples; not where they are equal."""
        return less_noise(self.on_held_out(second), self.on_held_out(first))

    def ranked_by(self, elements: float) -> References:
        """What layers are ranked by; ``elements``: those of activations for one feed."""
        if not self._ranked:
            self._ranked.append(references(self.answers, self.held_out.limit(ranked_feeds(elements))))
        return self._ranked[0]


@dataclass(frozen=True, eq=False)
class CandidateEvaluator:
    """Builds and judges what ``candidate`` is with more layers kept float (``repair.Evaluator``)."""

    candidate: Candidate
    context: Context
    judge: CandidateJudge

    def build(self, kept: Mapping[str, KeptFloat]) -> Built:
        """The candidate with ``kept`` float."""
        return build(self.candidate.keeping(kept), self.context)

    def verdict(self, built: Built) -> Verdict:
        """What counts of the verdict, as the configuration asks for it."""
        return as_asked(self.judge.verdict(built), self.judge.config)


@dataclass(frozen=True, eq=False)
class OutputNoise:
    """Measures what ``candidate`` loses at the outputs with some layers kept float (``repair.Ranker``)."""

    candidate: Candidate
    context: Context
    judge: CandidateJudge

    def noise(self, kept: Mapping[str, KeptFloat]) -> float:
        """Relative noise energy with ``kept`` float; infinite where that does not run."""
        seen = self.judge.ranked_by(elements(self.candidate, self.context))
        try:
            return seen.noise_once(draft(self.candidate.keeping(kept), self.context).runtime_model)
        except RuntimeFailure:
            return math.inf

    def noises(self, kept: Mapping[str, KeptFloat]) -> tuple[float, ...]:
        """``noise`` of each float output; nothing where that does not run."""
        return self._noises(lambda: draft(self.candidate.keeping(kept), self.context).runtime_model)

    def rounded(
        self, first: Built, points: Sequence[Point], tensors: Mapping[str, QuantParams] | None = None
    ) -> tuple[float, ...]:
        """``noises`` where ``points``, of the plan of ``first``, are all that is rounded; ``tensors``: otherwise."""
        roots, known = first.plan.roots, {**first.parameters.tensors, **(tensors or {})}
        alone = Plan(tuple(replace(point, source=Own()) for point in points))
        tensors = {point.tensor: known[roots[point.tensor]] for point in points}
        scratch, graph = self.context.scratch, self.candidate.graph
        model = emit(graph, alone, tensors=tensors, weights={}, biases={}, scratch=scratch, steer=False)
        return self._noises(lambda: to_runtime(model, self.context.folder))

    def _noises(self, model: Callable[[], bytes | Path]) -> tuple[float, ...]:
        seen = self.judge.ranked_by(elements(self.candidate, self.context))
        try:
            return seen.noises_once(model())
        except RuntimeFailure:
            return ()


def elements(candidate: Candidate, context: Context) -> float:
    """Elements of activations that one feed of the calibration data showed."""
    return context.statistics.elements(candidate.watched, feeds=JUDGED_FEEDS)


def second_check(candidate: Candidate, context: Context, calibration: Feed) -> Feed:
    """The part of the calibration samples that a model of this size can be judged on too."""
    counted = context.statistics.counted(candidate.watched, feeds=JUDGED_FEEDS)
    most = second_check_samples(counted)
    return calibration.limit(min(most, affordable_samples(elements(candidate, context))))

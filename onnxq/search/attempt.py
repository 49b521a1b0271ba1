"""What the strategies of a search share, and what they hand on: frozen values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from onnxq.build.build import Context, build
from onnxq.build.candidate import Built, Candidate
from onnxq.calibrate.feeds import Feed
from onnxq.config import Config
from onnxq.equalize import Equalized
from onnxq.files.scratch import Scratch
from onnxq.graph.signature import Signature, signature
from onnxq.measure.latency import LatencyReport
from onnxq.measure.metric import Metric
from onnxq.report.curve import CurvePoint
from onnxq.report.report import Adaptation
from onnxq.search.acceptance import BATCHES_TO_ADAPT, FEW_SAMPLES, Verdict
from onnxq.search.judging import CandidateJudge
from onnxq.search.knapsack import Chosen
from onnxq.search.tune import Tuning

Progress: TypeAlias = Callable[[str, int, "int | None"], None]

# The share of calibration samples that adapting is judged by.
_CHECKED_SHARE = 0.125


@dataclass(frozen=True)
class Job:
    """What all stages of one call share. ``asked``: the user's configuration; candidates have their own.

    ``source``: the original as a file; ``reference``: what is run of it (``graph.reference``). ``fits``: whether there
    is memory to run it. ``metric``: the user's own measure.
    """

    prepared: ir.Model
    original: ir.Model
    source: bytes | Path
    reference: bytes | Path
    folder: Path
    asked: Config
    tell: Progress
    scratch: Scratch
    fits: bool = True
    metric: Metric | None = None

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model that was given."""
        return signature(self.original)


@dataclass(frozen=True)
class Samples:
    """The data of a call: for calibration, for judging adaptation (None: there is none), for judging the result.

    ``unused``: what the data holds beyond that, which nothing was fitted to either; None: nothing.
    """

    calibration: Feed
    check: Feed | None
    held_out: Feed
    notes: tuple[str, ...] = ()
    unused: Feed | None = None


def split(feed: Feed, config: Config) -> Samples:
    """The parts that ``feed`` is used in."""
    count = feed.samples
    notes: tuple[str, ...] = ()
    if config.held_out == 0.0 or (count is not None and count < FEW_SAMPLES):
        calibration = held_out = feed
        notes = ("judged on the calibration samples themselves: there are too few to hold any out",)
    else:
        calibration, held_out = feed.split(config.held_out, seed=config.seed)
    if config.adapt == "none":
        return Samples(calibration, None, held_out, notes)
    batch = calibration.layout.rows if calibration.layout.fixed else 1
    if count is not None and count < max(FEW_SAMPLES, BATCHES_TO_ADAPT * batch):
        few = f"not adapted: {count} samples are too few to fit weights to and to judge them by"
        return Samples(calibration, None, held_out, (*notes, few))
    # Nothing of what is judged by these may have seen them, ranges included.
    fitted, check = calibration.split(_CHECKED_SHARE, seed=config.seed + 1)
    return Samples(fitted, check, held_out, notes)


@dataclass(frozen=True)
class Search:
    """Where strategies look: the call, its data (None: there is none), feeds to time on, the judge once there is one.

    ``described``: what the data is, in words.
    """

    job: Job
    samples: Samples | None
    timed: Feed | None
    described: str
    judge: CandidateJudge | None = None


@dataclass(frozen=True, eq=False)
class Attempt:
    """How far a search has come: the candidate of choice, and what the strategies found out about it.

    | field        | meaning                                                                       |
    |--------------|-------------------------------------------------------------------------------|
    | `candidate`  | what the model is made of                                                     |
    | `context`    | data and caches                                                               |
    | `equalized`  | what became of the prepared model                                             |
    | `made`       | the candidate built; None before the first one is                             |
    | `verdict`    | None without data                                                             |
    | `latency`    | beside the float model, where it was measured                                 |
    | `tuning`     | what was timed to find the placement                                          |
    | `adaptation` | the steps of adapting                                                         |
    | `bits`       | the formats that layers got by their sensitivity                              |
    | `curve`      | the points between integers and float that a repair built                     |
    | `notes`      | lines for the report                                                          |
    """

    candidate: Candidate
    context: Context
    equalized: Equalized
    made: Built | None = None
    verdict: Verdict | None = None
    latency: LatencyReport | None = None
    tuning: Tuning | None = None
    adaptation: Adaptation | None = None
    bits: tuple[Chosen, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def built(self) -> Built:
        """The candidate built, once it is."""
        if self.made is None:
            raise ValueError("this candidate has not been built yet")
        return self.made

    def noting(self, *notes: str) -> Attempt:
        """The same with more lines for the report."""
        return replace(self, notes=(*self.notes, *notes))

    def of(self, candidate: Candidate) -> Attempt:
        """The same with ``candidate`` built."""
        return replace(self, candidate=candidate, made=build(candidate, self.context))


Strategy: TypeAlias = "Callable[[Search, Attempt], Attempt | None]"

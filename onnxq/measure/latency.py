"""Latency of several models in one run, so that what disturbs the machine disturbs all of them alike.

All sessions are loaded first and warmed up. Then, round after round, every model runs the same feed, in an order drawn
anew each round. Times are compared *within* a round: the median over rounds of (time / time of the first model), with
the order-statistic confidence interval of a median (sign test; no distribution assumed, but rounds independent).

With one thread a model runs in the thread that calls it, and its time is the processor time of that thread: on a busy
machine the same as on a quiet one. With several threads it is the wall clock's, and every row says what share of the
time threads had to wait for a core (``busy``): where that is much, the row decides nothing.

Idle threads of onnxruntime spin for a while before they sleep. With several sessions alive they steal the cores from
the session that is being timed: on 2 cores with 2 threads each, three copies of one model interleaved took two to
three times longer than one alone, and no longer than alone with spinning off. So ``session.intra_op.allow_spinning``
is 0 whenever several models are measured with several threads. A server that runs one model alone may be somewhat
faster with it on.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import ConfigError, DataError
from onnxq.measure.busy import BUSY, clock, counts_processor_time, share_waited, waiting
from onnxq.measure.footprint import Footprint, footprint
from onnxq.runtime.plain import plain
from onnxq.runtime.proto import Model, label
from onnxq.runtime.session import QUIET, Feed, call, open_session, run

MAX_FEEDS = 8
# A slowdown counts where even the lower end of its confidence interval is above this.
NOTICEABLE = 1.02
_WARM_UP_RUNS = 3
# Shorter models are run several times for one measurement, or Python's own jitter would be measured.
_SHORTEST_S = 1e-3
# How often it is looked how busy the machine is, where the clock does not tell.
_PROBED_EVERY_S = 0.5
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one model with ``threads`` threads: median, first and third quartile, least.

    With one thread they are processor time of that thread, with more the wall clock's. ``ratio``: median over rounds of
    its time over the first model's in the same round (below 1: faster), with the 95 % confidence interval
    ``[ratio_low, ratio_high]``; 1 for the first model. ``waited``: the share of the time, in [0, 1], that threads had
    to wait for a core, which other processes had.
    """

    model: str
    threads: int
    rounds: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    waited: float = 0.0

    @property
    def sure(self) -> bool:
        """Whether these figures are those of the model: the clock left the waiting out, or there was little of it."""
        return counts_processor_time(self.threads) or self.waited <= BUSY

    @property
    def speedup(self) -> float:
        """How many times faster than the first model."""
        return 1.0 / self.ratio


@dataclass(frozen=True)
class LatencyReport:
    """``rows``: models in the order given, for each number of threads. ``footprints``: one for each model, or none.

    ``same_kernels``: whether it is known that all models run the same kernels, so that none of them can be slower.
    """

    rows: tuple[Latency, ...]
    footprints: tuple[Footprint, ...]
    spinning: bool
    seed: int
    same_kernels: bool = False

    @property
    def slower(self) -> bool:
        """Whether a model is noticeably slower than the first with some number of threads, beyond doubt.

        Beyond doubt: the whole confidence interval of the paired ratio lies above 1, and the figures are sure.
        """
        return not self.same_kernels and any(row.sure and row.ratio_low > NOTICEABLE for row in self.rows)

    @property
    def unsure(self) -> tuple[Latency, ...]:
        """The rows that decide nothing, since others had the cores."""
        return tuple(row for row in self.rows if not row.sure)

    def of(self, *, threads: int) -> tuple[Latency, ...]:
        """The rows measured with ``threads`` threads."""
        return tuple(row for row in self.rows if row.threads == threads)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dict(plain(self))


def benchmark(
    models: Sequence[Model],
    feeds: Iterable[Feed],
    *,
    threads: Sequence[int] = (1,),
    seconds: float = 5.0,
    min_rounds: int = 20,
    seed: int = 0,
    memory: bool = True,
) -> LatencyReport:
    """The ``LatencyReport`` of ``models`` over the first ``MAX_FEEDS`` of ``feeds``, taken in turn.

    ``seconds``: for each number of threads; at least ``min_rounds`` rounds are run. ``memory``: whether to start one
    process for each model that measures load time and peak memory.

    Raises ``ConfigError`` for no models or senseless counts, ``DataError`` for no feeds or one that does not fit.
    """
    if not models or not threads or min(threads) < 1 or min_rounds < 1:
        raise ConfigError("a benchmark needs at least one model, one thread and one round")
    kept = [dict(feed) for feed in itertools.islice(feeds, MAX_FEEDS)]
    if not kept:
        raise DataError("there is no data to run the models on", hint="give at least one sample")
    spinning = len(models) == 1 or max(threads) == 1
    rng = np.random.default_rng(seed)
    names = distinct_labels(models)
    rows: list[Latency] = []
    for count in threads:
        times, waited = _rounds(models, kept, count, seconds, min_rounds, spinning, rng)
        rows += [_row(name, count, times[:, i], times[:, 0], waited) for i, name in enumerate(names)]
    footprints: tuple[Footprint, ...] = ()
    if memory:
        measured = (footprint(m, kept, threads=max(threads)) for m in models)
        footprints = tuple(replace(f, model=name) for f, name in zip(measured, names, strict=True))
    return LatencyReport(tuple(rows), footprints, spinning, seed)


def distinct_labels(models: Sequence[Model]) -> list[str]:
    """A name for each model: its file name, with the folder and then its number where that alone is not unique."""
    names = [label(m) for m in models]
    full = [n if names.count(n) == 1 or isinstance(m, bytes) else str(m) for n, m in zip(names, models, strict=True)]
    return [n if full.count(n) == 1 else f"{n} #{i}" for i, n in enumerate(full, start=1)]


def _rounds(
    models: Sequence[Model],
    feeds: list[dict[str, npt.NDArray[Any]]],
    threads: int,
    seconds: float,
    min_rounds: int,
    spinning: bool,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], float]:
    """(seconds of one run: ``[rounds, models]``, the share of the time that threads waited for a core)."""
    config: Mapping[str, str] = {} if spinning else QUIET
    sessions = [open_session(model, threads=threads, config=config) for model in models]
    stopwatch = _Stopwatch(threads)
    repeats: list[int] = []
    for session in sessions:
        for feed in feeds:
            run(session, feed)  # the shapes of all feeds are seen before any is timed
        shortest = min(stopwatch.time(session, feeds[0], 1) for _ in range(_WARM_UP_RUNS))
        repeats.append(max(1, math.ceil(_SHORTEST_S / max(shortest, 1e-9))))
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < min_rounds or time.perf_counter() < end:
        feed = feeds[len(rounds) % len(feeds)]
        row = [0.0] * len(sessions)
        for i in rng.permutation(len(sessions)).tolist():
            row[i] = stopwatch.time(sessions[i], feed, repeats[i])
        rounds.append(row)
        stopwatch.probe()
    return np.asarray(rounds), stopwatch.waited


class _Stopwatch:
    """Times runs of models with so many ``threads``, and knows how much these had to wait."""

    def __init__(self, threads: int) -> None:
        self._threads, self._clock = threads, clock(threads)
        self._own = self._wall = 0.0
        self._probes: list[float] = []
        self._next = 0.0

    def time(self, session: Any, feed: dict[str, npt.NDArray[Any]], repeats: int) -> float:
        """Seconds of one run, the mean over ``repeats``."""
        once = call(session, feed)
        wall, start = time.perf_counter(), self._clock()
        for _ in range(repeats):
            once()
        own = self._clock() - start
        self._own, self._wall = self._own + own, self._wall + time.perf_counter() - wall
        return own / repeats

    def probe(self) -> None:
        """Looks how busy the machine is, now and then, where the clock does not tell."""
        if not counts_processor_time(self._threads) and time.perf_counter() >= self._next:
            self._probes.append(waiting(self._threads))
            self._next = time.perf_counter() + _PROBED_EVERY_S

    @property
    def waited(self) -> float:
        """The share of the time so far that the threads waited for a core."""
        return float(np.mean(self._probes)) if self._probes else share_waited(self._own, self._wall)


def _row(
    name: str, threads: int, own: npt.NDArray[np.float64], first: npt.NDArray[np.float64], waited: float
) -> Latency:
    q1, median, q3 = (np.percentile(own, [25, 50, 75]) * 1e3).tolist()
    ratio, low, high = median_interval(own / first)
    return Latency(name, threads, len(own), median, q1, q3, float(own.min() * 1e3), ratio, low, high, waited)


def median_interval(values: npt.ArrayLike, *, confidence: float = _CONFIDENCE) -> tuple[float, float, float]:
    """(median, low, high): the distribution-free interval of a median (sign test) from order statistics.

    ``[x_(k), x_(n+1-k)]`` holds the median with probability ``1 - 2 P(Binomial(n, 1/2) < k)``; the largest ``k`` that
    keeps at least ``confidence`` is taken, and the whole range where even ``k = 1`` does not (n <= 5 for 95 %).
    """
    x = np.sort(np.asarray(values, np.float64).ravel())
    n = x.size
    k, tail = 0, 0.0
    while k < (n - 1) // 2:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if 2 * tail > 1 - confidence:
            break
        k += 1
    k = max(k, 1)
    return float(np.median(x)), float(x[k - 1]), float(x[n - k])

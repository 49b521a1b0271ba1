"""What is going on, on stderr: a bar with the time left in a terminal, a line for each stage anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_WORDS = {
    "prepare": "Preparing the graph",
    "equalize": "Equalizing channels",
    "observe": "Observing ranges",
    "verify": "Comparing with float",
    "adapt": "Adapting layers",
    "gradients": "Weighing errors",
    "repair": "Finding noisy layers",
    "unrunnable": "Finding what cannot run on integers",
    "measure": "Measuring latency",
    "latency": "Measuring latency",
    "compare": "Comparing outputs",
    "layers": "Measuring layers",
    "run": "Running",
}


# A stage that takes longer says so every so often; one that comes again is mentioned again from this time on.
_ALIVE_S = 30.0
_MENTIONED_S = 1.0
# Until then nothing is said: what fails at once shows its error alone.
_AT_ONCE_S = 1.0


class StageLines:
    """Writes a line for each stage once it is over, and now and then while it goes on, at once to stderr.

    ``clock``: seconds, counted from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start = clock, clock()
        self._stage = ""
        self._begun = self._spoke = 0.0
        self._mentioned: set[str] = set()
        self._lines: list[str] = []

    def tell(self, stage: str, done: int, total: int | None) -> None:
        """The stage called ``stage`` has come as far as ``done`` of ``total``."""
        now = self._clock()
        if stage != self._stage:
            self._finish(now)
            self._stage, self._begun, self._spoke = stage, now, now
        elif now - self._spoke >= _ALIVE_S:
            self._spoke = now
            far = f"{done} of {total} after" if total else "going on,"
            self._lines.append(f"{_words(stage)}: {far} {now - self._begun:.0f} s")
        if now - self._start >= _AT_ONCE_S:
            self._write()

    def end(self) -> None:
        """All stages are over."""
        self._finish(self._clock())
        self._write()

    def _finish(self, now: float) -> None:
        took = now - self._begun
        if self._stage and (self._stage not in self._mentioned or took >= _MENTIONED_S):
            self._mentioned.add(self._stage)
            self._lines.append(f"{_words(self._stage)}: {took:.1f} s")

    def _write(self) -> None:
        for line in self._lines:
            print(line, file=sys.stderr, flush=True)
        self._lines.clear()


def _words(stage: str) -> str:
    return _WORDS.get(stage, stage.capitalize())


@contextlib.contextmanager
def progress_bar(console: Console, *, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields ``progress(stage, done, total)``: in a terminal a bar for each stage, gone when the block ends.

    Elsewhere a line for each stage (``StageLines``), which ends up in a log; with ``quiet`` nothing.
    """
    if quiet:
        yield lambda stage, done, total: None
        return
    if not console.is_terminal:
        lines = StageLines()
        yield lines.tell
        lines.end()
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    tasks: dict[str, TaskID] = {}
    order: list[str] = []
    current = ""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", justify="right"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal current
            if current and stage != current:
                # A stage of unknown length would go on pulsing.
                finished = bar.tasks[order.index(current)]
                bar.update(tasks[current], total=finished.completed or 1, completed=finished.completed or 1)
                bar.stop_task(tasks[current])
            if stage not in tasks:
                tasks[stage] = bar.add_task(_words(stage), total=total, count="")
                order.append(stage)
            elif stage != current:
                bar.reset(tasks[stage], total=total, count="")  # a stage that comes again is measured anew
            current = stage
            bar.update(tasks[stage], completed=done, total=total, count=f"{done}/{total}" if total else "")

        yield tell

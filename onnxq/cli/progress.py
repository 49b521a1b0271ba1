"""A progress bar with the time left, on stderr and only where somebody can see it."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def progress_bar(console: Console, *, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields ``progress(stage, done, total)``: one line for each stage, gone when the block ends."""
    if quiet or not console.is_terminal:
        yield lambda stage, done, total: None
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
                tasks[stage] = bar.add_task(_WORDS.get(stage, stage.capitalize()), total=total, count="")
                order.append(stage)
            elif stage != current:
                bar.reset(tasks[stage], total=total, count="")  # a stage that comes again is measured anew
            current = stage
            bar.update(tasks[stage], completed=done, total=total, count=f"{done}/{total}" if total else "")

        yield tell

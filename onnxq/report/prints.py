"""How figures and tables are printed; rich is imported only when a table is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def empty_table(title: str, headers: Sequence[str], *, left: int, whole: Sequence[int] = ()) -> Table:
    """An empty table whose first ``left`` columns hold text and whose others hold numbers.

    Text that is too wide is broken, numbers never are, nor is what the columns ``whole`` hold.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, header in enumerate(headers):
        if i < left:
            table.add_column(Text(header), justify="left", overflow="fold", no_wrap=i in whole)
        else:
            table.add_column(Text(header), justify="right", no_wrap=True)
    return table


def add_row(table: Table, cells: Sequence[str]) -> None:
    # As Text, not str: tensor names hold brackets, which rich would read as markup.
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def ms(value: float) -> str:
    """Milliseconds with three digits that matter."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def megabytes(count: int) -> str:
    """Bytes in units of 10**6."""
    return f"{count / 1e6:.3f}" if count < 1e6 else f"{count / 1e6:.1f}"


def db(value: float | None) -> str:
    """Decibels with one decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"

"""How the outputs of two models compare, in print: a row of figures each, and a line of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.numerics import Share, rounded_down
from onnxq.report.prints import add_row, db, empty_table

if TYPE_CHECKING:
    from rich.table import Table


def outputs_table(comparison: Comparison) -> Table:
    """A row for each output of the two models: what it is judged as, and what was found."""
    headers = ["output", "judged as", "measure", "SQNR dB", "the same", "at least"]
    table = empty_table("Outputs", headers, left=3, whole=(1,))
    for o in comparison.outputs:
        add_row(table, [o.name, o.kind, measured(o), db(o.level_db), *counted(o.share)])
    return table


def measured(output: OutputComparison) -> str:
    """The measure of ``output`` and its value; a share in percent is told by its count instead (``counted``)."""
    if output.measure is None or output.unit == "%":
        return output.what or "-"
    return " ".join(part for part in (output.what, figure(output.measure), output.unit) if part)


def counted(share: Share | None) -> tuple[str, str]:
    """How many decisions stay, of how many, and the lower end of what that promises of others."""
    if share is None or not share.rows:
        return "-", "-"
    return f"{share.same:,} of {share.rows:,}", rounded_down(share.lower)


def judged_line(output: OutputComparison, *, sure: bool = True) -> str:
    """One line: why ``output`` is judged so, what is ``sure`` if that is said nowhere else, and the worst sample."""
    parts = [f"{output.name}: judged as {output.kind}" + (f", {output.kind_reason}" if output.kind_reason else "")]
    if output.detail:
        parts.append(output.detail)
    if sure and output.sure is not None and output.sure.rows:
        parts.append(f"where the float model is sure {output.sure}")
    whole = output.share is not None and output.share.same == output.share.rows and output.worst == 1.0
    if output.worst is not None and output.worst_place and not whole:
        parts.append(f"worst: {output.worst_what} {figure(output.worst)}, {output.worst_place}")
    return "; ".join(parts) + "."


def figure(value: float) -> str:
    """``value`` with the digits that matter: three, and of what is nearly 1 those that it is short of it."""
    if 0.9 < value < 1.0:
        return f"{value:.5f}".rstrip("0")
    return f"{value:.3g}"

"""How the outputs of two models compare, in print: a row of figures each, and a line of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.measure.compare import Comparison, OutputComparison
from onnxq.report.prints import add_row, db, empty_table

if TYPE_CHECKING:
    from rich.table import Table


def outputs_table(comparison: Comparison) -> Table:
    """A row for each output of the two models: what it is judged as, and what was found."""
    table = empty_table("Outputs", ["output", "judged as", "SQNR dB", "measure", "the same"], left=2)
    for o in comparison.outputs:
        add_row(table, [o.name, o.kind, db(o.level_db), measured(o), counted(o)])
    return table


def measured(output: OutputComparison) -> str:
    """The measure of ``output`` and its value; a share in percent is told by its count instead (``counted``)."""
    if output.measure is None or output.unit == "%":
        return output.what or "-"
    return " ".join(part for part in (output.what, figure(output.measure), output.unit) if part)


def counted(output: OutputComparison) -> str:
    """How many decisions stay, of how many, and the lower end of what that promises of others."""
    return "-" if output.share is None or not output.share.rows else str(output.share)


def judged_line(output: OutputComparison) -> str:
    """One line: why ``output`` is judged so, what is sure, and the worst sample."""
    parts = [f"{output.name}: judged as {output.kind}" + (f", {output.kind_reason}" if output.kind_reason else "")]
    if output.detail:
        parts.append(output.detail)
    if output.sure is not None and output.sure.rows:
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

"""Inspections and evaluations as text and tables, fit for 80 columns; rich is imported only to print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxq.numerics.noise import MAX_SQNR_DB
from onnxq.report.certainty import metric_line
from onnxq.report.prints import db, megabytes
from onnxq.report.tables import show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnxq.analysis.evaluation import Evaluation
    from onnxq.analysis.inspection import Inspection, Outlook, TensorInfo
    from onnxq.analysis.left_float import LeftGroup
    from onnxq.analysis.per_node import KernelShare, NodeTable

_NAMES_SHOWN = 3
_LAYERS_SHOWN = 12
_NODES_SHOWN = 30
_NAME_WIDTH = 22


def show_inspection(found: Inspection, console: Console) -> None:
    """Print ``found`` on ``console``."""
    kind = "quantized model" if found.quantized else "float model"
    opsets = ", ".join(f"opset {v}" if d == "ai.onnx" else f"{d} {v}" for d, v in found.opsets.items())
    facts = [
        (f"{found.name}", f"{kind}, {megabytes(found.size.file_bytes)} MB, {found.size.parameters:,} parameters"),
        (
            "",
            f"{found.nodes} nodes, {opsets}, IR {found.ir_version}" + (f", {found.producer}" if found.producer else ""),
        ),
    ]
    for title, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
        facts += [(title if i == 0 else "", _tensor(t)) for i, t in enumerate(tensors)]
    if found.quantized:
        facts.append(("quantized by", ", ".join(f"{op} {n}" for op, n in found.quantized_ops.items())))
    if found.refusal:
        facts.append(("cannot be quantized", found.refusal))
    console.print(_facts(facts))
    if found.outlook is not None:
        _show_outlook(found.outlook, console)
    if found.node_table is not None:
        _print(console, "")
        _show_nodes(found.node_table, console)
    if found.kernels is not None:
        _print(console, "")
        show(found.kernels, console)
        integer = sum(f.integer for f in found.assignments)
        _print(
            console, f"{integer} of {len(found.assignments)} compute nodes (Conv, Gemm, MatMul, ...) run on integers."
        )
        _show_left(found.left_float, console)


def _show_outlook(outlook: Outlook, console: Console) -> None:
    _print(console, "")
    busy = [o for o in outlook.ops if o.integer or o.absorbed or o.stored]
    columns = ("nodes", "integer", "absorbed", "float", "of them stored int8")
    table = _table("What INT8 changes", [("operator", 1), *((c, 0) for c in columns)])
    for o in busy:
        _add(table, [o.op, *(str(n or "-") for n in (o.nodes, o.integer, o.absorbed, o.left_float, o.stored))])
    console.print(table)
    rest = [f"{o.op} {o.nodes}" for o in outlook.ops if o not in busy]
    if rest:
        _print(console, f"Float as before: {', '.join(rest)}.")
        _print(console, "")
    _show_left(outlook.left, console)
    if outlook.weight_bytes:
        integer, stored = (100 * b / outlook.weight_bytes for b in (outlook.integer_bytes, outlook.stored_bytes))
        more = f" and {stored:.1f} % are stored as int8 for float ones" if outlook.stored_bytes else ""
        _print(
            console,
            f"Of {megabytes(outlook.weight_bytes)} MB of weights {integer:.1f} % go to integer kernels{more} "
            f"(target {outlook.target}).",
        )
    for note in outlook.notes:
        _print(console, f"Note: {note}")


def _show_nodes(table: NodeTable, console: Console) -> None:
    """The nodes that take longest, before or after."""
    both = table.total_after_us is not None
    took = sorted(table.rows, key=lambda row: -max(_time(row.before), _time(row.after)))
    wanted = {id(row) for row in took[:_NODES_SHOWN] if _time(row.before) or _time(row.after)}
    columns = [("node", 0), ("float", 1), ("us", 0), ("%", 0)]
    columns += [("quantized", 1), ("us", 0), ("%", 0), ("why", 1)] if both else [("becomes", 1), ("why", 1)]
    shown = _table("Time by node", columns)
    reasons = list(dict.fromkeys(row.reason for row in table.rows if id(row) in wanted and row.reason))
    for row in table.rows:
        if id(row) in wanted:
            why = f"({reasons.index(row.reason) + 1})" if row.reason else ""
            after = _cells(row.after, row.becomes) if both else [row.becomes or "float"]
            _add(shown, [_end(row.node), *_cells(row.before, ""), *after, why])
    console.print(shown)
    for number, reason in enumerate(reasons, start=1):
        _print(console, f"({number}) float: {reason}.")
    rest = len(table.rows) - len(wanted)
    if rest:
        _print(console, f"The {len(wanted)} nodes that take longest; {rest} more with --json.")
    for title, total, others in (
        ("float", table.total_before_us, table.others_before),
        ("quantized", table.total_after_us, table.others_after),
    ):
        if total is not None:
            apart = ", ".join(f"{op} {t:.0f}" for op, t in sorted(others.items(), key=lambda o: -o[1]))
            _print(console, f"All kernels, {title}: {total:.0f} us" + (f"; of no node: {apart}." if apart else "."))


def _end(name: str) -> str:
    """The end of a long name, which tells nodes apart better than its beginning."""
    return name if len(name) <= _NAME_WIDTH else "..." + name[3 - _NAME_WIDTH :]


def _time(share: KernelShare | None) -> float:
    return 0.0 if share is None else share.microseconds


def _cells(share: KernelShare | None, otherwise: str) -> list[str]:
    if share is None:
        return [otherwise, "-", "-"]
    return [share.kernel, f"{share.microseconds:.0f}", f"{100 * share.share:.1f}"]


def show_evaluation(result: Evaluation, console: Console) -> None:
    """Print ``result`` on ``console``: outputs, accuracy, and the layers with the most noise of their own."""
    show(result.comparison, console)
    if result.metric is not None:
        _print(console, metric_line(result.metric))
    if result.layers:
        # Layers left float make no noise of their own.
        noisy = [layer for layer in result.layers if layer.local_db < MAX_SQNR_DB]
        noisiest = sorted(noisy, key=lambda layer: layer.local_db)[:_LAYERS_SHOWN]
        shown = [layer for layer in noisy if layer in noisiest]
        table = _table("Noise by layer", [("layer", 1), ("op", 1), ("accumulated dB", 0), ("local dB", 0)])
        for layer in shown:
            _add(table, [layer.node or layer.tensor, layer.op, db(layer.accumulated_db), db(layer.local_db)])
        if shown:
            console.print(table)
        if len(shown) < len(result.layers):
            _print(console, f"{len(shown)} of {len(result.layers)} layers: the noisiest, in graph order (--json: all).")
    _print(console, f"Measured on {result.data}.")
    for note in result.notes:
        _print(console, f"Note: {note}")
    for warning in result.warnings:
        _print(console, f"Warning: {warning}", style="yellow")


def _show_left(groups: Sequence[LeftGroup], console: Console) -> None:
    if not groups:
        return
    table = _table("Left in float", [("nodes", 0), ("operator", 1), ("why", 1), ("which", 1)])
    for group in groups:
        names = [name or "(unnamed)" for name in group.nodes]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        _add(table, [str(len(names)), group.op, group.reason, ", ".join(names[:_NAMES_SHOWN]) + more])
    console.print(table)


def _tensor(info: TensorInfo) -> str:
    return f"{info.name}: {info}"


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        _add(table, row)
    return table


def _table(title: str, columns: Sequence[tuple[str, int]]) -> Table:
    """An empty table; a column is a header and whether it holds text (1) or numbers (0)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header, is_text in columns:
        table.add_column(Text(header), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    # As Text, not str: names hold brackets, which rich would read as markup.
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def _print(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False)

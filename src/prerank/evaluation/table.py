"""The report as a table on a terminal, readable without colour at 100 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prerank.artifacts import LEAST_USERS, Record, Report
from prerank.evaluation.formats import to_rich
from prerank.evaluation.sheets import ablation_sheet, audit_sheets, comparison_sheets
from prerank.evaluation.summary import no_weight
from prerank.evaluation.view import View, half_width, shows_difference, view
from prerank.progress import shown

WIDTH, WIDE = 100, 160
STAR = f"* its interval excludes 0, {LEAST_USERS} users or more"
BLANK = "\N{NO-BREAK SPACE}"  # rich strips plain spaces at the end of a cell


def print_table(report: Report, console: Console | None = None) -> None:
    """Print one table a pool: main metrics with intervals, and the difference to the baseline.

    Controls stand, indented, right under the method they control. Values whose metric is
    undefined read ``n/a``; report.json has the reason.

    Args:
        report: from `evaluate`.
        console: where to print; stdout by default.
    """
    out = console or Console(width=max(WIDTH, Console().width))
    seen = view(report)
    for pool in seen.pools:
        out.print(pool_table(seen, pool))
        out.print()
    out.print(_legend(seen))
    more = [ablation_sheet(seen), *audit_sheets(seen)[:1]]
    for sheet in [sheet for sheet in more if sheet.rows]:
        out.print()
        out.print(to_rich(sheet))


def print_comparison(report: Report, console: Console | None = None) -> None:
    """Print every sheet of a comparison."""
    out = console or Console(width=max(WIDE, Console().width))
    for sheet in comparison_sheets(view(report)):
        out.print(to_rich(sheet))
        out.print()


def pool_table(seen: View, pool: str) -> Table:
    """Return the table of one pool."""
    columns = _columns(seen)
    table = Table(
        title=shown(_title(seen, pool), "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("method", overflow="fold", max_width=24)
    for segment, metric in columns:
        table.add_column(
            shown(_header(segment, metric)), justify="right", no_wrap=True, min_width=10
        )
    for segment, metric in columns[:2] if seen.baseline else ():
        head = shown(f"Δ {_header(segment, metric)}")
        table.add_column(head, justify="right", no_wrap=True, min_width=12)
    for name, role in seen.main:
        indent = "  " if role == "control" else ""
        cells = [_value(seen.record(name, pool, *column)) for column in columns]
        if seen.baseline:
            cells += [_difference(seen.difference(name, pool, *column)) for column in columns[:2]]
        style = "bold" if role == "method" else ""
        table.add_row(shown(indent + name), *map(shown, cells), style=style)
    return table


def _columns(seen: View) -> list[tuple[str, str]]:
    hit = f"hr@{max(seen.config.ks)}"
    wanted = [("all", "gauc"), ("tail", "gauc"), ("all", hit), ("all", "auc")]
    known = {(segment, metric) for _, _, segment, metric in seen.records}
    return [column for column in wanted if column in known]


def _header(segment: str, metric: str) -> str:
    return metric if segment == "all" else f"{segment} {metric}"


def _title(seen: View, pool: str) -> str:
    about = seen.facts(pool)
    if about is None:
        return f"pool {pool}"
    rate = about["clicks"] / max(1, about["rows"])
    return f"pool {pool}: {seen.users(pool)}, {about['rows']:,} rows, {rate:.1%} clicked"


def _value(record: Record | None) -> str:
    if record is None or record.value is None:
        return "n/a"
    return _short(record.value) + _spread(record)


def _difference(record: Record | None) -> str:
    if record is None or record.value is None:
        return ""
    sign = "-" if round(record.value, 3) < 0 else "+"
    mark = "*" if shows_difference(record) else BLANK
    return f"{sign}{_short(abs(record.value))}{_spread(record)}{mark}"


def _spread(record: Record) -> str:
    half = half_width(record)
    if half is not None:
        return f" ±{_short(half)}"
    return BLANK * 6 if record.low is None else f" n={record.n:<3}"


def _short(value: float) -> str:
    """Return three decimals without the zero before the point: .041."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def _few(seen: View) -> bool:
    known = [record for record in seen.records.values() if record.low is not None]
    return any(record.interval is None for record in known)


def _legend(seen: View) -> Text:
    seeds = max((record.seeds for record in seen.records.values()), default=1)
    over = f"users and {seeds} training seeds" if seeds > 1 else "users (one training seed)"
    lines = [f"± half of the {seen.config.interval:.0%} interval over {over}"]
    lines[0] += f"; n= fewer than {LEAST_USERS} are too few for one" if _few(seen) else ""
    if seen.baseline:
        lines.append(f"Δ paired difference to {seen.baseline}; {STAR}")
    if any(role == "control" for _, role in seen.methods):
        lines.append("indented: controls of the method above")
    if any(role == "method" for _, role in seen.main):
        lines.append("bold: the method that the run is about, whether best or not")
    closed = no_weight(seen, [name for name, _ in seen.main])
    if closed:
        lines.append(closed)
    return shown("\n".join(lines), "dim")

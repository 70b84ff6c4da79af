"""A sheet as terminal table, Markdown or LaTeX. HTML is a template's work (`page.html.jinja`)."""

from __future__ import annotations

import re
from typing import Literal

from rich import box
from rich.table import Table

from prerank.evaluation.sheets import Sheet, SheetRow
from prerank.progress import shown

INTERVAL = re.compile(r"\[([-+−]?\d*\.?\d+), ([-+−]?\d*\.?\d+)\]")
LONGEST_WORD = 30
LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def to_rich(sheet: Sheet) -> Table:
    """Return the sheet as a terminal table, readable without colour."""
    table = Table(
        title=shown(sheet.title, "bold"),
        title_justify="left",
        caption=shown(sheet.note, "dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    rows = [[_indented(row), *map(_shortened, row.cells)] for row in sheet.rows]
    for place, name in enumerate(sheet.header):
        side: Literal["left", "right"] = "right" if place else "left"
        words = [word for text in (name, *(row[place] for row in rows)) for word in text.split(" ")]
        table.add_column(
            shown(name),
            justify=side,
            no_wrap=not place,
            overflow="fold",
            min_width=min(max(map(len, words)), LONGEST_WORD),  # no number is cut in two
        )
    for row, cells in zip(sheet.rows, rows, strict=True):
        table.add_row(*map(shown, cells), style="bold" if row.role == "method" else "")
    return table


def _shortened(cell: str) -> str:
    """Return the cell with ``[low, high]`` as half of the interval, ``±.012``: it is narrower."""

    def half(found: re.Match[str]) -> str:
        low, high = (float(text.replace("\N{MINUS SIGN}", "-")) for text in found.groups())
        return f"±{(high - low) / 2:.3f}".replace("±0.", "±.")

    return INTERVAL.sub(half, cell)


def _indented(row: SheetRow) -> str:
    return f"  {row.name}" if row.role == "control" else row.name


def to_markdown(sheet: Sheet, level: int = 2) -> str:
    """Return the sheet as Markdown under a heading of ``level``; an arrow marks controls."""
    lines = [
        f"{'#' * level} {sheet.title}",
        "",
        _markdown_row(sheet.header),
        "|---" * len(sheet.header) + "|",
    ]
    for row in sheet.rows:
        name = f"↳ {row.name}" if row.role == "control" else row.name
        lines.append(_markdown_row((f"**{name}**" if row.role == "method" else name, *row.cells)))
    if sheet.note:
        lines += ["", sheet.note]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: tuple[str, ...]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def to_latex(sheet: Sheet) -> str:
    """Return the sheet as a LaTeX table; needs the package booktabs only."""
    columns = "l" + "r" * (len(sheet.header) - 1)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(sheet.title)}. {latex_text(sheet.note)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(sheet.header),
        r"\midrule",
    ]
    for row in sheet.rows:
        name = latex_text(row.name)
        if row.role == "control":
            name = r"\quad " + name
        elif row.role == "method":
            name = rf"\textbf{{{name}}}"
        cells = (latex_text(cell) for cell in row.cells)
        lines.append(" & ".join([name, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(latex_text(cell) for cell in cells) + r" \\"


def latex_text(text: str) -> str:
    """Return ``text`` with every character that LaTeX would read as a command escaped."""
    return "".join(LATEX.get(character, character) for character in text)

"""Sheets of a comparison, and what they look like on a terminal, in Markdown and in LaTeX."""

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prerank import artifacts as a
from prerank.evaluation import evaluate as stage
from prerank.evaluation.config import EvaluateConfig
from prerank.evaluation.extra import with_extra
from prerank.evaluation.formats import latex_text, to_latex, to_markdown, to_rich
from prerank.evaluation.report_html import render_html
from prerank.evaluation.sections import pool_facts
from prerank.evaluation.sheets import Sheet, SheetRow, comparison_sheets, value_sheet
from prerank.evaluation.summary import summarise
from prerank.evaluation.table import pool_table, print_table
from prerank.evaluation.view import view

from .worlds import dataset

CONFIG = EvaluateConfig(n_resamples=400, baselines=("exposed-only", "gpl"))


@pytest.fixture(scope="module")
def report() -> a.Report:
    """GPL clearly better than the baseline, one variant much worse, a control like the baseline."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(80, dtype=np.int32), 12)
    item = np.concatenate([rng.choice(30, 12, replace=False) for _ in range(80)])
    truth = rng.normal(size=len(user))
    click = (truth + rng.normal(size=len(user)) > 0.5).astype(np.int8)
    world = dataset(user, item.astype(np.int32), click, exposures={k: 3 * k for k in range(30)})

    def scores(skill: float) -> Any:
        return (skill * truth + rng.normal(size=(3, len(user)))).astype(np.float32)

    made = {
        "exposed-only": scores(0.3),
        "gpl": scores(3.0),
        "gpl-history": scores(0.3),
        "true-labels": scores(9.0),
        "gpl@blind": scores(0.0),
    }
    report = stage.evaluate(world, None, made, CONFIG, 0)
    return with_extra(
        report,
        {
            "arms": {"gpl@blind": {"method": "gpl", "variant": "blind", "changes": ["a.b = 1"]}},
            "costs": {"gpl": {"train_seconds": 2.5, "before_seconds": 7, "peak_bytes": 3 << 20}},
            "tuning": {
                "gpl": {
                    "trials": 4,
                    "pool": "unexposed",
                    "own": 0.5,
                    "best": 0.625,
                    "settings": {"learning_rate": 0.01},
                    "seconds": 9.0,
                }
            },
        },
    )


def sheet_of(report: a.Report, title: str) -> dict[str, tuple[str, ...]]:
    (found,) = [s for s in comparison_sheets(view(report)) if s.title == title]
    return {row.name: row.cells for row in found.rows}


def test_values_leave_variants_out_and_put_controls_under_the_method(report: a.Report) -> None:
    names = list(sheet_of(report, "unexposed: values"))
    assert names == ["gpl", "gpl-history", "exposed-only", "true-labels"]


def test_verdicts_and_corrected_p(report: a.Report) -> None:
    against = sheet_of(report, "unexposed: against exposed-only")
    assert "exposed-only" not in against
    assert against["gpl"][0].startswith("+0.") and against["gpl"][4].startswith("win ")
    assert against["gpl-history"][4].startswith("tie ")
    # Two methods compete: the least p of 400 draws, 2 / 401, times two.
    assert against["gpl"][1] == f"{2 * 2 / 401:.3f}"
    assert against["true-labels"][1].startswith("(")
    assert against["true-labels"][4].startswith("(win) ")  # by the uncorrected p
    assert sheet_of(report, "unexposed: against gpl")["exposed-only"][4].startswith("loss ")


def test_tally_counts_pools_and_segments(report: a.Report) -> None:
    cells = sheet_of(report, "Wins / ties / losses by GAUC")["gpl"]
    wins, ties, losses = map(int, cells[0].split(" / "))
    assert (wins + ties + losses, losses) == (4, 0) and wins >= 1  # all, head, mid, tail
    assert cells[1] == ""


@pytest.fixture(scope="module")
def few() -> a.Report:
    """GPL is right and the baseline wrong about three users: their interval leaves zero out."""
    user = np.repeat(np.arange(3, dtype=np.int32), 2)
    item = np.tile(np.arange(2, dtype=np.int32), 3)
    click = (item == 0).astype(np.int8)
    right = click.astype(np.float32)[None]
    made = {"exposed-only": -right, "gpl": right, "gpl@blind": -right}
    world = dataset(user, item, click, exposures={0: 30, 1: 30})
    return stage.evaluate(world, None, made, CONFIG, 0)


def test_few_users_have_neither_interval_nor_p_nor_verdict(few: a.Report) -> None:
    against = sheet_of(few, "unexposed: against exposed-only")["gpl"]
    assert against[0] == "+1.000 (n = 3)"
    assert against[1] == "–" and against[4] == "– 100/0/0 %"
    assert sheet_of(few, "Wins / ties / losses by GAUC")["gpl"] == ("", "")
    assert sheet_of(few, "Ablations on unexposed")["blind"][4] == "–"
    notes = {sheet.title: sheet.note for sheet in comparison_sheets(view(few))}
    for title in ("unexposed: against exposed-only", "Ablations on unexposed"):
        assert "fewer than 10 users" in notes[title]
    assert "fewer than 10 users" in notes["Wins / ties / losses by GAUC"]


def test_enough_users_need_no_word_on_few(report: a.Report) -> None:
    assert not any("fewer than" in sheet.note for sheet in comparison_sheets(view(report)))


def test_a_pool_says_of_how_many_users_gauc_is_the_mean(report: a.Report, few: a.Report) -> None:
    world = dataset([0, 0, 1, 2], [0, 1, 1, 0], [1, 0, 0, 1])
    made = {"gpl": np.array([[2, 1, 1, 2]], np.float32)}
    seen = view(stage.evaluate(world, None, made, CONFIG, 0))
    counted = "3 users (1 with both a click and none)"
    out = StringIO()
    Console(file=out, width=160).print(pool_table(seen, "unexposed"))
    assert f"pool unexposed: {counted}, 4 rows, 50.0% clicked" in " ".join(out.getvalue().split())
    assert pool_facts(seen, "unexposed").startswith(f"{counted}, 3 requests, 4 rows")
    assert "GAUC is the mean over 1 of the pool's 3 users." in value_sheet(seen, "unexposed").note
    assert pool_facts(view(few), "unexposed").startswith("3 users, ")  # all have both
    assert "GAUC" not in value_sheet(view(report), "unexposed").note


def test_few_users_are_judged_nowhere(few: a.Report) -> None:
    out = StringIO()
    print_table(few, Console(file=out, width=160))
    (row,) = [line for line in out.getvalue().splitlines() if line.startswith("gpl ")]
    assert "+1.000 n=3" in row and "*" not in row and "±" not in row
    assert "too few for one" in out.getvalue()
    assert '<span class="up">' not in render_html(few)
    said = summarise(view(few))[0]
    assert "no difference between gpl and exposed-only can be told: +1.000 (n = 3)" in said


def test_ablation_cost_and_tuning(report: a.Report) -> None:
    of, changes, _, difference, p, *_ = sheet_of(report, "Ablations on unexposed")["blind"]
    assert (of, changes) == ("gpl", "a.b = 1")
    assert difference.startswith("−") and float(p) < 0.05
    assert sheet_of(report, "Time and memory") == {"gpl": ("2.5", "7.0", "3")}
    chosen = sheet_of(report, "Tuning on validation")["gpl"]
    assert chosen == ("4", "0.500", "0.625", "learning_rate = 0.01", "9")


def test_sheets_without_rows_are_left_out(report: a.Report) -> None:
    bare = replace(report, extra={"evaluation": report.extra["evaluation"]})
    titles = [sheet.title for sheet in comparison_sheets(view(bare))]
    assert "Time and memory" not in titles and "Audit of the pseudo-labels" not in titles


def test_every_row_fits_its_header(report: a.Report) -> None:
    for sheet in comparison_sheets(view(report)):
        assert all(len(row.cells) == len(sheet.header) - 1 for row in sheet.rows), sheet.title


SHEET = Sheet(
    "A & B",
    ("name", "Δ x"),
    (SheetRow("gpl", ("1 | 2",), "method"), SheetRow("gpl_history", ("50 %",), "control")),
    "note_1",
)


def test_markdown() -> None:
    assert to_markdown(SHEET, 3) == (
        "### A & B\n\n| name | Δ x |\n|---|---|\n"
        "| **gpl** | 1 \\| 2 |\n| ↳ gpl_history | 50 % |\n\nnote_1\n"
    )


def test_latex() -> None:
    text = to_latex(SHEET)
    assert r"\caption{A \& B. note\_1}" in text
    assert r"name & $\Delta$ x \\" in text
    assert r"\textbf{gpl} & 1 | 2 \\" in text
    assert r"\quad gpl\_history & 50 \% \\" in text
    assert text.count("{") == text.count("}")


def test_latex_escapes_each_character_once() -> None:
    assert (
        latex_text(r"a\b_{c}^~") == r"a\textbackslash{}b\_\{c\}\textasciicircum{}\textasciitilde{}"
    )


def test_terminal(report: a.Report) -> None:
    out = StringIO()
    console = Console(file=out, width=160)
    console.print(to_rich(SHEET))
    print_table(report, console)
    text = out.getvalue()
    assert "  gpl_history" in text and "Ablations on unexposed" in text
    assert "gpl@blind" not in text.split("Ablations")[0]


def test_no_number_is_cut_in_two_on_a_terminal() -> None:
    header = ("labels of", "pairs", *["gauc"] * 5, "by confidence")
    cells = ("1,037,874", *["0.722 [0.719, 0.725]"] * 5, "−0.009 [−0.014, −0.004]")
    out = StringIO()
    row = SheetRow("gpl-weighted-shuffled", cells)
    Console(file=out, width=100).print(to_rich(Sheet("audit", header, (row,), "")))
    words = out.getvalue().split()
    assert "1,037,874" in words and words.count("0.722") == 5 and words.count("±.003") == 5
    assert "−0.009" in words and "±.005" in words

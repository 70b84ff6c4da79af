"""The tables of a report as plain sheets of text, whatever they are printed on.

A sheet is made once and written as terminal table, Markdown, LaTeX or HTML (`formats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prerank.artifacts import LEAST_USERS, Record
from prerank.evaluation.extra import AuditExtra, AuditPart, TestExtra
from prerank.evaluation.summary import interval, main_pool, no_weight, number
from prerank.evaluation.view import COMPETING, Role, View

MIB = 2**20
FEW = f" –: fewer than {LEAST_USERS} users have a value, too few for a p-value and a verdict."
WHOLE, TAIL = ("all", "gauc"), ("tail", "gauc")


@dataclass(frozen=True)
class SheetRow:
    """One line: a name, its role (which decides how it is set) and the cells after it."""

    name: str
    cells: tuple[str, ...]
    role: Role = "other"


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: above it.
        header: one text a column, the first over the names.
        rows: each with ``len(header) - 1`` cells.
        note: beneath it, what a reader must know.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    note: str = ""


def comparison_sheets(seen: View) -> list[Sheet]:
    """Return every sheet of a comparison, those without rows left out."""
    found = [sheet for pool in seen.pools for sheet in pool_sheets(seen, pool)]
    found += [tally_sheet(seen), ablation_sheet(seen), cost_sheet(seen), tuning_sheet(seen)]
    found += audit_sheets(seen)
    return [sheet for sheet in found if sheet.rows]


def references(seen: View) -> list[str]:
    """Return the methods that all others were compared with."""
    known = {name for name, _ in seen.methods}
    return [name for name in seen.config.baselines if name in known]


def pool_sheets(seen: View, pool: str) -> list[Sheet]:
    """Return the values of one pool, and the paired comparison with every reference."""
    against = [versus_sheet(seen, pool, reference) for reference in references(seen)]
    return [value_sheet(seen, pool), *against]


def value_sheet(seen: View, pool: str) -> Sheet:
    """Return the main metrics of every method on one pool, with intervals."""
    hit, gain = f"hr@{max(seen.config.ks)}", f"ndcg@{seen.config.list_size}"
    wanted = [WHOLE, TAIL, ("all", hit), ("all", gain), ("all", "auc")]
    known = {(segment, metric) for _, p, segment, metric in seen.records if p == pool}
    columns = [column for column in wanted if column in known]
    rows = [
        SheetRow(name, tuple(_value(seen.record(name, pool, *one)) for one in columns), role)
        for name, role in seen.main
    ]
    note = (
        f"Brackets: {seen.config.interval:.0%} intervals of a bootstrap over users and training "
        "seeds. Bold: the method that the run is about, whether best or not. Ceilings and label "
        "scores alone are out of competition."
    )
    about, behind = seen.facts(pool), seen.behind_gauc(pool)
    if about is not None and behind < LEAST_USERS:
        note += f" GAUC is the mean over {behind} of the pool's {about['users']:,} users."
    note = f"{note} {no_weight(seen, [name for name, _ in seen.main])}".rstrip()
    return Sheet(f"{pool}: values", ("method", *(_title(*c) for c in columns)), tuple(rows), note)


def versus_sheet(seen: View, pool: str, reference: str) -> Sheet:
    """Return the paired differences to ``reference`` with p-values, and who wins by segment."""
    tests = _tests(seen, reference, pool)
    rows = []
    for name, role in seen.main:
        if (name, *WHOLE) not in tests:
            continue
        cells = []
        for column in (WHOLE, TAIL):
            record = seen.difference(name, pool, *column, baseline=reference)
            cells += [_value(record, sign=True), _p(tests.get((name, *column)))]
        cells += [
            _verdict_cell(seen, tests.get((name, segment, "gauc")), reference)
            for segment in seen.segments
        ]
        rows.append(SheetRow(name, tuple(cells), role))
    segments = [_title(segment, "users") for segment in seen.segments]
    header = ("method", "Δ gauc", "p", "Δ tail gauc", "p", *segments)
    note = (
        f"Paired by user and seed against {reference}. p: two-sided, corrected by Holm over the "
        "methods in competition (in parentheses: uncorrected, out of competition). Users: win, tie "
        f"or loss at {1 - seen.config.interval:.0%} by GAUC, and the shares of users with a "
        "higher/equal/lower GAUC."
    )
    note += _few([test for key, test in tests.items() if key[2] == "gauc"])
    return Sheet(f"{pool}: against {reference}", header, tuple(rows), note)


def tally_sheet(seen: View) -> Sheet:
    """Return wins, ties and losses of every method over all pools and segments, by GAUC."""
    rows = []
    against = references(seen)
    for name, role in seen.methods:
        if role not in COMPETING:
            continue
        cells = []
        for reference in against:
            found = [
                verdict(seen, test, reference)
                for test in _all_tests(seen)
                if (test["method"], test["reference"], test["metric"]) == (name, reference, "gauc")
            ]
            counts = [found.count(word) for word in ("win", "tie", "loss")]
            cells.append(" / ".join(map(str, counts)) if any(counts) else "")
        rows.append(SheetRow(name, tuple(cells), role))
    note = "Cells counted: every pool and segment; a win or loss is one that stands after Holm."
    if any(test["p"] is None for test in _all_tests(seen) if test["metric"] == "gauc"):
        note += f" Those of fewer than {LEAST_USERS} users are left out."
    header = ("method", *(f"against {reference}" for reference in against))
    return Sheet("Wins / ties / losses by GAUC", header, tuple(rows) if against else (), note)


def ablation_sheet(seen: View) -> Sheet:
    """Return every variant against the method it varies, on the main pool."""
    pool = main_pool(seen) if seen.pools else ""
    arms = seen.extra.get("arms", {})
    rows, found = [], []
    for name, role in seen.methods:
        if role != "variant":
            continue
        method, _, variant = name.partition("@")
        about = arms.get(name, {"variant": variant, "changes": []})
        tests = _tests(seen, method, pool)
        cells = [method, "; ".join(about["changes"]), _value(seen.record(name, pool, *WHOLE))]
        for column in (WHOLE, TAIL):
            record, test = seen.difference(name, pool, *column, method), tests.get((name, *column))
            cells += [_value(record, sign=True), _p(test)]
            found += [test] if test else []
        rows.append(SheetRow(about["variant"], tuple(cells), role))
    note = (
        "Paired by user and seed against the method that is varied. p: two-sided, corrected by "
        "Holm over all variants."
    )
    note += _few(found)
    variants = [name for name, role in seen.methods if role == "variant"]
    note = f"{note} {no_weight(seen, variants)}".rstrip()
    header = ("variant", "of", "changes", "gauc", "Δ gauc", "p", "Δ tail gauc", "p")
    return Sheet(f"Ablations on {pool}", header, tuple(rows), note)


def cost_sheet(seen: View) -> Sheet:
    """Return time and memory of every arm that was trained."""
    costs = seen.extra.get("costs", {})
    rows = [
        SheetRow(
            name,
            (
                f"{costs[name]['train_seconds']:.1f}",
                f"{costs[name]['before_seconds']:.1f}",
                f"{costs[name]['peak_bytes'] / MIB:,.0f}" if costs[name]["peak_bytes"] else "",
            ),
            role,
        )
        for name, role in seen.methods
        if name in costs
    ]
    note = (
        "Wall time, pre-rankers side by side where the recipe has workers. Before training: "
        "semantic IDs, language model, anchors, labels and teachers, shared ones counted for each "
        "method. Memory: resident size of the process that trained. Serving costs the same for all."
    )
    header = ("method", "train, s a seed", "before training, s", "peak memory, MiB")
    return Sheet("Time and memory", header, tuple(rows), note)


def tuning_sheet(seen: View) -> Sheet:
    """Return the settings chosen for every method on validation."""
    tuning = seen.extra.get("tuning", {})
    rows = [
        SheetRow(
            name,
            (
                str(tuning[name]["trials"]),
                _short(tuning[name]["own"]),
                _short(tuning[name]["best"]),
                ", ".join(
                    f"{key} = {value:.3g}" for key, value in tuning[name]["settings"].items()
                ),
                f"{tuning[name]['seconds']:.0f}",
            ),
            role,
        )
        for name, role in seen.methods
        if name in tuning
    ]
    pool = next((about["pool"] for about in tuning.values()), "")
    note = f"GAUC on validation users of pool {pool}; the first trial is the recipe's own settings."
    header = ("method", "trials", "own settings", "best", "chosen", "seconds")
    return Sheet("Tuning on validation", header, tuple(rows), note)


def audit_sheets(seen: View) -> list[Sheet]:
    """Return the audit of all pseudo-labels, and the parts of those of the main method."""
    audits: Mapping[str, AuditExtra] = seen.extra.get("audit", {})
    rows = [_audit_row(name, audits[name], role) for name, role in seen.methods if name in audits]
    found = [_audit_sheet(rows)]
    for name in (seen.config.method,):
        if name in audits:
            found += _part_sheets(name, audits[name])
    return found


def label_audit_sheets(name: str, audit: AuditExtra) -> list[Sheet]:
    """Return the audit of one label artifact: in all, by popularity and by confidence."""
    return [_audit_sheet([_audit_row(name, audit, "method")]), *_part_sheets(name, audit)]


def _audit_row(name: str, audit: AuditExtra, role: Role) -> SheetRow:
    cells = (
        f"{audit['labelled']:,}",
        f"{audit['coverage']:.1%}",
        *_audit_cells(audit["all"]),
        _gain(audit),
    )
    return SheetRow(name, cells, role)


def _audit_sheet(rows: Sequence[SheetRow]) -> Sheet:
    header = ("labels of", "pairs", "coverage", *AUDIT_HEADER, "Δ auc by conf.")
    note = (
        "Pseudo-labels against the truth of their pairs. Coverage: labelled share of the pairs "
        "with a known truth. Last column: AUC in the most confident fifth minus that in the least."
    )
    return Sheet("Audit of the pseudo-labels", header, tuple(rows), note)


def _part_sheets(name: str, audit: AuditExtra) -> list[Sheet]:
    """Return the audit of one label source by popularity decile and by confidence quintile."""
    by_popularity = [
        SheetRow(
            _range(part["low"], part["high"], 0),
            (f"{part['n']:,}", f"{part['coverage']:.1%}", *_audit_cells(part)),
        )
        for part in audit["by_popularity"]
    ]
    by_confidence = [
        SheetRow(_range(part["low"], part["high"], 2), (f"{part['n']:,}", *_audit_cells(part)))
        for part in audit["by_confidence"]
    ]
    return [
        Sheet(
            f"Labels of {name} by popularity",
            ("training exposures", "pairs", "coverage", *AUDIT_HEADER),
            tuple(by_popularity),
            "Tenths of the pairs; equal counts share a part.",
        ),
        Sheet(
            f"Labels of {name} by confidence",
            ("confidence", "pairs", *AUDIT_HEADER),
            tuple(by_confidence),
            audit["sentence"],
        ),
    ]


AUDIT_HEADER = ("mean label", "true rate", "auc", "gauc", "ece")


def _audit_cells(part: AuditPart) -> tuple[str, ...]:
    return (
        _short(part["mean_label"]),
        _short(part["mean_truth"]),
        _short(part["auc"]) + _brackets(part["auc_interval"]),
        _short(part["gauc"]) + _brackets(part["gauc_interval"]),
        _short(part["ece"]),
    )


def _gain(audit: AuditExtra) -> str:
    gain = audit["confidence_gain"]
    if gain is None:
        return "–"
    low, high = number(gain["low"], sign=True), number(gain["high"], sign=True)
    return f"{number(gain['value'], sign=True)} [{low}, {high}]"


def _range(low: float, high: float, digits: int) -> str:
    one, other = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
    return one if one == other else f"{one} to {other}"


def _brackets(interval_: Sequence[float] | None) -> str:
    if interval_ is None:
        return ""
    return f" [{number(interval_[0])}, {number(interval_[1])}]"


def _short(value: float | None) -> str:
    return "–" if value is None else number(value)


def _title(segment: str, metric: str) -> str:
    return metric if segment == "all" else f"{segment} {metric}"


def _value(record: Record | None, *, sign: bool = False) -> str:
    if record is None:
        return ""
    if record.value is None:
        return "–"
    return f"{number(record.value, sign=sign)} {interval(record, sign=sign)}".strip()


def _all_tests(seen: View) -> list[TestExtra]:
    found: list[TestExtra] = seen.extra.get("evaluation", {}).get("tests", [])
    return found


def _tests(seen: View, reference: str, pool: str) -> dict[tuple[str, str, str], TestExtra]:
    return {
        (test["method"], test["segment"], test["metric"]): test
        for test in _all_tests(seen)
        if test["reference"] == reference and test["pool"] == pool
    }


def _p(test: TestExtra | None) -> str:
    if test is None:
        return ""
    if test["p"] is None:
        return "–"
    if test["p_holm"] is None:
        return f"({test['p']:.3f})"
    return f"{test['p_holm']:.3f}"


def verdict(seen: View, test: TestExtra, reference: str) -> str:
    """Return ``win``, ``tie`` or ``loss`` of the test's method: what stands after Holm.

    Empty where too few users have a value for a p.
    """
    record = seen.difference(
        test["method"], test["pool"], test["segment"], test["metric"], baseline=reference
    )
    p = test["p"] if test["p_holm"] is None else test["p_holm"]
    if p is None:
        return ""
    if record is None or record.value is None or p > 1 - seen.config.interval:
        return "tie"
    return "win" if record.value > 0 else "loss"


def _verdict_cell(seen: View, test: TestExtra | None, reference: str) -> str:
    if test is None:
        return "–"
    counts = [test["better"] or 0, test["tied"] or 0, test["worse"] or 0]
    shares = "/".join(f"{100 * count / max(1, sum(counts)):.0f}" for count in counts)
    found = verdict(seen, test, reference) or "–"
    uncorrected = test["p"] is not None and test["p_holm"] is None
    return f"{f'({found})' if uncorrected else found} {shares} %"


def _few(tests: Iterable[TestExtra]) -> str:
    return FEW if any(test["p"] is None for test in tests) else ""

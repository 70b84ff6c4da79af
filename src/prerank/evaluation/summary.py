"""What a report says in plain words, whatever it says."""

from __future__ import annotations

from collections.abc import Iterable

from prerank.artifacts import Record
from prerank.evaluation.extra import SkillExtra
from prerank.evaluation.view import COMPETING, View, shows_difference


def main_pool(seen: View) -> str:
    """Return the pool a summary speaks of: the first unexposed one, else the first."""
    unexposed = [pool for pool in seen.pools if "unexposed" in pool]
    return (unexposed or list(seen.pools))[0]


def summarise(seen: View) -> list[str]:
    """Return sentences on the main pool: gain, long tail, history control, shuffled, best."""
    if not seen.pools:
        return ["Nothing was evaluated."]
    pool, method, baseline = main_pool(seen), seen.config.method, seen.baseline
    names = [name for name, _ in seen.methods]
    said: list[str] = []
    if method in names and baseline:
        said.append(_gain(seen, pool, "all", f"On pool {pool}"))
        said.append(_gain(seen, pool, "tail", "On the long tail of the same pool"))
        said.append(_history(seen, pool))
        said.append(_shuffled(seen, pool))
    said.append(_best(seen, pool))
    audit = seen.extra.get("audit", {}).get(method)
    if audit:
        said.append(f"Pseudo-labels of {method} against the truth: {audit['sentence']}")
    return [sentence for sentence in said if sentence]


def number(value: float, *, sign: bool = False) -> str:
    """Return three decimals, with a typographic minus; a plus where ``sign`` asks, none on zero."""
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    if float(text) == 0:
        return "0.000"
    return text.replace("-", "−")


def interval(record: Record, *, sign: bool = False) -> str:
    """Return ``[low, high]`` of a record, empty without an interval; from few users their number.

    A bootstrap of a handful of users is no interval of the level it states.
    """
    if record.interval is None:
        return "" if record.low is None else f"(n = {record.n})"
    low, high = record.interval
    return f"[{number(low, sign=sign)}, {number(high, sign=sign)}]"


def no_weight(seen: View, names: Iterable[str]) -> str:
    """Return which of the methods' pseudo-labels got no weight, empty if all got some."""
    skills = seen.extra.get("unearned", {})
    closed = [f"{name} ({_skill(skills[name])})" for name in names if name in skills]
    if not closed:
        return ""
    who = "it" if len(closed) == 1 else "they"
    return (
        f"The labels of {', '.join(closed)} got no weight, for no skill showed on held-out clicks: "
        f"{who} learned from exposed rows alone, as exposed-only does."
    )


def _skill(about: SkillExtra) -> str:
    skill, low = about["skill"], about["skill_low"]
    if skill is None or low is None:
        return "skill unknown"
    return f"skill {number(skill, sign=True)}, lower bound {number(low, sign=True)}"


def _signed(record: Record) -> str:
    return f"{number(record.value or 0.0, sign=True)} {interval(record, sign=True)}".strip()


def _outcome(record: Record) -> str:
    """Return what the interval of a difference to the baseline says, with its numbers."""
    if not shows_difference(record):
        return f"gains nothing that can be told from noise: {_signed(record)}"
    return f"{'gains' if (record.value or 0) > 0 else 'loses'} {_signed(record)}"


def _gain(seen: View, pool: str, segment: str, where: str) -> str:
    method, baseline = seen.config.method, seen.baseline
    own = seen.record(method, pool, segment, "gauc")
    other = seen.record(baseline, pool, segment, "gauc")
    gap = seen.difference(method, pool, segment, "gauc")
    if own is None or other is None or gap is None or gap.value is None:
        return ""
    if shows_difference(gap):
        verdict = "better than" if gap.value > 0 else "worse than"
        text = f"{where}, {method} ranks {verdict} {baseline}: {_signed(gap)} GAUC"
    else:
        text = f"{where}, no difference between {method} and {baseline} can be told"
        text += f": {_signed(gap)}"
    return f"{text} ({number(own.value or 0)} against {number(other.value or 0)})."


def _history(seen: View, pool: str) -> str:
    method, control = seen.config.method, seen.config.history_control
    closed = no_weight(seen, (method, control))
    if closed:
        return f"{closed} So this report cannot tell whether the language model helps."
    gain = seen.difference(method, pool, "all", "gauc")
    of_control = seen.difference(control, pool, "all", "gauc")
    gap = seen.difference(method, pool, "all", "gauc", control)
    if control == seen.baseline:
        return (
            f"The baseline ({control}) is the history control: what {method} gains over it, the "
            "language model adds to the user's own history."
        )
    if gain is None or of_control is None or gain.value is None or of_control.value is None:
        why = "was not run" if of_control is None else "has no value to be held against"
        return (
            f"The history control ({control}) {why}, so this report cannot tell whether "
            "the language model helps at all."
        )
    text = (
        f"The history control ({control}: the user's own history as anchors, no language model) "
        f"{_outcome(of_control)}"
    )
    if shows_difference(gain) and gain.value > 0 and of_control.value > 0:
        text += f", which is {of_control.value / gain.value:.0%} of {method}'s gain"
    if gap is None or gap.value is None:
        return text + "."
    if not shows_difference(gap):
        verdict = "the language model adds nothing that can be told from noise"
    elif gap.value > 0:
        verdict = "the language model adds something that the history lacks"
    else:
        verdict = "the user's own history makes better anchors than the language model"
    return f"{text}. {method} minus control: {_signed(gap)}: {verdict}."


def _shuffled(seen: View, pool: str) -> str:
    name = next((c for c in seen.config.controls if c.endswith("-shuffled")), "")
    gap = seen.difference(name, pool, "all", "gauc")
    if gap is None or gap.value is None:
        return ""
    is_open = not no_weight(seen, (seen.config.method,))
    if is_open and shows_difference(gap) and gap.value > 0:
        return (
            f"Anchors of other users ({name}) gain {_signed(gap)} too: that part of the gain "
            "does not come from the user's interests."
        )
    return f"The control with anchors of other users ({name}) {_outcome(gap)}."


def _best(seen: View, pool: str) -> str:
    found = [
        record
        for name, role in seen.methods
        if role in COMPETING
        and (record := seen.record(name, pool, "all", "gauc")) is not None
        and record.value is not None
    ]
    if not found:
        return ""
    ranked = sorted(found, key=lambda record: -(record.value or 0.0))
    best = f"{ranked[0].method} ({number(ranked[0].value or 0.0)})"
    text = f"Highest GAUC among the {len(found)} trained methods: {best}"
    places = [record.method for record in ranked]
    method = seen.config.method
    if method in places[1:]:
        text += f"; {method} is number {places.index(method) + 1}"
    return text + "."

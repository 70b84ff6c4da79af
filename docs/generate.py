"""Write every page that is made from code or from committed results.

Pages: docs/reference/*.md, docs/{results,benchmarks,log}.md and the tables of README.md and of
docs/guides/scale.md.

    python docs/generate.py            # write them
    python docs/generate.py --check    # exit 1 if any of them is not current (a test does this)
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prerank import estimate
from prerank.anchors.config import GenerateConfig
from prerank.artifacts import LEAST_USERS
from prerank.cli import app
from prerank.evaluation.formats import to_markdown
from prerank.evaluation.sheets import comparison_sheets
from prerank.evaluation.summary import summarise
from prerank.evaluation.view import view
from prerank.plan import REVISIONS
from prerank.recipe import Recipe, load_recipe
from prerank.simulation.page import pair_cells
from prerank.store import read_report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin, made by docs/generate.py -->", "<!-- results: end -->"
SCALE_BEGIN, SCALE_END = "<!-- scale: begin, made by docs/generate.py -->", "<!-- scale: end -->"
MADE = "<!-- made by docs/generate.py; do not edit -->\n"
SHOWN = (("gauc", "all"), ("gauc", "tail"), ("hr@10", "all"), ("auc", "all"))


# ---- reference -------------------------------------------------------------------------------


def cli_page() -> str:
    """Return the help of every command."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="prerank")
    parts = [MADE, "# Command line\n", _fenced(group.get_help(context))]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = typer.Context(command, info_name=name, parent=context)
        parts += [f"\n## prerank {name}\n", _fenced(command.get_help(inner))]
    return "\n".join(parts)


def _fenced(text: str) -> str:
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


def recipe_page() -> str:
    """Return every key of a recipe: its type, default and meaning."""
    head = "# Recipe keys\n\nEvery key has a default; unknown keys are errors. Override one with\n"
    parts = [MADE, head + "`--set stage.key=value`.\n"]
    for path, model in _sections(Recipe, ""):
        title = f"[{path}]" if path else "top level"
        doc = (model.__doc__ or "").strip().splitlines()[0]
        rows = [_key_row(name, f) for name, f in model.model_fields.items() if not _model(f)]
        if rows:
            table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
            parts += [f"\n## {title}\n\n{doc}\n", "\n".join(table)]
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        inner = _model(field)
        if inner is not None:
            yield from _sections(inner, f"{path}.{name}" if path else name)


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the config class of a section; ``methods.NAME`` counts as one."""
    kind: Any = field.annotation
    if get_origin(kind) is dict:
        kind = get_args(kind)[1]
    elif get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _key_row(name: str, field: FieldInfo) -> str:
    kind = field.annotation
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    # Bounds of what a tuple holds read better in the description than as pydantic spells them.
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text.replace("typing.", ""))
    text = text.replace("Literal", "one of ").replace("|", "or")
    default = field.get_default(call_default_factory=True)
    cells = (f"`{name}`", text, f"`{json.dumps(default, default=str)}`", field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# ---- results ---------------------------------------------------------------------------------


def results_page() -> str:
    """Return docs/results.md, from the committed JSON of finished runs."""
    parts = [MADE, "# Results\n", (ROOT / "docs" / "results-intro.md").read_text()]
    parts += [_run_section(run, file) for file, run in _runs().items()]
    parts += [comparison_section(file) for file in sorted(RESULTS.glob("compare-*.json"))]
    files = sorted(RESULTS.glob("simulate-*.json"))
    parts += [simulation_section(json.loads(file.read_text()), file.name) for file in files]
    return "\n".join(parts).rstrip() + "\n"


def _runs() -> dict[str, dict[str, Any]]:
    """Return file name -> the figures of each finished run, by name."""
    files = sorted(RESULTS.glob("run-*.json"), key=lambda file: file.stem)
    return {file.name: json.loads(file.read_text()) for file in files}


NO_PROPOSALS = ("quickstart", "simulate", "ablations-world")
SPARING = (
    # Validation's positives no longer count in an item's popularity: in the world every pair is
    # logged, and propensities. On anime, without time, it changes nothing either, but its results
    # are older than a rounding of scores that moved gated labels in the third decimal.
    ({"label": 4, "train": 3}, NO_PROPOSALS),
    # Pairs are proposed to users of training alone: where all are logged, none is proposed.
    ({"label": 5}, NO_PROPOSALS),
    # Semantic IDs of items without content are no anchors: of these only games has such items.
    ({"generate": 1}, (*NO_PROPOSALS, "anime", "ablations", "kuairand")),
    # An item taken several times is one history anchor: anime and games have no such items, the
    # ceilings no such anchors.
    ({"generate": 2}, ("anime", "games", "ablations-anime", "simulate-ceilings")),
    # HR and NDCG leave out requests that any order serves alike: short ones, and of clicks alone.
    # A user of the click funnel has 240 unexposed titles, 100 clicked at most.
    ({"evaluate": 2}, ("anime-click", "ablations-anime")),
    # Anchors are stored otherwise, but are the same: every name begins with the empty string.
    ({"generate": 3}, ("",)),
)
"""Revisions of stages that changed nothing for the runs whose names begin so."""


def _made_by(result: Mapping[str, Any], unused: str) -> str:
    """Return the sentence on stages that have changed since a result was made; empty: none has.

    Results from before revisions were kept count as older than all of them.
    """
    then = dict(result.get("revisions", {}))
    for revisions, spared in SPARING:
        if result["name"].startswith(spared):
            then |= {name: now for name, now in revisions.items() if then.get(name, 0) == now - 1}
    changed = [name for name, now in REVISIONS.items() if then.get(name, 0) != now]
    named = ", ".join(f"`{name}`" for name in changed if name != unused)
    said = f"Made by an earlier prerank; {named} changed since (CHANGELOG.md): "
    return f"**{said}the command gives other figures today.** " if named else ""


def _recipe_since(result: Mapping[str, Any]) -> str:
    """Return the sentence on a recipe that is no longer the one simulated; empty: it is.

    Results from before recipes were kept cannot tell.
    """
    if "recipe" not in result:
        return ""
    _, _, recipe, *options = shlex.split(result["command"])
    now = load_recipe(ROOT / recipe, [one for one in options if one != "--set"])
    same = Recipe.parse(tomllib.loads(result["recipe"])) == now
    return "" if same else "**The recipe has changed since.** "


def _run_section(run: dict[str, Any], source: str) -> str:
    about = [
        f"\n## {run['name']}\n",
        f"`{run['command']}` on {run['hardware']}: {run['seconds']:.0f} s, "
        f"peak {run['peak_gib']:.1f} GiB, {run['seeds']} seeds. "
        f"{_made_by(run, 'simulate')}From `benchmarks/results/{source}`.\n",
        *[f"- {note}" for note in run["notes"]],
    ]
    pools = dict.fromkeys(record["pool"] for record in run["records"])
    return "\n".join(about + [_pool_table(run, pool) + _known(run["name"], pool) for pool in pools])


def _known(name: str, pool: str) -> str:
    """Return the figures that were known for a pool before, to hold beside ours."""
    known = json.loads((RESULTS / "known.json").read_text())
    rows = [f"{method} {figure}" for method, figure in known.get(name, {}).get(pool, {}).items()]
    return f"\n\n{known['about']}: {'; '.join(rows)}." if rows else ""


def _pool_table(run: dict[str, Any], pool: str) -> str:
    records = [r for r in run["records"] if r["pool"] == pool]
    by_key = {(r["method"], r["metric"], r["segment"]): r for r in records}
    methods = dict.fromkeys(r["method"] for r in records)
    columns = [c for c in SHOWN if any((m, *c) in by_key for m in methods)]
    names = [metric if segment == "all" else f"{segment} {metric}" for metric, segment in columns]
    rows = [
        "| " + " | ".join([m, *(_cell(by_key.get((m, *c))) for c in columns)]) + " |"
        for m in methods
    ]
    head = ["| " + " | ".join(["method", *names]) + " |", "|---" * (len(names) + 1) + "|"]
    return "\n".join([f"\n### {run['name']}: {pool}\n", *head, *rows])


def _cell(record: dict[str, Any] | None) -> str:
    if record is None or record["value"] is None:
        return "–"
    if record["low"] is None:
        return f"{record['value']:.3f}"
    if record["n"] < LEAST_USERS:
        return f"{record['value']:.3f} (n = {record['n']})"
    return f"{record['value']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"


def comparison_section(file: Path) -> str:
    """Return every sheet of a comparison: values, paired tests, ablations, costs, audit."""
    about = json.loads(file.read_text())
    seen = view(read_report(file))
    versions = ", ".join(f"{name} {version}" for name, version in seen.extra["versions"].items())
    head = [
        f"\n## Comparison: {about['name']}\n",
        f"`{about['command']}` on {about['hardware']}, Python {about['python']} ({versions}): "
        f"{about['seconds']:.0f} s, peak {about['peak_gib']:.1f} GiB, {about['seeds']} seeds. "
        f"{_made_by(about, 'simulate')}From `benchmarks/results/{file.name}`.\n",
        *[f"- {sentence}" for sentence in [*summarise(seen), *seen.extra["notes"]]],
        "",
    ]
    sheets = comparison_sheets(seen)
    named = [replace(sheet, title=f"{about['name']}: {sheet.title}") for sheet in sheets]
    return "\n".join([*head, *(to_markdown(sheet, 3) for sheet in named)])


MANY_ARMS = 14
"""With more arms a table of each over each other is too wide to read."""


def simulation_section(result: dict[str, Any], source: str) -> str:
    """Return the table of a simulated A/B test: lifts in percent over the baseline's levels."""
    lines = {(line["arm"], line["metric"]): line for line in result["lines"]}
    metrics = [name for name in result["metrics"] if name != "expected_ctr"]
    rows = [
        "| " + " | ".join([arm, *(_lift(lines[arm, m]) for m in metrics)]) + " |"
        for arm in result["arms"]
    ]
    took = f"{result['seconds']:.0f} s" if result["whole"] else "resumed, time not measured"
    return "\n".join(
        [
            f"\n## Simulated A/B test: {result['name']}\n",
            f"`{result['command']}` on {result['hardware']}: {took}, peak "
            f"{result['peak_gib']:.1f} GiB, {result['n_replications']} replications of "
            f"{result['n_days']} days. {_made_by(result, 'evaluate')}"
            f"{_recipe_since(result)}From `benchmarks/results/{source}`. "
            f"Lift over {result['baseline']} in % with {result['interval']:.0%} intervals over "
            "replications; its own row holds levels. Columns: docs/guides/simulate.md.\n",
            *[f"- {note}" for note in result["notes"]],
            "",
            "| " + " | ".join(["arm", *(m.replace("_", " ") for m in metrics)]) + " |",
            "|---" * (len(metrics) + 1) + "|",
            *rows,
            *_against(result),
        ]
    )


def _against(result: dict[str, Any]) -> list[str]:
    """Return the table of each arm's clicks over each other's, if there is one.

    With many arms the columns are those with GPL's label alone, and the table is turned.
    """
    pairs = pair_cells(result, _estimate)
    if not pairs:
        return []
    if len(pairs) <= MANY_ARMS:
        said = "Clicks per exposure: lift of each arm over each other in %, paired by replication."
        rows = [[arm, *row] for arm, row in pairs.items()]
        return ["", said, *_table(["arm / over", *pairs], rows)]
    ours = [arm for arm in pairs if arm.startswith("gpl")]
    said = "Clicks per exposure: lift of the arm above over the one on the left in %, paired."
    rows = [[over, *(pairs[arm][n] for arm in ours)] for n, over in enumerate(pairs)]
    return ["", said, *_table(["over", *ours], rows)]


def _lift(line: dict[str, Any]) -> str:
    if line["lift"] is None:
        value = line["level"]["value"]
        return "–" if value is None else f"{value:.4g}"
    return _estimate(line["lift"])


def _estimate(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:+.1f}"
    return f"{found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


# What people ask first: the figure, its benchmark and name there, and what it should be.
IN_SHORT = (
    (
        "anchors: users/s over Hugging Face's constrained beams",
        "generate",
        "ours_over_hugging_face",
        ">= 15",
    ),
    ("anchors: users/s over the prefill alone, float32", "generate", "ours_over_prefill", ">= 0.7"),
    ("the same, bfloat16", "generate-bf16", "ours_over_prefill", ">= 0.6"),
    (
        "the same, shape of Qwen2.5-0.5B, bfloat16",
        "generate-qwen2.5-0.5b-bf16",
        "ours_over_prefill",
        ">= 0.7",
    ),
    (
        "fine-tuning: share of its matrix products' speed, 50 items",
        "finetune",
        "runs 2.share_of_all_products",
        ">= 0.667",
    ),
    ("the same, a model of 128 x 2", "finetune-small", "runs 2.share_of_all_products", "-"),
    ("RQ-KMeans, 1,000,000 x 128, 3 x 1024: seconds", "tokenize-1m", "seconds.ours", "<= 180"),
    ("the same: peak memory, MiB", "tokenize-1m", "peak_mib", "<= 3072"),
    (
        "training, small tables: rows/s over the faster peer",
        "train",
        "small tables.ratio_to_fastest_peer_by_second",
        ">= 4",
    ),
    (
        "training, large tables: the same",
        "train",
        "large tables.ratio_to_fastest_peer_by_second",
        ">= 10",
    ),
    (
        "10,000 candidates, two-tower, 1 thread: p99 ms",
        "serve",
        "in_process.two-tower, 1 thread.p99_ms",
        "<= 2",
    ),
    (
        "10,000 candidates, COLD, 2 threads: p99 ms",
        "serve",
        "in_process.cold, 2 threads.p99_ms",
        "<= 8",
    ),
    ("HTTP, 2,000 candidates at 100 requests/s: p99 ms", "serve", "http.steady.p99_ms", "<= 15"),
    (
        "HTTP at twice the capacity: accepted p99 over that at capacity",
        "serve",
        "http.p99_over_capacity_p99",
        "<= 2",
    ),
)


def in_short() -> list[str]:
    """Return the table of the figures people ask for first."""
    rows = ["| figure | measured | aim | benchmark |", "|---|---|---|---|"]
    for said, name, key, aim in IN_SHORT:
        found = json.loads((RESULTS / f"bench-{name}.json").read_text())["found"]
        anchor = name.replace(".", "")  # as the site writes the id of a heading
        value = _short(dict(_flat(found))[key])
        rows.append(f"| {said} | {value} | {aim} | [{name}](#{anchor}) |")
    return rows


def benchmarks_page() -> str:
    """Return docs/benchmarks.md, from the committed JSON of the speed benchmarks."""
    intro = (ROOT / "docs" / "benchmarks-intro.md").read_text()
    parts = [MADE, "# Speed\n", intro, "## In short\n", *in_short()]
    for file in sorted(RESULTS.glob("bench-*.json")):
        bench = json.loads(file.read_text())
        rows = [f"| {name} | {_short(value)} |" for name, value in _flat(bench["found"])]
        parts += [
            f"\n## {bench['name']}\n",
            f"`{bench['command']}` on {bench['hardware']}, torch {bench['packages']['torch']}. "
            f"From `benchmarks/results/{file.name}`.\n",
            "| figure | value |\n|---|---|",
            *rows,
        ]
    return "\n".join([*parts, *soak_section()]) + "\n"


def soak_section() -> list[str]:
    """Return how memory went while a server answered and anchors were generated again and again."""
    found = json.loads((RESULTS / "soak.json").read_text())
    rows = []
    for name, unit in (("serving", "requests"), ("generation", "generations")):
        one = found[name]
        done = f"{one['count']:,} {unit}" + (f", {one['failed']} failed" if "failed" in one else "")
        late = [mb for _, mb in one["readings"][len(one["readings"]) // 2 :]]
        rows.append(
            f"| {name} | {done} | {one['first_mb']} | {min(late)} to {max(late)} | "
            f"{one['slope_mb_per_hour']:+.1f} |"
        )
    return [
        "\n## soak\n",
        f"`{found['command']}`: {found['minutes']:g} minutes of both, on a machine "
        f"{found['machine']}. Resident memory in MiB; the slope is a line through the second half. "
        "From `benchmarks/results/soak.json`.\n",
        "| process | done | first | second half | MiB an hour |\n|---|---|---:|---:|---:|",
        *rows,
    ]


def _flat(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested JSON; lists of plain values are leaves."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    elif isinstance(found, list) and any(isinstance(value, dict) for value in found):
        for number, value in enumerate(found, 1):
            yield from _flat(value, f"{name} {number}")
    else:
        yield name, found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def log_page() -> str:
    """Return docs/log.md: findings that shaped a default, with the numbers that did it."""
    entries = json.loads((RESULTS / "log.json").read_text())
    intro = (
        "One entry a finding that shaped a default or killed an idea. Training and validation "
        "data\nonly, unless an entry says otherwise, as it does where something was left out or "
        "built otherwise\nafter a test had been seen: three language models held against the "
        "history, how trials are chosen.\n"
        "`benchmarks/results/log.json` was filled by hand from probes, most of whose scripts are "
        "not kept: read an\nentry as a note, not as a result."
    )
    parts = [MADE, f"# Log of what did and did not work\n\n{intro}"]
    for entry in entries:
        head = ["| " + " | ".join(entry["columns"]) + " |", "|---" * len(entry["columns"]) + "|"]
        rows = ["| " + " | ".join(map(_plain, row)) + " |" for row in entry["rows"]]
        parts += [
            f"\n## {entry['finding']}\n\n{entry['setting'][0].upper()}{entry['setting'][1:]}.\n",
            *head,
            *rows,
        ]
        parts.append(f"\nSo {entry['consequence']}")
    return "\n".join(parts) + "\n"


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def readme() -> str:
    """Return the README with its results tables made anew."""
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    loop = json.loads((RESULTS / "simulate-simulate.json").read_text())
    tables = "\n".join([*_headline_table(), *_closed_loop(loop)])
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


# What the README shows; everything else stands in docs/results.md.
HEADLINE_METHODS = (
    "exposed-only",
    "negative-sampling",
    "gpl",
    "gpl-history",
    "gpl-shuffled",
    "gpl-weighted",
    "gpl-joint+kd",
    "gpl-joint-history+kd",
    "gpl-joint-shuffled+kd",
    "gpl-weighted+neg",
    "gpl-history+neg",
    "gpl-shuffled+neg",
    "true-labels",
)
HEADLINE_ARMS = (
    "exposed-only",
    "negative-sampling",
    "in-batch-logq",
    "kd-all",
    "sida",
    "gpl",
    "gpl-history",
    "gpl-shuffled",
    "gpl-weighted",
    "gpl-joint",
    "gpl+kd",
    "gpl-weighted+kd",
    "gpl-joined+kd",
    "gpl-history+kd",
    "gpl-shuffled+kd",
    "oracle",
)


def _headline_table() -> list[str]:
    """Return GAUC, of all and of the tail, on the headline pool of each run that has one."""
    runs = [run for run in _runs().values() if run.get("headline_pool")]
    found = {
        (run["name"], record["method"], record["segment"]): record
        for run in runs
        for record in run["records"]
        if record["pool"] == run["headline_pool"] and record["metric"] == "gauc"
    }
    columns = [(run["name"], segment) for run in runs for segment in ("all", "tail")]
    names = [f"{run}: " + ("GAUC" if part == "all" else "tail GAUC") for run, part in columns]
    rows = [
        [method, *(_cell(found.get((run, method, part))) for run, part in columns)]
        for method in HEADLINE_METHODS
    ]
    return _table(["method", *names], rows)


def _closed_loop(result: dict[str, Any]) -> list[str]:
    """Return what the README shows of a simulated A/B test."""
    lines = {(line["arm"], line["metric"]): line for line in result["lines"]}
    shown = ("ctr", "page_views", "categories", "tail_clicks")
    rows = [[arm, *(_lift(lines[arm, m]) for m in shown)] for arm in HEADLINE_ARMS]
    tail = next(note for note in result["notes"] if note.startswith("long tail"))
    said = (
        f"Simulated A/B test, {result['n_replications']} replications of {result['n_days']} days: "
        f"lift over {result['baseline']} in %, whose own row holds levels.\n"
        f"Categories: {result['metrics']['categories']}; {tail}."
    )
    head = ["arm", "clicks per exposure", "page views", "categories", "long tail's share of clicks"]
    return [said, *_table(head, rows)]


def scale() -> str:
    """Return docs/guides/scale.md with its measured and reckoned tables made anew."""
    text = (ROOT / "docs" / "guides" / "scale.md").read_text()
    before, _, rest = text.partition(SCALE_BEGIN)
    _, _, after = rest.partition(SCALE_END)
    file = RESULTS / "scale.json"
    found = json.loads(file.read_text())
    lines = [*_measured_scale(found), *_reckoned_scale(found)]
    return "\n".join([f"{before}{SCALE_BEGIN}", *lines, f"{SCALE_END}{after}"])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *lines,
        "",
    ]


def _measured_scale(found: dict[str, Any]) -> list[str]:
    counts, rates = found["counts"], found["rates"]
    rows = [
        [
            stage,
            f"{one['seconds']:,.0f}",
            f"{one['cpu_seconds']:,.0f}",
            f"{one['peak_mb'] / 1000:.2f}",
            f"{one['gb']:.2f}",
        ]
        for stage, one in found["stages"].items()
    ]
    return [
        "",
        f"**Measured** (`benchmarks/results/scale.json`, {found['hardware']}): {counts['rows']:,} "
        f"exposures, {counts['users']:,} users (of whom {counts['users_seen']:,} were "
        f"shown something), {counts['items']:,} items, {counts['pairs']:,} "
        f"unexposed pairs, {counts['anchors']:,} history anchors, in {counts['parts']} parts. "
        f"{rates['prepare_rows_per_s']:,} rows/s prepared, {rates['label_pairs_per_s']:,} pairs/s "
        f"matched and labelled; at most {found['peak_mb'] / 1000:.2f} GB of memory.",
        *_table(["stage", "s", "s of processor", "most GB of memory", "GB written"], rows),
    ]


def _reckoned_scale(found: dict[str, Any]) -> list[str]:
    """Return hours and bytes for 300 million users, with the arithmetic."""
    stages, counts = found["stages"], found["counts"]
    users, items, shown, pairs, anchors, dim, levels, history = 3e8, 1e7, 1e9, 3e9, 20, 64, 3, 50
    config = GenerateConfig(beam_width=20, n_anchors=anchors, max_history=history)
    each = estimate.user_flops(config, estimate.QWEN_05B, levels, history)
    speed = estimate.GPU_TFLOPS * 1e12 * estimate.GPU_SHARE
    rate = speed / each
    gpus = [
        [
            str(n),
            f"{n * rate:,.0f}",
            f"{users / (n * rate) / 3600:,.1f}",
            f"{users / rate / 3600:,.0f}",
        ]
        for n in (1, 2, 4, 8, 16, 32, 64, 96)
    ]
    work = {
        "prepare": (shown, "rows", counts["rows"] / stages["prepare"]["cpu_seconds"]),
        "label": (pairs, "pairs", counts["pairs"] / stages["label"]["cpu_seconds"]),
    }
    cores = [
        [stage, f"{n:.3g} {unit}", f"{per:,.0f}", f"{n / per / 3600:,.1f}"]
        for stage, (n, unit, per) in work.items()
    ]
    dataset = shown * 1e9 * stages["prepare"]["gb"] / counts["rows"]
    labels = pairs * 1e9 * stages["label"]["gb"] / counts["pairs"]
    points = 4 * items * dim
    kept_anchors = users * anchors * (4 * levels + 12) + 8 * users + points
    kept = [
        ("dataset", "measured, in proportion to the rows", dataset),
        ("embeddings", "4 I D", 4 * items * dim),
        ("semantic IDs", "4 I L", 4 * items * levels),
        ("anchors, at most", "U A (4 L + 12) + 8 U + 4 I D", kept_anchors),
        ("of these the points", "4 I D", points),
        ("pseudo-labels", "measured, in proportion to the pairs", labels),
    ]
    return [
        f"**Reckoned** for a day of {users / 1e6:.0f} million users: {shown:.0e} exposures, "
        f"{items:.0e} items, {pairs:.0e} unexposed pairs (10 a user), "
        f"A = {anchors} anchors, D = {dim}, L = {levels}, "
        f"W = {config.beam_width} beams, histories of {history} items.",
        "",
        f"*Generate.* A user is {each / 1e12:.3f} TFLOP for Qwen2.5-0.5B; "
        f"{estimate.GPU_TFLOPS:g} TFLOP/s x {estimate.GPU_SHARE:.0%} = {speed / 1e12:.1f} "
        f"TFLOP/s; so {speed / 1e12:.1f} / {each / 1e12:.3f} = {rate:.0f} users/s and "
        "GPU. **Assumed, not measured by us**: the share is chosen so that an H20 reaches what the "
        "paper's 6 hours on 96 of them imply.",
        *_table(["GPUs (H20, assumed)", "users/s", "hours", "GPU-hours"], gpus),
        "*Prepare and label*, at the processor seconds measured above, on one core. Parts are "
        "matched independently of each other, but today one process does them all.",
        *_table(["stage", "how many", "a second and core", "core-hours"], cores),
        "*Storage.* Anchors at one semantic ID, or at one item, share a point.",
        *_table(["artifact", "arithmetic", "GB"], [[a, b, f"{c / 1e9:,.1f}"] for a, b, c in kept]),
    ]


def pages() -> dict[Path, str]:
    """Return every generated page with its text."""
    return {
        ROOT / "docs" / "reference" / "cli.md": cli_page(),
        ROOT / "docs" / "reference" / "recipe.md": recipe_page(),
        ROOT / "docs" / "results.md": results_page(),
        ROOT / "docs" / "benchmarks.md": benchmarks_page(),
        ROOT / "docs" / "log.md": log_page(),
        ROOT / "docs" / "guides" / "scale.md": scale(),
        ROOT / "README.md": readme(),
    }


def main() -> int:
    """Write the pages, or say which are not current."""
    stale = []
    for path, text in pages().items():
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != text:
                stale.append(str(path.relative_to(ROOT)))
        else:
            path.write_text(text)
    if stale:
        print("not current:", *stale, "\nrun `python docs/generate.py`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

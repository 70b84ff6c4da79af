"""The command line: verbs only; all logic lives in the packages beneath.

stdout carries data (``--json`` for machines), stderr carries the log and progress bars.
Exit codes: 0 fine, 1 our failure, 2 usage or recipe, 3 data or artifacts; 130 after Ctrl-C and
143 after SIGTERM, with nothing half-written left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prerank import __version__, progress
from prerank.errors import ConfigError, PrerankError, from_system

app = typer.Typer(
    name="prerank",
    help="Generative Pseudo-Labeling for the pre-ranking stage (arXiv 2602.20995).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(help="the recipe, a TOML file", show_default=False)]
# A Path would lose one of a URI's slashes.
RunPlace = Annotated[str, typer.Argument(help="folder or URI of a run", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="override a key: stage.key=value; may be repeated"),
]
ENGINES = ("local", "ray")
Json = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved recipe and the plan, do nothing")
]


def _here(place: str, cache: Path | None = None) -> Path:
    """Return a folder as it is; what lies at a URI is fetched.

    ``cache``: where to; the recipes' usual one if None, where what is there already is kept.
    """
    from prerank.remote import bring, is_uri, local_name

    if not is_uri(place):
        return Path(place)
    from prerank.recipe import Recipe

    uri = place.rstrip("/")
    return bring(uri, (cache or Path(Recipe().cache)) / local_name(uri))


def _out(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prerank {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="show the traceback of an error")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no log, no progress bars")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_version, is_eager=True),
    ] = False,
) -> None:
    progress.silence(quiet)


def _run(
    recipe: Path,
    overrides: list[str] | None,
    as_json: bool,
    dry: bool,
    *stages: str,
    engine: str = "local",
    address: str = "",
) -> None:
    from prerank.pipeline import Run, describe, report_of, run_recipe
    from prerank.recipe import load_recipe

    if engine not in ENGINES:
        raise ConfigError("unknown engine", where="--engine", must=" or ".join(ENGINES), got=engine)
    if address and engine != "ray":
        raise ConfigError("only Ray has an address", where="--ray-address", hint="add --engine ray")
    loaded = load_recipe(recipe, overrides or ())
    if dry:
        _print_plan(loaded.to_toml(), describe(Run(loaded)), stages, as_json)
        return
    if engine == "ray":
        from prerank.engines.on_ray import cluster

        with cluster(address) as on_ray:
            steps = run_recipe(loaded, stages, on_ray)
    else:
        steps = run_recipe(loaded, stages)
    finished = not stages or "evaluate" in stages
    report = report_of(loaded, steps) if finished else None
    if as_json:
        records = json.loads((report / "report.json").read_text())["records"] if report else []
        _out({"folder": str(loaded.folder), "steps": steps, "records": records})
    elif report:
        _print_report(report)
    else:
        _print_steps(steps)


def _print_plan(toml: str, plan: dict[str, Any], stages: tuple[str, ...], as_json: bool) -> None:
    steps = [step for step in plan["steps"] if not stages or step["stage"] in stages]
    if as_json:
        _out({"recipe": toml, **plan, "steps": steps})
        return
    print(toml)
    _print_steps([{**step, "status": "done before" if step["done"] else "to do"} for step in steps])


def _print_steps(steps: list[dict[str, Any]]) -> None:
    table = Table("stage", "artifact", "fingerprint", "status", box=None)
    for step in steps:
        words = (step["stage"], step["key"], step["fingerprint"], step["status"])
        table.add_row(*map(progress.shown, words))
    Console().print(table)


def _print_report(folder: Path) -> None:
    from prerank.artifacts import Report
    from prerank.evaluation.table import print_table
    from prerank.store import load

    print_table(load(folder, Report))
    print(f"\nreport: {folder / 'report.html'}")


@app.command()
def run(
    recipe: RecipePath,
    engine: Annotated[str, typer.Option(help="local: this process; ray: a cluster")] = "local",
    ray_address: Annotated[
        str,
        typer.Option(
            help="auto, HOST or HOST:PORT of a cluster's head; empty: this machine's cores"
        ),
    ] = "",
    set_: Overrides = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run every stage of RECIPE; what is done already is skipped."""
    _run(recipe, set_, as_json, dry_run, engine=engine, address=ray_address)


@app.command()
def estimate(
    recipe: RecipePath,
    users: Annotated[int | None, typer.Option(min=1, help="instead of those counted")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="the same")] = None,
    exposures: Annotated[int | None, typer.Option(min=1, help="rows, the same")] = None,
    candidates: Annotated[int | None, typer.Option(min=0, help="rows, the same")] = None,
    history: Annotated[float | None, typer.Option(min=0, help="mean items of a history")] = None,
    cores: Annotated[int, typer.Option(min=0, help="CPU cores; 0: those of this machine")] = 0,
    gpus: Annotated[int, typer.Option(min=0, help="for encoders and the language model")] = 0,
    gpu_tflops: Annotated[
        float, typer.Option(min=1e-3, help="peak of one GPU, bfloat16; the default is an H20's")
    ] = 148.0,
    gpu_share: Annotated[
        float, typer.Option(min=1e-3, max=1, help="share of the peak that is reached: assumed")
    ] = 0.13,
    set_: Overrides = None,
    as_json: Json = False,
) -> None:
    """Estimate what RECIPE costs before anything starts: hours, gigabytes, GPU-hours."""
    from prerank.estimate import Machine, print_estimate
    from prerank.estimate import estimate as reckon
    from prerank.recipe import load_recipe

    counts = {
        "users": users,
        "items": items,
        "exposures": exposures,
        "candidates": candidates,
        "history": history,
    }
    given = {name: value for name, value in counts.items() if value is not None}
    machine = Machine(cores or os.cpu_count() or 1, gpus, gpu_tflops, gpu_share)
    found = reckon(load_recipe(recipe, set_ or ()), given, machine)
    if as_json:
        _out(found)
    else:
        print_estimate(found)


def _stage_command(stage: str, text: str) -> Callable[..., None]:
    def command(
        recipe: RecipePath, set_: Overrides = None, as_json: Json = False, dry_run: DryRun = False
    ) -> None:
        _run(recipe, set_, as_json, dry_run, stage)

    command.__name__, command.__doc__ = stage, text
    return command


for _stage, _text in {
    "prepare": "Read logs into a Dataset: vocabularies, histories, split, pools.",
    "encode": "Encode the catalog into the frozen semantic space.",
    "tokenize": "Give every item a semantic ID.",
    "finetune": "Train the LLM on next-semantic-ID prediction.",
    "generate": "Generate each user's interest anchors (and the controls).",
    "teach": "Train the rankers that label for the baselines that distil.",
    "label": "Turn anchors into confidence-weighted pseudo-labels.",
    "train": "Train the pre-rankers of all methods and seeds.",
    "evaluate": "Score the test pools and write report.json and report.html.",
}.items():
    app.command(name=_stage)(_stage_command(_stage, _text))


@app.command()
def compare(
    paths: Annotated[
        list[str],
        typer.Argument(help="a recipe (a .toml file), or folders or URIs of finished runs"),
    ],
    methods: Annotated[
        str, typer.Option(help="`all`, or names separated by commas, added to the recipe's own")
    ] = "",
    seeds: Annotated[int, typer.Option(min=0, help="training seeds; 0: those of the recipe")] = 0,
    trials: Annotated[
        int, typer.Option(min=-1, help="settings tried a method on validation; -1: tune.trials")
    ] = -1,
    set_: Overrides = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Compare every method of a recipe fairly, or print finished runs side by side."""
    recipes = [path for path in paths if path.endswith(".toml")]
    if not recipes:
        given = {"--methods": methods, "--seeds": seeds, "--trials": trials >= 0, "--set": set_}
        ignored = [name for name, value in given.items() if value]
        if ignored:
            raise ConfigError(
                "finished runs are printed as they are",
                where=", ".join(ignored),
                must="a recipe (a .toml file), to run more",
                got=", ".join(paths),
            )
        _print_runs(paths, as_json)
        return
    if len(paths) > 1:
        raise ConfigError("one recipe at a time", where="compare", got=len(paths))
    from prerank import comparison
    from prerank.pipeline import Run, describe
    from prerank.recipe import load_recipe

    more = [] if trials < 0 else [f"tune.trials={trials}"]
    loaded = load_recipe(recipes[0], [*(set_ or ()), *more])
    if dry_run:
        truth = comparison.knows_truth(loaded)
        resolved = comparison.resolve(loaded, methods, seeds, truth)
        _print_plan(resolved.to_toml(), describe(Run(resolved)), (), as_json)
        if resolved.tune.trials and not as_json:
            count = len(resolved.methods)
            print(f"before train: {resolved.tune.trials} trials for each of {count} methods")
        return
    folder = comparison.compare(loaded, methods, seeds)
    written = json.loads((folder / "comparison.json").read_text())
    if as_json:
        _out({"folder": str(folder), **written})
        return
    from prerank.evaluation.table import print_comparison
    from prerank.store import read_report

    print_comparison(read_report(folder / "comparison.json"))
    print(f"comparison: {folder / 'comparison.html'}")


def _print_runs(runs: list[str], as_json: bool) -> None:
    from prerank.artifacts import Report
    from prerank.evaluation.table import print_table
    from prerank.store import Store, load

    reports = {run: load(Store(_here(run)).checked("report"), Report) for run in runs}
    if as_json:
        _out({name: [vars(r) for r in report.records] for name, report in reports.items()})
        return
    for name, report in reports.items():
        print(f"\n{name}")
        print_table(report)


@app.command()
def simulate(
    recipe: RecipePath, set_: Overrides = None, as_json: Json = False, dry_run: DryRun = False
) -> None:
    """Simulate an A/B test of RECIPE's methods: days of a closed loop, each arm on its own logs."""
    from prerank.recipe import load_recipe
    from prerank.simulation.show import print_result
    from prerank.simulation.simulate import load_result, with_arms
    from prerank.simulation.simulate import simulate as run_simulation

    loaded = load_recipe(recipe, set_ or ())
    if dry_run:
        loaded, arms = with_arms(loaded)
        if as_json:
            _out({"recipe": loaded.to_toml(), "arms": arms})
        else:
            print(loaded.to_toml())
            print("arms:", *arms)
        return
    folder = run_simulation(loaded)
    result = load_result(folder)
    if as_json:
        _out({"folder": str(folder), **result})
        return
    print_result(result)
    print(f"\npage: {folder / 'simulation.html'}")


@app.command()
def export(
    run: RunPlace,
    out: Annotated[Path, typer.Option(help="where the bundle goes: a new path or an older bundle")],
    method: Annotated[str, typer.Option(help="empty: the recipe's evaluate.method")] = "",
    seed: Annotated[int | None, typer.Option(help="default: the smallest one trained")] = None,
    as_json: Json = False,
) -> None:
    """Write a pre-ranker of RUN as a bundle: ONNX graphs, item matrix, vocabularies, model card."""
    from prerank.serving.export import export as make
    from prerank.serving.export import load_trained

    bundle = make(load_trained(_here(run), method, seed), out)
    if as_json:
        made = {n: json.loads((bundle.path / f"{n}.json").read_text()) for n in _MEASURED}
        _out({"bundle": str(bundle.path), "fingerprint": bundle.fingerprint, **made})
    else:
        print(f"bundle {bundle.fingerprint}: {bundle.path}\nread {bundle.path / 'README.md'}")


_MEASURED = ("parity", "precision", "latency")


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument(help="made by `prerank export`", show_default=False)],
    pairs: Annotated[
        Path,
        typer.Argument(
            help="a Parquet, Feather, CSV or TSV file, a folder of them, or a quoted glob",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="the file to write: .parquet or .csv")],
    user_column: Annotated[str, typer.Option(help="user ids, text or integers")] = "user",
    item_column: Annotated[str, typer.Option(help="item ids, text or integers")] = "item",
    top_k: Annotated[
        int | None, typer.Option(min=1, help="keep the best K rows of each user, or request")
    ] = None,
    request_column: Annotated[
        str, typer.Option(help="with --top-k: the rows that compete have this column in common")
    ] = "",
    precision: Annotated[
        str, typer.Option(help="of the item rows: float32, float16 or int8")
    ] = "float32",
    chunk_rows: Annotated[int, typer.Option(min=1, help="rows in memory at once")] = 1 << 18,
    as_json: Json = False,
) -> None:
    """Score a table of PAIRS, offline: its rows in their order, with a column `logit`."""
    from prerank.serving.batch import Columns, print_scored, score_table

    if request_column and top_k is None:
        raise ConfigError(
            "a request without a number of rows to keep",
            where="--request-column",
            must="beside --top-k K",
            hint="without --top-k every row is kept, whatever its request",
        )
    columns = Columns(user_column, item_column, request_column)
    found = score_table(
        bundle, pairs, out, columns, top_k=top_k, precision=precision, chunk_rows=chunk_rows
    )
    if as_json:
        _out(vars(found))
    else:
        print_scored(found)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="a bundle, or a link to one", show_default=False)],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8080,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="override a limit: key=value; repeatable")
    ] = None,
    user_store: Annotated[str, typer.Option(help="embedded, or redis://host:port/db")] = "embedded",
) -> None:
    """Serve a BUNDLE over HTTP; the environment's PRERANK_TOKEN becomes the bearer token."""
    from prerank.errors import MissingExtraError
    from prerank.serving.config import ServeConfig

    pairs = [text.partition("=") for text in set_ or ()]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    config = ServeConfig.parse({"user_store": user_store, **values}, where="--set")
    try:
        from prerank.serving.app import serve as run_server
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is absent", hint='pip install "prerank[serve]"'
        ) from None
    run_server(bundle, config, host, port, os.environ.get("PRERANK_TOKEN", ""))


@app.command(name="inspect")
def inspect_(
    runs: Annotated[
        list[Path],
        typer.Argument(help="the folder of a run; more of them are compared with the first"),
    ],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8081,
) -> None:
    """Look at a RUN in the browser: users, items, semantic IDs, labels, comparisons; read-only."""
    from prerank.errors import MissingExtraError

    try:
        from prerank.inspection.app import inspect as run_server
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is absent", hint='pip install "prerank[serve]"'
        ) from None
    run_server(runs, host, port)


@app.command()
def skew(
    run: RunPlace,
    url: Annotated[str, typer.Option(help="of a running server")] = "http://127.0.0.1:8080",
    method: Annotated[str, typer.Option(help="empty: the recipe's evaluate.method")] = "",
    seed: Annotated[int | None, typer.Option(help="default: the smallest one trained")] = None,
    requests: Annotated[int, typer.Option(help="logged requests to replay", min=1)] = 200,
    as_json: Json = False,
) -> None:
    """Replay logged requests of RUN through a server; fail where scores differ by over 1e-4."""
    from prerank.serving.export import load_trained
    from prerank.serving.skew import check_skew

    trained = load_trained(_here(run), method, seed)
    found = check_skew(trained, url, requests, os.environ.get("PRERANK_TOKEN", ""))
    if as_json:
        _out(vars(found))
    else:
        print(
            f"{found.requests} requests, {found.rows} candidates: logits differ by "
            f"{found.max_difference:.1e} at most (bundle {found.bundle})"
        )


@app.command(name="fill-users")
def fill_users(
    bundle: Annotated[Path, typer.Argument(help="a bundle", show_default=False)],
    url: Annotated[str, typer.Argument(help="redis://host:port/db", show_default=False)],
) -> None:
    """Write the users of a BUNDLE, features and histories, into the Redis at URL."""
    from prerank.serving.bundle import Bundle
    from prerank.serving.users import fill_redis

    print(f"{fill_redis(Bundle.read(bundle), url)} users written")


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(help="the folder, or URI, of an artifact or a run")],
    everything: Annotated[
        bool, typer.Option("--all", help="every setting, file and package, too")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe an ARTIFACT (or every artifact of a run): what, from what, and its quality."""
    from prerank.show import describe_folder, print_description

    description = describe_folder(_here(artifact))
    if as_json:
        _out(description)
    else:
        print_description(description, everything=everything)


@app.command()
def verify(
    run: RunPlace,
    users: Annotated[int, typer.Option(min=0, help="users to replay; 0: hashes only")] = 64,
    full: Annotated[
        bool, typer.Option("--full", help="run every stage again and compare bytes")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hash every file of RUN and do a sample of its work again; exit code 3 where it differs."""
    from prerank.show import print_rows
    from prerank.verify import verify as examine

    with tempfile.TemporaryDirectory() as fresh:  # of a URI every byte is fetched again
        found = examine(_here(run, Path(fresh)), users, full=full)
    if as_json:
        _out({"run": run, "artifacts": [vars(one) for one in found]})
    else:
        shown = ("key", "state", "replayed")
        print_rows([{name: vars(one)[name] for name in shown} for one in found])
    bad = [one for one in found if one.state in ("damaged", "differs")]
    for one in bad:
        print(progress.plain(f"error: {one.key}: {one.problem}"), file=sys.stderr)
    if bad:
        raise typer.Exit(3)


@app.command()
def drift(
    before: Annotated[Path, typer.Argument(help="the semantic_ids folder of an earlier run")],
    after: Annotated[Path, typer.Argument(help="the semantic_ids folder of a later run")],
    as_json: Json = False,
) -> None:
    """Compare two generations of semantic IDs: who moved, what is left over, how new items fit."""
    from prerank.show import drift_of_folders, print_description

    found = drift_of_folders(before, after)
    if as_json:
        _out(found)
    else:
        print_description(found)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has and what prerank can do with it."""
    from prerank.doctor import examine, print_examination

    found = examine()
    if as_json:
        _out(found)
    else:
        print_examination(found)


STOPPED = {130, 143}
"""Exit codes of a command that was asked to stop: 128 + SIGINT, 128 + SIGTERM."""
ANEW = {
    "serve",
    "inspect",
    "show",
    "verify",
    "drift",
    "doctor",
    "skew",
    "estimate",
    "export",
    "score",
}
"""Commands that keep no work of theirs: there is nothing to go on with."""


def _terminate(number: int, _: object) -> None:
    """Leave as on Ctrl-C: through every ``finally``, so that half-written folders go."""
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line and leave with the documented exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    # Spinning OpenMP threads collapse to a tenth of their speed when another process takes a core;
    # sleeping ones cost an eighth on a free machine. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verbose = any(flag in sys.argv[1:] for flag in ("-v", "--verbose"))
    try:
        app(prog_name="prerank")
    except PrerankError as error:
        if verbose:
            print(progress.plain(traceback.format_exc()), file=sys.stderr, end="")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code in STOPPED:
            verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            rest = "" if verb in ANEW else "; finished work is kept, run the same command to go on"
            print(f"stopped{rest}", file=sys.stderr)
        raise
    except OSError as error:
        if verbose:
            print(progress.plain(traceback.format_exc()), file=sys.stderr, end="")
        refused = from_system(error)
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(refused.exit_code)
    except Exception as error:
        if verbose:
            print(progress.plain(traceback.format_exc()), file=sys.stderr, end="")
        print(
            f"error: unexpected {type(error).__name__}: {progress.one_line(error)}\n"
            "  hint: run again as `prerank -v ...` for the traceback and report it",
            file=sys.stderr,
        )
        sys.exit(1)

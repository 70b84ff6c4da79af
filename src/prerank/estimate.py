"""What a recipe will cost, before anything starts: hours, gigabytes, GPU-hours.

Every step of the plan has a quantity (rows, items, pairs, or floating-point operations), which
follows from the recipe and a few counts. Divided by a rate it gives seconds. Rates of a CPU core
were measured by us (``rates.json``, written by benchmarks/run_rates.py); the speed of a GPU is an
assumption that the caller states. docs/guides/scale.md shows the arithmetic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from prerank.anchors.config import DECODED, FinetuneConfig, GenerateConfig
from prerank.data.config import LogsConfig
from prerank.data.parted import is_large
from prerank.data.world_config import WorldConfig
from prerank.embeddings.config import EncodeConfig, EncoderConfig
from prerank.errors import ConfigError, DataError, PrerankError
from prerank.labels.config import LabelConfig, has_parts
from prerank.parts import PART_ROWS
from prerank.pipeline import Run
from prerank.plan import Step
from prerank.ranking.config import TrainConfig
from prerank.recipe import Recipe
from prerank.remote import is_uri
from prerank.semantic_ids.config import TokenizeConfig
from prerank.store import table_files

RATES = Path(__file__).parent / "rates.json"
CLICK_RATE = 0.2
"""Assumed where the log was not read: the world's own click rate."""
GPU_TFLOPS, GPU_SHARE = 148.0, 0.13
"""Assumed: the dense bfloat16 peak of an H20 (data sheet), and the share of it that the products of
our search would need to reach the 145 users a second and GPU that the paper's cost implies."""
TEXT_PARAMETERS, TEXT_TOKENS, TEXT_DIM = 22.7e6, 64, 384
"""Assumed of a text encoder: all-MiniLM-L6-v2, and the tokens of an item's text."""
IMAGE_FLOPS, IMAGE_DIM, GIVEN_DIM = 8.8e9, 512, 128
"""Assumed of an image encoder: CLIP ViT-B/32; and the size of vectors that come with the items."""
USER_TABLES = ("exposures", "candidates", "interactions", "users")
"""Tables of own logs that name users."""
LABEL_BYTES = 40
"""Of a pseudo-labeled pair: two ids, time, label, confidence, relevance, anchor, three factors;
before compression."""


@dataclass(frozen=True)
class Counts:
    """How much there is of everything.

    Attributes:
        users, items, exposures, candidates, interactions: rows.
        history: mean positives of a user before the anchor cut.
        source: where these numbers come from.
    """

    users: int
    items: int
    exposures: int
    candidates: int
    interactions: int
    history: float
    source: str

    @property
    def rows(self) -> int:
        """Rows of events in all tables."""
        return self.exposures + self.candidates + self.interactions


@dataclass(frozen=True)
class Machine:
    """What the run may use.

    Attributes:
        cores: CPU cores over which stages in shards spread; the others are reckoned on one.
        gpus: for model encoders, finetune and generate; 0: these run on the cores too.
        gpu_tflops, gpu_share: peak of one GPU, and the share of it that we reach (assumed).
    """

    cores: int
    gpus: int = 0
    gpu_tflops: float = GPU_TFLOPS
    gpu_share: float = GPU_SHARE


@dataclass(frozen=True)
class Cost:
    """Of one step: how much of what, at which rate, how long, how many bytes are written."""

    quantity: float
    unit: str
    rate: float
    seconds: float
    bytes: float
    on: str


@dataclass(frozen=True)
class Decoder:
    """The shape of a language model that counts: its layers."""

    hidden: int
    inner: int
    layers: int
    key_size: int

    @property
    def keys(self) -> int:
        """Parameters of a layer's keys and values."""
        return 2 * self.hidden * self.key_size

    @property
    def layer(self) -> int:
        """Parameters of one layer's matrices."""
        return 2 * self.hidden**2 + self.keys + 3 * self.hidden * self.inner


QWEN_05B = Decoder(896, 4864, 24, 128)


# ---- counts ----------------------------------------------------------------------------------


def counts_of_world(world: WorldConfig) -> Counts:
    """Return the counts that a simulated world will have on average."""
    training = int(world.n_users * world.requests_per_user)
    shown = (training + 2 * world.n_eval_requests) * world.n_exposed
    organic = world.organic_per_user * (1 + world.n_days / world.n_history_days)
    clicks = CLICK_RATE * training * world.n_exposed
    return Counts(
        users=world.n_users,
        items=world.n_items,
        exposures=shown,
        candidates=training * world.n_recalled,
        interactions=int(world.n_users * organic + clicks),
        history=organic + clicks / world.n_users / 2,
        source="the world's settings",
    )


def counts_of_dataset(folder: Path) -> Counts:
    """Return the exact counts of a prepared ``Dataset``, from its files' footers and one column."""
    about = json.loads((folder / "dataset.json").read_text())
    names = ("users", "items", "exposures", "candidates", "interactions")
    rows = {name: _rows(table_files(folder, name)) for name in names}
    early, cut = rows["interactions"], about["cuts"]["anchors"]
    if about["time_unit"] != "none" and cut is not None:
        times = pl.scan_parquet(table_files(folder, "interactions")).select(pl.col("time") < cut)
        early = int(times.sum().collect(engine="streaming").item())
    return Counts(
        **rows, history=early / max(rows["users"], 1), source="the prepared dataset, exact"
    )


def counts_of_logs(path: Path, config: LogsConfig, anchored: float) -> Counts:
    """Return the counts of own logs: rows exactly, users and clicks by one pass over columns.

    Args:
        path: the folder of the tables.
        config: how tables and columns are called.
        anchored: share of the exposures before the anchor cut.
    """
    from prerank.data.readers.logs import table_files as log_files
    from prerank.data.tables import scan_file

    def scan(name: str) -> pl.LazyFrame | None:
        files = log_files(path, name, getattr(config, name))
        scanned = [scan_file(file) for file in files]
        return pl.concat(scanned, how="diagonal_relaxed") if scanned else None

    def one(frame: pl.LazyFrame | None, what: pl.Expr) -> int:
        if frame is None:
            return 0
        return int(frame.select(what).collect(engine="streaming").item() or 0)

    tables = {name: scan(name) for name in (*USER_TABLES, "items")}
    shown, liked = tables["exposures"], tables["interactions"]
    if shown is None:
        raise ConfigError("there is no table `exposures` to count", where=str(path))
    click = config.exposures.columns.get("click", "click")
    exposures = one(shown, pl.len())
    ids = [
        frame.select(user=pl.col(getattr(config, name).columns.get("user", "user")).cast(pl.String))
        for name in USER_TABLES
        if (frame := tables[name]) is not None
    ]
    users = one(pl.concat(ids), pl.col("user").approx_n_unique())
    has_click = click in shown.collect_schema().names()
    clicked = pl.col(click).cast(pl.String).str.to_lowercase().is_in(["1", "1.0", "true"])
    clicks = one(shown, clicked.sum()) if has_click else 0
    positives, share = (clicks, anchored) if liked is None else (one(liked, pl.len()), 1.0)
    return Counts(
        users=users,
        items=one(tables["items"], pl.len()),
        exposures=exposures,
        candidates=one(tables["candidates"], pl.len()),
        interactions=positives,
        history=share * positives / max(users, 1),
        source=f"the tables in {path}: rows exact, users within 2 % or so",
    )


def _rows(files: list[Path]) -> int:
    return int(pl.scan_parquet(files).select(pl.len()).collect().item())


def count(run: Run, given: Mapping[str, Any]) -> Counts:
    """Return the counts of a run: of its prepared dataset, of its logs, or of its world.

    Args:
        run: of the recipe.
        given: numbers that win, by the names of `Counts`; whole ones but for ``history``.

    Raises:
        ConfigError: the source's rows cannot be counted, and users, items and exposures are not
            all given.
        DataError: the logs cannot be read.
    """
    known, found = dict(given), _found(run)
    if found is None:
        missing = [name for name in ("users", "items", "exposures") if name not in known]
        if missing:
            raise ConfigError(
                "the rows of this source cannot be counted before `prepare`",
                where="prepare.source",
                must="world, logs, or a run that is prepared",
                got=run.recipe.prepare.source,
                hint="give " + ", ".join(f"--{name}" for name in missing),
            )
        clicks = CLICK_RATE * known["exposures"]
        history = known.get("history", clicks * _anchored(run.recipe) / known["users"])
        liked = int(max(clicks, history * known["users"]))
        found = Counts(0, 0, 0, 0, liked, history, "")
    if not known:
        return found
    source = f"given; the rest: {found.source}" if found.source else "given"
    return Counts(**{**asdict(found), **known, "source": source})


def _found(run: Run) -> Counts | None:
    config, step = run.recipe.prepare, run.steps["dataset"]
    if run.done(step):
        return counts_of_dataset(run.path("dataset"))
    if config.source == "world":
        return counts_of_world(config.world)
    if config.source != "logs" or not config.path or is_uri(config.path):
        return None
    try:
        return counts_of_logs(Path(config.path), config.logs, _anchored(run.recipe))
    except pl.exceptions.PolarsError as error:
        raise DataError(
            "the logs cannot be counted",
            where=config.path,
            got=str(error).partition("\n")[0],
            hint="`prerank prepare` names the file and the column",
        ) from None


def _anchored(recipe: Recipe) -> float:
    """Return the share of the exposures before the anchor cut."""
    split = recipe.prepare.split
    return (1 - split.validation_fraction - split.test_fraction) * split.anchor_fraction


# ---- quantities ------------------------------------------------------------------------------


def encoder_dim(config: EncoderConfig, encoder: str) -> int:
    """Return the size of the vectors that an encoder makes; models' sizes are assumed."""
    if encoder == "fusion" and isinstance(config, EncodeConfig):
        if config.fusion.method == "concat-pca":
            return config.fusion.embedding_dim
        return max(encoder_dim(part, part.encoder) for part in config.fusion.parts)
    sizes = {"lsa": config.embedding_dim, "image": IMAGE_DIM, "given": GIVEN_DIM}
    return sizes.get(encoder, TEXT_DIM)


def decoder_of(config: FinetuneConfig) -> Decoder:
    """Return the shape of the model that ``config`` trains.

    A checkpoint's comes from its ``config.json``; one that is not here is taken as Qwen2.5-0.5B.
    """
    if config.init == "from-scratch":
        size = config.hidden_size
        return Decoder(size, config.intermediate_size, config.n_layers, size)
    try:
        about = json.loads((Path(config.checkpoint) / "config.json").read_text())
        hidden, heads = int(about["hidden_size"]), int(about["num_attention_heads"])
        key_heads = int(about.get("num_key_value_heads", heads))
        layers = int(about["num_hidden_layers"])
        return Decoder(hidden, int(about["intermediate_size"]), layers, hidden // heads * key_heads)
    except (OSError, ValueError, KeyError):
        return QWEN_05B


def tokenize_flops(config: TokenizeConfig, n_items: int, dim: int) -> float:
    """Return the operations of fitting the codebooks and giving every item its codes."""
    sample = min(n_items, config.sample_per_code * config.codebook_size)
    cells = sample * config.iterations + n_items
    return 2.0 * cells * config.n_levels * config.codebook_size * dim


def finetune_flops(config: FinetuneConfig, n_levels: int, counts: Counts) -> float:
    """Return the operations of training: 6 a parameter and token, 4 with LoRA; a third more if
    activations are computed again. Down-sampling is not reckoned with.
    """
    n_items, guarded = counts.users * counts.history, config.patience > 0 and config.held_out > 0
    model, tokens = decoder_of(config), n_items * n_levels * config.passes(n_items, guarded)
    each = (4 if config.lora else 6) * (4 / 3 if config.recompute else 1)
    return each * tokens * model.layers * model.layer


def user_flops(config: GenerateConfig, model: Decoder, n_levels: int, history: float) -> float:
    """Return the operations of the products that one user's search needs.

    Every token of the history passes all layers but the last, which makes keys and values for all
    and the rest for one token; the beams of every level but the last pass all layers.
    """
    tokens = 1 + min(history, config.max_history) * n_levels
    beams = sum(config.widths(n_levels)[:-1])
    read = tokens * ((model.layers - 1) * model.layer + model.keys) + model.layer
    return 2.0 * (read + beams * model.layers * model.layer)


def train_rows(recipe: Recipe, counts: Counts) -> float:
    """Return the exposures of training."""
    split = recipe.prepare.split
    return counts.exposures * (1 - split.validation_fraction - split.test_fraction)


def unexposed_pairs(recipe: Recipe, config: LabelConfig, counts: Counts) -> float:
    """Return the most pairs that may be labelled: repeats and known pairs are not taken off."""
    logged = counts.candidates * (1 - recipe.prepare.split.anchor_fraction)
    proposed = float(counts.users * config.proposed_per_user)
    wanted = config.pairs if config.pairs != "auto" else "logged" if logged else "proposed"
    found = {"logged": logged, "proposed": proposed, "both": logged + proposed}[wanted]
    return min(found, config.max_pairs or found)


# ---- costs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reckoner:
    run: Run
    counts: Counts
    machine: Machine
    rates: Mapping[str, float]
    given: bool = False

    def cost(self, step: Step) -> Cost:
        """Return what ``step`` costs."""
        found: Cost = getattr(self, f"_{step.stage}")(step)
        return found

    def _of(self, step: Step, stage: str) -> Step:
        """Return the nearest step of ``stage`` that ``step`` is made from."""
        for key in step.parents:
            if key in self.run.steps and self.run.steps[key].stage == stage:
                return self.run.steps[key]
        for key in step.parents:
            if key in self.run.steps:
                return self._of(self.run.steps[key], stage)
        raise KeyError(stage)

    def _dim(self, step: Step) -> int:
        config = EncodeConfig.parse(self._of(step, "encode").config)
        return encoder_dim(config, config.encoder)

    def _levels(self, step: Step) -> int:
        return TokenizeConfig.parse(self._of(step, "tokenize").config).n_levels

    def _rows(
        self, n: float, unit: str, rate: str, size: float, shared: bool = False, over: int = 1
    ) -> Cost:
        """Rows at a measured rate of one core; ``shared``: on all cores."""
        speed = self.rates[rate] * (self.machine.cores if shared else over)
        return Cost(n, unit, speed, n / speed, size, "cores" if shared else "core")

    def _products(self, flops: float, rate: str, size: float, gpu: bool = True) -> Cost:
        """Floating-point operations on the GPUs if there are any, else on all cores."""
        machine = self.machine
        if gpu and machine.gpus:
            speed, on = machine.gpus * machine.gpu_tflops * 1e12 * machine.gpu_share, "GPU"
        else:
            speed, on = self.rates[rate] * machine.cores, "cores"
        return Cost(flops, "operations", speed, flops / speed, size, on)

    def _prepare(self, step: Step) -> Cost:
        rows = self.counts.rows
        size = rows * self.rates["dataset_bytes_per_row"]
        rate = "prepare_parts_rows_per_second" if self._in_parts else "prepare_rows_per_second"
        return self._rows(rows, "rows", rate, size)

    @cached_property
    def _in_parts(self) -> bool:
        """Say whether the log is prepared and labelled in parts: by its size, or that given."""
        config = self.run.recipe.prepare
        if self.given or is_uri(config.path):
            return config.source == "logs" and self.counts.rows > PART_ROWS
        return is_large(Path(config.path), config)

    def _encode(self, step: Step) -> Cost:
        config = EncodeConfig.parse(step.config)
        size = 4.0 * self.counts.items * encoder_dim(config, config.encoder)
        parts = config.fusion.parts if config.encoder == "fusion" else (config,)
        names = [part.encoder for part in parts]
        flops = sum(
            {"image": IMAGE_FLOPS, "lsa": 0, "given": 0}.get(
                name, 2 * TEXT_PARAMETERS * TEXT_TOKENS
            )
            for name in names
        )
        if flops:
            return self._products(self.counts.items * flops, "generate_flops", size)
        return self._rows(self.counts.items, "items", "lsa_items_per_second", size)

    def _tokenize(self, step: Step) -> Cost:
        config, items = TokenizeConfig.parse(step.config), self.counts.items
        flops = tokenize_flops(config, items, self._dim(step))
        return self._products(flops, "tokenize_flops", 4.0 * items * config.n_levels, gpu=False)

    def _finetune(self, step: Step) -> Cost:
        config = FinetuneConfig.parse(step.config)
        model = decoder_of(config)
        flops = finetune_flops(config, self._levels(step), self.counts)
        if config.reuse:
            flops = 0.0
        return self._products(flops, "finetune_flops", 4.0 * model.layers * model.layer)

    def _generate(self, step: Step) -> Cost:
        settings = dict(step.config)
        source, first = settings.pop("source"), settings.pop("first", None)
        config = GenerateConfig.parse(settings)
        n_sources = 1 + source.count("+")
        n_anchors = first or config.n_anchors * n_sources
        places, users = self.counts.users * n_anchors, self.counts.users
        if first is None:
            dim, n_levels = self._dim(step), self._levels(step)
        else:
            made = self._of(step, "generate")
            dim, n_levels = self._dim(made), self._levels(made)
        # A source has a point an item at most; an anchor its codes, its point and two numbers.
        points = min(places, self.counts.items * n_sources)
        size = places * (4.0 * n_levels + 12) + 4 * dim * points + 8 * users
        if source not in DECODED or first is not None:
            return self._rows(places, "anchors", "control_anchors_per_second", size)
        model = decoder_of(FinetuneConfig.parse(self._of(step, "finetune").config))
        each = user_flops(config, model, n_levels, self.counts.history)
        cost = self._products(users * each, "generate_flops", size)
        return replace(cost, quantity=users, unit="users", rate=cost.rate / each)

    def _teach(self, step: Step) -> Cost:
        config = TrainConfig.parse(step.config["train"])
        return self._training(config, "label" in step.config)

    def _label(self, step: Step) -> Cost:
        config = LabelConfig.parse(step.config)
        pairs = unexposed_pairs(self.run.recipe, config, self.counts)
        if config.source != "gpl":
            size = pairs * LABEL_BYTES
            return self._rows(pairs, "pairs", "plain_label_pairs_per_second", size, shared=True)
        made = self._of(step, "generate")
        n_anchors = made.config.get("first") or made.config["n_anchors"]
        n_anchors *= 1 + made.config["source"].count("+")
        # A match is a product of a pair's vector with its user's anchors.
        measured = self.rates["label_dim"] * self.rates["label_anchors"]
        slower = max(1.0, self._dim(step) * n_anchors / measured)
        if self._in_parts and has_parts(config):
            # One process, part after part: its own work, measured with few anchors, and the match.
            products = slower / self.rates["label_pairs_per_second"]
            rate = 1 / (products + 1 / self.rates["label_parts_pairs_per_second"])
            return Cost(pairs, "pairs", rate, pairs / rate, pairs * LABEL_BYTES, "core")
        rate = self.rates["label_pairs_per_second"] / slower * self.machine.cores
        return Cost(pairs, "pairs", rate, pairs / rate, pairs * LABEL_BYTES, "cores")

    def _train(self, step: Step) -> Cost:
        has_pairs = any(
            self.run.steps[key].stage == "label" for key in step.parents if key in self.run.steps
        )
        return self._training(TrainConfig.parse(step.config), has_pairs)

    def _training(self, config: TrainConfig, has_pairs: bool) -> Cost:
        ratio = config.unexposed_ratio if has_pairs else 0.0
        rows = train_rows(self.run.recipe, self.counts) * (1 + ratio) * config.epochs
        size = 4.0 * (self.counts.users + self.counts.items) * config.embedding_dim
        over = min(self.run.recipe.workers, self.machine.cores)
        rate = f"train_{config.model}_rows_per_second"
        known = rate if rate in self.rates else "train_two-tower_rows_per_second"  # a plug-in's
        return self._rows(rows, "rows", known, size, over=over)

    def _evaluate(self, step: Step) -> Cost:
        recipe, pools = self.run.recipe, self.run.recipe.prepare.pools
        shown = self.counts.exposures * recipe.prepare.split.test_fraction
        sampled = 2 * pools.max_requests * (1 + pools.n_negatives)
        rankers = sum(one.stage == "train" for one in self.run.steps.values())
        rows = (shown + sampled) * rankers
        return self._rows(rows, "rows", "score_rows_per_second", 0.0)


def estimate(
    recipe: Recipe, given: Mapping[str, Any] | None = None, machine: Machine | None = None
) -> dict[str, Any]:
    """Return what ``recipe`` costs, plain JSON values; nothing is started or written.

    Args:
        recipe: of the run.
        given: counts that win over those found, by the names of `Counts`; all of users, items
            and exposures where the data is not here yet.
        machine: what the run may use; default: this one's cores, no GPU.

    Returns:
        counts, machine, rates, one dict a step (``seconds``, ``bytes`` and what they follow from;
        a step that is done costs nothing, where no counts are given) and the ``total``: hours,
        gpu_hours, gigabytes.

    Raises:
        ConfigError: the rows cannot be counted.
    """
    known = given or {}
    if {"users", "items", "exposures"} <= known.keys():
        # The data may lie elsewhere, or not be there yet: plan as if there were none to read.
        absent = recipe.prepare.path and not Path(recipe.prepare.path).exists()
        if absent:
            prepare = recipe.prepare.model_copy(update={"path": ""})
            recipe = recipe.model_copy(update={"prepare": prepare})
    run = Run(recipe)
    counts = count(run, known)
    used = machine or Machine(cores=os.cpu_count() or 1)
    table = json.loads(RATES.read_text())
    reckoner = _Reckoner(run, counts, used, table["rates"], given=bool(known))
    steps = []
    for step in run.steps.values():
        cost = reckoner.cost(step)
        done = not known and _done(run, step)  # of other sizes nothing is done
        seconds = 0.0 if done else cost.seconds
        steps.append(
            {"stage": step.stage, "key": step.key, "done": done, **asdict(cost), "seconds": seconds}
        )
    return {
        "counts": asdict(counts),
        "machine": asdict(used),
        "rates": {name: table[name] for name in ("command", "hardware", "threads", "clock")},
        "steps": steps,
        "total": {
            "hours": sum(one["seconds"] for one in steps) / 3600,
            "gpu_hours": used.gpus
            * sum(one["seconds"] for one in steps if one["on"] == "GPU")
            / 3600,
            "gigabytes": sum(one["bytes"] for one in steps if not one["done"]) / 1e9,
        },
    }


def _done(run: Run, step: Step) -> bool:
    try:
        return run.done(step)
    except PrerankError:
        return False


def _without_seeds(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line for the pre-rankers of an arm, whose seeds cost the same."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        key = step["key"].rpartition("/seed")[0] or step["key"]
        if key in found:
            for name in ("quantity", "seconds", "bytes"):
                found[key][name] += step[name]
            found[key]["done"] &= step["done"]
        else:
            found[key] = {**step, "key": key}
    return list(found.values())


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_estimate(found: Mapping[str, Any]) -> None:
    """Print `estimate`'s result as a table, its counts and its assumptions."""
    from rich.console import Console
    from rich.table import Table

    counts, machine, total = found["counts"], found["machine"], found["total"]
    numbers = ", ".join(
        f"{counts[name]:,} {name}"
        for name in ("users", "items", "exposures", "candidates", "interactions")
    )
    print(f"{numbers}; {counts['history']:.1f} items a history ({counts['source']})")
    table = Table(box=None)
    for name in ("stage", "artifact"):
        table.add_column(name)
    for name in ("how many", "a second", "time", "GB"):
        table.add_column(name, justify="right")
    table.add_column("of what, on what")
    for one in _without_seeds(found["steps"]):
        table.add_row(
            one["stage"],
            one["key"],
            f"{one['quantity']:.3g}",
            f"{one['rate']:.3g}",
            "done" if one["done"] else _duration(one["seconds"]),
            f"{one['bytes'] / 1e9:.3g}",
            f"{one['unit']} on {one['on']}",
        )
    Console(width=110).print(table)
    print(
        f"total: {_duration(3600 * total['hours'])}, one step after the other; "
        f"{total['gpu_hours']:.1f} GPU-hours; {total['gigabytes']:.2f} GB"
    )
    rates = found["rates"]
    print(
        f"cores: {machine['cores']}, at rates measured on {rates['hardware']} with "
        f"{rates['threads']} thread; steps `on core` are reckoned on one"
    )
    if machine["gpus"]:
        print(
            f"GPUs: {machine['gpus']}, assumed: {machine['gpu_tflops']:g} TFLOP/s each, of which "
            f"{machine['gpu_share']:.0%} is reached (not measured)"
        )

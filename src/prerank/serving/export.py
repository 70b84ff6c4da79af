"""export: a trained pre-ranker of a run -> a bundle that scores without torch."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from prerank import seeds
from prerank import store as stores
from prerank.artifacts import (
    Dataset,
    Features,
    FloatArray,
    IntArray,
    ItemEmbeddings,
    Report,
    TimeArray,
)
from prerank.errors import ArtifactError, ConfigError, StaleArtifactError
from prerank.progress import log
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories, as_read, seen_in_training
from prerank.ranking.features import FeatureTable, bucket_edges
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.validation import quality, validation_rows
from prerank.recipe import AT
from prerank.serving import card
from prerank.serving.bundle import (
    CATEGORIES,
    GRAPHS,
    HISTORY,
    ITEMS,
    KIND,
    OFFSETS,
    PRECISIONS,
    SCHEMA,
    USERS,
    Bundle,
    Precision,
    feature_column,
    graph_file,
    part_file,
)
from prerank.serving.graphs import (
    graphs,
    item_tables_of,
    short,
    user_tables_of,
    write_graph,
)
from prerank.serving.latency import measure
from prerank.serving.schema import Bucketised, Categorical, FeatureSchema, Listed, Numeric, Vector
from prerank.serving.scorer import ItemRows, session
from prerank.store import Manifest, Store

PARITY_ROWS = (1, 7, 5000)
PARITY_CANDIDATES = 64
MAX_DIFFERENCE = 1e-4
ROW_BLOCK = 8192
CHECKED_ROWS = 200


@dataclass(frozen=True, eq=False)
class Trained:
    """One trained pre-ranker of a run and what it was trained on.

    Attributes:
        run: the run's folder.
        method, seed: which pre-ranker.
        ranker: itself.
        report: of the run; None where these weights were not evaluated.
        fingerprint: of the trained weights.
        weightless: the method has pseudo-labels, and they had no weight in training.
    """

    run: Path
    method: str
    seed: int
    dataset: Dataset
    embeddings: ItemEmbeddings
    ranker: PreRanker
    report: Report | None
    fingerprint: str
    weightless: bool = False


def load_trained(run: Path, method: str = "", seed: int | None = None) -> Trained:
    """Load a pre-ranker of the run in the folder ``run``.

    Args:
        run: a run's folder.
        method: empty = the recipe's ``evaluate.method``.
        seed: None = the smallest one that was trained.

    Raises:
        ConfigError: no run there, or no such method or seed.
        ArtifactError: an artifact is missing, damaged or made from other parents.
    """
    store = Store(run)
    try:
        recipe = tomllib.loads((run / "recipe.toml").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            "no run here",
            where=str(run),
            must="the folder of a run, with its recipe.toml",
            got=error,
            hint="`prerank run RECIPE` makes one under its `out` and `name`",
        ) from None
    method = method or str(recipe.get("evaluate", {}).get("method", "gpl"))
    trained = {path.name: path for path in (run / "rankers" / method).glob("seed*")}
    found = sorted(int(name[4:]) for name in trained if name[4:].isdigit())
    if not found:
        names = sorted(path.name for path in (run / "rankers").glob("*"))
        raise ConfigError(
            "the run has no such method", where=str(run), must=", ".join(names), got=method
        )
    chosen = found[0] if seed is None else seed
    if chosen not in found:
        raise ConfigError("the method has no such seed", must=f"one of {found}", got=chosen)
    key = f"rankers/{method}/seed{chosen}"
    path, manifest = store.checked(key), store.manifest(key)
    parents = dict(manifest.parents) if manifest else {}
    # A variant has embeddings of its own, `embeddings@NAME`.
    space = next((one for one in parents if one.split(AT)[0] == "embeddings"), "embeddings")
    for parent in ("dataset", space):
        made = store.manifest(parent)
        if made is None or made.fingerprint != parents.get(parent):
            raise StaleArtifactError(
                "the pre-ranker was trained on other data than the run holds now",
                where=str(run / parent),
                hint="`prerank run RECIPE` makes again what is stale",
            )
    dataset = stores.load(store.checked("dataset"), Dataset)
    embeddings = stores.load(store.checked(space), ItemEmbeddings)
    mark = manifest.fingerprint if manifest else ""
    report, judged = None, store.manifest("report")
    if judged is not None and judged.parents.get(key) == mark:  # else it is of other weights
        report = stores.load(store.checked("report"), Report)
    ranker = PreRanker.load(path, dataset, embeddings)
    if ranker.config.model == "din":
        raise ConfigError(
            "a ranker reads the whole history for each candidate and is not exported",
            where=key,
            must="a pre-ranker: two-tower, three-tower, int-tower or cold",
            got=ranker.config.model,
        )
    read = as_read(dataset, ranker.config)
    has_labels = any(one.startswith("labels/") for one in parents)
    weightless = has_labels and ranker.config.pseudo_weight == 0
    return Trained(run, method, chosen, read, embeddings, ranker, report, mark, weightless)


def export(trained: Trained, out: Path, *, seconds_per_size: float = 0.5) -> Bundle:
    """Write the bundle of a trained pre-ranker into the folder ``out``.

    Everything is written under a temporary name and renamed when it is complete and the ONNX
    graphs have given the same logits as PyTorch.

    Args:
        trained: see `load_trained`.
        out: must not exist, or be an older bundle, which is replaced, or a link to one, which
            stays a link.
        seconds_per_size: time spent on measuring the latency of each number of candidates.

    Raises:
        ConfigError: something else lies at ``out``.
        ArtifactError: PyTorch and ONNX Runtime differ by more than 1e-4.
        MissingExtraError: the export extra is not installed.
    """
    out = out.resolve()
    _refuse_foreign(out)
    if trained.weightless:
        log(f"export: the labels of {trained.method} had no weight: it learned from clicks alone")
    # Two exports of one ranker are two bundles: the moment is a part of what decides them.
    decided = {"method": trained.method, "seed": trained.seed, "time": time.time_ns()}
    parents = {f"rankers/{trained.method}/seed{trained.seed}": trained.fingerprint}
    mark = stores.fingerprint(KIND, decided, trained.seed, parents)
    with stores.replacing(out, Manifest(KIND, mark, decided, trained.seed, parents)) as folder:
        _write(trained, folder, mark, seconds_per_size)
    return Bundle.read(out)


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace what is no bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = stores.read_manifest(out) if out.is_dir() else None
    if manifest is None or manifest.kind != KIND:
        raise ConfigError(
            "there is something else at --out",
            where=str(out),
            must="a new path, or an older bundle to replace",
        )


def _write(trained: Trained, folder: Path, mark: str, seconds_per_size: float) -> None:
    ranker, dataset = trained.ranker, trained.dataset
    made = graphs(ranker)
    for name, graph in made.items():
        write_graph(graph, folder / graph_file(name))
    log("export: graphs written")
    config, context = ranker.config, ranker.context
    user_seen = seen_in_training(dataset, "user", len(dataset.users))
    item_seen = seen_in_training(dataset, "item", len(dataset.items))
    user_schema = feature_schema(dataset.user_features, context.users, user_seen, config)
    item_schema = feature_schema(dataset.catalog.features, context.items, item_seen, config)
    histories = user_histories(ranker)
    _write_tables(trained, folder, {"user": user_schema, "item": item_schema}, histories)
    parts = _run_item_graph(ranker, folder)
    precisions = _write_parts(folder, parts)
    about = {
        "run": trained.run.name,
        "dataset": dataset.name,
        "method": trained.method,
        "model": ranker.config.model,
        "n_users": len(dataset.users),
        "n_items": len(dataset.items),
        "content_dim": ranker.context.content.shape[1],
        "max_history": ranker.config.max_history,
        "history": "spread" if dataset.time_unit == "none" else "latest",
        "features": {"user": _about(user_schema), "item": _about(item_schema)},
        "graphs": {name: _signature(folder / graph_file(name)) for name in GRAPHS},
        "item_parts": [
            {"shape": list(part.shape[1:]), "dtype": str(part.dtype), "precisions": list(kept)}
            for part, kept in zip(parts, precisions, strict=True)
        ],
    }
    _dump(folder / SCHEMA, about)
    parity = check_parity(ranker, folder)
    _dump(folder / "parity.json", parity)
    log(f"export: PyTorch and ONNX Runtime differ by {parity['max_difference']:.1e} at most")
    _dump(folder / "precision.json", measure_precision(trained, folder, parts, precisions))
    for name in GRAPHS:
        signature = about["graphs"][name]
        (folder / "models" / name / "config.pbtxt").write_text(card.triton(name, signature))
    (folder / "score.py").write_text(card.example())
    # What follows reads the folder as a server would, so it needs a manifest for a while.
    draft = Bundle(folder, Manifest(KIND, mark, {}, trained.seed, {}, {}), about)
    _dump(folder / "latency.json", measure(draft, seconds_per_size))
    (folder / "README.md").write_text(card.card(trained, folder, about))


def _dump(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1))


# ---- vocabularies, features, histories ---------------------------------------------------------


def feature_schema(
    features: Features, table: FeatureTable, seen: NDArray[np.bool_], config: TrainConfig
) -> FeatureSchema:
    """Return how raw features become rows of ``table``; checked on some of its rows.

    Args:
        features: of R users or items.
        table: what training made of them.
        seen: (R,) those that stand in training.
        config: how training read them.

    Raises:
        ArtifactError: a row differs, or two features share a name.
    """
    start = 0

    def next_start(n_values: int) -> int:
        nonlocal start
        start += n_values + 1
        return start - n_values - 1

    sizes = {name: len(values) for name, values in features.categories.items()}
    categorical = [Categorical(n, next_start(sizes[n])) for n in sorted(features.categorical)]
    bucketised, numeric = [], []
    for place, name in enumerate(sorted(features.numeric)):
        values = features.numeric[name]
        if config.numeric == "buckets":
            edges = bucket_edges(values, seen, config.n_buckets)
            first = next_start(len(edges) + 1)
            bucketised.append(Bucketised(name, first, tuple(edges.tolist())))
        else:
            flag = table.numeric[-1, len(features.numeric) + place]
            numeric.append(_scale(name, values, flagged=bool(flag)))
    lists = [
        Listed(one.name, next_start(sizes[one.name]), one.codes.shape[1], one.ordered)
        for one in table.lists
    ]
    vectors = [
        _vector(name, features.vectors[name], flagged=bool(rows[-1, -1]))
        for name, rows in table.vectors
    ]
    starts = {c.name: c.start for c in categorical} | {one.name: one.start for one in lists}
    codes = {
        name: {value: first + 1 + k for k, value in enumerate(features.categories[name])}
        for name, first in starts.items()
    }
    schema = FeatureSchema(
        tuple(categorical), tuple(bucketised), tuple(numeric), tuple(lists), tuple(vectors), codes
    )
    if len(set(schema.names)) != len(schema.names):
        raise ArtifactError("two features share a name", got=sorted(schema.names))
    _check_schema(schema, features, table)
    return schema


def _check_schema(schema: FeatureSchema, features: Features, table: FeatureTable) -> None:
    want = {"codes": table.codes, "numeric": table.numeric}
    want |= {f"lists_{k}_codes": one.codes for k, one in enumerate(table.lists)}
    want |= {f"vectors_{k}_given": rows for k, (_, rows) in enumerate(table.vectors)}
    last = features.n_rows - 1
    for row in np.unique(np.linspace(0, last, min(last + 1, CHECKED_ROWS)).astype(np.int64)):
        got = schema.row(raw_features(features, int(row)))
        for name, rows in want.items():
            if not np.allclose(got[name][0], rows[row], rtol=1e-5, atol=1e-5):
                raise ArtifactError("a feature cannot be exported", where=f"{name}, row {row}")


def _scale(name: str, values: FloatArray, *, flagged: bool) -> Numeric:
    known = values[~np.isnan(values)].astype(np.float64)
    mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)
    return Numeric(name, mean, std or 1.0, flagged)


def _vector(name: str, vectors: FloatArray, *, flagged: bool) -> Vector:
    known = vectors[~np.isnan(vectors).all(axis=1)].astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(known)))) if known.size else 0.0
    return Vector(name, vectors.shape[1], scale or 1.0, flagged)


def raw_features(features: Features, row: int) -> dict[str, object]:
    """Return the features of one row as a request would give them."""
    found: dict[str, object] = {}
    for name, codes in features.categorical.items():
        found[name] = features.categories[name][codes[row]] if codes[row] >= 0 else None
    for name, values in features.numeric.items():
        found[name] = None if np.isnan(values[row]) else float(values[row])
    for name, lists in features.lists.items():
        codes_V = lists.codes[lists.offsets[row] : lists.offsets[row + 1]]
        found[name] = [features.categories[name][code] for code in codes_V]
    for name, vectors in features.vectors.items():
        vector = vectors[row]
        found[name] = None if np.isnan(vector).all() else vector.tolist()
    return found


def _about(schema: FeatureSchema) -> dict[str, Any]:
    kinds = ("categorical", "bucketised", "numeric", "lists", "vectors")
    return {kind: [asdict(feature) for feature in getattr(schema, kind)] for kind in kinds}


def user_histories(ranker: PreRanker) -> tuple[IntArray, IntArray]:
    """Return all users' histories as of now: items (T,) int32 and offsets (U + 1,) int32."""
    context = ranker.context
    user = np.arange(len(context.users), dtype=np.int32)
    return _ragged(ranker, user, context.history_ends(user, None))


def _ragged(ranker: PreRanker, user: NDArray[Any], end: TimeArray) -> tuple[IntArray, IntArray]:
    cut = Histories(ranker.context, ranker.config.max_history, torch.device("cpu"))
    nothing = torch.full((len(user),), -1, dtype=torch.int32)
    known = np.where(user < 0, len(ranker.context.users), user).astype(np.int64)
    item, offsets = cut.ragged(torch.from_numpy(known), torch.from_numpy(end), nothing)
    return item.numpy(), offsets.numpy()


def _raw_table(ids: NDArray[Any], features: Features) -> dict[str, pl.Series]:
    columns = {"id": pl.Series(ids.tolist(), dtype=pl.String)}
    for name, codes in features.categorical.items():
        names = np.array([*features.categories[name], None], dtype=object)
        columns[feature_column(name)] = pl.Series(names[codes].tolist(), dtype=pl.String)
    for name, values in features.numeric.items():
        series = pl.Series(values, dtype=pl.Float32)
        columns[feature_column(name)] = series.fill_nan(None)
    for name, lists in features.lists.items():
        words = np.array(features.categories[name], dtype=object)[lists.codes]
        columns[feature_column(name)] = _nested(words.tolist(), pl.String, lists.offsets)
    for name, vectors in features.vectors.items():
        given = pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
        missing = pl.Series(np.isnan(vectors).all(axis=1))
        columns[feature_column(name)] = given.cast(pl.List(pl.Float32)).set(missing, None)
    return columns


def _nested(values: Sequence[Any] | NDArray[Any], kind: Any, offsets: NDArray[Any]) -> pl.Series:
    """Return one list a row: ``values[offsets[r]:offsets[r + 1]]``, cut without a loop."""
    every = pl.Series("every", [values], dtype=pl.List(kind)) if len(values) else None
    n_rows = len(offsets) - 1
    if every is None:
        return pl.Series([[]] * n_rows, dtype=pl.List(kind))
    row = np.repeat(np.arange(n_rows), np.diff(offsets))
    filled = (
        pl.DataFrame({"row": row, "value": every.explode()})
        .group_by("row", maintain_order=True)
        .agg(pl.col("value"))
    )
    full = pl.DataFrame({"row": np.arange(n_rows)}).join(
        filled, on="row", how="left", maintain_order="left"
    )
    return full["value"].fill_null(pl.Series([[]], dtype=pl.List(kind)))


def _write_tables(
    trained: Trained,
    folder: Path,
    schemas: Mapping[str, FeatureSchema],
    histories: tuple[IntArray, IntArray],
) -> None:
    """Write vocabularies, categories and the users' inputs."""
    for name in (USERS, "users/any"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    dataset, model = trained.dataset, trained.ranker.model
    users = _raw_table(dataset.users.ids, dataset.user_features)
    items = _raw_table(dataset.items.ids, dataset.catalog.features)
    for name, columns in ((USERS, users), (ITEMS, items)):
        pl.DataFrame(columns).write_parquet(folder / name)
        ids = columns["id"].to_list()
        (folder / name).with_suffix(".json").write_text(json.dumps(ids))
    history, offsets = histories
    np.save(folder / HISTORY, history.astype(np.int32))
    np.save(folder / OFFSETS, np.append(offsets, offsets[-1]).astype(np.int64))
    pl.DataFrame(
        [
            (side, name, value, code)
            for side, schema in schemas.items()
            for name, codes in schema.codes.items()
            for value, code in codes.items()
        ],
        schema={"side": pl.String, "feature": pl.String, "value": pl.String, "code": pl.Int32},
        orient="row",
    ).write_parquet(folder / CATEGORIES)
    for name, table in user_tables_of(model).items():
        np.save(folder / "users" / f"{short(name)}.npy", table.numpy())


def _signature(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return name, type and shape of a graph's inputs and outputs; -1 where it varies."""
    opened = session(str(path))

    def about(value: Any) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        return {"name": value.name, "type": value.type, "shape": shape}

    return {
        "inputs": [about(value) for value in opened.get_inputs()],
        "outputs": [about(value) for value in opened.get_outputs()],
    }


# ---- item parts --------------------------------------------------------------------------------


def _run_item_graph(ranker: PreRanker, folder: Path) -> list[NDArray[Any]]:
    """Return every item part, (I + 1, ...), as the exported item graph makes it."""
    context, opened = ranker.context, session(str(folder / graph_file("item")))
    used = {value.name for value in opened.get_inputs()}
    tables = {short(name): rows.numpy() for name, rows in item_tables_of(ranker.model).items()}
    blocks = []
    for start in range(0, len(context.items) + 1, ROW_BLOCK):
        rows = slice(start, start + ROW_BLOCK)
        content = context.content[rows]
        feed = {
            "item": np.arange(start, start + len(content), dtype=np.int64),
            **{name: table[rows] for name, table in tables.items()},
            "content": content,
        }
        blocks.append(opened.run(None, {k: v for k, v in feed.items() if k in used}))
    return [np.concatenate(part) for part in zip(*blocks, strict=True)]


def quantise(part: NDArray[Any]) -> tuple[NDArray[np.int8], FloatArray]:
    """Return a part as int8 and one scale an item: value = int8 * scale, exact at the extremes."""
    flat = np.abs(part).reshape(len(part), -1).max(axis=1, initial=0)
    scale = (np.where(flat > 0, flat, 1) / 127).astype(np.float32)
    shaped = scale.reshape(-1, *[1] * (part.ndim - 1))
    return np.rint(part / shaped).astype(np.int8), scale


def _write_parts(folder: Path, parts: Sequence[NDArray[Any]]) -> list[tuple[Precision, ...]]:
    """Write every part in every precision it has; a number an item stays float32."""
    (folder / "items").mkdir()
    kept: list[tuple[Precision, ...]] = []
    for k, part in enumerate(parts):
        np.save(folder / part_file(k, "float32"), part)
        if part.dtype != np.float32 or part.ndim == 1:
            kept.append(("float32",))
            continue
        rows, scale = quantise(part)
        np.save(folder / part_file(k, "float16"), part.astype(np.float16))
        np.save(folder / part_file(k, "int8"), rows)
        np.save(folder / part_file(k, "int8.scale"), scale)
        kept.append(PRECISIONS)
    return kept


def measure_precision(
    trained: Trained,
    folder: Path,
    parts: Sequence[NDArray[Any]],
    precisions: Sequence[tuple[Precision, ...]],
) -> dict[str, Any]:
    """Return bytes, AUC and GAUC on the run's validation rows for each precision of the items.

    The rows are those early stopping watched; ``auc_loss`` is float32's AUC minus this one's.
    """
    ranker = trained.ranker
    rows = validation_rows(trained.dataset, ranker.config.validation)
    every = np.arange(len(parts[0])) if parts else np.zeros(0, np.int64)
    found: dict[str, Any] = {"rows": len(rows), "source": ranker.config.validation}
    for precision in PRECISIONS:
        size, tables = 0, []
        for k, (_, kept) in enumerate(zip(parts, precisions, strict=True)):
            chosen = precision if precision in kept else kept[0]
            stored = np.load(folder / part_file(k, chosen))
            scale = np.load(folder / part_file(k, "int8.scale")) if chosen == "int8" else None
            size += stored.nbytes + (0 if scale is None else scale.nbytes)
            tables.append(torch.from_numpy(ItemRows(stored, scale).take(every)))
        logit = ranker.with_item_parts(tuple(tables)).score_pairs(rows.user, rows.item, rows.time)
        measured = quality(rows, logit)
        found[precision] = {"bytes": size, "auc": measured["auc"], "gauc": measured["gauc"]}
    exact = found["float32"]
    for precision in PRECISIONS:
        for metric in ("auc", "gauc"):
            value = found[precision][metric]
            loss = None if value is None else exact[metric] - value
            found[precision][f"{metric}_loss"] = loss
    return found


# ---- parity ------------------------------------------------------------------------------------


def check_parity(ranker: PreRanker, folder: Path) -> dict[str, Any]:
    """Compare PyTorch with ONNX Runtime, graph by graph and from end to end, on the run's rows.

    Rows are drawn with replacement from all users and items, the unknown ones included.

    Returns:
        ``rows``: largest absolute difference by number of rows and graph; ``max_difference``.

    Raises:
        ArtifactError: a difference above 1e-4.
    """
    rng = seeds.rng(0, "export", "parity")
    rows = {str(n): _differences(ranker, folder, n, rng) for n in PARITY_ROWS}
    worst = max(value for found in rows.values() for value in found.values())
    if not worst <= MAX_DIFFERENCE:
        raise ArtifactError(
            "PyTorch and ONNX Runtime differ",
            where="parity",
            must=f"at most {MAX_DIFFERENCE}",
            got=json.dumps(rows),
        )
    return {"limit": MAX_DIFFERENCE, "max_difference": worst, "rows": rows}


def _differences(
    ranker: PreRanker,
    folder: Path,
    n: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return the largest difference of each graph and of the logits over ``n`` rows."""
    context, model = ranker.context, ranker.model
    user = rng.integers(-1, len(context.users), n).astype(np.int32)
    user[0] = -1 if n == 1 else user[0]  # alone, the unknown user has no history item at all
    known = np.where(user < 0, len(context.users), user).astype(np.int64)
    history, offsets = _ragged(ranker, user, context.history_ends(user, None))
    item = rng.integers(0, len(context.items) + 1, n)
    users: dict[str, NDArray[Any]] = {
        "user": known,
        **{short(name): t.numpy()[known] for name, t in user_tables_of(model).items()},
        "history": history,
        "offsets": offsets,
    }
    items: dict[str, NDArray[Any]] = {
        "item": item,
        **{short(name): t.numpy()[item] for name, t in item_tables_of(model).items()},
        "content": context.content[item],
    }
    with torch.inference_mode():
        want_user = model.user_parts(*(torch.from_numpy(users[k]) for k in _RAGGED))
        want_item = model.item_parts(torch.from_numpy(item))
        few = tuple(part[:PARITY_CANDIDATES] for part in want_item)
        want = model.combine(want_user, few)
    user_parts = _run(folder, "user", users)
    item_parts = _run(folder, "item", items)
    given = {f"user_part_{k}": v.numpy() for k, v in enumerate(want_user)}
    given |= {f"item_part_{k}": v.numpy() for k, v in enumerate(few)}
    whole = {f"user_part_{k}": v for k, v in enumerate(user_parts)}
    whole |= {f"item_part_{k}": v[:PARITY_CANDIDATES] for k, v in enumerate(item_parts)}
    return {
        "user": _apart(want_user, user_parts),
        "item": _apart(want_item, item_parts),
        "scorer": _apart((want,), _run(folder, "scorer", given)),
        "logits": _apart((want,), _run(folder, "scorer", whole)),
    }


_RAGGED = ("user", "history", "offsets")


def _run(folder: Path, graph: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    opened = session(str(folder / graph_file(graph)))
    used = {value.name for value in opened.get_inputs()}
    found: list[NDArray[Any]] = opened.run(None, {k: v for k, v in feed.items() if k in used})
    return found


def _apart(want: Sequence[torch.Tensor], got: Sequence[NDArray[Any]]) -> float:
    """Return the largest absolute difference, infinity where either side is not finite.

    A part may have no columns: a model that kept no field of the items has nothing to say of them.
    """
    pairs = zip(want, got, strict=True)
    worst = max(float(np.abs(w.numpy().astype(np.float64) - g).max(initial=0)) for w, g in pairs)
    return worst if np.isfinite(worst) else float("inf")

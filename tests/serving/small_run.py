"""A small run: 40 users, 60 items, features of every kind, two pre-rankers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from prerank import artifacts as a
from prerank import store as stores
from prerank.ranking.config import TrainConfig
from prerank.ranking.train import train
from prerank.serving.bundle import Bundle
from prerank.serving.export import export, load_trained
from prerank.store import Manifest, Store
from prerank.vocabulary import Vocabulary

N_USERS, N_ITEMS = 40, 60
CONFIG = TrainConfig(
    embedding_dim=8,
    hidden=(16,),
    epochs=2,
    batch_size=256,
    learning_rate=0.02,
    max_history=6,
    min_id_rows=3,
)
torch.set_num_threads(1)


def make_world(time_unit: a.TimeUnit = "ms", *, user_features: bool = True) -> a.Dataset:
    """Return users who click items of their own parity; ids are integers as text."""
    rng = np.random.default_rng(0)
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:N_USERS, :N_ITEMS])
    click = ((user + item) % 2 == 0).astype(np.int8)
    time = item.astype(np.int64) * 1000 if time_unit != "none" else np.zeros(len(item), np.int64)
    # The first 40 items train, the next 10 validate, the last 10 test.
    split = np.digitize(item, (40, 50)).astype(np.int8)
    drawn = rng.random(len(item)) < 0.5
    past = drawn & (click == 1) & (split == a.TRAIN)
    pools = split == a.TEST
    some = a.Features(
        N_USERS,
        {"city": (np.arange(N_USERS) % 4 - 1).astype(np.int32)},
        {"city": ("Bonn", "Köln", "Ulm"), "searches": ("hat", "shoe", "bag")},
        {"age": np.where(np.arange(N_USERS) % 5, np.arange(N_USERS), np.nan).astype(np.float32)},
        {"searches": make_lists(rng, N_USERS, 3)},
        {"taste": make_vectors(rng, N_USERS)},
    )
    goods = a.Features(
        N_ITEMS,
        {"colour": (np.arange(N_ITEMS) % 3 - 1).astype(np.int32)},
        {"colour": ("red", "blue"), "tags": ("new", "sale")},
        {"price": np.where(np.arange(N_ITEMS) % 7, rng.random(N_ITEMS), np.nan).astype("f4")},
        {"tags": make_lists(rng, N_ITEMS, 2)},
        {"image": make_vectors(rng, N_ITEMS)},
    )
    names = np.array([f"thing {i}" for i in range(N_ITEMS)], dtype=object)
    n = int(drawn.sum())
    return a.Dataset(
        name="parity",
        time_unit=time_unit,
        users=Vocabulary.of([str(100 + u) for u in range(N_USERS)]),
        items=Vocabulary.of([str(1000 + i) for i in range(N_ITEMS)]),
        user_features=some if user_features else a.Features(N_USERS),
        catalog=a.Catalog(names, names, goods),
        exposures=a.Exposures(
            request=user[drawn].astype(np.int64),
            user=user[drawn],
            item=item[drawn],
            time=time[drawn],
            click=click[drawn],
            position=np.full(n, -1, np.int32),
            propensity=np.full(n, np.nan, np.float32),
            split=split[drawn],
        ),
        candidates=a.Candidates(
            request=user.astype(np.int64),
            user=user,
            item=item,
            time=time,
            stage=np.zeros(len(user), np.int8),
            score=np.full(len(user), np.nan, np.float32),
            truth=np.full(len(user), np.nan, np.float32),
        ),
        interactions=a.Interactions(user[past], item[past], time[past]),
        pools=a.Pools(
            pool=np.zeros(int(pools.sum()), np.int16),
            split=split[pools],
            request=user[pools].astype(np.int64),
            user=user[pools],
            item=item[pools],
            time=time[pools],
            click=click[pools],
            pools=("unexposed",),
        ),
        notes=("made by hand",),
    )


def make_lists(rng: np.random.Generator, n_rows: int, n_values: int) -> a.CodeLists:
    """Return lists of 0 to 4 codes; those of users are sequences, the others name no code twice."""
    ordered = n_rows == N_USERS
    drawn = [rng.integers(0, n_values, size).tolist() for size in rng.integers(0, 5, n_rows)]
    rows = drawn if ordered else [list(dict.fromkeys(row)) for row in drawn]
    offsets = np.append(0, np.cumsum([len(row) for row in rows])).astype(np.int64)
    return a.CodeLists(offsets, np.array([*chain.from_iterable(rows)], np.int32), ordered=ordered)


def make_vectors(rng: np.random.Generator, n_rows: int) -> a.FloatArray:
    vectors = rng.normal(size=(n_rows, 3)).astype(np.float32)
    vectors[1] = np.nan
    return vectors


def make_content() -> a.ItemEmbeddings:
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 5))
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    return a.ItemEmbeddings(unit.astype(np.float32))


def make_labels() -> a.PseudoLabels:
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:N_USERS, 40:N_ITEMS])
    nothing = np.full(len(user), np.nan, np.float32)
    return a.PseudoLabels(
        user=user,
        item=item,
        time=np.full(len(user), 39_000, np.int64),
        label=((user + item) % 2 == 0).astype(np.float32),
        confidence=np.ones(len(user), np.float32),
        relevance=nothing,
        anchor=np.full(len(user), -1, np.int64),
        dispersion=nothing,
        history=nothing,
        llm=nothing,
        source="by hand",
    )


def make_report() -> a.Report:
    record = a.Record("gpl", "unexposed", "all", "auc", 0.75, 0.7, 0.8, 40, 1)
    null = a.Record("gpl", "unexposed", "tail", "auc", None, None, None, 0, 1, "no tail items")
    return a.Report((record, null))


def make_run(folder: Path, dataset: a.Dataset, config: TrainConfig = CONFIG) -> Path:
    """Write a run with the pre-rankers gpl and exposed-only, as the pipeline lays it out."""
    store, content = Store(folder), make_content()
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text('name = "small"\n[evaluate]\nmethod = "gpl"\n')
    parents = {"dataset": "d1", "embeddings": "e1"}
    methods = {"gpl": make_labels(), "exposed-only": None}
    judged = {f"rankers/{method}/seed0": f"w-{method}" for method in methods}
    for key, artifact in {
        "dataset": dataset,
        "embeddings": content,
        "report": make_report(),
    }.items():
        of = judged if key == "report" else {}
        manifest = Manifest(key, parents.get(key, "r1"), {}, 0, of)
        with store.publish(key, manifest) as out:
            stores.save(out, artifact)
    for method, labels in methods.items():
        manifest = Manifest("train", f"w-{method}", {}, 0, parents)
        with store.publish(f"rankers/{method}/seed0", manifest) as out:
            train(dataset, content, labels, config, 0).save(out)
    return folder


def make_bundle(run: Path, out: Path, method: str) -> Bundle:
    return export(load_trained(run, method), out, seconds_per_size=0)

"""A tiny world in which content decides the click."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from prerank import artifacts as a
from prerank.ranking.config import TrainConfig
from prerank.vocabulary import Vocabulary

N_USERS, N_ITEMS, N_GENRES, N_SHOWN_ITEMS = 60, 40, 4, 30

torch.set_num_threads(1)


def make_world(time_unit: a.TimeUnit = "order") -> a.Dataset:
    """Return 60 users who click exactly the items of their genre (index modulo 4), of 40 items.

    Items 0-29 were exposed to every user, at moments 0-29 where there is time: multiples of 5
    for validation, the others for training. Items 30-39 were never exposed: the pool and, as
    candidates, D_u.
    """
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:N_USERS, :N_ITEMS])
    click = (user % N_GENRES == item % N_GENRES).astype(np.int8)
    time = item.astype(np.int64) if time_unit != "none" else np.zeros(len(item), np.int64)
    shown = item < N_SHOWN_ITEMS
    split = np.where(item % 5 == 0, a.VALIDATION, a.TRAIN).astype(np.int8)
    n, unexposed = int(shown.sum()), ~shown
    history = shown & (split == a.TRAIN) & (click == 1)
    request = user.astype(np.int64)
    names = np.array([f"i{i:02d}" for i in range(N_ITEMS)], dtype=object)
    features = a.Features(
        n_rows=N_ITEMS,
        categorical={"colour": (np.arange(N_ITEMS) % 3 - 1).astype(np.int32)},
        categories={"colour": ("red", "blue")},
        numeric={"length": np.where(np.arange(N_ITEMS) % 7, 1.0, np.nan).astype(np.float32)},
    )
    return a.Dataset(
        name="genres",
        time_unit=time_unit,
        users=Vocabulary.of([f"u{u:02d}" for u in range(N_USERS)]),
        items=Vocabulary.of(names),
        user_features=a.Features(N_USERS),
        catalog=a.Catalog(names, names, features),
        exposures=a.Exposures(
            request=request[shown],
            user=user[shown],
            item=item[shown],
            time=time[shown],
            click=click[shown],
            position=np.full(n, -1, np.int32),
            propensity=np.full(n, np.nan, np.float32),
            split=split[shown],
        ),
        candidates=a.Candidates(
            request=request,
            user=user,
            item=item,
            time=time,
            stage=np.zeros(len(user), np.int8),
            score=np.full(len(user), np.nan, np.float32),
            truth=np.full(len(user), np.nan, np.float32),
        ),
        interactions=a.Interactions(user[history], item[history], time[history]),
        pools=a.Pools(
            pool=np.zeros(int(unexposed.sum()), np.int16),
            split=np.full(int(unexposed.sum()), a.VALIDATION, np.int8),
            request=request[unexposed],
            user=user[unexposed],
            item=item[unexposed],
            time=time[unexposed],
            click=click[unexposed],
            pools=("unexposed",),
        ),
    )


def make_labels(label: float, confidence: np.ndarray | float = 1.0) -> a.PseudoLabels:
    """Return one pseudo-label for each unexposed pair of the world, all alike."""
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:N_USERS, :N_ITEMS])
    keep = item >= N_SHOWN_ITEMS
    n = int(keep.sum())
    nothing = np.full(n, np.nan, np.float32)
    return a.PseudoLabels(
        user=user[keep],
        item=item[keep],
        time=item[keep].astype(np.int64),
        label=np.full(n, label, np.float32),
        confidence=np.broadcast_to(np.float32(confidence), n).astype(np.float32),
        relevance=nothing,
        anchor=np.full(n, -1, np.int64),
        dispersion=nothing,
        history=nothing,
        llm=nothing,
        source="by hand",
    )


def make_content() -> a.ItemEmbeddings:
    """One direction of content space a genre, with a little noise."""
    noise = np.random.default_rng(0).normal(0, 0.1, (N_ITEMS, 6))
    vectors = np.eye(6)[np.arange(N_ITEMS) % N_GENRES] + noise
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    return a.ItemEmbeddings(unit.astype(np.float32))


def make_config() -> TrainConfig:
    """A model that trains in a fraction of a second."""
    return TrainConfig(
        embedding_dim=8,
        hidden=(16,),
        epochs=2,
        batch_size=128,
        learning_rate=0.01,
        max_history=6,
    )


def rich_world(time_unit: a.TimeUnit = "order") -> a.Dataset:
    """Return the world with every kind of feature, missing and unseen values among them.

    Items: genres (the item's own, and one that says nothing), a given vector; users: searches (a
    sequence), a number. Item 39 alone has the genre `rare`, which no training row shows.
    """
    world = make_world(time_unit)
    genre = np.arange(N_ITEMS) % N_GENRES
    codes = np.stack([genre, np.full(N_ITEMS, 4)], axis=1).ravel()
    codes[-1] = 5
    size = np.where(np.arange(N_ITEMS) % 9 == 8, 0, 2)
    genres = a.CodeLists(
        np.concatenate([[0], size.cumsum()]), codes[np.repeat(size > 0, 2)].astype(np.int32)
    )
    vector = np.random.default_rng(1).normal(size=(N_ITEMS, 3)).astype(np.float32)
    vector[::11] = np.nan
    features = world.catalog.features
    items = replace(
        features,
        categories={**features.categories, "genres": (*"abcd", "all", "rare")},
        lists={"genres": genres},
        vectors={"look": vector},
    )
    searched = (np.arange(N_USERS)[:, None] + np.arange(15)) % 5
    searched[:, -1] = np.arange(N_USERS) % N_GENRES
    size = np.arange(N_USERS) % 4 * 5
    keep = np.arange(15) >= 15 - size[:, None]  # the last ones
    searches = a.CodeLists(
        np.concatenate([[0], size.cumsum()]), searched[keep].astype(np.int32), ordered=True
    )
    age = np.where(np.arange(N_USERS) % 5, np.arange(N_USERS), np.nan).astype(np.float32)
    users = a.Features(
        N_USERS,
        categories={"searches": tuple("pqrst")},
        numeric={"age": age},
        lists={"searches": searches},
    )
    return replace(world, user_features=users, catalog=replace(world.catalog, features=items))

"""A hand-sized log: three users, six items in a plane, everything checkable by eye."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from prerank.artifacts import (
    Candidates,
    Catalog,
    Cuts,
    Dataset,
    Exposures,
    Features,
    Interactions,
    InterestAnchors,
    ItemEmbeddings,
    Pools,
    TimeUnit,
)
from prerank.vocabulary import Vocabulary

Pair = tuple[int, int]


def unit(angles_deg: list[float]) -> np.ndarray:
    """Return unit vectors in the plane, so that cosines are cosines of angle differences."""
    angle = np.deg2rad(angles_deg)
    return np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def build_dataset(
    n_users: int,
    n_items: int,
    *,
    exposed: list[tuple[int, int, int, int]],
    candidates: list[tuple[int, int, float]],
    interactions: list[Pair],
    propensity: list[float] | None = None,
    time_unit: TimeUnit = "none",
    exposure_time: list[int] | None = None,
    interaction_time: list[int] | None = None,
    candidate_time: int = 0,
    cuts: Cuts | None = None,
) -> Dataset:
    """Return a Dataset from rows: exposed (user, item, click, split), candidates with truth."""
    e = np.array(exposed, dtype=np.int64).reshape(-1, 4)
    c = np.array(candidates, dtype=np.float64).reshape(-1, 3)
    rows = sorted(zip(interactions, interaction_time or [0] * len(interactions), strict=True))
    h = np.array([pair for pair, _ in rows], dtype=np.int32).reshape(-1, 2)
    nothing = np.zeros(0, dtype=np.int64)
    text = np.array([""] * n_items, dtype=object)
    return Dataset(
        name="toy",
        time_unit=time_unit,
        users=Vocabulary.of(f"u{k:05d}" for k in range(n_users)),
        items=Vocabulary.of(f"i{k:05d}" for k in range(n_items)),
        user_features=Features(n_users),
        catalog=Catalog(text, text, Features(n_items)),
        exposures=Exposures(
            request=e[:, 0],
            user=e[:, 0].astype(np.int32),
            item=e[:, 1].astype(np.int32),
            time=np.array(exposure_time or [0] * len(e), dtype=np.int64),
            click=e[:, 2].astype(np.int8),
            position=np.full(len(e), -1, np.int32),
            propensity=np.array(propensity or [np.nan] * len(e), dtype=np.float32),
            split=e[:, 3].astype(np.int8),
        ),
        candidates=Candidates(
            request=c[:, 0].astype(np.int64),
            user=c[:, 0].astype(np.int32),
            item=c[:, 1].astype(np.int32),
            time=np.full(len(c), candidate_time, np.int64),
            stage=np.zeros(len(c), np.int8),
            score=np.full(len(c), np.nan, np.float32),
            truth=c[:, 2].astype(np.float32),
        ),
        interactions=Interactions(h[:, 0], h[:, 1], np.array([t for _, t in rows], dtype=np.int64)),
        pools=Pools(
            pool=nothing.astype(np.int16),
            split=nothing.astype(np.int8),
            request=nothing,
            user=nothing.astype(np.int32),
            item=nothing.astype(np.int32),
            time=nothing,
            click=nothing.astype(np.int8),
        ),
        cuts=cuts or Cuts(),
    )


def build_anchors(
    by_user: list[np.ndarray], logprob: list[float] | None = None, source: str = "llm"
) -> InterestAnchors:
    """Return the anchors of users, one (A_u, D) array each."""
    vectors = np.concatenate(by_user).astype(np.float32)
    spoken = np.array(logprob or [0.0] * len(vectors), dtype=np.float32)
    return InterestAnchors(
        offsets=np.concatenate([[0], np.cumsum([len(v) for v in by_user])]).astype(np.int64),
        codes=np.zeros((len(vectors), 3), np.int32),
        point=np.arange(len(vectors), dtype=np.int32),
        points=vectors,
        logprob=spoken,
        logprob_legal=spoken,
        source=source,
    )


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    return build_dataset


@pytest.fixture(scope="session")
def make_anchors() -> Callable[..., InterestAnchors]:
    return build_anchors


@pytest.fixture(scope="session")
def in_plane() -> Callable[[list[float]], np.ndarray]:
    return unit


@pytest.fixture(scope="session")
def planted() -> tuple[Dataset, ItemEmbeddings, InterestAnchors]:
    """60 users, 80 items in 8 dims: a click is likely where an item is near the user's taste."""
    rng = np.random.default_rng(5)
    n_users, n_items = 60, 80
    vectors = _unit_rows(rng.standard_normal((n_items, 8)))
    taste = _unit_rows(rng.standard_normal((n_users, 8)))
    near = taste @ vectors.T
    exposed, candidates, interactions = [], [], []
    for user in range(n_users):
        items = rng.permutation(n_items)[:50]
        click = rng.random(50) < 1 / (1 + np.exp(-6 * near[user, items]))
        for k, (item, y) in enumerate(zip(items.tolist(), click.tolist(), strict=True)):
            if k < 25:
                exposed.append((user, item, int(y), 1 if k >= 15 else 0))
            candidates.append((user, item, float(y)))
            if k < 15 and y:
                interactions.append((user, item))
    dataset = build_dataset(
        n_users, n_items, exposed=exposed, candidates=candidates, interactions=interactions
    )
    noisy = [_unit_rows(taste[u] + 0.2 * rng.standard_normal((4, 8))) for u in range(n_users)]
    logprob = (-rng.random(4 * n_users) * 5 - 0.1).tolist()
    return dataset, ItemEmbeddings(vectors), build_anchors(noisy, logprob)


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

"""Hand-sized and random datasets for the tests of evaluation."""

import numpy as np
from numpy.typing import NDArray

from prerank import artifacts as a
from prerank.vocabulary import Vocabulary


def dataset(
    user: list[int] | NDArray[np.int32],
    item: list[int] | NDArray[np.int32],
    click: list[int] | NDArray[np.int8],
    *,
    request: list[int] | NDArray[np.int64] | None = None,
    pool: list[int] | NDArray[np.int16] | None = None,
    pools: tuple[str, ...] = ("unexposed",),
    exposures: dict[int, int] | None = None,
    n_users: int = 0,
    n_items: int = 0,
    split: int = a.TEST,
    title: str = "title",
) -> a.Dataset:
    """Return a dataset whose pools are the rows given; ``exposures``: item -> training count."""
    n = len(user)
    u, i = np.array(user, np.int32), np.array(item, np.int32)
    n_users = n_users or int(u.max(initial=0)) + 1
    shown = np.repeat(
        np.array(list((exposures or {}).keys()), np.int32), list((exposures or {}).values())
    ).astype(np.int32)
    n_items = n_items or int(max(i.max(initial=0), shown.max(initial=0))) + 1
    m = len(shown)
    none32, none64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
    none8, none_f = np.zeros(0, np.int8), np.zeros(0, np.float32)
    titles = np.array([f"{title} {k}" for k in range(n_items)], object)
    return a.Dataset(
        name="world",
        time_unit="none",
        users=Vocabulary.of(f"u{k:06d}" for k in range(n_users)),
        items=Vocabulary.of(f"i{k:06d}" for k in range(n_items)),
        user_features=a.Features(n_users),
        catalog=a.Catalog(titles, titles, a.Features(n_items)),
        exposures=a.Exposures(
            request=np.arange(m),
            user=np.zeros(m, np.int32),
            item=shown,
            time=np.zeros(m, np.int64),
            click=np.zeros(m, np.int8),
            position=np.full(m, -1, np.int32),
            propensity=np.full(m, np.nan, np.float32),
            split=np.zeros(m, np.int8),
        ),
        candidates=a.Candidates(none64, none32, none32, none64, none8, none_f, none_f),
        interactions=a.Interactions(none32, none32, none64),
        pools=a.Pools(
            pool=np.zeros(n, np.int16) if pool is None else np.array(pool, np.int16),
            split=np.full(n, split, np.int8),
            request=u.astype(np.int64) if request is None else np.array(request, np.int64),
            user=u,
            item=i,
            time=np.zeros(n, np.int64),
            click=np.array(click, np.int8),
            pools=pools,
        ),
    )


def scores(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)

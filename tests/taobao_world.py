"""Taobao-MM's tables as they are published, with clustered items and users who like a cluster.

The publisher's ten-row demo has tables that do not join; these do, so that a whole run means
something small. Ids are 64-bit integers, also negative; vectors are 128 int8 numbers.
"""

from pathlib import Path

import numpy as np
import polars as pl

N_CLUSTERS = 8


def write(path: Path, n_users: int = 120, n_items: int = 300, seed: int = 0) -> None:
    """Write the six tables into the folder ``path``; a fifth of the items has no vector."""
    rng = np.random.default_rng(seed)
    items = rng.choice(1 << 40, n_items, replace=False) * rng.choice([-1, 1], n_items)
    users = rng.choice(1 << 40, n_users, replace=False) * rng.choice([-1, 1], n_users)
    cluster = rng.integers(N_CLUSTERS, size=n_items)
    taste = rng.integers(N_CLUSTERS, size=n_users)
    centres = 12 * rng.standard_normal((N_CLUSTERS, 128))
    vectors = np.clip(
        np.round(centres[cluster] + 4 * rng.standard_normal((n_items, 128))), -127, 127
    )
    given = rng.random(n_items) < 0.8
    pl.DataFrame(
        {
            "205": items[given],
            "205_c": pl.Series(vectors[given].astype(np.int8).tolist(), dtype=pl.List(pl.Int8)),
        }
    ).write_parquet(path / "scl_embedding_int8_p90.parquet")
    pl.DataFrame(
        {"205": items, "206": cluster, "213": cluster % 3, "214": items % 7}
    ).write_parquet(path / "item_features.parquet")
    liked = [rng.permutation(np.flatnonzero(cluster == t))[:20] for t in taste]
    histories = [items[mine[:12]].tolist() for mine in liked]
    profile = {
        "129_1": users,
        **{f"130_{n}": rng.integers(5, size=n_users) for n in range(1, 6)},
        "150_2_180": pl.Series(histories, dtype=pl.List(pl.Int64)),
        "151_2_180": pl.Series([[0] * len(h) for h in histories], dtype=pl.List(pl.Int64)),
    }
    for name, n_shown in (("train", 12), ("test", 6)):
        pl.DataFrame(profile).write_parquet(path / f"{name}_user_features.parquet")
        shown = rng.integers(n_items, size=(n_users, n_shown))
        shown[:, ::3] = [rng.choice(mine[12:], len(range(0, n_shown, 3))) for mine in liked]
        chance = np.where(cluster[shown] == taste[:, None], 0.7, 0.1)
        click = (rng.random(shown.shape) < chance).astype(np.int8).ravel()
        pl.DataFrame(
            {
                "label_0": pl.Series(
                    np.stack([1 - click, click], axis=1).tolist(), dtype=pl.List(pl.Int8)
                ),
                "129_1": np.repeat(users, n_shown),
                "205": items[shown].ravel(),
            }
        ).write_parquet(path / f"{name}_samples.parquet")

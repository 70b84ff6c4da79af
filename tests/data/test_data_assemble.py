"""From raw ids to a Dataset, by hand: indices, requests, split, histories, pools, notes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prerank.artifacts import TEST, TRAIN, VALIDATION, Cuts, Dataset
from prerank.data.assemble import Logs, assemble
from prerank.data.config import PoolsConfig, SplitConfig
from prerank.errors import DataError

ITEMS = pl.DataFrame(
    {
        "item": [30, 4, 200],
        "title": ["thirty", "four", "two hundred"],
        "text": ["a", "b", "c"],
        "c:kind": ["x", None, "y"],
        "n:price": [3.0, 4.0, None],
    }
)
# Sorted as text: 200, 30, 4 -> indices 0, 1, 2.
SHOWN = pl.DataFrame(
    {
        "request": ["r2", "r1", "r1", "r3", "r4", "r5"],
        "user": ["b", "a", "a", "b", "a", "b"],
        "item": [30, 4, 200, 4, 30, 200],
        "time": [20, 10, 10, 30, 40, 50],
        "click": [1, 0, 1, None, 1, 1],
    }
)
LOGS = Logs("hand", "ms", ITEMS, SHOWN, cuts=Cuts(anchors=20, validation=40, test=50))


def build(logs: Logs, n_negatives: int = 5, seed: int = 0, **split: float) -> Dataset:
    return assemble(logs, SplitConfig(**split), PoolsConfig(n_negatives=n_negatives), seed)


def test_ids_requests_and_split() -> None:
    data = build(LOGS)
    assert data.items.ids.tolist() == ["200", "30", "4"]
    assert data.users.ids.tolist() == ["a", "b"]
    rows = data.exposures
    assert rows.user.tolist() == [1, 0, 0, 1, 0, 1]
    assert rows.item.tolist() == [1, 2, 0, 2, 1, 0]
    assert rows.request.tolist() == [1, 0, 0, 2, 3, 4]
    assert rows.click.tolist() == [1, 0, 1, -1, 1, 1]
    assert rows.split.tolist() == [TRAIN] * 4 + [VALIDATION, TEST]
    assert rows.position.tolist() == [-1] * 6
    assert np.isnan(rows.propensity).all()


def test_clicks_before_test_are_interactions() -> None:
    rows = build(LOGS).interactions
    found = list(zip(rows.user.tolist(), rows.item.tolist(), rows.time.tolist(), strict=True))
    assert found == [(0, 0, 10), (0, 1, 40), (1, 1, 20)]


def test_given_interactions_replace_the_clicks_and_stop_at_test() -> None:
    liked = pl.DataFrame({"user": ["c", "a", "a"], "item": [4, 4, 30], "time": [5, 60, 1]})
    data = build(replace(LOGS, interactions=liked, clicks_are_interactions=False))
    assert data.interactions.item.tolist() == [1, 2]
    assert data.users.ids.tolist() == ["a", "b", "c"]
    assert "1 interactions of the test period were left out" in data.notes


def test_catalog_and_features_follow_the_vocabulary() -> None:
    vectors = np.array([[1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    catalog = build(replace(LOGS, vectors=vectors)).catalog
    assert catalog.title.tolist() == ["two hundred", "thirty", "four"]
    assert catalog.text.tolist() == ["c", "a", "b"]
    assert catalog.features.categories == {"kind": ("x", "y")}
    assert catalog.features.categorical["kind"].tolist() == [1, 0, -1]
    assert catalog.features.numeric["price"].tolist()[1:] == [3.0, 4.0]
    assert np.isnan(catalog.features.numeric["price"][0])
    assert catalog.vectors is not None
    assert catalog.vectors[1:].tolist() == [[1, 0], [0, 1]]
    assert np.isnan(catalog.vectors[0]).all()


def test_users_without_a_row_have_no_features_and_idle_users_are_counted() -> None:
    users = pl.DataFrame({"user": ["b", "z"], "c:sex": ["f", "m"], "n:age": [20.0, 30.0]})
    data = build(replace(LOGS, users=users))
    assert data.user_features.categorical["sex"].tolist() == [-1, 0, 1]
    assert data.user_features.numeric["age"].tolist()[1:] == [20.0, 30.0]
    assert "1 of 3 users have neither an exposure nor an interaction" in data.notes


def test_candidates_share_the_request_numbers_and_stop_at_validation() -> None:
    offered = pl.DataFrame(
        {
            "request": ["r1", "r2", "r4"],
            "user": ["a", "b", "a"],
            "item": [30, 4, 30],
            "time": [10, 20, 40],
            "stage": [0, 1, 1],
            "truth": [0.5, None, 1.0],
        }
    )
    data = build(replace(LOGS, candidates=offered, stages=("recalled", "rank")))
    rows = data.candidates
    assert rows.request.tolist() == [0, 1]
    assert rows.stage.tolist() == [0, 1]
    assert rows.truth[0] == 0.5 and np.isnan(rows.truth[1]) and np.isnan(rows.score).all()
    assert "1 candidates of held-out requests were left out" in data.notes


def test_candidates_of_ordered_logs_stop_at_the_users_own_held_out_row() -> None:
    shown = SHOWN.with_columns(split=pl.Series([0, 0, 0, 0, 1, 2]))
    offered = pl.DataFrame(
        {"user": ["a", "a", "b", "b"], "item": [30] * 4, "time": [39, 40, 49, 50]}
    )
    data = build(Logs("hand", "order", ITEMS, shown, candidates=offered))
    assert data.candidates.time.tolist() == [39, 49]
    assert "2 candidates of held-out requests were left out" in data.notes


def test_without_time_candidates_of_held_out_requests_are_left_out() -> None:
    shown = SHOWN.drop("time").with_columns(split=pl.Series([0, 0, 1, 0, 1, 2]))
    offered = pl.DataFrame(
        {
            # r1 is of training in part, r9 shows nothing.
            "request": ["r1", "r2", "r4", "r5", "r9"],
            "user": ["a", "b", "a", "b", "a"],
            "item": [30, 200, 4, 30, 30],
        }
    )
    data = build(Logs("hand", "none", ITEMS, shown, candidates=offered))
    rows = zip(data.candidates.user.tolist(), data.candidates.item.tolist(), strict=True)
    assert list(rows) == [(0, 1), (1, 0), (0, 1)]
    assert "2 candidates of held-out requests were left out" in data.notes
    whole = build(Logs("hand", "none", ITEMS, shown, candidates=offered.drop("request")))
    assert len(whole.candidates) == 5  # nobody knows of which request


def test_texts_are_read_without_html_entities() -> None:
    titles = ["Pok&eacute;mon &amp; friends", "AT&T &copy me", "it&#039;s &#x41; &nonsense;"]
    items = ITEMS.with_columns(title=pl.Series(titles), text=pl.Series(["x &gt; y", "", "&"]))
    catalog = build(replace(LOGS, items=items)).catalog  # 200, 30, 4
    assert catalog.title.tolist() == ["it's A &nonsense;", "Pokémon & friends", "AT&T &copy me"]
    assert catalog.text.tolist() == ["&", "x > y", ""]


def test_without_request_ids_one_user_and_moment_is_a_request() -> None:
    offered = pl.DataFrame({"user": ["a", "b"], "item": [30, 30], "time": [10, 10]})
    data = build(replace(LOGS, exposures=SHOWN.drop("request"), candidates=offered))
    shown, recalled = data.exposures.request, data.candidates.request
    assert shown[1] == shown[2] == recalled[0]
    assert len({*shown.tolist(), *recalled.tolist()}) == 6


def test_pools_by_hand() -> None:
    pools = build(LOGS).pools
    assert pools.pools == ("exposed", "unexposed-uniform", "unexposed-popular")
    rows = pools.take(pools.pool == 0)
    assert rows.item.tolist() == [1, 0] and rows.click.tolist() == [1, 1]
    assert rows.split.tolist() == [VALIDATION, TEST]
    # a met 4, 200, 30 and b met 30, 4, 200: nothing is left to rank their clicks against.
    assert (pools.pool == 0).all()


def test_a_click_with_nothing_to_rank_against_is_no_request() -> None:
    more = pl.DataFrame({"item": [5], "title": ["five"], "text": ["d"]})
    row = {"request": ["r2"], "user": ["a"], "item": [5], "time": [20], "click": [0]}
    shown = pl.concat([SHOWN, pl.DataFrame(row)])
    items = pl.concat([ITEMS, more], how="diagonal_relaxed")
    pools = build(replace(LOGS, items=items, exposures=shown)).pools
    rows = pools.take(pools.pool == 1)  # a has met all four; b has not met 5
    assert np.unique(rows.user).tolist() == [1] and len(rows) == 2


def test_sampled_pools_hold_unmet_items_and_the_same_requests() -> None:
    more = pl.DataFrame({"item": range(1000, 1100)}).with_columns(
        pl.col("item").cast(pl.String).alias("title"), text=pl.lit("t")
    )
    data = build(replace(LOGS, items=pl.concat([ITEMS, more], how="diagonal_relaxed")))
    met = set(zip(SHOWN["user"], SHOWN["item"].cast(pl.String), strict=True))
    for code in (1, 2):
        rows = data.pools.take(data.pools.pool == code)
        names = list(zip(data.users.ids[rows.user], data.items.ids[rows.item], strict=True))
        assert len(names) == len(set(names)) == 12
        assert {pair in met for pair, click in zip(names, rows.click, strict=True) if click} == {
            True
        }
        assert not met & {pair for pair, click in zip(names, rows.click, strict=True) if not click}
        assert rows.time.tolist() == [40] * 6 + [50] * 6


def test_no_click_of_a_sampled_pool_was_met_before() -> None:
    """Its negatives are unmet: a scorer that only remembers must not find the click."""
    items = pl.DataFrame({"item": range(50), "title": [str(k) for k in range(50)]})
    items = items.with_columns(text=pl.lit("t"))
    shown = pl.DataFrame(
        {
            "user": ["a"] * 8 + ["b"],
            "item": [1, 2, 3, 1, 4, 2, 4, 5, 6],
            "time": [10, 11, 12, 40, 41, 50, 51, 52, 53],
            "click": [1, 0, 1, 1, 1, 1, 1, 1, 1],
        }
    )
    logs = Logs("hand", "ms", items, shown, cuts=LOGS.cuts)
    data = build(logs)
    pool = data.pools.take((data.pools.pool == 1) & (data.pools.click == 1))
    clicked = list(zip(pool.split.tolist(), data.items.ids[pool.item].tolist(), strict=True))
    # 1 was clicked in training, 2 shown there, 4 clicked in validation already.
    assert clicked == [(VALIDATION, "4"), (TEST, "5"), (TEST, "6")]
    note = "3 held-out clicks on items that their user had met are in no sampled pool"
    assert note in data.notes
    liked = pl.DataFrame({"user": ["b", "a"], "item": [6, 5], "time": [5, 45]})
    data = build(replace(logs, interactions=liked, clicks_are_interactions=False))
    pool = data.pools.take((data.pools.pool == 1) & (data.pools.click == 1))
    assert data.items.ids[pool.item].tolist() == ["4"]


def test_caps_on_requests() -> None:
    n = 40
    shown = pl.DataFrame({"user": range(n), "item": [30] * n, "time": range(n), "click": [1] * n})
    sizes = {"max_requests": 3, "max_validation_requests": 2}
    config = PoolsConfig(n_negatives=1, popularity_power=0, **sizes)
    split = SplitConfig(validation_fraction=0.25, test_fraction=0.25)
    logs = Logs("capped", "ms", ITEMS, shown)
    pools = assemble(logs, split, config, 0).pools
    for code in (1, 2):
        rows = pools.take((pools.pool == code) & (pools.click == 1))
        assert rows.split.tolist() == [VALIDATION] * 2 + [TEST] * 3
    assert (pools.pool == 0).sum() == 20


def test_without_time_held_out_pairs_are_no_history() -> None:
    n = 30
    shown = pl.DataFrame(
        {"user": ["a", "b"] * n, "item": [30, 4, 200] * (2 * n // 3), "click": [1] * 2 * n}
    ).unique(maintain_order=True)
    logs = Logs("sets", "none", ITEMS, pl.concat([shown, shown]))
    data = build(logs, validation_fraction=0.3, test_fraction=0.3)
    held = data.exposures.split != TRAIN
    kept = set(zip(data.interactions.user, data.interactions.item, strict=True))
    out = set(zip(data.exposures.user[held], data.exposures.item[held], strict=True))
    assert held.any() and not kept & out
    assert "no time: exposures are split at random, histories are sets" in data.notes
    assert (data.interactions.time == 0).all()


@pytest.mark.parametrize("click", [0, None])
def test_a_log_without_a_positive_in_training_is_refused(click: int | None) -> None:
    # Only the rows of validation and test are clicked.
    late = pl.when(pl.col("time") >= 40).then(1).otherwise(click).cast(pl.Int8)
    shown = SHOWN.with_columns(click=late)
    with pytest.raises(DataError, match="no click is known in training") as caught:
        build(replace(LOGS, exposures=shown))
    assert caught.value.where == "exposures -> click" and caught.value.hint
    with pytest.raises(DataError, match="no click is known in training"):
        build(replace(LOGS, exposures=shown.drop("click")))
    liked = pl.DataFrame({"user": ["a"], "item": [30], "time": [5]})
    logs = replace(LOGS, exposures=shown, interactions=liked)
    if click is None:
        with pytest.raises(DataError, match="every click of training is unknown"):
            build(logs)
    else:
        assert len(build(logs).interactions) == 2  # with the click of validation


def test_a_test_period_without_known_clicks_is_refused() -> None:
    known = pl.when(pl.col("time") < 50).then(pl.col("click"))
    shown = SHOWN.with_columns(click=known)
    with pytest.raises(DataError, match="every click of the test period is unknown"):
        build(replace(LOGS, exposures=shown))
    frame = shown.filter(pl.col("time") == 50).with_columns(split=pl.lit(2), click=1)
    pool = frame.with_columns(request=pl.lit(0))
    assert len(build(replace(LOGS, exposures=shown, pools={"truth": pool})).pools)


def test_an_unknown_item_is_named_with_its_row() -> None:
    shown = SHOWN.with_columns(item=pl.Series([30, 4, 7, 4, 30, 7]))
    with pytest.raises(DataError, match=r"exposures -> item, row 3[\s\S]*7"):
        build(replace(LOGS, exposures=shown))


def test_same_seed_same_bytes_and_another_seed_another_pool() -> None:
    more = pl.DataFrame({"item": range(1000, 1100)}).with_columns(
        pl.col("item").cast(pl.String).alias("title"), text=pl.lit("t")
    )
    logs = replace(LOGS, items=pl.concat([ITEMS, more], how="diagonal_relaxed"))
    one, two, three = build(logs, seed=1), build(logs, seed=1), build(logs, seed=2)
    assert one.pools.item.tobytes() == two.pools.item.tobytes()
    assert one.pools.item.tobytes() != three.pools.item.tobytes()


def test_lists_and_vectors_follow_the_vocabulary_and_missing_rows_are_empty() -> None:
    users = pl.DataFrame(
        {
            "user": ["b", "z", "a"],
            "q:seen": [["y", "x", "y"], ["w"], []],
            "m:likes": [["q"], None, ["p", "q"]],
        }
    ).with_columns(pl.Series("v:face", np.float32([[1, 2], [3, 4], [np.nan, np.nan]])))
    features = build(replace(LOGS, users=users)).user_features  # users a, b, z
    assert features.categories == {"seen": ("w", "x", "y"), "likes": ("p", "q")}
    seen, likes = features.lists["seen"], features.lists["likes"]
    assert (seen.ordered, likes.ordered) == (True, False)
    assert (seen.offsets.tolist(), seen.codes.tolist()) == ([0, 0, 3, 4], [2, 1, 2, 0])
    assert (likes.offsets.tolist(), likes.codes.tolist()) == ([0, 2, 3, 3], [0, 1, 1])
    assert features.vectors["face"][1:].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(features.vectors["face"][0]).all()
    without = build(replace(LOGS, users=users.head(1))).user_features
    assert without.lists["seen"].offsets.tolist() == [0, 0, 3]
    assert np.isnan(without.vectors["face"][0]).all()

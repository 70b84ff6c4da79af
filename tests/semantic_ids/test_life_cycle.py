"""Capacity, the quality gate, appending and drift."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.artifacts import ItemEmbeddings, SemanticIds
from prerank.errors import ArtifactError, DataError
from prerank.semantic_ids.capacity import relocate
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.drift import drift
from prerank.semantic_ids.rqkmeans import RqKMeans
from prerank.semantic_ids.tokenize import restore, tokenize
from prerank.vocabulary import Vocabulary

LINE = RqKMeans((np.zeros((1, 1), np.float32), np.array([[0], [1], [3]], np.float32)))
"""One prefix, last codes at 0, 1 and 3 of a line."""


def line(*points: float) -> np.ndarray:
    return np.array(points, np.float32)[:, None]


def unit(points) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def items(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((12, d))
    return unit(centres[rng.integers(12, size=n)] + 0.4 * rng.standard_normal((n, d)))


def names(*numbers: int) -> Vocabulary:
    return Vocabulary.of(f"i{n:05d}" for n in numbers)


# ---- capacity -------------------------------------------------------------------------------


def test_the_nearest_stay_and_the_others_take_the_next_best():
    vectors = line(0, 0.1, 0.2, 0.3)
    codes, done = relocate(LINE, vectors, LINE.tokenize(vectors), 2)
    assert codes[:, 1].tolist() == [0, 0, 1, 1]
    assert done == {"moved": 2, "without_room": 0}


def test_published_items_stand_though_a_new_one_is_nearer():
    vectors = line(0)
    published = np.array([[0, 0], [0, 1]], np.int32)
    codes, done = relocate(LINE, vectors, LINE.tokenize(vectors), 1, published)
    assert codes.tolist() == [[0, 2]]
    assert done == {"moved": 1, "without_room": 0}


def test_no_room_under_the_prefix_leaves_the_item_where_it_is():
    vectors = line(0, 0, 0, 0, 0)
    codes, done = relocate(LINE, vectors, LINE.tokenize(vectors), 1)
    assert sorted(codes[:, 1].tolist()) == [0, 0, 0, 1, 2]
    assert done == {"moved": 2, "without_room": 2}


@settings(max_examples=30)
@given(
    n=st.integers(1, 150),
    capacity=st.integers(1, 6),
    n_published=st.integers(0, 60),
    block=st.sampled_from([8, 64, 1 << 24]),
    seed=st.integers(0, 99),
)
def test_any_catalogue_keeps_to_capacity_where_there_is_room(n, capacity, n_published, block, seed):
    vectors = items(n, seed=seed)
    tokenizer = RqKMeans.fit(items(100), TokenizeConfig(n_levels=2, codebook_size=5), 0)
    before = tokenizer.tokenize(vectors)
    published = tokenizer.tokenize(items(n_published, seed=seed + 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prerank.semantic_ids.capacity.DISTANCES", block)
        codes, done = relocate(tokenizer, vectors, before, capacity, published)
    np.testing.assert_array_equal(codes[:, 0], before[:, 0])
    assert done["moved"] == (codes[:, 1] != before[:, 1]).sum()
    every = np.concatenate([published, codes])
    load = np.zeros((5, 5), int)
    np.add.at(load, tuple(every.T), 1)
    fixed = np.zeros((5, 5), int)
    np.add.at(fixed, tuple(published.T), 1)
    # A prefix is over its capacity only if all its codes are full; so many items have no room.
    over = np.maximum(load - np.maximum(fixed, capacity), 0).sum(axis=1)
    assert over.sum() == done["without_room"]
    assert (load[over > 0] >= capacity).all()
    # Whoever sat in a code with room to spare was not moved.
    calm = load[before[:, 0], before[:, 1]] < capacity
    np.testing.assert_array_equal(codes[calm], before[calm])


def test_capacity_in_the_stage_is_reported():
    config = TokenizeConfig(codebook_size=8, capacity=3)
    ids = tokenize(ItemEmbeddings(items(300)), config, 0)
    assert ids.quality["largest_bucket"] == 3
    assert ids.quality["capacity"]["limit"] == 3
    assert ids.quality["capacity"]["moved"] > 0
    assert ids.quality["capacity"]["without_room"] == 0


# ---- the gate -------------------------------------------------------------------------------


def test_one_giant_bucket_fails_the_stage_and_says_so():
    vectors = np.repeat(items(1), 500, axis=0)
    with pytest.raises(DataError, match="one semantic ID holds 500 of 500 items") as caught:
        tokenize(ItemEmbeddings(vectors), TokenizeConfig(), 0)
    assert caught.value.where == "tokenize.gate.max_bucket_share"
    allowed = TokenizeConfig.parse({"gate": {"max_bucket_share": 1}})
    assert tokenize(ItemEmbeddings(vectors), allowed, 0).quality["unique_sids"] == 1


def test_a_collapsed_codebook_fails_the_stage(monkeypatch):
    class Collapsed(RqKMeans):
        def tokenize(self, vectors):
            return super().tokenize(vectors) // 4

    monkeypatch.setattr("prerank.semantic_ids.tokenize.RqKMeans", Collapsed)
    with pytest.raises(DataError, match=r"level 0 uses \d of its 16 codes") as caught:
        tokenize(ItemEmbeddings(items(400)), TokenizeConfig(codebook_size=16), 0)
    assert caught.value.where == "tokenize.gate.min_used_share"


def test_uneven_use_fails_the_stage():
    config = TokenizeConfig.parse({"codebook_size": 16, "gate": {"min_perplexity_share": 1}})
    with pytest.raises(DataError, match="too unevenly"):
        tokenize(ItemEmbeddings(items(400)), config, 0)


@pytest.mark.parametrize("trainer", ["rq-kmeans", "rq-vae"])
def test_a_one_item_catalogue_passes(trainer):
    config = TokenizeConfig.parse({"trainer": trainer, "rqvae": {"epochs": 1}})
    ids = tokenize(ItemEmbeddings(items(1)), config, 0, items=names(0))
    assert ids.codes.tolist() == [[0, 0, 0]]


# ---- appending and drift --------------------------------------------------------------------


def published(trainer: str = "rq-kmeans", **more: object) -> tuple[TokenizeConfig, SemanticIds]:
    config = TokenizeConfig.parse(
        {"trainer": trainer, "codebook_size": 8, "rqvae": {"epochs": 2, "batch_size": 50}} | more
    )
    ids = tokenize(ItemEmbeddings(items(300)), config, 0, items=names(*range(300)))
    return config, ids


@pytest.mark.parametrize("trainer", ["rq-kmeans", "rq-vae"])
@pytest.mark.parametrize("capacity", [0, 6])
def test_appending_moves_no_published_id_and_gives_new_items_codes(trainer, capacity):
    config, ids = published(trainer, capacity=capacity)
    # Items 0..9 are gone, 40 new ones come in between (ids i00000x sort elsewhere).
    kept, fresh = range(10, 300), range(300, 340)
    vocabulary = Vocabulary.of([f"i{n:05d}" for n in kept] + [f"a{n:05d}" for n in fresh])
    vectors = np.concatenate([items(40, seed=7), items(300)[10:]])
    more = tokenize(ItemEmbeddings(vectors), config, 0, items=vocabulary, published=ids)
    np.testing.assert_array_equal(more.codes[40:], ids.codes[10:])
    np.testing.assert_array_equal(more.codebooks, ids.codebooks)
    assert more.quality["appended"]["n_new"] == 40
    assert more.quality["appended"]["n_removed"] == 10
    assert more.quality["appended"]["residual_norm_new"] < 0.8
    if capacity:
        assert more.quality["largest_bucket"] <= 6
        assert more.quality["capacity"]["without_room"] == 0
    else:
        np.testing.assert_array_equal(more.codes[:40], restore(ids).tokenize(vectors[:40]))
    report = drift(ids, more, ItemEmbeddings(vectors))
    assert report["moved_share"] == [0, 0, 0]
    assert report["grouping_kept"] == [1, 1, 1]
    assert [report[f"n_{k}"] for k in ("before", "after", "common", "new", "removed")] == [
        300, 330, 290, 40, 10,
    ]  # fmt: skip
    assert report["residual_norm_new"][-1] == pytest.approx(
        more.quality["appended"]["residual_norm_new"]
    )


def test_appending_nothing_changes_nothing():
    config, ids = published()
    again = tokenize(ItemEmbeddings(items(300)), config, 0, items=names(*range(300)), published=ids)
    np.testing.assert_array_equal(again.codes, ids.codes)
    assert again.quality["appended"]["residual_norm_new"] is None


def test_another_space_is_refused():
    config, ids = published()
    turned = np.ascontiguousarray(items(300)[:, ::-1])
    with pytest.raises(DataError, match="not of the space"):
        tokenize(ItemEmbeddings(turned), config, 0, items=names(*range(300)), published=ids)
    with pytest.raises(DataError, match="other dimensions"):
        tokenize(ItemEmbeddings(items(300, 5)), config, 0, items=names(*range(300)), published=ids)


def test_a_catalogue_of_strangers_is_refused():
    config, ids = published()
    others = Vocabulary.of(f"other-{n}" for n in range(300))
    with pytest.raises(DataError, match="no item of the catalogue"):
        tokenize(ItemEmbeddings(items(300, seed=7)), config, 0, items=others, published=ids)


def test_unused_codes_are_no_collapse_where_nothing_was_fitted():
    config, ids = published(codebook_size=100)
    few = tokenize(ItemEmbeddings(items(300)[:120]), config, 0, items=names(*range(120)))
    assert few.quality["codes_used"][0] > 50  # fitted on them, the codes are used
    left = names(*range(120))
    tokenize(ItemEmbeddings(items(300)[:120]), config, 0, items=left, published=ids)
    vectors = items(300)
    vectors[110:] = 0
    tokenize(ItemEmbeddings(vectors), TokenizeConfig(trainer="item-id"), 0)


def test_appending_needs_item_ids():
    config = TokenizeConfig(codebook_size=8)
    ids = tokenize(ItemEmbeddings(items(50)), config, 0)
    with pytest.raises(ArtifactError, match="whose they are"):
        tokenize(ItemEmbeddings(items(50)), config, 0, items=names(*range(50)), published=ids)
    with pytest.raises(ArtifactError, match="whose they are"):
        drift(ids, ids)


def test_drift_by_hand():
    def ids(vocabulary: Vocabulary, codes: list[list[int]], left: list[float]) -> SemanticIds:
        return SemanticIds(
            np.array(codes, np.int32),
            np.array([2, 2], np.int32),
            np.zeros((4, 2), np.float32),
            {"residual_norm": left},
            items=vocabulary,
        )

    before = ids(names(0, 1, 2, 3), [[0, 0], [0, 1], [1, 0], [1, 1]], [0.5, 0.25])
    # Item 1 moves at level 1, item 2 at level 0, item 3 is gone, item 4 is new.
    after = ids(names(0, 1, 2, 4), [[0, 0], [0, 0], [0, 0], [1, 0]], [0.5, 0.5])
    found = drift(before, after)
    assert found["moved_share"] == pytest.approx([1 / 3, 2 / 3])
    assert found["residual_norm_change"] == [0, 0.25]
    assert (found["n_common"], found["n_new"], found["n_removed"]) == (3, 1, 1)
    assert found["residual_norm_new"] is None


def test_a_refit_renames_codes_but_may_keep_the_groups():
    _, ids = published()
    order = np.random.default_rng(0).permutation(8)
    renamed = SemanticIds(
        order[ids.codes].astype(np.int32), ids.codebook_sizes, ids.codebooks, ids.quality,
        items=ids.items,
    )  # fmt: skip
    found = drift(ids, renamed)
    assert found["moved_share"][0] > 0.5
    assert found["grouping_kept"] == [1, 1, 1]

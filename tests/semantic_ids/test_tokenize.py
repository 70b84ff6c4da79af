import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from prerank import store
from prerank.artifacts import ItemEmbeddings, SemanticIds
from prerank.errors import ConfigError, DataError
from prerank.semantic_ids.config import TokenizeConfig
from prerank.semantic_ids.rqkmeans import RqKMeans, decode
from prerank.semantic_ids.tokenize import restore, tokenize


def unit(points) -> np.ndarray:
    points = np.asarray(points, np.float64)
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return (points / np.where(norm > 0, norm, 1)).astype(np.float32)


def clustered(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, d))
    return unit(centres[rng.integers(20, size=n)] + 0.4 * rng.standard_normal((n, d)))


def residuals(vectors, ids: SemanticIds) -> list[float]:
    books = [ids.level(level) for level in range(ids.n_levels)]
    return [
        float(np.linalg.norm(vectors - decode(books, ids.codes[:, :level]), axis=1).mean())
        for level in range(ids.n_levels + 1)
    ]


SMALL = TokenizeConfig(codebook_size=16)


def test_codes_are_the_nearest_centroids_of_the_residuals():
    vectors = clustered(500, 8)
    ids = tokenize(ItemEmbeddings(vectors), SMALL, 0)
    residual = vectors.astype(np.float64)
    for level in range(3):
        book = ids.level(level)
        squared = ((residual[:, None] - book) ** 2).sum(axis=2)
        mine = squared[np.arange(500), ids.codes[:, level]]
        np.testing.assert_allclose(mine, squared.min(axis=1), atol=1e-6)
        residual -= book[ids.codes[:, level]]


def test_healthy_catalogue_uses_every_code_and_each_level_leaves_less():
    vectors = clustered(2000, 12)
    ids = tokenize(ItemEmbeddings(vectors), SMALL, 0)
    assert ids.codes.shape == (2000, 3)
    assert ids.codebook_sizes.tolist() == [16, 16, 16] == ids.quality["codes_used"]
    left = residuals(vectors, ids)
    assert left[0] == pytest.approx(1)
    assert left == sorted(left, reverse=True)
    np.testing.assert_allclose(ids.quality["residual_norm"], left[1:], rtol=1e-5)


def test_all_items_get_codes_when_a_sample_fits_the_codebooks():
    vectors = clustered(3000, 8)
    config = TokenizeConfig(codebook_size=8, sample_per_code=20)
    ids = tokenize(ItemEmbeddings(vectors), config, 0)
    assert ids.codes.shape == (3000, 3)
    assert ids.quality["codes_used"] == [8, 8, 8]
    whole = tokenize(ItemEmbeddings(vectors), TokenizeConfig(codebook_size=8), 0)
    assert ids.quality["residual_energy"][2] < 1.3 * whole.quality["residual_energy"][2]


def test_one_item():
    vectors = unit([[3, 4]])
    ids = tokenize(ItemEmbeddings(vectors), TokenizeConfig(), 0)
    assert ids.codes.tolist() == [[0, 0, 0]]
    assert ids.codebook_sizes.tolist() == [1, 1, 1]
    np.testing.assert_allclose(restore(ids).decode(ids.codes), [[0.6, 0.8]], atol=1e-7)
    assert ids.quality["codebook_size_asked"] == 256
    assert ids.quality["bucket_cosine"] is None


def test_fewer_items_than_codes_gives_each_its_own_first_code():
    vectors = clustered(10, 6)
    ids = tokenize(ItemEmbeddings(vectors), TokenizeConfig(codebook_size=64), 0)
    assert ids.codebook_sizes.tolist() == [10, 1, 1]
    assert sorted(ids.codes[:, 0].tolist()) == list(range(10))
    assert ids.quality["residual_norm"][2] < 1e-6


def test_equal_vectors_share_one_semantic_id():
    vectors = np.repeat(unit([[1, 2, 3]]), 99, axis=0)  # too few for the quality gate
    ids = tokenize(ItemEmbeddings(vectors), TokenizeConfig(codebook_size=4), 0)
    assert ids.codebook_sizes.tolist() == [1, 1, 1]
    assert ids.quality["unique_sids"] == 1
    assert ids.quality["largest_bucket"] == 99
    assert ids.quality["bucket_cosine"] == pytest.approx(1, abs=1e-5)


def test_items_without_content_are_legal_and_change_no_codebook():
    vectors = clustered(300, 6)
    with_zeros = np.concatenate([np.zeros((2, 6), np.float32), vectors, np.zeros((1, 6), "f4")])
    plain = tokenize(ItemEmbeddings(vectors), SMALL, 0)
    ids = tokenize(ItemEmbeddings(with_zeros), SMALL, 0)
    np.testing.assert_array_equal(ids.codebooks, plain.codebooks)
    np.testing.assert_array_equal(ids.codes[2:-1], plain.codes)
    assert ids.codes[0].tolist() == ids.codes[1].tolist() == ids.codes[-1].tolist()
    assert ids.quality == plain.quality | {"n_items": 303, "n_without_content": 3}


@pytest.mark.parametrize("n_items", [0, 3])
def test_no_content_at_all_is_an_error(n_items):
    with pytest.raises(DataError, match="no item has content"):
        tokenize(ItemEmbeddings(np.zeros((n_items, 4), np.float32)), TokenizeConfig(), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_never_reach_the_tokenizer(bad):
    vectors = clustered(5, 3)
    vectors[2, 1] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        tokenize(ItemEmbeddings(vectors), SMALL, 0)


def test_same_seed_same_bytes_other_seed_other_codebooks():
    embeddings = ItemEmbeddings(clustered(800, 8))
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            ids = tokenize(embeddings, SMALL, 1)
        found.append((ids.codes.tobytes(), ids.codebooks.tobytes(), json.dumps(ids.quality)))
    assert found[0] == found[1]
    other = tokenize(embeddings, SMALL, 2)
    assert other.codebooks.tobytes() != found[0][1]


def test_input_is_left_alone():
    vectors = clustered(200, 6)
    before = vectors.tobytes()
    tokenize(ItemEmbeddings(vectors), SMALL, 0)
    assert vectors.tobytes() == before


def test_restored_tokenizer_gives_the_same_codes_and_takes_new_items(tmp_path):
    vectors = clustered(400, 8)
    ids = tokenize(ItemEmbeddings(vectors), SMALL, 0)
    store.save(tmp_path, ids)
    loaded = store.load(tmp_path, SemanticIds)
    assert loaded.quality == ids.quality
    tokenizer = restore(loaded)
    np.testing.assert_array_equal(tokenizer.tokenize(vectors), ids.codes)
    np.testing.assert_array_equal(tokenizer.tokenize(vectors[7:8]), ids.codes[7:8])


def test_decode_is_the_sum_of_centroids_level_by_level():
    books = (
        np.array([[1, 0], [0, 1]], np.float32),
        np.array([[0.5, 0], [0, 0.25], [0, 0]], np.float32),
    )
    tokenizer = RqKMeans(books)
    codes = np.array([[0, 1], [1, 0], [1, 2]], np.int32)
    assert tokenizer.decode(codes).tolist() == [[1, 0.25], [0.5, 1], [0, 1]]
    assert tokenizer.decode(codes[:, :1]).tolist() == [[1, 0], [0, 1], [0, 1]]


@settings(max_examples=20)
@given(
    n_items=st.integers(1, 60),
    n_dims=st.integers(1, 5),
    n_levels=st.integers(1, 4),
    codebook_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_any_catalogue_is_legal_and_residuals_never_rise(
    n_items, n_dims, n_levels, codebook_size, seed
):
    rng = np.random.default_rng(seed)
    vectors = unit(np.round(2 * rng.standard_normal((n_items, n_dims))) / 2)
    vectors[0] = np.eye(n_dims, dtype=np.float32)[0]
    config = TokenizeConfig(n_levels=n_levels, codebook_size=codebook_size)
    ids = tokenize(ItemEmbeddings(vectors), config, seed)
    assert ids.n_levels == n_levels
    assert (ids.codebook_sizes <= codebook_size).all()
    assert ids.quality["codes_used"] == ids.codebook_sizes.tolist()
    energy = [1.0, *ids.quality["residual_energy"]]
    assert (np.diff(energy) <= 1e-5).all()


@pytest.mark.parametrize(
    "values", [{"codebook_size": 0}, {"n_levels": 0}, {"trainer": "rq-vq"}, {"levels": 3}]
)
def test_bad_settings_are_named(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TokenizeConfig.parse(values, where="recipe.toml")

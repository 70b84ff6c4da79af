"""Fusion and the report on a semantic space."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.encode import encode
from prerank.embeddings.fuse import concat_pca, whitened_mean
from prerank.embeddings.quality import effective_dimension, quality
from prerank.embeddings.vectors import unit_rows
from prerank.errors import ConfigError

from .content import TEXTS, dataset


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_rows((rng.standard_normal((n, d)) * np.arange(1, d + 1)).astype(np.float32))


def cosines(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def centred(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors - vectors.mean(axis=0))


@pytest.mark.parametrize("block", [7, 1 << 14])
def test_concat_pca_is_scikit_learns(block, monkeypatch):
    monkeypatch.setattr("prerank.embeddings.fuse.ROWS", block)
    first, second = rows(40, 5), rows(40, 7, seed=1)
    ours = concat_pca([first, second], [1, 3], 6)
    joined = np.concatenate([first * 0.5, second * np.sqrt(0.75)], axis=1)
    golden = unit_rows(PCA(6, svd_solver="full").fit_transform(joined).astype(np.float32))
    np.testing.assert_allclose(cosines(ours), cosines(golden), atol=1e-4)


def test_weights_are_shares_of_the_cosine():
    first, second = rows(30, 4), rows(30, 4, seed=1)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    whole = concat_pca([first, second], [1, 3], 8)
    mixed = np.concatenate([first * 0.5, second * np.sqrt(0.75)], axis=1)
    np.testing.assert_allclose(cosines(whole), cosines(unit_rows(mixed)), atol=1e-4)


def test_a_missing_modality_draws_nowhere():
    first, second = rows(30, 4), rows(30, 4, seed=1)
    second[3] = 0
    first[5] = second[5] = 0
    found = concat_pca([first, second], [1, 1], 8)
    assert not found[5].any()
    filled = second.copy()
    filled[3] = second[np.flatnonzero(second.any(axis=1))].mean(axis=0)
    kept = np.delete(np.arange(30), 5)
    golden = concat_pca([first[kept], filled[kept]], [1, 1], 8)
    # The filled-in row takes part in the mean and so does its fill-in: they are equal.
    np.testing.assert_allclose(cosines(found[kept]), cosines(golden), atol=1e-4)


def test_whitened_mean_whitens_and_averages_what_is_there():
    first, second = rows(200, 3), rows(200, 3, seed=1)
    second[4] = 0

    def white(part: np.ndarray) -> np.ndarray:
        here = part[part.any(axis=1)]
        values, axes = np.linalg.eigh(np.cov(here.T, bias=True))
        return unit_rows(
            ((part - here.mean(axis=0)) @ axes / np.sqrt(values) @ axes.T).astype("f4")
        )

    found = whitened_mean([first, second], [2, 1])
    golden = unit_rows(2 * white(first) + white(second))
    golden[4] = white(first)[4]
    np.testing.assert_allclose(found, golden, atol=1e-3)


def test_whitened_mean_needs_one_shared_space():
    with pytest.raises(ConfigError, match="shared space"):
        whitened_mean([rows(5, 3), rows(5, 4)], [1, 1])


def test_items_all_alike_are_legal_in_both():
    same = np.repeat(rows(1, 3), 4, axis=0)
    assert np.isfinite(concat_pca([same, same], [1, 1], 2)).all()
    np.testing.assert_allclose(cosines(concat_pca([same, same], [1, 1], 2)), 1, atol=1e-5)
    np.testing.assert_allclose(cosines(whitened_mean([same, same], [1, 1])), 1, atol=1e-5)


def test_the_stage_fuses_text_and_given_vectors():
    given = rows(len(TEXTS), 4)
    given[0] = np.nan
    parts = [{"encoder": "lsa", "embedding_dim": 3}, {"encoder": "given", "weight": 2.0}]
    config = EncodeConfig.parse(
        {"encoder": "fusion", "fusion": {"embedding_dim": 5, "parts": parts}}
    )
    found = encode(dataset(TEXTS, given), config, 0)
    assert found.vectors.shape == (len(TEXTS), 5)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(ConfigError, match="two or more"):
        EncodeConfig.parse({"encoder": "fusion"})


# ---- the report -----------------------------------------------------------------------------


def test_anisotropy_of_known_spaces():
    titles = np.array([f"t{n}" for n in range(400)], object)
    rng = np.random.default_rng(0)
    sphere = unit_rows(rng.standard_normal((400, 20)).astype(np.float32))
    cone = unit_rows(sphere + 10 * np.eye(20, dtype=np.float32)[0])
    assert quality(sphere, titles, 0)["anisotropy"] == pytest.approx(0, abs=0.02)
    assert quality(cone, titles, 0)["anisotropy"] > 0.95
    mean = sphere.sum(axis=0) @ sphere.sum(axis=0) - 400
    assert quality(sphere, titles, 0)["anisotropy"] == pytest.approx(mean / (400 * 399), abs=0.01)


def test_effective_dimension_counts_directions():
    rng = np.random.default_rng(0)
    points = np.zeros((2000, 10), np.float32)
    points[:, :3] = rng.standard_normal((2000, 3))
    assert effective_dimension(points) == pytest.approx(3, abs=0.05)
    assert effective_dimension(np.ones((5, 3), np.float32)) == 0


@pytest.mark.parametrize("block", [2, 1 << 16])
def test_neighbours_are_brute_forces(block, monkeypatch):
    monkeypatch.setattr("prerank.embeddings.quality.ROWS", block)
    vectors = rows(30, 4)
    titles = np.array([f"title {n}" for n in range(30)], object)
    found = quality(vectors, titles, 0)
    cosine = cosines(vectors)
    np.fill_diagonal(cosine, -2)
    for sample in found["neighbours"]:
        item = int(sample["item"].split()[1])
        order = np.argsort(-cosine[item], kind="stable")[:5]
        assert [name for name, _ in sample["nearest"]] == [f"title {n}" for n in order]
        assert [c for _, c in sample["nearest"]] == pytest.approx(cosine[item][order], abs=6e-4)
    assert len(found["neighbours"]) == 8


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_items(n):
    found = quality(rows(n, 3), np.array(["a", "b"][:n], object), 0)
    assert found["n_items"] == n
    assert (found["anisotropy"] is None) == (n == 1)

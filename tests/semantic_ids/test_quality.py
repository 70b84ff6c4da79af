import json
from collections import Counter

import numpy as np
import pytest

from prerank.semantic_ids.quality import quality
from prerank.semantic_ids.rqkmeans import RqKMeans


def i32(rows) -> np.ndarray:
    return np.array(rows, np.int32)


def f32(rows) -> np.ndarray:
    return np.array(rows, np.float32)


BOOKS = (f32([[1, 0], [0, 1]]), f32([[0, 0], [0.5, 0], [9, 9]]))


def test_by_hand():
    vectors = f32([[1, 0], [1, 0], [0.6, 0.8], [0, 1], [0, 0]])
    codes = i32([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]])
    found = quality(vectors, codes, RqKMeans(BOOKS))
    assert found["n_items"] == 5
    assert found["n_without_content"] == 1
    assert found["n_levels"] == 2
    assert found["codebook_sizes"] == [2, 3]
    assert found["codes_used"] == [2, 1]  # the item without content does not count
    entropy = -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    assert found["perplexity"] == pytest.approx([np.exp(entropy), 1])
    assert found["unique_prefixes"] == [2, 2]
    assert found["unique_sids"] == 2
    assert found["shared_share"] == 3 / 4
    assert found["largest_bucket"] == 3
    assert found["gini"] == pytest.approx(1 / 4)  # sizes 1 and 3: mean difference 2 / (2 * 2 * 2)
    assert found["bucket_cosine"] == pytest.approx((1 + 0.6 + 0.6) / 3)
    third = np.hypot(0.4, 0.8)
    assert found["residual_norm"] == pytest.approx([third / 4, third / 4])
    assert found["residual_energy"] == pytest.approx([0.8 / 4, 0.8 / 4])
    assert json.loads(json.dumps(found)) == found


def test_all_different():
    found = quality(f32([[1, 0], [0, 1]]), i32([[0, 0], [1, 0]]), RqKMeans(BOOKS))
    assert found["unique_sids"] == 2
    assert found["shared_share"] == 0
    assert found["gini"] == 0
    assert found["bucket_cosine"] is None
    assert found["residual_norm"] == [0, 0]


def test_eight_levels_of_many_codes_do_not_overflow():
    codes = i32([[65535] * 8, [65535] * 7 + [65534], [0] + [65535] * 7])
    books = [np.zeros((65536, 1), np.float32)] * 8
    found = quality(f32([[1], [1], [1]]), codes, RqKMeans(tuple(books)))
    assert found["unique_sids"] == 3
    assert found["unique_prefixes"] == [2] * 7 + [3]


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_against_brute_force(block, monkeypatch):
    monkeypatch.setattr("prerank.semantic_ids.quality.ROWS", block)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[::17] = 0
    codes = rng.integers(4, size=(200, 3)).astype(np.int32)
    books = [rng.standard_normal((4, 4)).astype(np.float32) for _ in range(3)]
    found = quality(vectors, codes, RqKMeans(tuple(books)))

    content = [i for i in range(200) if vectors[i].any()]
    buckets = Counter(tuple(codes[i]) for i in content)
    assert found["unique_sids"] == len(buckets)
    assert found["largest_bucket"] == max(buckets.values())
    sizes = list(buckets.values())
    differences = np.abs(np.subtract.outer(sizes, sizes)).mean()
    assert found["gini"] == pytest.approx(differences / (2 * np.mean(sizes)))
    per_item = []
    for i in content:
        others = [j for j in content if j != i and tuple(codes[j]) == tuple(codes[i])]
        if others:
            per_item.append(np.mean([vectors[i] @ vectors[j] for j in others]))
    assert found["shared_share"] == pytest.approx(len(per_item) / len(content))
    assert found["bucket_cosine"] == pytest.approx(np.mean(per_item), abs=1e-6)
    left = vectors[content] - sum(books[level][codes[content, level]] for level in range(3))
    assert found["residual_norm"][2] == pytest.approx(np.linalg.norm(left, axis=1).mean())

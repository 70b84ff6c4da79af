import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.anchors.trie import Trie, level_tables

from .sid_world import random_codes

CPU = torch.device("cpu")
CODES = np.array([[1, 0], [0, 2], [1, 0], [0, 1]], np.int32)


def test_leaves_are_the_sorted_unique_semantic_ids() -> None:
    trie = Trie.of(CODES, (2, 3))
    assert trie.codes.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert trie.leaf_of_item.tolist() == [2, 1, 2, 0]
    assert [keys.tolist() for keys in trie.keys] == [[0, 1], [0 * 3 + 1, 0 * 3 + 2, 1 * 3 + 0]]
    assert [trie.n_nodes(level) for level in (0, 1)] == [1, 2]


def test_buckets_hold_each_item_once() -> None:
    offsets, items = Trie.of(CODES, (2, 3)).buckets()
    assert offsets.tolist() == [0, 1, 2, 4]
    assert items.tolist() == [3, 1, 0, 2]


def test_legal_codes_and_children_by_hand() -> None:
    for dense_limit in (1 << 20, 0):
        root, second = level_tables(Trie.of(CODES, (2, 3)), CPU, dense_limit)
        assert (second.dense is None) == (dense_limit == 0)
        assert root.legal(torch.tensor([0])).tolist() == [[True, True]]
        legal = second.legal(torch.tensor([[0, 1]]))
        assert legal.tolist() == [[[False, True, True], [True, False, False]]]
        assert second.child(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0])).tolist() == [0, 1, 2]


def test_shares_of_children_by_hand() -> None:
    root, second = Trie.of(CODES, (2, 3)).log_shares(np.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(np.exp(root), [3 / 8, 5 / 8], rtol=1e-6)
    np.testing.assert_allclose(np.exp(second), [1 / 3, 2 / 3, 1], rtol=1e-6)


def test_bonuses_stand_at_their_codes() -> None:
    bonus = [np.array([0.5, -1], np.float32), np.array([1, 2, 3], np.float32)]
    for dense_limit in (1 << 20, 0):
        root, second = level_tables(Trie.of(CODES, (2, 3)), CPU, dense_limit, bonus)
        assert root.bonuses(torch.tensor([0])).tolist() == [[0.5, -1]]
        assert second.bonuses(torch.tensor([1, 0])).tolist() == [[3, 0, 0], [0, 1, 2]]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    n_items=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_tables_allow_exactly_what_exists(sizes: list[int], n_items: int, seed: int) -> None:
    codes = random_codes(n_items, tuple(sizes), seed)
    trie = Trie.of(codes, sizes)
    assert (trie.codes[trie.leaf_of_item] == codes).all()
    known = {tuple(row[:depth]) for row in codes.tolist() for depth in range(1, len(sizes) + 1)}
    dense, listed = level_tables(trie, CPU), level_tables(trie, CPU, dense_limit=0)
    prefixes: list[tuple[int, ...]] = [()]
    for level, size in enumerate(sizes):
        nodes = torch.arange(len(prefixes))
        expected = [[(*prefix, code) in known for code in range(size)] for prefix in prefixes]
        assert dense[level].legal(nodes).tolist() == expected
        assert listed[level].legal(nodes).tolist() == expected
        prefixes = sorted(prefix for prefix in known if len(prefix) == level + 1)

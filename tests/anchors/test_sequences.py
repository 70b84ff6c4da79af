import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.anchors.sequences import (
    Sequences,
    anchor_sequences,
    batches,
    is_unordered,
    keep_probability,
    token_chunks,
)

from .sid_world import dataset


def of(*runs: list[int]) -> Sequences:
    items = np.array([item for run in runs for item in run], np.int32)
    return Sequences(items, np.cumsum([0, *map(len, runs)]).astype(np.int64))


def lists(sequences: Sequences) -> list[list[int]]:
    return [run.tolist() for run in np.split(sequences.item, sequences.offsets[1:-1])]


def test_windows_are_full_at_the_recent_end() -> None:
    assert lists(of([1, 2, 3, 4, 5], [6], [7, 8]).windows(2)) == [[1], [2, 3], [4, 5], [6], [7, 8]]


def test_keep_take_and_last() -> None:
    runs = of([1, 2, 3], [], [4, 5])
    assert lists(runs.keep(np.array([True, False, True, False, False]))) == [[1, 3], [], []]
    assert lists(runs.take(np.array([2, 0]))) == [[4, 5], [1, 2, 3]]
    assert lists(runs.last(2)) == [[2, 3], [], [4, 5]]


def test_padding_stands_on_the_right() -> None:
    items, lengths = of([1, 2, 3], [4], [5, 6]).padded(np.array([1, 2]))
    assert items.tolist() == [[4, -1], [5, 6]]
    assert lengths.tolist() == [1, 2]


@settings(max_examples=50)
@given(
    runs=st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=6),
    length=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_windows_and_shuffles_lose_nothing(runs: list[list[int]], length: int, seed: int) -> None:
    sequences = of(*runs)
    shuffled = lists(sequences.shuffled(np.random.default_rng(seed)))
    assert [sorted(run) for run in shuffled] == [sorted(run) for run in runs]
    windows = lists(sequences.windows(length))
    expected = [
        run[max(end - length, 0) : end]
        for run in runs
        for end in range((len(run) - 1) % length + 1, len(run) + 1, length)
        if run
    ]
    assert [window for window in windows if window] == expected
    assert lists(sequences.last(length)) == [run[-length:] for run in runs]


def test_anchor_sequences_end_strictly_before_the_cut() -> None:
    histories = [[5, 6, 7], [8], []]
    assert lists(anchor_sequences(dataset(histories, 9))) == histories
    assert lists(anchor_sequences(dataset(histories, 9, "ms", cut=2))) == [[5, 6], [8], []]
    assert lists(anchor_sequences(dataset(histories, 9, "ms", cut=0))) == [[], [], []]


def test_keep_probability_by_hand() -> None:
    item = np.array([0] * 16 + [1] * 4 + [2], np.int32)
    # Frequencies 16, 4, 1: their median is 4, so only item 0 is above t = 4.
    keep = keep_probability(item, 4, alpha=0.5, quantile=0.5)
    assert keep.tolist() == [0.5, 1.0, 1.0, 1.0]
    assert keep_probability(item, 4, alpha=0.0, quantile=0.5).tolist() == [1.0] * 4
    assert keep_probability(item, 4, alpha=1.0, quantile=0.5)[0] == 0.25


def test_batches_hold_each_row_once_and_like_lengths() -> None:
    lengths = np.array([3, 1, 2, 3, 1, 2, 3])
    parts = batches(lengths, 2, np.random.default_rng(0))
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    assert sorted(sorted(lengths[part].tolist()) for part in parts) == [[1, 1], [2, 2], [3], [3, 3]]
    assert batches(lengths[:0], 2, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("order", "unit", "expected"),
    [
        ("auto", "none", True),
        ("auto", "ms", False),
        ("shuffle", "ms", True),
        ("time", "none", False),
    ],
)
def test_order(order: str, unit: str, expected: bool) -> None:
    assert is_unordered(dataset([[0]], 1, unit), order) is expected  # type: ignore[arg-type]


def test_token_chunks_keep_the_budget_and_every_row() -> None:
    rows, n_tokens = np.array([7, 3, 5, 1, 0]), np.array([2, 2, 3, 9, 1])
    # 2 + 2 rows of 2 fit 8; with the row of 3 they would cost 9. The row of 9 stands alone.
    assert [part.tolist() for part in token_chunks(rows, n_tokens, 8, 9)] == [[7, 3], [5], [1], [0]]
    assert [part.tolist() for part in token_chunks(rows, n_tokens, 99, 2)] == [[7, 3], [5, 1], [0]]
    assert token_chunks(rows[:0], n_tokens[:0], 8, 9) == []


def test_spread_takes_turns_over_clusters_and_keeps_order() -> None:
    cluster = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2], np.int32)
    runs = of([4, 0, 1, 2, 3, 5], [9, 8], [], [0, 4, 6, 7])
    # Turn one: 3 and 5 (the latest of clusters 0 and 1), turn two: 2 and 4, turn three: 1.
    assert lists(runs.spread(3, cluster)) == [[2, 3, 5], [9, 8], [], [0, 4, 7]]
    assert lists(runs.spread(5, cluster))[0] == [4, 1, 2, 3, 5]
    assert lists(runs.spread(9, cluster)) == lists(runs)

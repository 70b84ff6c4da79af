from dataclasses import replace

import numpy as np
import torch

from prerank.artifacts import Features, Interactions
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories, ScoringContext
from prerank.ranking.features import FeatureTable

NAN = np.nan


def test_feature_table_by_hand() -> None:
    features = Features(
        n_rows=3,
        categorical={"b": np.array([1, -1, 0], "i4"), "a": np.array([0, 0, -1], "i4")},
        categories={"a": ("x",), "b": ("y", "z")},
        numeric={"n": np.array([1, 3, NAN], "f4")},
    )
    table = FeatureTable.of(features, TrainConfig(), np.ones(features.n_rows, bool))
    # a has codes 0 (missing) and 1; b has 2 (missing), 3 and 4. The last row is the unknown.
    assert table.codes.tolist() == [[1, 4], [1, 2], [0, 3], [0, 2]]
    assert table.n_codes == 5
    # Mean 2, deviation 1; then the missing flag.
    assert table.numeric.tolist() == [[-1, 0], [1, 0], [0, 1], [0, 1]]


def test_constant_and_empty_columns_stay_finite() -> None:
    features = Features(2, {}, {}, {"c": np.array([5, 5], "f4"), "e": np.array([NAN, NAN], "f4")})
    assert FeatureTable.of(
        features, TrainConfig(), np.ones(features.n_rows, bool)
    ).numeric.tolist() == [
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
    ]


def test_the_unknown_raises_no_flag_that_nobody_taught() -> None:
    some, none = np.array([[1, 1], [NAN, NAN]], "f4"), np.array([[1, 1], [2, 2]], "f4")
    numbers = {"some": some[:, 0], "none": none[:, 0]}
    features = Features(2, numeric=numbers, vectors={"some": some, "none": none})
    table = FeatureTable.of(features, TrainConfig(), np.ones(2, bool))
    assert table.numeric[-1].tolist() == [0, 0, 0, 1]  # columns are sorted: none, some
    assert {name: rows[-1].tolist() for name, rows in table.vectors} == {
        "none": [0, 0, 0],
        "some": [0, 0, 1],
    }


def _ragged(context, user, item, time, length):  # type: ignore[no-untyped-def]
    histories = Histories(context, length, torch.device("cpu"))
    flat, offsets = histories.ragged(
        torch.from_numpy(np.where(user < 0, len(context.users), user).astype(np.int64)),
        torch.from_numpy(context.history_ends(user, time)),
        torch.from_numpy(context.left_out(user, item)),
    )
    return [part.tolist() for part in torch.tensor_split(flat, offsets[1:-1].long())]


def test_histories_equal_the_reference(world, content) -> None:  # type: ignore[no-untyped-def]
    for unit in ("order", "none"):
        data = world(unit)
        context = ScoringContext.of(data, content, TrainConfig())
        rows = data.exposures
        found = _ragged(context, rows.user, rows.item, rows.time, 50)
        liked = data.interactions
        known = list(
            zip(*(getattr(liked, name).tolist() for name in ("user", "item", "time")), strict=True)
        )
        wanted = [
            [i for u, i, t in known if u == user and (i != item if unit == "none" else t < time)]
            for user, item, time in zip(
                rows.user.tolist(), rows.item.tolist(), rows.time.tolist(), strict=True
            )
        ]
        assert found == wanted


def test_a_long_history_keeps_its_latest_items_and_a_set_an_even_spread(  # type: ignore[no-untyped-def]
    world, content
) -> None:
    user, item, time = (np.array([v]) for v in (np.int32(1), np.int32(39), np.int64(40)))
    # User 1 clicked 1, 9, 13, 17, 21, 29 in training (5 and 25 are for validation).
    ordered = ScoringContext.of(world("order"), content, TrainConfig())
    assert _ragged(ordered, user, item, time, 3) == [[17, 21, 29]]
    sets = ScoringContext.of(world("none"), content, TrainConfig())
    assert _ragged(sets, user, item, time, 3) == [[1, 13, 21]]
    # 13 is in the set and leaves its own history; 30 is not and changes nothing.
    assert _ragged(sets, user, np.int32([13]), time, 3) == [[1, 21]]


def test_unknown_users_and_empty_logs_have_no_history(world, content) -> None:  # type: ignore[no-untyped-def]
    data = world()
    user, item, time = np.int32([-1, 0]), np.int32([0, -1]), np.int64([40, 40])
    context = ScoringContext.of(data, content, TrainConfig())
    assert _ragged(context, user, item, time, 2) == [[], [24, 28]]
    nothing = Interactions(np.zeros(0, "i4"), np.zeros(0, "i4"), np.zeros(0, "i8"))
    empty = ScoringContext.of(replace(data, interactions=nothing), content, TrainConfig())
    assert _ragged(empty, user, item, time, 2) == [[], []]

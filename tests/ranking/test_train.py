from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prerank.artifacts import Interactions
from prerank.data.auc import auc
from prerank.errors import ConfigError, DataError, DivergedError
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import Training, train


def weights(ranker: PreRanker) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in ranker.model.state_dict().items()}


@pytest.mark.parametrize("unit", ["order", "none"])
def test_learns_items_never_exposed_from_content(world, content, small, unit: Any) -> None:  # type: ignore[no-untyped-def]
    data = world(unit)
    ranker = train(data, content, None, small.model_copy(update={"epochs": 12}), seed=0)
    assert auc(data.pools.click, ranker.score_pools(data.pools)) > 0.8


def test_without_content_items_never_exposed_stay_unknown(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    config = small.model_copy(update={"epochs": 6, "use_content": False})
    ranker = train(data, content, None, config, seed=0)
    assert auc(data.pools.click, ranker.score_pools(data.pools)) < 0.7


def test_same_seed_same_bytes_other_seed_other_bytes(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    one, two = (train(world(), content, labels(0.2), small, seed=5) for _ in range(2))
    assert weights(one) == weights(two)
    assert weights(train(world(), content, labels(0.2), small, seed=6)) != weights(one)


def test_training_leaves_torch_as_it_was(world, content, small) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    train(world(), content, None, small.model_copy(update={"threads": 2, "epochs": 1}), seed=0)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("model", ["two-tower", "three-tower", "int-tower", "cold", "din"])
def test_bfloat16_learns_what_float32_does(world, content, small, labels, model: Any) -> None:  # type: ignore[no-untyped-def]
    data, config = world(), small.model_copy(update={"model": model, "epochs": 3})
    full, reduced = (
        train(data, content, labels(0.2), config.model_copy(update={"dtype": dtype}), seed=0)
        for dtype in ("float32", "bfloat16")
    )
    assert {str(weight.dtype) for weight in reduced.model.parameters()} == {"torch.float32"}
    for name in ("loss_al", "loss_pl", "auc"):
        assert reduced.history[-1][name] == pytest.approx(full.history[-1][name], abs=0.04)
    scores = [ranker.score_pools(data.pools) for ranker in (full, reduced)]
    assert not np.array_equal(*scores)
    assert np.corrcoef(*scores)[0, 1] > 0.9


def test_weight_zero_equals_exposed_only(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    off = small.model_copy(update={"pseudo_weight": 0.0})
    with_labels = train(world(), content, labels(1.0), off, seed=0)
    assert weights(with_labels) == weights(train(world(), content, None, small, seed=0))


def test_pseudo_labels_move_unexposed_items_their_way(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    data = world()
    low, none, high = (
        train(data, content, given, small, seed=0).score_pools(data.pools).mean()
        for given in (labels(0.01), None, labels(0.99))
    )
    assert low + 0.5 < none < high - 0.5


def test_abstaining_rows_have_no_effect(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    sure = np.resize([1.0, 0.0], 600).astype(np.float32)
    half = labels(0.9, sure)
    half.label[sure == 0] = 0.1
    flipped = replace(half, label=np.where(sure == 0, np.float32(0.7), half.label))
    config = small.model_copy(update={"epochs": 1})
    one, two = (train(world(), content, given, config, seed=0) for given in (half, flipped))
    assert weights(one) == weights(two)
    all_abstain = train(world(), content, labels(0.9, 0.0), config, seed=0)
    assert weights(all_abstain) == weights(train(world(), content, None, config, seed=0))


def test_early_stopping_keeps_the_best_epoch(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    config = small.model_copy(update={"epochs": 30, "patience": 2, "learning_rate": 0.02})
    ranker = train(data, content, None, config, seed=0)
    values = [record["gauc"] for record in ranker.history]
    best = int(np.argmax(values))
    assert len(values) == best + 3
    short = train(data, content, None, config.model_copy(update={"epochs": best + 1}), seed=0)
    assert weights(short) == weights(ranker)


def test_a_pool_can_be_watched_instead(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    config = small.model_copy(update={"validation": "unexposed"})
    ranker = train(data, content, None, config, seed=0)
    best = max(record["auc"] for record in ranker.history)
    assert auc(data.pools.click, ranker.score_pools(data.pools)) == pytest.approx(best)
    with pytest.raises(ConfigError, match="no such validation pool"):
        train(data, content, None, small.model_copy(update={"validation": "uniform"}), seed=0)


def test_nothing_to_validate_runs_all_epochs(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    data.exposures.split[:] = 0
    ranker = train(data, content, None, small, seed=0)
    assert [record["gauc"] for record in ranker.history] == [None, None]


def test_training_that_diverges_is_told(world, content, small) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"learning_rate": 1e38})
    with pytest.raises(DivergedError, match=r"train\.learning_rate"):
        train(world(), content, None, config, seed=0)
    data = world()
    data.exposures.split[:] = 0  # nothing to validate: the weights tell
    with pytest.raises(DivergedError):
        train(data, content, None, config.model_copy(update={"epochs": 1}), seed=0)


def test_the_best_epoch_before_training_diverges_is_kept(  # type: ignore[no-untyped-def]
    world, content, small, monkeypatch
) -> None:
    config = small.model_copy(update={"epochs": 3})
    one = train(world(), content, None, config.model_copy(update={"epochs": 1}), seed=0)
    validate, calls = Training._validate, []

    def breaks(training: Training) -> Any:
        calls.append(1)
        if len(calls) == 2:
            next(training.model.parameters()).data.fill_(float("nan"))
        return validate(training)

    monkeypatch.setattr(Training, "_validate", breaks)
    kept = train(world(), content, None, config, seed=0)
    assert len(kept.history) == 1
    assert weights(kept) == weights(one)


def test_nothing_to_learn_from_is_refused(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    data.exposures.click[:] = -1
    with pytest.raises(DataError, match="nothing to learn from"):
        train(data, content, None, small, seed=0)


def test_pseudo_labels_of_other_data_are_refused(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    foreign = labels(0.5)
    foreign.item[0] = 40
    with pytest.raises(DataError, match="item index out of range"):
        train(world(), content, foreign, small, seed=0)


@pytest.mark.parametrize(
    "off",
    [
        {"use_user_id": False},
        {"use_item_id": False},
        {"use_content": False},
        {"use_history": False},
        {"use_user_id": False, "use_item_id": False},
        {"hidden": (), "id_dropout": 0.0},
        {"dropout": 0.5},
        {"batch_size": 70, "unexposed_ratio": 0.001, "epochs": 1},
    ],
)
def test_every_switch_trains_and_scores(  # type: ignore[no-untyped-def]
    world, content, small, labels, off: dict[str, Any], tmp_path
) -> None:
    data = world()
    ranker = train(data, content, labels(0.1), small.model_copy(update=off), seed=0)
    logits = ranker.score_pools(data.pools)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0
    ranker.save(tmp_path)
    again = PreRanker.load(tmp_path, data, content)
    np.testing.assert_array_equal(again.score_pools(data.pools), logits)


@pytest.mark.parametrize("blind", [{"use_item_id": False}, {"min_id_rows": 25}])
def test_items_of_equal_content_without_an_id_of_their_own_score_alike(  # type: ignore[no-untyped-def]
    world, content, small, labels, blind: dict[str, int]
) -> None:
    data = world("none")
    vectors = content.vectors.copy()
    vectors[33], features = vectors[30], data.catalog.features
    features.categorical["colour"][33] = features.categorical["colour"][30]
    features.numeric["length"][33] = features.numeric["length"][30]
    # 20 pseudo-labeled rows an item: too few for an id of its own.
    given = labels(0.1, np.where(np.arange(600) // 10 < 20, 1.0, 0.0))
    config = small.model_copy(update=blind)
    ranker = train(data, replace(content, vectors=vectors), given, config, seed=0)
    logits = ranker.score(np.arange(4), np.tile([30, 33], (4, 1)))
    np.testing.assert_allclose(logits[:, 0], logits[:, 1], atol=1e-6)
    with_ids = config.model_copy(update={"use_item_id": True, "min_id_rows": 20})
    ranker = train(data, replace(content, vectors=vectors), given, with_ids, seed=0)
    logits = ranker.score(np.arange(4), np.tile([30, 33], (4, 1)))
    assert (np.abs(logits[:, 0] - logits[:, 1]) > 1e-5).all()


def test_no_history_at_all_is_fine(world, content, small) -> None:  # type: ignore[no-untyped-def]
    nothing = Interactions(np.zeros(0, "i4"), np.zeros(0, "i4"), np.zeros(0, "i8"))
    data = replace(world("none"), interactions=nothing)
    assert np.isfinite(train(data, content, None, small, seed=0).score_pools(data.pools)).all()


def test_a_tower_must_read_something(world, content, small) -> None:  # type: ignore[no-untyped-def]
    blind = small.model_copy(update={"use_user_id": False, "use_history": False})
    with pytest.raises(ConfigError, match="user tower has nothing to read"):
        train(world(), content, None, blind, seed=0)


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_rows_on_disk_give_the_same_bytes(
    world, content, small, labels, monkeypatch, chunk
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("prerank.ranking.rows.CHUNK_ROWS", chunk)
    data = world("none")
    data.exposures.click[::7] = -1
    on_disk = small.model_copy(update={"rows_on_disk": True})
    one, two = (train(data, content, labels(0.2), c, seed=0) for c in (small, on_disk))
    assert weights(one) == weights(two)

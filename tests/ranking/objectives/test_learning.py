"""Every objective on the one loop: it learns the tiny world, and what it saves is a plain model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prerank import artifacts as a
from prerank.data.auc import auc
from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.objectives.damcar import Damcar
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import Training, train

EPOCHS = 6
MARGIN = 0.2
# What each objective reads beside the exposed rows.
CASES = {
    "pointwise": {},
    "in-batch": {},
    "ips": {"pairs": "unlabeled"},
    "snips": {"pairs": "unlabeled"},
    "dr": {"pairs": "unlabeled"},
    "distillation": {"teacher": True},
    "transfer": {"teacher": True, "pairs": "taught"},
    "adapted": {"pairs": "unlabeled"},
    "ukd": {"teacher": True, "pairs": "taught"},
    "damcar": {"pairs": "unlabeled"},
}


def settings(case: str) -> dict[str, Any]:
    """Return the keys of [train] behind a case; the batch softmax stands beside clicks alone."""
    return {"in_batch_weight": 1.0} if case == "in-batch" else {"objective": case}


@pytest.fixture
def teacher(world, content, small):  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"model": "din", "epochs": EPOCHS})
    return train(world(), content, None, config, seed=9)


@pytest.fixture
def given(request, labels):  # type: ignore[no-untyped-def]
    """What train takes for each objective: pseudo-labels and teacher."""

    def make(objective: str) -> dict[str, Any]:
        case = CASES[objective]
        teacher = request.getfixturevalue("teacher") if case.get("teacher") else None
        pairs = None
        if case.get("pairs") == "unlabeled":
            pairs = replace(labels(0.0, 0.0), source="unlabeled")
        elif case.get("pairs") == "taught":
            pairs = labels(0.0)
            logit = teacher.score_pairs(pairs.user, pairs.item, pairs.time)
            pairs = replace(pairs, label=(1 / (1 + np.exp(-logit))).astype(np.float32))
        return {"labels": pairs, "teacher": teacher}

    return make


def scored(ranker: PreRanker, data: a.Dataset) -> float:
    return auc(data.pools.click, ranker.score_pools(data.pools))


@pytest.mark.parametrize("objective", CASES)
def test_learns_items_never_exposed(world, content, small, given, objective: Any) -> None:  # type: ignore[no-untyped-def]
    data, inputs = world(), given(objective)
    config = small.model_copy(update={**settings(objective), "epochs": EPOCHS})
    untrained = config.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    gains = []
    for seed in range(3):
        known, fresh = (
            scored(train(data, content, config=c, seed=seed, **inputs), data)
            for c in (config, untrained)
        )
        gains.append(known - fresh)
    assert np.mean(gains) > MARGIN, gains


@pytest.mark.parametrize("objective", CASES)
def test_learns_in_bfloat16(world, content, small, given, objective: Any) -> None:  # type: ignore[no-untyped-def]
    more = {**settings(objective), "epochs": 2, "dtype": "bfloat16"}
    ranker = train(
        world(), content, config=small.model_copy(update=more), seed=0, **given(objective)
    )
    first, *_, last = ranker.history
    assert np.isfinite(last["loss_al"])
    assert objective == "transfer" or last["loss_al"] < first["loss_al"]


@pytest.mark.parametrize("objective", CASES)
def test_what_is_saved_is_the_plain_pre_ranker(  # type: ignore[no-untyped-def]
    world, content, small, given, objective: Any, tmp_path
) -> None:
    """No head, adversary, copy or teacher is served: names and shapes are exposed-only's."""
    data = world()
    config = small.model_copy(update={**settings(objective), "epochs": 1})
    ranker = train(data, content, config=config, seed=0, **given(objective))
    plain = train(data, content, None, small.model_copy(update={"epochs": 1}), 0)
    shapes = [{n: v.shape for n, v in r.model.state_dict().items()} for r in (ranker, plain)]
    assert shapes[0] == shapes[1]
    assert type(ranker.model) is type(plain.model)
    ranker.save(tmp_path)
    again = PreRanker.load(tmp_path, data, content)
    np.testing.assert_array_equal(again.score_pools(data.pools), ranker.score_pools(data.pools))


@pytest.mark.parametrize("model", ["three-tower", "int-tower", "cold"])
def test_every_architecture_takes_every_objective(  # type: ignore[no-untyped-def]
    world, content, small, given, model: Any
) -> None:
    data = world()
    for objective in CASES:
        config = small.model_copy(update={**settings(objective), "model": model, "epochs": 1})
        ranker = train(data, content, config=config, seed=0, **given(objective))
        assert np.isfinite(ranker.score_pools(data.pools)).all(), objective
        record = ranker.history[-1]
        assert all(np.isfinite(record[part]) for part in record if part.startswith("loss"))


def test_large_id_tables_learn_from_the_batch_softmax_too(world, content, small) -> None:  # type: ignore[no-untyped-def]
    """Where only touched rows train, a second look at the step's rows must touch them as well."""

    def after_one_step(weight: float) -> Any:
        changes = {"row_updates": "always", "in_batch_weight": weight}
        config = small.model_copy(update={**changes, "epochs": 1, "batch_size": 9999})
        return train(world(), content, None, config, 0).model.inputs.item_id.embedding.weight

    # The first step of Adam goes by the gradient's sign: without the softmax's, both are alike.
    assert not after_one_step(0.0).equal(after_one_step(20.0))


@pytest.mark.parametrize("objective", ["pointwise", "distillation", "dr"])
def test_the_batch_softmax_stands_beside_any_objective(
    world,  # type: ignore[no-untyped-def]
    content,  # type: ignore[no-untyped-def]
    small,  # type: ignore[no-untyped-def]
    given,  # type: ignore[no-untyped-def]
    objective: Any,
) -> None:
    inputs = given(objective) if CASES[objective] else {"labels": None}

    def first_epoch(weight: float) -> dict[str, Any]:
        changes = {"objective": objective, "in_batch_weight": weight, "epochs": 1}
        changes["batch_size"] = 9999
        ranker = train(world(), content, config=small.model_copy(update=changes), seed=0, **inputs)
        return dict(ranker.history[0])

    without, once, twice = (first_epoch(weight) for weight in (0.0, 1.0, 2.0))
    # One step: the losses are those of the same first weights, and the softmax is added once more.
    added = [found["loss_other"] - without.get("loss_other", 0.0) for found in (once, twice)]
    assert added[0] > 0
    assert added[1] == pytest.approx(2 * added[0], rel=1e-5)
    assert once["loss_al"] == without["loss_al"]


@pytest.mark.parametrize("objective", CASES)
def test_same_seed_same_bytes(world, content, small, given, objective: Any) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={**settings(objective), "epochs": 1})
    inputs = given(objective)
    one, two = (train(world(), content, config=config, seed=4, **inputs) for _ in range(2))
    for first, second in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert first.equal(second)


@pytest.mark.parametrize("objective", [name for name, case in CASES.items() if case])
def test_a_missing_input_is_told(world, content, small, objective: Any) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"objective": objective})
    with pytest.raises(ConfigError, match=f"`{objective}` needs"):
        train(world(), content, None, config, seed=0)


def test_transfer_pretrains_outside_of_selection(world, content, small, given) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"objective": "transfer", "epochs": 2, "pretrain_epochs": 2})
    ranker = train(world(), content, config=config, seed=0, **given("transfer"))
    records = ranker.history
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert [record["loss_pl"] > 0 for record in records] == [True, True, False, False]


def test_the_adversary_hides_the_domain(world, content, small, labels) -> None:  # type: ignore[no-untyped-def]
    """Hidden vectors of both domains lie closer with the adversary than without it."""
    data, pairs = world(), replace(labels(0.0, 0.0), source="unlabeled")
    config = small.model_copy(update={"objective": "adapted", "epochs": EPOCHS, "patience": 0})

    def gap(weight: float) -> float:
        chosen = config.model_copy(update={"adversary_weight": weight})
        ranker = train(data, content, pairs, chosen, seed=0)
        return float(ranker.history[-1]["loss_other"])

    # The discriminator's own loss is higher where the model beneath hides the domain from it.
    assert gap(1.0) > gap(0.0)


@pytest.mark.parametrize("objective", ["adapted", "damcar", "dr"])
def test_pairs_without_labels_give_no_id_an_embedding(  # type: ignore[no-untyped-def]
    world, content, small, labels, objective: Any
) -> None:
    """Items 30-39 have no exposed row: nothing says what an embedding of their own should be."""
    data, pairs = world(), replace(labels(0.0), source="unlabeled")
    config = small.model_copy(update={"objective": objective, "min_id_rows": 1, "epochs": 1})
    own = train(data, content, pairs, config, seed=0).model.inputs.item_id.own
    assert (own[30:40] == len(data.items)).all() and (own[:30] < len(data.items)).any()
    pointwise = config.model_copy(update={"objective": "pointwise"})
    labeled = train(data, content, labels(0.0), pointwise, seed=0).model.inputs.item_id.own
    assert (labeled[30:40] < len(data.items)).any()


@pytest.mark.parametrize(("decay", "weights"), [(0.99, [0.25] * 4), (0.5, [1, 1, 2, 4])])
def test_the_moving_copy_is_a_plain_mean_while_young(  # type: ignore[no-untyped-def]
    world, content, small, labels, decay: float, weights: list[float]
) -> None:
    pairs = replace(labels(0.0), source="unlabeled")
    config = small.model_copy(update={"objective": "damcar", "ema_decay": decay})
    training = Training(world(), content, pairs, config, 0, None)
    damcar, bias = training.objective, training.model.inputs.item_bias
    assert isinstance(damcar, Damcar)
    for value in (0.0, 1.0, 2.0, 3.0):
        with torch.no_grad():
            bias.fill_(value)
            if value == 0:
                damcar.average.inputs.item_bias.fill_(value)
        if value > 0:
            damcar.after_step()
    expected = np.average([0, 1, 2, 3], weights=weights)
    assert damcar.average.inputs.item_bias[0].item() == pytest.approx(expected)


def test_config_of_an_objective_is_checked() -> None:
    with pytest.raises(ConfigError, match="objective"):
        TrainConfig.parse({"objective": "magic"})


@pytest.mark.parametrize("model", ["two-tower", "int-tower", "din"])
def test_the_batch_softmax_skips_a_step_without_a_click(world, content, small, model: Any) -> None:  # type: ignore[no-untyped-def]
    changes = {"model": model, "in_batch_weight": 1.0, "epochs": 1, "batch_size": 2}
    ranker = train(world(), content, None, small.model_copy(update=changes), seed=0)
    assert np.isfinite(ranker.history[0]["loss_other"])

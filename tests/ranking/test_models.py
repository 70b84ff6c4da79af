"""What each model and each kind of field computes, by hand; that all of them learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prerank import artifacts as a
from prerank.data.assemble import OWN_FIELDS
from prerank.data.auc import auc
from prerank.errors import ConfigError
from prerank.ranking.config import TrainConfig
from prerank.ranking.context import Histories, ScoringContext
from prerank.ranking.cross import CrossFields
from prerank.ranking.features import FeatureTable, ListTable, bucketised
from prerank.ranking.inputs import FeatureFields, ListField
from prerank.ranking.model import build_model
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.rows import Draw, Groups, exposed_rows
from prerank.ranking.train import train
from ranking.worlds import (
    N_ITEMS,
    N_USERS,
    make_config,
    make_content,
    make_labels,
    make_world,
    rich_world,
)

MODELS = ("two-tower", "three-tower", "int-tower", "cold")
NAN = np.nan


def weights(ranker: PreRanker) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in ranker.model.state_dict().items()}


def trained(model: str, **more: Any) -> PreRanker:
    config = make_config().model_copy(update={"model": model, **more})
    return train(rich_world(), make_content(), None, config, seed=0)


@pytest.mark.parametrize("model", MODELS)
def test_learns_items_never_exposed(model: str) -> None:
    world = make_world("order")
    config = make_config().model_copy(update={"model": model, "epochs": 12})
    ranker = train(world, make_content(), None, config, seed=0)
    assert auc(world.pools.click, ranker.score_pools(world.pools)) > 0.8


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_bytes(model: str) -> None:
    one, two = (trained(model, sequence_pooling="attention") for _ in range(2))
    assert weights(one) == weights(two)


@pytest.mark.parametrize("model", MODELS)
def test_shared_candidates_score_as_candidates_of_each(model: str) -> None:
    ranker = trained(model)
    with torch.inference_mode():
        users, items = ranker.user_parts([0, 5, -1]), ranker.item_parts()
        shared = ranker.model.combine(users, items)
        copied = tuple(part.expand(3, *part.shape).contiguous() for part in items)
        torch.testing.assert_close(ranker.model.combine(users, copied), shared)


@pytest.mark.parametrize("unit", ["order", "none"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("model", [*MODELS, "din", "cosine"])
def test_users_computed_once_a_state_give_the_same_outputs_and_gradients(
    model: str, pooling: str, unit: a.TimeUnit
) -> None:
    world, content = rich_world(unit), make_content()
    changed = {"model": model, "sequence_pooling": pooling, "id_dropout": 0.0}
    if model == "cosine":
        changed |= {"model": "two-tower", "similarity": "cosine", "temperature": 0.5}
    config = make_config().model_copy(update=changed)
    context = ScoringContext.of(world, content, config)
    rows = exposed_rows(world, context, torch.device("cpu"))
    groups = Groups.of(rows, 8, np.random.default_rng(0))
    draw = Draw(rows, np.random.default_rng(0), torch.device("cpu"), groups)
    _, rows, states, users = draw.take(400)
    assert states is not None
    assert 50 < len(users) < 350
    histories = Histories(context, config.max_history, torch.device("cpu"))
    found = []
    for of, known in ((rows, None), (users, states)):
        torch.manual_seed(0)
        net = build_model(
            config, context, torch.full((N_USERS,), 99), torch.full((N_ITEMS,), 99), 0.3
        )
        history = histories.ragged(of.user, of.end, of.left_out)
        logit_B, hidden_BD = net.outputs(of.user, rows.item, *history, known)
        (logit_B.sigmoid().sum() + hidden_BD.square().mean()).backward()
        grads = {name: weight.grad for name, weight in net.named_parameters()}
        found.append({"logit": logit_B, "hidden": hidden_BD, **grads})
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, atol=2e-5, rtol=1e-4, msg=name)


def test_cross_fields_by_hand() -> None:
    """User 0 watched items 0 and 1; item 0 is red and {p, q}, 1 red and {q}, 2 blue, 3 nothing."""
    lists = a.CodeLists(np.array([0, 2, 3, 4, 4]), np.array([0, 1, 1, 0], np.int32))
    features = a.Features(
        4,
        categorical={"colour": np.array([0, 0, 1, -1], np.int32)},
        categories={"colour": ("red", "blue"), "tag": ("p", "q")},
        lists={"tag": lists},
    )
    empty, one = np.zeros(0, np.int32), np.zeros(1, np.int32)
    everything = np.ones(4, bool)
    context = ScoringContext(
        time_unit="order",
        users=FeatureTable.of(a.Features(1), TrainConfig(), everything[:1]),
        items=FeatureTable.of(features, TrainConfig(), everything),
        content=np.array([[1, 0], [0, 1], [3, 4], [0, 0], [0, 0]], np.float32),
        interactions=a.Interactions(one, one, np.zeros(1, np.int64)),
    )
    cross = CrossFields(context)
    assert cross.names == ("history share of colour", "history share of tag", "content cosine")
    history = torch.tensor([0, 1]).int(), torch.tensor([0, 2, 2]).int()  # user 1: no history
    items = torch.arange(5)
    parts = tuple(part[None] for part in cross.item_parts(items))
    found = cross.combine(cross.user_parts(*history), parts)
    # Red: both of two. Tag p: 1/2, q: 2/2; item 0 has both: 3/4. Mean content (1, 1) / sqrt 2.
    root = 2**-0.5
    wanted = [[1, 0.75, root], [1, 1, root], [0, 0.5, 7 / 5 * root], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(found[0], torch.tensor(wanted))
    assert found[1].abs().max() == 0
    first = torch.tensor([0, 2]).int()  # the pairs of user 0 alone
    for n in range(5):
        pair = cross.pairs(items[n : n + 1], history[0], first)
        torch.testing.assert_close(pair[0], found[0, n])
    without = CrossFields(
        replace(context, interactions=a.Interactions(empty, empty, empty.astype("i8")))
    )
    assert without.names == ()


def test_a_value_named_twice_by_a_sequence_counts_once_in_training_and_in_scoring() -> None:
    """User 0 watched item 0, whose sequence is p, p, q; item 1 is p, item 2 is q, q."""
    codes = np.array([0, 0, 1, 0, 1, 1], np.int32)
    lists = a.CodeLists(np.array([0, 3, 4, 6]), codes, ordered=True)
    features = a.Features(3, categories={"steps": ("p", "q")}, lists={"steps": lists})
    everything, zero = np.ones(3, bool), np.zeros(1, np.int32)
    context = ScoringContext(
        time_unit="order",
        users=FeatureTable.of(a.Features(1), TrainConfig(), everything[:1]),
        items=FeatureTable.of(features, TrainConfig(), everything),
        content=np.zeros((4, 0), np.float32),
        interactions=a.Interactions(zero, zero, np.zeros(1, np.int64)),
    )
    cross, items = CrossFields(context), torch.arange(4)
    history = torch.tensor([0]).int(), torch.tensor([0, 1]).int()
    scored = cross.combine(
        cross.user_parts(*history), tuple(p[None] for p in cross.item_parts(items))
    )
    assert scored[0, :, 0].tolist() == [1, 1, 1, 0]
    for n in range(4):
        torch.testing.assert_close(cross.pairs(items[n : n + 1], *history)[0], scored[0, n])


def test_buckets_are_cut_at_the_quantiles_of_training_rows() -> None:
    values = np.array([1, 2, 3, 4, NAN, 100, -5], np.float32)
    seen = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    codes, n = bucketised(values, seen, 2)  # the median of 1, 2, 3, 4
    assert (codes.tolist(), n) == ([0, 0, 1, 1, -1, 1, 0], 2)
    assert bucketised(np.float32([7, 7, NAN]), seen[:3], 4)[0].tolist() == [1, 1, -1]
    assert bucketised(np.float32([NAN, NAN]), seen[:2], 4)[0].tolist() == [-1, -1]
    assert bucketised(values, np.zeros(7, bool), 2)[0].tolist() == [0, 0, 1, 1, -1, 1, 0]


def test_lists_keep_the_first_of_a_set_and_the_last_of_a_sequence() -> None:
    offsets, codes = np.array([0, 3, 3, 4]), np.array([2, 0, 1, 2], np.int32)
    several = ListTable.of("x", a.CodeLists(offsets, codes), 5, 2)
    assert several.codes.tolist() == [[8, 6], [5, 5], [8, 5], [5, 5]]
    sequence = ListTable.of("x", a.CodeLists(offsets, codes, ordered=True), 5, 2)
    assert sequence.codes.tolist() == [[6, 7], [5, 5], [8, 5], [5, 5]]
    nothing = ListTable.of("x", a.CodeLists(np.zeros(3, np.int64), codes[:0]), 5, 2)
    assert nothing.codes.tolist() == [[5], [5], [5]]


def test_a_list_is_the_mean_of_its_values_and_attention_weighs_them() -> None:
    table = ListTable("x", np.array([[1, 2], [1, 0], [0, 0]], np.int32), 0, ordered=True)
    embedding = torch.nn.Embedding(3, 16)
    missing, one, two = embedding.weight.detach()
    index = torch.arange(3)
    for attention in (False, True):  # attention starts as the mean
        pooled = ListField(table, attention=attention)(index, embedding).detach()
        torch.testing.assert_close(pooled, torch.stack([(one + two) / 2, one, missing]))
    field = ListField(table, attention=True)
    assert field.recency is not None
    field.recency.data[0] = np.log(3)  # the latest value counts three times the one before it
    pooled = field(index, embedding).detach()
    torch.testing.assert_close(pooled, torch.stack([one / 4 + two * 3 / 4, one, missing]))


def test_history_attention_starts_as_the_mean_and_learns() -> None:
    world, content, config = rich_world(), make_content(), make_config()
    rows = torch.full((N_USERS,), 99), torch.full((N_ITEMS,), 99)
    item, offsets = torch.tensor([3, 7, 9]).int(), torch.tensor([0, 2, 2, 3]).int()
    fields = {}
    for pooling in ("mean", "attention"):
        chosen = config.model_copy(update={"sequence_pooling": pooling})
        torch.manual_seed(0)
        context = ScoringContext.of(world, content, chosen)
        inputs = build_model(chosen, context, *rows, click_rate=0.5).eval().inputs
        fields[pooling] = inputs.user(torch.tensor([1, 2, 3]), item, offsets)
    for mean, weighed in zip(fields["mean"], fields["attention"], strict=True):
        torch.testing.assert_close(mean, weighed)
    attention = trained("two-tower", sequence_pooling="attention").model.inputs.attention
    assert attention is not None
    assert attention.recency is not None
    assert attention.recency.abs().max() > 0


@pytest.mark.parametrize("model", MODELS)
def test_values_never_seen_in_training_count_as_nothing(model: str) -> None:
    ranker = trained(model)
    features = ranker.model.inputs.item_features
    names = [lists.name for lists in ranker.context.items.lists]
    rare = ranker.context.items.lists[names.index("genres")].codes[:-1].max()
    assert ranker.context.items.lists[0].codes[39].tolist().count(rare) == 1  # only item 39
    assert features.embedding.weight[rare].abs().max() == 0
    assert features.embedding.weight[rare - 1].abs().max() > 0


@pytest.mark.parametrize("empty", [False, True])
def test_padding_is_no_missing_value(empty: bool) -> None:
    """Only where training has an empty list does `missing` learn anything."""
    sizes = [2, 0 if empty else 1, 1]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    lists = a.CodeLists(offsets, np.zeros(offsets[-1], np.int32))
    features = a.Features(3, categories={"tag": ("p",)}, lists={"tag": lists})
    table = FeatureTable.of(features, TrainConfig(), np.ones(3, bool))
    fields = FeatureFields(table, torch.tensor([1, 1, 0]), TrainConfig())
    missing, value = fields.embedding.weight.detach()
    assert value.abs().max() > 0
    assert bool(missing.abs().max() > 0) == empty


def test_no_feature_may_be_named_as_a_field_of_ours() -> None:
    data = rich_world()
    tables = data.user_features, data.catalog.features
    kinds = ("categorical", "numeric", "lists", "vectors")
    named = {name for table in tables for kind in kinds for name in getattr(table, kind)}
    sides = (name.partition(":") for name in trained("cold").importance)
    fields = {field for side, _, field in sides if side != "cross"}
    assert fields - named == set(OWN_FIELDS)


def test_cold_reports_and_prunes_its_fields(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ranker = trained("cold")
    assert set(ranker.importance) == {
        *(f"user:{n}" for n in ("numbers", "searches", "user id")),
        *(f"user:{n}" for n in ("history ids", "history content")),
        *(f"item:{n}" for n in ("colour", "numbers", "genres", "look", "item id", "content")),
        *(f"cross:history share of {n}" for n in ("colour", "genres")),
        "cross:content cosine",
    }
    assert all(0 < gate < 1 for gate in ranker.importance.values())
    pruned = trained("cold", top_features=4)
    best = sorted(ranker.importance, key=lambda n: -ranker.importance[n])[:4]
    assert set(pruned.importance) == set(best) == set(pruned.config.kept_features)
    assert weights(pruned) == weights(trained("cold", kept_features=tuple(sorted(best))))
    pruned.save(tmp_path)
    again = PreRanker.load(tmp_path, rich_world(), make_content())
    assert again.importance == pruned.importance
    pools = rich_world().pools
    np.testing.assert_array_equal(again.score_pools(pools), pruned.score_pools(pools))


@pytest.mark.parametrize("side", ["user:user id", "item:content", "cross:content cosine"])
def test_cold_may_keep_one_field_of_one_side(side: str) -> None:
    ranker = trained("cold", kept_features=(side,))
    pools = rich_world().pools
    with_all = ranker.score(np.arange(4), np.tile(np.arange(30, 40), (4, 1)))
    assert list(ranker.importance) == [side]
    np.testing.assert_allclose(ranker.score_pools(pools)[:10], with_all[0], atol=1e-5)


def test_cold_without_a_user_field_trains_on_rows_that_share_a_user() -> None:
    config = make_config().model_copy(update={"model": "cold", "kept_features": ("item:content",)})
    ranker = train(make_world("order"), make_content(), make_labels(0.1), config, seed=0)
    assert list(ranker.importance) == ["item:content"]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="a field to keep is not there"):
        trained("cold", kept_features=("user:nothing",))
    with pytest.raises(ConfigError, match="no cross field"):
        trained("three-tower", use_history=False)
    ranker = trained("cold", use_history=False)
    assert not [name for name in ranker.importance if name.startswith("cross")]


def test_a_cosine_stays_within_its_temperature() -> None:
    ranker = trained("two-tower", similarity="cosine", temperature=0.5)
    (user,), (item, _) = ranker.user_parts([0, 1]), ranker.item_parts()
    torch.testing.assert_close(user.norm(dim=1), torch.full((2,), 2.0))
    torch.testing.assert_close(item.norm(dim=1), torch.ones(N_ITEMS + 1))

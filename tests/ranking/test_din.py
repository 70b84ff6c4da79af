"""The ranker: its attention by hand, and the contract of every pre-ranker model."""

import numpy as np
import pytest
import torch

from prerank.data.auc import auc
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train


@pytest.fixture(params=["order", "none"])
def case(request, world, content, small):  # type: ignore[no-untyped-def]
    data = world(request.param)
    return data, content, train(data, content, None, small.model_copy(update={"model": "din"}), 0)


def test_attention_by_hand(case) -> None:  # type: ignore[no-untyped-def]
    model = case[2].model
    with torch.no_grad():
        for layer in (model.of_history, model.of_candidate, model.attention):
            layer.weight.zero_()
        model.of_history.bias.zero_()
        model.attention.bias.zero_()
        model.of_both.weight.zero_()
        model.of_both.weight[0, 0] = 1  # the weight of a step is exp(relu(h_0 v_0))
        model.attention.weight[0, 0] = 1
        dim = model.dim
        history = torch.zeros(2, 3, dim)
        history[0, :, 0] = torch.tensor([0.0, np.log(3.0), 9.0])
        inside = torch.tensor([[True, True, False], [False, False, False]])
        candidate = torch.zeros(2, 1, dim)
        candidate[:, 0, 0] = 1
        interest = model._interest(history, inside, candidate)
    # Weights 1/4 and 3/4; the third step is padding; the second history is empty.
    assert interest[0, 0, 0].item() == pytest.approx(0.75 * np.log(3.0))
    assert interest[1].abs().max().item() == 0


def test_pair_scores_equal_training_outputs_and_do_not_depend_on_company(case) -> None:  # type: ignore[no-untyped-def]
    data, _, ranker = case
    rows = data.exposures
    user, item, time = rows.user[:90], rows.item[:90], rows.time[:90]
    ends, left_out = ranker.context.history_ends(user, time), ranker.context.left_out(user, item)
    ragged = ranker._histories.ragged(
        *(torch.from_numpy(v) for v in (user.astype(np.int64), ends, left_out))
    )
    with torch.inference_mode():
        logits, hidden = ranker.model.outputs(
            torch.from_numpy(user).long(), torch.from_numpy(item).long(), *ragged
        )
        same = ranker.model.combine(ranker.user_parts([3, -1]), ranker.item_parts()).numpy()
    assert hidden.shape == (90, 16)
    np.testing.assert_allclose(ranker.score_pairs(user, item, time), logits.numpy(), atol=1e-5)
    alone = ranker.score([3, -1], np.tile([30, 39], (2, 1)))
    np.testing.assert_allclose(alone, same[:, [30, 39]], atol=1e-5)


def test_blocks_of_candidates_score_alike(case, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    ranker = case[2]
    items = np.tile(np.arange(40), (3, 1))
    whole = ranker.score([0, 1, 2], items)
    monkeypatch.setattr("prerank.ranking.din.BLOCK_FLOATS", 1)
    np.testing.assert_allclose(ranker.score([0, 1, 2], items), whole, atol=1e-5)


def test_saved_and_loaded_score_alike(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data, content, ranker = case
    ranker.save(tmp_path)
    again = PreRanker.load(tmp_path, data, content)
    np.testing.assert_array_equal(ranker.score_pools(data.pools), again.score_pools(data.pools))


def test_learns_items_never_exposed_and_needs_no_history(world, content, small) -> None:  # type: ignore[no-untyped-def]
    config = small.model_copy(update={"model": "din", "epochs": 6})
    data = world()
    found = []
    for seed in range(3):
        ranker = train(data, content, None, config, seed)
        found.append(auc(data.pools.click, ranker.score_pools(data.pools)))
    assert min(found) > 0.75, found
    blind = config.model_copy(update={"use_history": False, "use_content": False, "epochs": 1})
    assert np.isfinite(train(data, content, None, blind, 0).score_pools(data.pools)).all()


def test_blocks_hold_no_more_history_than_is_stated(case, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    data, _, ranker = case
    sizes, combine = [], ranker.model.combine

    def counting(users, items):  # type: ignore[no-untyped-def]
        sizes.append((len(users[0]), users[1].numel()))
        return combine(users, items)

    monkeypatch.setattr(ranker.model, "combine", counting)
    whole = ranker.score_pools(data.pools)
    longest = max(numel // n for n, numel in sizes)
    monkeypatch.setattr("prerank.ranking.pre_ranker.BLOCK_FLOATS", 4 * longest)
    sizes.clear()
    np.testing.assert_allclose(ranker.score_pools(data.pools), whole, atol=1e-5)
    assert len(sizes) > 10 and max(numel for _, numel in sizes) <= 4 * longest

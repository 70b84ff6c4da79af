"""The loss of every baseline against values computed by hand. ODDS_3 is the logit of 3/4."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from torch.nn import functional

from prerank.artifacts import TRAIN, Cuts, Dataset, IntArray, Interactions
from prerank.ranking.objectives.adversary import Discriminator, ramp, reverse_gradient
from prerank.ranking.objectives.base import Part
from prerank.ranking.objectives.damcar import hardest
from prerank.ranking.objectives.distillation import blended_loss
from prerank.ranking.objectives.doubly_robust import dr_losses
from prerank.ranking.objectives.in_batch import corrected_softmax
from prerank.ranking.objectives.ips import ips_loss, snips_loss
from prerank.ranking.objectives.propensity import Recalled, exposure_propensity
from prerank.ranking.objectives.ukd import Ukd, bernoulli_kl, uncertain_loss
from prerank.ranking.rows import Rows

ODDS_3 = log(3)
YES, NO, HALF = -log(3 / 4), -log(1 / 4), log(2)  # cost of a click, of none, and of p = 1/2


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def i(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_batch_softmax_corrects_for_popularity() -> None:
    # Equal logits; q = 1/4 and 3/4: the rare item gets odds 3 against the popular one.
    loss = corrected_softmax(torch.zeros(2, 2), t(1 / 4, 3 / 4).log(), i(0, 1), i(5, 6))
    assert loss.item() == pytest.approx((YES + NO) / 2)


def test_batch_softmax_skips_the_same_item_and_other_clicks_of_the_user() -> None:
    logit = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, ODDS_3], [0.0, 0.0, 0.0]])
    q = torch.zeros(3)
    # Rows 0 and 1 share the item, rows 0 and 2 the user: row 0 has no negative left.
    loss = corrected_softmax(logit, q, i(0, 1, 0), i(5, 5, 6))
    assert loss.item() == pytest.approx((0 + NO + HALF) / 3)
    assert corrected_softmax(torch.zeros(0, 0), t(), i(), i()).item() == 0


def test_ips_and_snips() -> None:
    error, p = t(2.0, 6.0), t(0.5, 1.0)
    # Weighted errors 4 and 6; a fifth of the space is exposed; weights 2 and 1.
    assert ips_loss(error, p, 0.2).item() == pytest.approx(0.2 * 5)
    assert snips_loss(error, p).item() == pytest.approx(10 / 3)


def test_doubly_robust() -> None:
    # A click and none, both predicted at 3/4, imputed at 1/2; the second counts three times.
    logit, click, p = t(ODDS_3, ODDS_3), t(1.0, 0.0), t(0.75, 0.25)
    of_model, of_imputation = dr_losses(logit, click, p, t(0.0, 0.0), t(0.0), t(7.0), 0.25)
    expected = (YES + NO) / 2
    imputed = 0.25 * expected + 0.75 * HALF  # any target costs log 2 at logit 0
    miss = (YES - expected), (NO - expected)
    assert of_model.item() == pytest.approx(imputed + (miss[0] + 3 * miss[1]) / 4)
    assert of_imputation.item() == pytest.approx((miss[0] ** 2 + 3 * miss[1] ** 2) / 4)


def test_doubly_robust_needs_propensities_up_to_a_factor_alone() -> None:
    # A wrong imputation (none clicks, all do); the true mean error of eight pairs is theirs.
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 0.9, 200_000)
    logit = torch.from_numpy(rng.normal(size=len(p)))
    click = torch.from_numpy((rng.random(len(p)) < p).astype(np.float64))  # liked where shown
    truth = functional.binary_cross_entropy_with_logits(logit, click).item()
    shown = torch.from_numpy(rng.random(len(p)) < p)
    wrong = torch.full_like(logit, -3.0)
    for factor in (1.0, 0.1):  # of each request, or of its last stage
        found = dr_losses(
            logit[shown], click[shown], factor * torch.from_numpy(p)[shown], wrong[shown],
            logit[~shown], wrong[~shown], shown.double().mean().item(),
        )[0]  # fmt: skip
        assert found.item() == pytest.approx(truth, rel=0.02)


def test_doubly_robust_moves_each_model_by_its_own_loss_only() -> None:
    names = ("logit", "imputed", "unexposed", "unexposed_imputed")
    leaf = {name: torch.tensor([0.3], requires_grad=True) for name in names}
    losses = dr_losses(
        leaf["logit"], t(1.0), t(0.5), leaf["imputed"],
        leaf["unexposed"], leaf["unexposed_imputed"], 0.5,
    )  # fmt: skip
    moved = [
        {n for n, g in zip(names, torch.autograd.grad(
            loss, list(leaf.values()), allow_unused=True, retain_graph=True), strict=True)
         if g is not None}
        for loss in losses
    ]  # fmt: skip
    assert moved == [{"logit", "unexposed"}, {"imputed"}]


def test_perfect_imputation_makes_propensities_irrelevant() -> None:
    sure = t(60.0)  # imputes the click that came
    found = [
        dr_losses(t(ODDS_3), t(1.0), t(p), sure, t(0.0), t(0.0), 0.5)[0].item() for p in (0.1, 1.0)
    ]
    assert found[0] == pytest.approx(found[1]) == pytest.approx(0.5 * YES + 0.5 * HALF)


def test_blended_target() -> None:
    # A click that the teacher gives 1/2, a quarter its weight: 3/4 YES + 1/4 of (YES + NO) / 2.
    loss = blended_loss(t(ODDS_3), t(1.0), t(0.5), 0.25)
    assert loss.item() == pytest.approx(0.75 * YES + 0.25 * (YES + NO) / 2)


def test_uncertainty() -> None:
    # KL(3/4 || 1/2) = 3/4 log 3/2 + 1/4 log 1/2.
    kl = 3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)
    assert bernoulli_kl(t(ODDS_3, ODDS_3), t(0.0, ODDS_3)).tolist() == pytest.approx([kl, 0])
    loss = uncertain_loss(t(ODDS_3), t(0.0), t(1.0), t(2.0))
    assert loss.item() == pytest.approx(exp(-kl) * (YES + HALF) / 2 + kl)
    assert uncertain_loss(t(0.0), t(0.0), t(1.0), t(0.0)).item() == 0


def test_the_second_head_knows_what_the_first_adds_to_the_hidden_vector() -> None:
    """Item bias and click rate: where the hidden vector says nothing, the heads agree."""
    head, index = torch.nn.Linear(2, 1), torch.arange(2)
    rows = Rows(index, index, index, index.int(), index.float(), index.float())
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.bias.zero_()
    silent = Part(index, rows, t(-2.0, ODDS_3), torch.zeros(2, 2))
    assert Ukd(head).second(silent).tolist() == pytest.approx([-2.0, ODDS_3])
    # Dropout keeps each of two equal entries or none: 0, 1 or 2 times 2.
    loud = Part(index, rows, t(0.0, 0.0), torch.ones(2, 2))
    assert {Ukd(head).second(loud)[0].item() for _ in range(50)} == {0.0, 2.0, 4.0}


def test_gradient_reversal_and_domain_loss() -> None:
    hidden = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (3 * reverse_gradient(hidden, 0.5)).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-1.5, -1.5]]
    judge = Discriminator(2, weight=0.1, steps=8)
    with torch.no_grad():
        judge.layers[2].weight.zero_()
        judge.layers[2].bias.fill_(ODDS_3)  # says exposed with probability 3/4, whatever it sees
    loss = judge.domain_loss(torch.zeros(5, 2), torch.zeros(1, 2))
    assert loss.item() == pytest.approx((YES + NO) / 2)
    assert judge.domain_loss(torch.zeros(5, 2), torch.zeros(0, 2)).item() == 0


def test_the_adversary_comes_in_slowly() -> None:
    assert ramp(0) == 0 and ramp(1) == pytest.approx(1, abs=1e-4)
    assert ramp(log(3) / 10) == pytest.approx(1 / 2)  # 2 / (1 + 1/3) - 1
    judge, moved = Discriminator(2, weight=0.1, steps=2), []
    for _ in range(2):
        hidden = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
        judge.zero_grad()
        judge.domain_loss(hidden[:1], hidden[1:]).backward()
        assert hidden.grad is not None and judge.layers[0].weight.grad is not None
        moved.append((hidden.grad, judge.layers[0].weight.grad))
    (first, learned), (second, still) = moved
    assert (first == 0).all() and (second != 0).any()
    assert learned.equal(
        still
    )  # the weight is the model's; the judge learns in full from the start
    whole = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    shown, beside = judge.layers(whole).squeeze(1)
    loss = (torch.nn.functional.softplus(-shown) + torch.nn.functional.softplus(beside)) / 2
    loss.backward()
    assert whole.grad is not None
    torch.testing.assert_close(second, -0.1 * ramp(1 / 2) * whole.grad)


def test_hardest_rows_are_nearest_to_the_middle() -> None:
    assert sorted(hardest(t(-3.0, 0.9, 1.2, 5.0, 0.0), 1.0, 0.4).tolist()) == [1, 2]
    assert len(hardest(t(1.0, 2.0, 3.0), 0.0, 0.5)) == 2


def recalled(data: Dataset, user: IntArray, item: IntArray, n: int | None = None) -> Recalled:
    rows = data.exposures
    shown = (rows.split == TRAIN) & (rows.time >= (data.cuts.anchors or 0))
    exposed = rows.user[shown], rows.item[shown]
    return Recalled(exposed, (user, item), len(user) if n is None else n)


def test_propensity_is_logged_where_known_and_floored(world) -> None:  # type: ignore[no-untyped-def]
    data = world()
    data.exposures.propensity[:3] = [0.5, 0.001, 1.0]
    rows = np.array([0, 1, 2, 3])
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:60, 30:40])
    found = exposure_propensity(data, rows, recalled(data, user, item), 0.05, seed=0)
    assert found[:3].tolist() == pytest.approx([0.5, 0.05, 1.0])
    # Items 30-39 were never exposed, the others always: fitted near 1 on exposed rows.
    assert 0.9 < found[3] <= 1


def test_fitted_propensity_rises_with_popularity(world) -> None:  # type: ignore[no-untyped-def]
    data = world()
    # Item 1 loses most of its exposures to D_u.
    lost = (data.exposures.item == 1) & (data.exposures.user >= 6)
    data.exposures.split[lost] = 2
    rows = np.flatnonzero((data.exposures.split == 0) & (data.exposures.user == 2))
    user, item = data.exposures.user[lost], data.exposures.item[lost]
    found = exposure_propensity(data, rows, recalled(data, user, item), 0.01, seed=0)
    items = data.exposures.item[rows]
    assert found[items == 1].max() < 0.7 < 0.9 < found[items == 2].min()


def test_the_propensity_of_a_fair_coin_is_the_coin(world) -> None:  # type: ignore[no-untyped-def]
    """A row's own exposure is no feature of it, and what is before the anchor cut no D_e."""
    data = world()
    n_users, n_items = len(data.users), len(data.items)
    stream = np.random.default_rng(5)
    user, item = (grid.ravel().astype(np.int32) for grid in np.mgrid[:n_users, :n_items])
    shown = stream.random(len(user)) < 0.1
    n = int(shown.sum())
    of = data.exposures.take(np.zeros(2 * n, np.int64))
    # As many rows again from before the cut, when no candidates were kept.
    rows = replace(
        of,
        user=np.concatenate([user[shown], stream.integers(0, n_users, n, np.int32)]),
        item=np.concatenate([item[shown], stream.integers(0, n_items, n, np.int32)]),
        time=np.repeat(np.array([20, 5]), n),
        click=np.zeros(2 * n, np.int8),
        split=np.zeros(2 * n, np.int8),
        propensity=np.full(2 * n, np.nan, np.float32),
    )
    # A third of them are clicked, and so interactions: those are the row's own as well.
    liked = Interactions(user[shown][::3], item[shown][::3], np.full(-(-n // 3), 20))
    data = replace(
        data,
        exposures=rows,
        interactions=liked,
        pools=data.pools.take(np.zeros(0, np.int64)),
        cuts=Cuts(anchors=10, validation=30, test=40),
    )
    beside = np.flatnonzero(~shown)
    for kept in (beside, beside[::4]):  # a sample of D_u stands for all of it
        pairs = recalled(data, user[kept], item[kept], len(beside))
        found = exposure_propensity(data, np.arange(n), pairs, 0.01, seed=0)
        assert np.median(found) == pytest.approx(0.1, abs=0.02)
        assert np.quantile(found, [0.01, 0.99]) == pytest.approx([0.1, 0.1], abs=0.07)
        assert pairs.exposed_share == pytest.approx(shown.mean())


def test_what_is_recalled_is_what_the_labels_say(world, labels) -> None:  # type: ignore[no-untyped-def]
    data, pairs = world(), labels(0.2)
    shown = (data.exposures.split == TRAIN) & (data.exposures.click >= 0)
    whole = Recalled.of(data, replace(pairs, fit={"beside": "training", "n_unexposed": 5000}))
    assert len(whole.exposed[0]) == shown.sum() and whole.n_unexposed == 5000
    assert whole.exposed_share == pytest.approx(shown.sum() / (shown.sum() + 5000))
    assert Recalled.of(data, replace(pairs, fit={})).n_unexposed == len(pairs)

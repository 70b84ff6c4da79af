from math import log

import pytest
import torch

from prerank.ranking.losses import actual_loss, pseudo_loss

ODDS_3 = log(3)  # the logit of probability 3/4


def test_actual_loss_by_hand() -> None:
    # p = 3/4: a click costs -log 3/4, no click -log 1/4.
    loss = actual_loss(torch.tensor([ODDS_3, ODDS_3]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(-(log(3 / 4) + log(1 / 4)) / 2)


def test_pseudo_loss_by_hand() -> None:
    # Label 1/2 at p = 3/4 costs the mean of both; label 1 at p = 1/2 costs log 2; weights 1 and 3.
    logit, label = torch.tensor([ODDS_3, 0.0]), torch.tensor([0.5, 1.0])
    loss = pseudo_loss(logit, label, torch.tensor([1.0, 3.0]))
    half = -(log(3 / 4) + log(1 / 4)) / 2
    assert loss.item() == pytest.approx((1 * half + 3 * log(2)) / 4)


def test_pseudo_loss_does_not_know_the_scale_of_confidence() -> None:
    logit, label, weight = torch.randn(9), torch.rand(9), torch.rand(9)
    scaled = pseudo_loss(logit, label, 7 * weight)
    torch.testing.assert_close(pseudo_loss(logit, label, weight), scaled)


def test_abstaining_rows_cost_nothing() -> None:
    logit = torch.tensor([0.0, 5.0], requires_grad=True)
    pseudo_loss(logit, torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])).backward()
    assert logit.grad is not None
    assert logit.grad.tolist() == [-0.5, 0.0]  # sigmoid(0) - 1, and nothing
    assert pseudo_loss(logit, torch.zeros(2), torch.zeros(2)).item() == 0

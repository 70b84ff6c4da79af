from math import log

import numpy as np
import pytest

from prerank.ranking.validation import MIN_USERS, ValidationRows, quality, selection


def rows(n_users: int) -> ValidationRows:
    """Two rows a user: item 0 clicked, item 1 not."""
    user = np.repeat(np.arange(n_users, dtype=np.int32), 2)
    item = np.tile(np.int32([0, 1]), n_users)
    return ValidationRows(user, item, np.zeros(2 * n_users, np.int64), (1 - item).astype(np.int8))


def test_gauc_does_not_compare_users_but_auc_does() -> None:
    few = rows(MIN_USERS)
    logit = (few.user * 2 - few.item).astype(np.float32)  # right within each user
    found = quality(few, logit)
    assert found["gauc"] == 1.0
    assert found["auc"] is not None and 0.5 < found["auc"] < 0.6
    assert selection(found) == 1.0


def test_few_users_fall_back_to_auc_and_one_class_to_nothing() -> None:
    few = rows(2)
    found = quality(few, np.float32([1, 0, 1, 0]))
    assert (found["gauc"], found["auc"], selection(found)) == (None, 1.0, 1.0)
    clicked = ValidationRows(*(values[:1] for values in (few.user, few.item, few.time, few.click)))
    assert selection(quality(clicked, np.float32([0]))) is None


def test_log_loss_by_hand() -> None:
    # p = 3/4 on both: -log 3/4 for the click, -log 1/4 for the other.
    found = quality(rows(1), np.float32([log(3), log(3)]))
    assert found["log_loss"] == pytest.approx(-(log(3 / 4) + log(1 / 4)) / 2)

import numpy as np
import torch

from prerank.ranking.config import TrainConfig
from prerank.ranking.context import ScoringContext
from prerank.ranking.rows import Draw, Groups, Rows, exposed_rows, pseudo_rows

CPU = torch.device("cpu")


def numbered(n_rows: int) -> Rows:
    """Return rows whose user is their number."""
    number, nothing = torch.arange(n_rows), torch.zeros(n_rows)
    return Rows(number, 10 * number, number, number.int(), nothing, nothing)


def test_draw_gives_each_row_once_a_pass() -> None:
    draw = Draw(numbered(5), np.random.default_rng(0), CPU)
    taken = torch.cat([draw.take(3)[0] for _ in range(5)]).tolist()
    passes = [sorted(taken[start : start + 5]) for start in (0, 5, 10)]
    assert passes == [[0, 1, 2, 3, 4]] * 3


def test_draw_does_not_depend_on_the_size_of_its_sips_or_blocks(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    one = Draw(numbered(7), np.random.default_rng(3), CPU).take(20)[0]
    monkeypatch.setattr("prerank.ranking.rows.BLOCK_ROWS", 3)
    two = Draw(numbered(7), np.random.default_rng(3), CPU)
    assert one.tolist() == torch.cat([two.take(5)[0] for _ in range(4)]).tolist()


def test_a_draw_goes_on_from_its_state() -> None:
    one, two = (Draw(numbered(7), np.random.default_rng(3), CPU) for _ in range(2))
    for count in (2, 2, 3, 4):
        one.take(count)
    two.restore(*one.state())
    for count in (5, 9, 1):
        assert two.take(count)[0].tolist() == one.take(count)[0].tolist()
        assert two.take(count)[1].user.tolist() == one.take(count)[1].user.tolist()


def test_drawn_rows_are_those_of_their_numbers() -> None:
    draw = Draw(numbered(7), np.random.default_rng(3), CPU)
    for count in (3, 9, 1):
        index, rows, *_ = draw.take(count)
        assert len(rows) == count
        assert rows.user.tolist() == index.tolist()
        assert rows.item.tolist() == (10 * index).tolist()


def drawn_in_groups(rows: Rows, most: int, seed: int = 3) -> Draw:
    groups = Groups.of(rows, most, np.random.default_rng(seed))
    return Draw(rows, np.random.default_rng(seed), CPU, groups)


def in_company(n_users: int, n_rows: int, time: int = 1) -> Rows:
    """Return rows of users in turns, each user's histories ending at ``time`` places in turns."""
    number, nothing = torch.arange(n_users * n_rows), torch.zeros(n_users * n_rows)
    user = number % n_users
    end = 100 * user + number // n_users % time
    return Rows(user, number, end, torch.full_like(number, -1).int(), nothing, nothing)


def test_rows_of_one_user_and_history_are_drawn_together() -> None:
    rows = in_company(n_users=6, n_rows=20, time=2)
    draw = drawn_in_groups(rows, 4)
    passes = [draw.take(120) for _ in range(2)]
    for number, drawn, states, users in passes:
        assert sorted(number.tolist()) == list(range(120))
        assert drawn.item.tolist() == number.tolist()
        assert states is not None
        assert users.user.index_select(0, states.of_row).tolist() == drawn.user.tolist()
        assert users.end.index_select(0, states.of_row).tolist() == drawn.end.tolist()
        assert states.offsets[-1] == 120
        # 12 pairs of user and history have 10 rows each: groups of 4, 4 and 2; neighbours may be
        # of one pair and then share a state.
        sizes = states.offsets.diff()
        assert len(sizes) <= 36
        assert (sizes % 2 == 0).all()
        assert torch.equal(states.of_row, torch.repeat_interleave(torch.arange(len(sizes)), sizes))
    assert passes[0].number.tolist() != passes[1].number.tolist()


def test_a_step_has_states_of_its_own() -> None:
    draw = drawn_in_groups(in_company(3, 40), 8)
    seen = []
    for count in (7, 7, 7, 30, 5):
        number, rows, states, users = draw.take(count)
        assert states is not None
        assert len(states.of_row) == states.offsets[-1] == len(number) == count
        assert states.of_row[0] == 0
        assert users.user.index_select(0, states.of_row).tolist() == rows.user.tolist()
        assert len(users) == len(states.offsets) - 1
        seen += number.tolist()
    assert len(set(seen)) == len(seen) == 56


def test_rows_that_leave_out_the_same_item_follow_each_other() -> None:
    rows = in_company(4, 50)
    left_out = torch.where(rows.item % 5 == 0, rows.item, -1).int()
    rows = Rows(rows.user, rows.item, rows.end, left_out, rows.target, rows.weight)
    draw = drawn_in_groups(rows, 8)
    _, drawn, states, users = draw.take(200)
    assert states is not None
    assert users.left_out.index_select(0, states.of_row).tolist() == drawn.left_out.tolist()
    # 40 rows leave out their own item; the others share a state in each of the 28 groups.
    assert len(users) <= 40 + 28


def test_rows_without_company_are_drawn_by_themselves() -> None:
    alone = drawn_in_groups(numbered(50), 8).take(50)
    assert alone.states is None
    beside = drawn_in_groups(in_company(2, 10), 8).take(20)
    both = alone.followed(beside)
    assert both.states is not None
    assert both.users.user.index_select(0, both.states.of_row).tolist() == both.rows.user.tolist()
    assert both.states.offsets[-1] == 70
    assert alone.followed(alone).states is None


def test_a_group_may_be_larger_than_a_block(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("prerank.ranking.rows.BLOCK_ROWS", 4)
    draw = drawn_in_groups(in_company(2, 30), 1000)
    assert len(draw.take(60).users) == 2
    assert Groups.of(in_company(2, 30), 1, np.random.default_rng(0)) is None
    assert Groups.of(in_company(2, 30).first(0), 8, np.random.default_rng(0)) is None


def test_a_draw_in_groups_goes_on_from_its_state(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("prerank.ranking.rows.BLOCK_ROWS", 16)
    one, two = (drawn_in_groups(in_company(5, 9), 4) for _ in range(2))
    for count in (2, 2, 3, 44):
        one.take(count)
    two.restore(*one.state())
    for count in (5, 50, 1):
        assert two.take(count).number.tolist() == one.take(count).number.tolist()


def test_exposed_rows_are_training_rows_with_known_clicks(world, content) -> None:  # type: ignore[no-untyped-def]
    data = world()
    data.exposures.click[1] = -1
    context = ScoringContext.of(data, content, TrainConfig())
    rows = exposed_rows(data, context, CPU)
    keep = (data.exposures.split == 0) & (data.exposures.click >= 0)
    assert len(rows) == keep.sum() == 60 * 24 - 1
    assert rows.target.tolist() == data.exposures.click[keep].tolist()
    assert set(rows.weight.tolist()) == {1.0}


def test_abstaining_pseudo_labels_are_left_out(world, content, labels) -> None:  # type: ignore[no-untyped-def]
    context = ScoringContext.of(world(), content, TrainConfig())
    confidence = np.resize([0.0, 2.0], 600)
    rows = pseudo_rows(labels(0.25, confidence), context, CPU)
    assert len(rows) == 300
    assert set(rows.weight.tolist()) == {2.0}
    assert set(rows.target.tolist()) == {0.25}

"""The closed loop: luck shared by arms, no future in anchors, kills that cost nothing."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from prerank.artifacts import TRAIN, VALIDATION, Dataset, InterestAnchors
from prerank.data.world_cascade import EXPOSED
from prerank.data.world_model import DAY_MS, START_MS
from prerank.ranking.pre_ranker import PreRanker
from prerank.recipe import MethodConfig
from prerank.simulation.loop import Life, Replication, load_life, save_life
from prerank.simulation.measures import rates
from prerank.simulation.shops import INTEREST, LEARNABLE, ORACLE, PRODUCTION
from prerank.simulation.simulate import live, with_arms

from .small import small_recipe


@pytest.fixture(scope="module")
def replication(tmp_path_factory: pytest.TempPathFactory) -> Replication:
    folder = tmp_path_factory.mktemp("loop")
    return Replication(small_recipe(folder), None, 0, folder / "work")


def after(replication: Replication, arm: str, n_days: int = 2) -> Life:
    life = replication.begin()
    for _ in range(n_days):
        life = replication.live_a_day(life, replication.prerank_of(arm, life))
    return life


def test_the_log_holds_the_window(replication: Replication) -> None:
    life = after(replication, PRODUCTION)
    assert np.unique((life.log.time - START_MS) // DAY_MS).tolist() == [10, 11]
    exposed = life.log.stage == EXPOSED
    per_page = np.bincount(np.unique(life.log.request[exposed], return_inverse=True)[1])
    assert (per_page == 5).all()  # all exposures are kept
    # 40 of the 55 unexposed candidates of a full recall are kept; a small shop fills it not quite.
    pages = len(np.unique(life.log.request))
    assert 0.7 * 40 < (~exposed).sum() / pages < 40


def test_held_out_requests_are_whole_and_few(replication: Replication) -> None:
    log = replication._dataset(replication.begin()).exposures
    held, trained = (set(log.request[log.split == s]) for s in (VALIDATION, TRAIN))
    assert not held & trained
    assert 0.03 < len(held) / (len(held) + len(trained)) < 0.2


def test_anchors_never_see_their_window(replication: Replication) -> None:
    config = replication.config
    for day in range(replication.first_arm_day, replication.last_day + 20):
        cut = replication._anchor_day(day)
        assert replication.market.first_day <= cut
        begins = max(day - config.window, replication.market.first_day)
        assert begins - config.anchors_every < cut <= begins


def test_a_method_reads_the_first_anchors_of_each_source(replication: Replication) -> None:
    life = replication.begin()
    data = replication._dataset(life)
    read = [
        replication._anchors_read(MethodConfig(anchors="llm+history", n_anchors=n), life, data)
        for n in (0, 2)
    ]
    for anchors, most in zip(read, (6, 2), strict=True):
        user, spoken = anchors.users(), anchors.logprob < 0
        for of_source in (spoken, ~spoken):
            assert np.bincount(user[of_source]).max() == most
    whole = replication._decoded("llm", life, data).first(2)
    of_llm = read[1].only(read[1].logprob < 0)
    np.testing.assert_array_equal(of_llm.vectors_of(slice(None)), whole.vectors_of(slice(None)))


def test_the_anchors_of_an_arm_are_not_those_of_another_number(tmp_path: Path) -> None:
    few, many = ({"anchors": "random"}, {"anchors": "random", "n_anchors": 20})
    found = []
    for methods in ({"few": few}, {"few": few, "many": many}):
        replication = Replication(small_recipe(tmp_path, methods=methods), None, 0, tmp_path / "w")
        life = replication.begin()
        data, arm = replication._dataset(life), replication.recipe.methods["few"]
        found.append(replication._anchors_read(arm, life, data).point)
    np.testing.assert_array_equal(*found)


def test_mornings_with_the_same_histories_share_their_anchors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, simulate={"anchors_every": 2, "n_days": 4})
    replication = Replication(recipe, None, 0, tmp_path / "work")
    made: list[int] = []
    decode = replication._decode

    def counted(name: str, cut: int, data: Dataset) -> InterestAnchors:
        made.append(cut)
        return decode(name, cut, data)

    monkeypatch.setattr(replication, "_decode", counted)
    cuts = []
    for arm in ("gpl-history", ORACLE):  # two lives that part
        life = replication.begin()
        for _ in range(4):
            data = replication._dataset(life)
            cuts.append(replication._anchor_day(life.day))
            fresh = decode("llm", cuts[-1], data)
            np.testing.assert_array_equal(
                replication._decoded("llm", life, data).point, fresh.point
            )
            life = replication.live_a_day(life, replication.prerank_of(arm, life))
    parted = replication.first_arm_day
    shared = {cut for cut in cuts if cut <= parted}
    assert sorted(made) == sorted([*shared, *[cut for cut in set(cuts) - shared for _ in range(2)]])
    assert len(made) < len(cuts)


def test_arms_share_the_first_mornings_teacher_and_no_other(tmp_path: Path) -> None:
    distil = {"teacher": "ranker", "label": {"source": "teacher", "teacher_rule": "soft"}}
    methods = {
        "kd": distil,
        "kd-light": {**distil, "train": {"pseudo_weight": 0.1}},
        "kd-shallow": {**distil, "teach": {"hidden": [4]}},
        # Trained with the same settings, but on unexposed pairs as well.
        "adapted": {**distil, "teacher": "adapted", "teach": {"objective": "pointwise"}},
    }
    recipe = small_recipe(tmp_path, methods=methods, teacher={"hidden": [8], "epochs": 1})
    first, alone = (Replication(recipe, None, 0, tmp_path / "work") for _ in range(2))

    def teachers(life: Life) -> list[PreRanker]:
        data, seed = first._dataset(life), first.seed("day", life.day)
        return [first._teacher(life, data, arm, seed) for arm in recipe.methods.values()]

    found = teachers(first.begin())
    assert found[0] is found[1] and len({id(teacher) for teacher in found}) == 3
    assert after(first, "kd-light").days == after(alone, "kd-light").days
    later = first.live_a_day(first.begin(), first.prerank_of(PRODUCTION, first.begin()))
    assert len({id(teacher) for teacher in [*found, *teachers(later)]}) == 7


def test_arms_meet_the_same_visits(replication: Replication) -> None:
    a, b = after(replication, PRODUCTION, 1), after(replication, ORACLE, 1)
    first_pages = [np.unique(life.log.request[life.log.request < 1 << 40]) for life in (a, b)]
    np.testing.assert_array_equal(*first_pages)
    assert a.days[0]["clicks"] != b.days[0]["clicks"]


def test_an_arm_lives_twice_the_same(replication: Replication) -> None:
    assert after(replication, "gpl").days == after(replication, "gpl").days


def test_truth_as_pre_ranker_is_clicked_more(replication: Replication) -> None:
    found = {}
    for arm in (PRODUCTION, INTEREST, LEARNABLE, ORACLE):
        life = after(replication, arm)
        found[arm] = rates(life.days, replication.finish(life))["expected_ctr"]
    assert found[ORACLE] > 1.15 * found[PRODUCTION]
    assert found[PRODUCTION] < found[INTEREST] < found[ORACLE]
    assert found[PRODUCTION] < found[LEARNABLE] < found[ORACLE]


def test_new_items_appear_while_arms_serve(replication: Replication) -> None:
    life = after(replication, PRODUCTION)
    whole = replication.finish(life)
    n_items = replication.market.shop.n_items
    assert 0 < whole["new"] < 0.4 * n_items
    assert 0.6 * n_items < whole["released"] <= n_items


def test_a_life_survives_the_disk(replication: Replication, tmp_path: Path) -> None:
    life = after(replication, PRODUCTION, 1)
    save_life(tmp_path / "life.safetensors", life)
    back = load_life(tmp_path / "life.safetensors")
    assert back is not None and back.day == life.day and back.days == life.days
    for part in ("memory", "past", "log"):
        mine, theirs = getattr(life, part), getattr(back, part)
        for column in fields(mine):
            np.testing.assert_array_equal(getattr(mine, column.name), getattr(theirs, column.name))
    assert load_life(tmp_path / "nothing") is None
    whole = (tmp_path / "life.safetensors").read_bytes()
    (tmp_path / "life.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert load_life(tmp_path / "life.safetensors") is None


def test_a_killed_arm_goes_on_with_the_same_counts(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "a", methods={"exposed-only": {"label": {"source": "none"}}})
    arms = ("exposed-only",)
    whole = live(recipe, None, arms, 0, {})
    # The same arm, killed after its first day: its state lies where the next run looks.
    again = small_recipe(tmp_path / "b", methods={"exposed-only": {"label": {"source": "none"}}})
    replication = Replication(again, None, 0, tmp_path / "b" / "work")
    life = replication.begin()
    life = replication.live_a_day(life, replication.prerank_of("exposed-only", life))
    (file,) = (tmp_path / "a").rglob("exposed-only-*/r0000.json")
    state = tmp_path / "b" / file.relative_to(tmp_path / "a").with_suffix(".safetensors")
    state.parent.mkdir(parents=True)
    # A count that no served day would give shows that the first day was not served again.
    save_life(state, replace(life, days=({**life.days[0], "visits": -1.0},)))
    resumed = live(again, None, arms, 0, {})["exposed-only"]["days"]
    assert resumed[0]["visits"] == -1.0
    assert resumed[1] == whole["exposed-only"]["days"][1]
    # Counts that a power cut left empty are made again.
    file.write_text("")
    assert live(recipe, None, arms, 0, {}) == whole


@pytest.mark.parametrize("name", ["kd-all", "sida", "dr"])
def test_baselines_live_a_day(tmp_path: Path, name: str) -> None:
    teacher = {"model": "din", "hidden": [8], "epochs": 1}
    recipe = small_recipe(tmp_path, simulate={"arms": [name]}, teacher=teacher)
    chosen, arms = with_arms(recipe)
    replication = Replication(chosen, None, 0, tmp_path / "work")
    assert arms[1] == name
    day = after(replication, name, 1).days[0]
    assert day["visits"] == 80 and day["exposures"] == 5 * day["pages"]

"""The contract of every pre-ranker: what its scores may depend on, saving, loading."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prerank.devices import resolve_device
from prerank.errors import ArtifactError, ConfigError, DataError
from prerank.ranking.pre_ranker import PreRanker
from prerank.ranking.train import train
from prerank.vocabulary import Vocabulary
from ranking.worlds import make_config, make_content, make_world, rich_world

TOLERANCE = {"rtol": 0, "atol": 1e-5}


MODELS = ("two-tower", "three-tower", "int-tower", "cold")
CASES = [("order", "two-tower", {}), *(("none", model, {}) for model in MODELS)]
RICH = {"sequence_pooling": "attention", "numeric": "buckets"}
CASES += [("rich", model, {}) for model in MODELS]
CASES += [("rich", model, RICH) for model in MODELS]
CASES += [("rich", "two-tower", {"similarity": "cosine"})]


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: "-".join(map(str, (*case[:2], *case[2].values()))),
)
def case(request):  # type: ignore[no-untyped-def]
    """A trained pre-ranker of each kind, over bare and over rich features."""
    unit, model, more = request.param
    data = rich_world() if unit == "rich" else make_world(unit)
    content = make_content()
    config = make_config().model_copy(update={"model": model, **more})
    return data, content, train(data, content, None, config, seed=0)


def test_order_and_company_of_candidates_do_not_matter(case) -> None:  # type: ignore[no-untyped-def]
    _, _, ranker = case
    users, items = np.arange(5), np.arange(40) + np.zeros((5, 1), int)
    logits = ranker.score(users, items)
    assert logits.shape == (5, 40)
    assert logits.dtype == np.float32
    shuffle = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(
        ranker.score(users, items[:, shuffle]), logits[:, shuffle], **TOLERANCE
    )
    for b in range(5):
        alone = [ranker.score([b], [[i]])[0, 0] for i in (0, 13, 39)]
        np.testing.assert_allclose(alone, logits[b, [0, 13, 39]], **TOLERANCE)


def test_score_pools_equals_score(case) -> None:  # type: ignore[no-untyped-def]
    data, _, ranker = case
    pools = data.pools.take(np.arange(50))
    alone = [
        ranker.score([u], [[i]], [t])[0, 0]
        for u, i, t in zip(pools.user, pools.item, pools.time, strict=True)
    ]
    np.testing.assert_allclose(ranker.score_pools(pools), alone, **TOLERANCE)


def test_few_items_score_as_all_do(case) -> None:  # type: ignore[no-untyped-def]
    data, _, ranker = case
    pools = data.pools.take(np.arange(0, len(data.pools), 3))
    rows = pools.user, pools.item, pools.time
    np.testing.assert_allclose(ranker.score_few(*rows), ranker.score_pairs(*rows), **TOLERANCE)
    unknown = np.array([-1], np.int32)
    want = ranker.score_pairs(unknown, unknown, None)
    np.testing.assert_allclose(ranker.score_few(unknown, unknown, None), want, **TOLERANCE)
    assert not len(ranker.score_few(*(of[:0] for of in rows)))


def test_training_forward_equals_scoring(case) -> None:  # type: ignore[no-untyped-def]
    data, _, ranker = case
    rows = data.exposures
    user, item, time = rows.user[:70], rows.item[:70], rows.time[:70]
    ends, left_out = ranker.context.history_ends(user, time), ranker.context.left_out(user, item)
    ragged = ranker._histories.ragged(
        *(torch.from_numpy(v) for v in (user.astype(np.int64), ends, left_out))
    )
    pair = (torch.from_numpy(user).long(), torch.from_numpy(item).long())
    with torch.inference_mode():
        logits = ranker.model(*pair, *ragged).numpy()
    np.testing.assert_allclose(ranker.score_pairs(user, item, time), logits, **TOLERANCE)


def test_parts_give_the_logit(case) -> None:  # type: ignore[no-untyped-def]
    _, _, ranker = case
    users, items = ranker.user_parts([3, -1]), ranker.item_parts()
    with torch.inference_mode():
        logits = ranker.model.combine(users, items).numpy()
    assert logits.shape == (2, 41)
    # Items 30-39 stand in no history, so nothing is left out of it.
    fresh = np.arange(30, 40) + np.zeros((2, 1), int)
    np.testing.assert_allclose(ranker.score([3, -1], fresh), logits[:, 30:40], **TOLERANCE)
    np.testing.assert_allclose(ranker.score([3], [[-1]])[0, 0], logits[0, 40], **TOLERANCE)


def test_unknown_users_and_items_score_finitely(case) -> None:  # type: ignore[no-untyped-def]
    _, _, ranker = case
    assert np.isfinite(ranker.score([-1, 0], [[-1, 0], [-1, 39]])).all()


def test_indices_out_of_range_are_refused(case) -> None:  # type: ignore[no-untyped-def]
    _, _, ranker = case
    with pytest.raises(DataError, match="item index out of range"):
        ranker.score([0], [[40]])
    with pytest.raises(DataError, match="item index out of range"):
        ranker.score([0], np.array([[2**32 + 1]]))
    with pytest.raises(DataError, match="user index out of range"):
        ranker.user_parts([-2])
    with pytest.raises(DataError, match="user indices are no whole numbers"):
        ranker.score([0.9], [[1]])
    with pytest.raises(DataError, match="one moment a row"):
        ranker.score([0, 1], [[1], [2]], [5])
    with pytest.raises(DataError, match="one user and one item"):
        ranker.score_pairs(np.array([0, 1]), np.array([1]), None)
    with pytest.raises(DataError, match="one row of candidates"):
        ranker.score([0], [1, 2])


def test_the_future_of_a_history_does_not_matter(world, content, small) -> None:  # type: ignore[no-untyped-def]
    data = world()
    ranker = train(data, content, None, small, seed=0)
    early, late = ranker.score([1], [[39]], [20]), ranker.score([1], [[39]], [40])
    inter = data.interactions
    keep = inter.time < 20
    past = replace(inter, **{name: values[keep] for name, values in inter.columns().items()})
    context = replace(ranker.context, interactions=past)
    without = PreRanker(ranker.model, context, ranker.config, ranker.schema)
    np.testing.assert_array_equal(without.score([1], [[39]], [40]), early)
    assert early != late


def test_saved_and_loaded_score_alike_and_hold_no_pickle(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data, content, ranker = case
    ranker.save(tmp_path / "ranker")
    again = PreRanker.load(tmp_path / "ranker", data, content)
    np.testing.assert_array_equal(ranker.score_pools(data.pools), again.score_pools(data.pools))
    assert again.config == ranker.config
    assert again.history == ranker.history
    names = {path.name for path in (tmp_path / "ranker").iterdir()}
    assert names == {"weights.safetensors", "pre_ranker.json"}


def test_history_is_strict_json_with_every_measure(case, tmp_path) -> None:  # type: ignore[no-untyped-def]
    case[2].save(tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    about = json.loads((tmp_path / "pre_ranker.json").read_text(), parse_constant=refuse)
    names = {"epoch", "loss_al", "loss_pl", "rows_per_second", "gauc", "auc", "log_loss"}
    assert set(about["history"][0]) == names
    assert [record["epoch"] for record in about["history"]] == [0, 1]


def test_other_data_or_a_damaged_folder_is_refused(case, tmp_path, world) -> None:  # type: ignore[no-untyped-def]
    data, content, ranker = case
    ranker.save(tmp_path)
    other = world("none" if data.time_unit == "order" else "order")
    with pytest.raises(ArtifactError, match="trained on other data"):
        PreRanker.load(tmp_path, other, content)
    # As many users under other ids: every weight would be read for another user.
    renamed = replace(data, users=Vocabulary.of(f"other{u:06d}" for u in range(len(data.users))))
    with pytest.raises(ArtifactError, match="trained on other data"):
        PreRanker.load(tmp_path, renamed, content)
    (tmp_path / "pre_ranker.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        PreRanker.load(tmp_path, data, content)


def test_weights_of_another_model_are_named(world, content, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = world()
    train(data, content, None, small, seed=0).save(tmp_path)
    file = tmp_path / "weights.safetensors"
    sound = load_file(file)
    assert sound["inputs.item_bias"].shape == (41,)
    lost = {name: value for name, value in sound.items() if name != "inputs.bias"}
    cases = {
        "lost": (lost, "inputs.bias ()", "none of these"),
        "strange": ({**sound, "old.weight": torch.zeros(3)}, "none of these", "old.weight (3,)"),
        "shape": (
            {**sound, "inputs.item_bias": torch.zeros(40)},
            "inputs.item_bias (41,)",
            "inputs.item_bias (40,)",
        ),
    }
    for weights, must, got in cases.values():
        save_file(weights, file)
        with pytest.raises(ArtifactError, match="weights do not fit") as error:
            PreRanker.load(tmp_path, data, content)
        assert (error.value.must, error.value.got) == (must, got)
        assert error.value.where == str(file)
        assert "train it again" in error.value.hint
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cannot be read"):
        PreRanker.load(tmp_path, data, content)
    save_file(sound, file)
    about = tmp_path / "pre_ranker.json"
    about.write_text(json.dumps({"config": {}}))
    with pytest.raises(ArtifactError, match=r"config, history, schema[\s\S]*train it again"):
        PreRanker.load(tmp_path, data, content)


def test_many_other_weights_are_cut_short(world, content, small, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = world()
    train(data, content, None, small, seed=0).save(tmp_path)
    save_file({f"w{n}": torch.zeros(1) for n in range(7)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError) as error:
        PreRanker.load(tmp_path, data, content)
    assert error.value.got == "w0 (1,), w1 (1,), w2 (1,), w3 (1,), w4 (1,), 2 more"


def test_device_names() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="device is not there"):
        resolve_device("abacus")

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from prerank import artifacts as a
from prerank.anchors.config import GenerateConfig
from prerank.anchors.generate import generate
from prerank.anchors.model import SidLM, save
from prerank.anchors.shards import PRIOR_COUNT, Decoder
from prerank.anchors.tokens import SidTokens
from prerank.errors import ArtifactError, ConfigError, DataError

from .sid_world import dataset, folder, random_codes, random_lm, semantic_ids, unit_rows

SIZES = (4, 3, 4)
N_ITEMS = 20
IDS = semantic_ids(random_codes(N_ITEMS, SIZES), SIZES)
SPACE = unit_rows(N_ITEMS)
CONFIG = GenerateConfig(
    n_anchors=3, beam_width=6, batch_size=2, shard_users=3, max_history=4, device="cpu"
)
HISTORIES = [[1, 2, 3], [], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13], [14, 15, 16], [17]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(SidLM(random_lm(SIZES), SidTokens(0, SIZES)), path)
    return path


def run(
    model: Path, work: Path, data: a.Dataset | None = None, **changes: object
) -> a.InterestAnchors:
    config = CONFIG.model_copy(update=changes)
    return generate(data or dataset(HISTORIES, N_ITEMS), IDS, SPACE, model, config, 0, folder(work))


def same(one: a.InterestAnchors, other: a.InterestAnchors) -> bool:
    names = ("offsets", "codes", "point", "points", "logprob", "logprob_legal")
    return all(getattr(one, n).tobytes() == getattr(other, n).tobytes() for n in names)


def test_every_user_with_a_history_gets_existing_semantic_ids(model: Path, tmp_path: Path) -> None:
    anchors = run(model, tmp_path)
    assert np.diff(anchors.offsets).tolist() == [3, 0, 3, 3, 3, 3, 3, 3]
    existing = {tuple(row) for row in IDS.codes.tolist()}
    assert {tuple(row) for row in anchors.codes.tolist()} <= existing
    assert anchors.source == "llm"
    assert (np.diff(anchors.logprob.reshape(-1, 3), axis=1) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(anchors.points, axis=1), 1, atol=1e-5)
    shared = np.flatnonzero((IDS.codes == anchors.codes[0]).all(axis=1))
    mean = SPACE.vectors[shared].mean(axis=0)
    np.testing.assert_allclose(anchors.vectors_of([0])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_debiased_anchors_rank_by_what_the_user_wants_more_than_everybody(
    model: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"n_anchors": 20, "beam_width": 20})
    data = dataset(HISTORIES, N_ITEMS)
    about = (data, IDS, SPACE, model, config, 0)
    plain = generate(*about, folder(tmp_path / "plain"))
    found = generate(*about, folder(tmp_path / "debiased"), source="llm-debiased")
    assert (plain.source, found.source) == ("llm", "llm-debiased")
    frequency = np.bincount(np.concatenate(HISTORIES).astype(int), minlength=N_ITEMS)
    weight = {tuple(codes): PRIOR_COUNT for codes in IDS.codes.tolist()}
    for codes, count in zip(IDS.codes.tolist(), frequency, strict=True):
        weight[tuple(codes)] += count
    whole = sum(weight.values())
    share = np.array([weight[tuple(codes)] / whole for codes in found.codes.tolist()])
    rank = (found.logprob - 0.75 * np.log(share)).reshape(7, -1)
    assert (np.diff(rank, axis=1) <= 1e-5).all()
    assert (np.diff(found.logprob.reshape(7, -1), axis=1) > 0).any()
    # All leaves are found both ways: with the same probabilities, in another order.
    for user in range(7):
        ours, theirs = (
            dict(zip(map(tuple, x.codes.reshape(7, -1, 3)[user]), row, strict=True))
            for x, row in (
                (found, found.logprob.reshape(7, -1)[user]),
                (plain, plain.logprob.reshape(7, -1)[user]),
            )
        )
        assert ours.keys() == theirs.keys()
        assert max(abs(ours[codes] - theirs[codes]) for codes in ours) < 1e-5


def test_result_does_not_depend_on_kills_batches_or_shards(model: Path, tmp_path: Path) -> None:
    whole = run(model, tmp_path / "whole")
    files = sorted((tmp_path / "whole").glob("anchors-*.safetensors"))
    assert [file.name for file in files] == [f"anchors-0000{n}.safetensors" for n in range(3)]

    work = folder(tmp_path / "killed")  # one finished shard, one cut short, one never begun
    (work / files[0].name).write_bytes(files[0].read_bytes())
    (work / files[1].name).write_bytes(files[1].read_bytes()[:-7])
    (work / "anchors-00002.part").write_bytes(b"half")
    assert same(run(model, work), whole)

    other = run(model, tmp_path / "other", batch_size=5, shard_users=100)
    assert np.array_equal(other.codes, whole.codes)
    np.testing.assert_allclose(other.logprob, whole.logprob, atol=1e-5)


def test_finished_shards_are_not_decoded_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", lambda *_: pytest.fail("decoded again"))
        run(model, tmp_path)


def test_a_shard_of_other_users_is_done_again(model: Path, tmp_path: Path) -> None:
    whole = run(model, tmp_path)
    file = tmp_path / "anchors-00000.safetensors"
    shard = load_file(file)
    save_file({**shard, "user": shard["user"] + 1, "leaf": shard["leaf"] * 0}, file)
    assert same(run(model, tmp_path), whole)


@settings(max_examples=10)
@given(order=st.permutations(range(len(HISTORIES))))
def test_order_of_users_is_no_matter(
    model: Path, tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    whole = run(model, tmp_path_factory.mktemp("work"))
    moved = dataset([HISTORIES[user] for user in order], N_ITEMS)
    anchors = run(model, tmp_path_factory.mktemp("work"), moved)
    for place, user in enumerate(order):
        rows = slice(*anchors.offsets[place : place + 2])
        expected = slice(*whole.offsets[user : user + 2])
        assert np.array_equal(anchors.codes[rows], whole.codes[expected])


def test_only_the_most_recent_items_before_the_cut_are_read(model: Path, tmp_path: Path) -> None:
    long = dataset([[9, 8, 1, 2, 3, 4, 7, 7]], N_ITEMS, "ms", cut=6)
    short = dataset([[1, 2, 3, 4]], N_ITEMS, "ms")
    assert same(run(model, tmp_path / "a", long), run(model, tmp_path / "b", short))


def test_quota_and_growing_widths(model: Path, tmp_path: Path) -> None:
    anchors = run(model, tmp_path / "a", first_code_quota=1, n_anchors=4)
    for rows in np.split(anchors.codes, anchors.offsets[1:-1]):
        assert len(set(rows[:, 0].tolist())) == len(rows)
    grown = run(model, tmp_path / "b", beam_width=2, beam_growth=2.0, n_anchors=8)
    counts = np.diff(grown.offsets)[[0, *range(2, 8)]]
    assert (counts > 2).all() and (counts <= 8).all()
    for rows in np.split(grown.codes, grown.offsets[1:-1]):
        assert len(set(rows[:, 0].tolist())) <= 2


def test_nobody_has_a_history(model: Path, tmp_path: Path) -> None:
    anchors = run(model, tmp_path, dataset([[], []], N_ITEMS))
    assert anchors.offsets.tolist() == [0, 0, 0]
    assert anchors.point.shape == (0,) and anchors.codes.shape == (0, 3)


def test_sets_are_read_in_a_seeded_order(model: Path, tmp_path: Path) -> None:
    data = dataset(HISTORIES, N_ITEMS, "none")
    assert same(run(model, tmp_path / "a", data), run(model, tmp_path / "b", data))


def test_clear_errors(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more anchors than beams"):
        run(model, tmp_path, beam_width=2, n_anchors=9)
    with pytest.raises(ConfigError, match="n_anchors"):
        GenerateConfig.parse({"n_anchors": 9, "beam_width": 2})
    with pytest.raises(ArtifactError, match="no anchor model"):
        run(tmp_path, tmp_path)
    with pytest.raises(DataError, match="different catalogues"):
        data = dataset(HISTORIES, N_ITEMS)
        generate(data, IDS, unit_rows(3), model, CONFIG, 0, tmp_path)


def test_widths() -> None:
    assert GenerateConfig(beam_width=30, n_anchors=5).widths(3) == (30, 30, 30)
    assert GenerateConfig(beam_width=10, beam_growth=2, n_anchors=40).widths(3) == (10, 20, 40)


def test_anchors_over_item_ids(tmp_path: Path) -> None:
    """The ablation without semantic IDs: one level, one code an item; anchors are item vectors."""
    sizes = (N_ITEMS,)
    ids = semantic_ids(np.arange(N_ITEMS, dtype=np.int32)[:, None], sizes)
    path = tmp_path / "model"
    save(SidLM(random_lm(sizes), SidTokens(0, sizes)), path)
    data = dataset(HISTORIES, N_ITEMS)
    anchors = generate(data, ids, SPACE, path, CONFIG, 0, folder(tmp_path / "work"))
    assert np.diff(anchors.offsets).tolist() == [3, 0, 3, 3, 3, 3, 3, 3]
    vectors = anchors.vectors_of(slice(None))
    np.testing.assert_allclose(vectors, SPACE.vectors[anchors.codes[:, 0]], atol=1e-6)

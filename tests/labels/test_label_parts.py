"""A log in parts gives the dataset, the anchors and the labels that it gives as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prerank import artifacts as a
from prerank import parts as parts_module
from prerank import store
from prerank.anchors.controls import history_anchors
from prerank.data.config import PrepareConfig
from prerank.data.parted import prepare_parts
from prerank.data.prepare import prepare
from prerank.errors import DataError
from prerank.labels.config import LabelConfig, has_parts
from prerank.labels.label import label
from prerank.labels.parts import label_parts
from prerank.parts import DatasetParts, StoredAnchors, save_anchors

PART_ROWS, N_ITEMS, DIM = 700, 60, 8


def write_logs(folder: Path, candidates: bool, some: bool) -> None:
    """Write 3,000 exposures of 150 users in two files; clicks follow the user's kind of items.

    ``some``: candidates of every third request alone, and no propensities.
    """
    rng = np.random.default_rng(0)
    n = 3000
    user, item = rng.integers(150, size=n), rng.integers(N_ITEMS, size=n)
    click = rng.random(n) < np.where(user % 4 == item % 4, 0.7, 0.15)
    rows = pl.DataFrame(
        {
            "user": user,
            "item": item,
            "time": 1_700_000_000_000 + np.sort(rng.integers(10**9, size=n)),
            "click": click.astype(np.int8),
            "propensity": rng.uniform(0.2, 0.9, n) if candidates else np.ones(n),
        }
    ).with_columns(user=pl.format("u{}", "user"), item=pl.format("i{}", "item"))
    rows = rows.drop("propensity") if some else rows
    (folder / "exposures").mkdir(parents=True)
    rows[:1300].write_parquet(folder / "exposures" / "1.parquet")
    rows[1300:].write_csv(folder / "exposures" / "2.csv")
    vectors = np.eye(DIM, dtype=np.float32)[np.arange(N_ITEMS) % 4]
    vectors += rng.normal(0, 0.3, vectors.shape).astype(np.float32)
    names = [f"i{k}" for k in range(N_ITEMS)]
    pl.DataFrame({"item": names, "title": names, "vector": vectors.tolist()}).write_parquet(
        folder / "items.parquet"
    )
    if candidates:
        more = rng.integers(N_ITEMS, size=n)
        offered = rows.select("user", "time").with_columns(
            item=pl.Series([f"i{k}" for k in more]), stage=pl.lit("recalled")
        )
        offered = offered[::3] if some else offered
        offered.write_parquet(folder / "candidates.parquet")


def both(tmp_path: Path, candidates: bool, some: bool = False) -> tuple[a.Dataset, DatasetParts]:
    logs, out = tmp_path / "logs", tmp_path / "dataset"
    write_logs(logs, candidates, some)
    out.mkdir()
    config = PrepareConfig.parse({"source": "logs", "path": str(logs)})
    prepare_parts(config, logs, 3, out, tmp_path, PART_ROWS)
    parts = DatasetParts.open(out)
    assert parts is not None and len(parts) > 4
    return prepare(config, 3), parts


def sorted_columns(table: a.Table) -> dict[str, Any]:
    columns = {name: v for name, v in table.columns().items() if name != "request"}
    order = np.lexsort((columns["item"], columns["time"], columns["user"]))
    return {name: values[order] for name, values in columns.items()}


@pytest.mark.parametrize("candidates", [False, True])
def test_prepared_in_parts_is_prepared_whole(tmp_path: Path, candidates: bool) -> None:
    whole, parts = both(tmp_path, candidates)
    joined = store.load(parts.path, a.Dataset)
    assert (joined.cuts, joined.notes, joined.name) == (whole.cuts, whole.notes, whole.name)
    np.testing.assert_array_equal(joined.users.ids, whole.users.ids)
    np.testing.assert_array_equal(joined.catalog.vectors, whole.catalog.vectors)
    for name in ("exposures", "candidates", "interactions"):
        mine, theirs = getattr(joined, name), getattr(whole, name)
        found, expected = sorted_columns(mine), sorted_columns(theirs)
        for column, values in expected.items():
            np.testing.assert_array_equal(found[column], values, f"{name}.{column}")
    assert joined.pools.pools == whole.pools.pools
    assert np.array_equal(np.bincount(joined.pools.pool), np.bincount(whole.pools.pool))
    # Requests are numbered anew, but rows of one request stay together.
    pairs = {
        (int(r), int(u), int(t))
        for r, u, t in zip(
            *(getattr(joined.exposures, n) for n in ("request", "user", "time")), strict=True
        )
    }
    assert len({r for r, _, _ in pairs}) == len(pairs) == len(np.unique(whole.exposures.request))


def test_parts_are_the_whole_cut_by_user(tmp_path: Path) -> None:
    whole, parts = both(tmp_path, True)
    n_rows = 0
    for p, part in enumerate(parts):
        first = int(parts.bounds[p])
        np.testing.assert_array_equal(
            part.users.ids, whole.users.ids[first : int(parts.bounds[p + 1])]
        )
        user = whole.interactions.user
        inside = (user >= first) & (user < parts.bounds[p + 1])
        np.testing.assert_array_equal(part.interactions.item, whole.interactions.item[inside])
        n_rows += len(part.exposures)
    assert n_rows == len(whole.exposures)


CONFIGS = {
    "calibrated": {},
    "thresholds": {"map": "two-threshold", "low": 0.1, "high": 0.6},
    "by user": {"map": "linear", "confidence": "user"},
    "proposed": {},
    "sample": {"max_pairs": 300, "calibrator": "logistic"},
    "both": {"pairs": "both", "prior": 0.1},
    "some requests": {},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_labels_in_parts_are_labels_of_the_whole(tmp_path: Path, name: str) -> None:
    some = name == "some requests"
    whole, parts = both(tmp_path, some or name in ("calibrated", "by user", "both"), some)
    vectors = whole.catalog.vectors
    assert vectors is not None
    space = a.ItemEmbeddings(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    codes = np.zeros((N_ITEMS, 1), np.int32)
    sids = a.SemanticIds(codes, np.ones(1, np.int32), np.zeros((1, DIM), np.float32))
    anchors = history_anchors(whole, sids, space, 5)
    made, out, work = tmp_path / "anchors", tmp_path / "labels", tmp_path / "work"
    for folder in (made, out, work):
        folder.mkdir()
    each = (history_anchors(part, sids, space, 5) for part in parts)
    save_anchors(made, each, space.vectors, work)
    again = store.load(made, a.InterestAnchors)
    for column in ("offsets", "codes", "point", "points", "logprob"):
        expected_column = getattr(anchors.compact(), column)
        np.testing.assert_array_equal(getattr(again, column), expected_column, column)
    assert len(again.points) == len(np.unique(whole.interactions.item))

    config = LabelConfig(proposed_per_user=20, **CONFIGS[name])
    assert has_parts(config)
    label_parts(parts, space, StoredAnchors.open(made), config, 5, out, work)
    found = store.load(out, a.PseudoLabels)
    expected = label(whole, space, anchors, config, 5)
    for column in ("user", "item", "time", "anchor"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column), column)
    # Products of other shapes round otherwise.
    for column in ("relevance", "history", "dispersion", "llm", "label"):
        mine, theirs = getattr(found, column), getattr(expected, column)
        np.testing.assert_allclose(mine, theirs, atol=2e-6, err_msg=column)
    # A factor at the edge of two points of the grid of ranks may fall on either side.
    apart = np.abs(found.confidence - expected.confidence)
    assert (apart < 1e-4).mean() > 0.98
    assert apart.max() < 0.05
    assert found.source == expected.source
    assert found.fit.keys() == expected.fit.keys()
    for key in (
        "n_pairs",
        "n_unexposed",
        "beside",
        "n_labelled",
        "label_histogram",
        "prior_source",
    ):
        assert found.fit[key] == expected.fit[key], key
    for key in ("mean_label", "prior", "pseudo_weight_factor"):
        assert found.fit[key] == pytest.approx(expected.fit[key], abs=1e-6), key


def test_anchors_in_parts_share_one_table_of_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "COPY_BYTES", 12)  # three numbers at a time
    monkeypatch.setattr(a, "GATHERED_ROWS", 2)
    points = np.eye(7, 3, dtype=np.float32)

    def part(rows: list[int], table: a.FloatArray = points) -> a.InterestAnchors:
        n = len(rows)
        codes, zeros = np.zeros((n, 1), np.int32), np.zeros(n, np.float32)
        offsets = np.array([0, 0, n])
        return a.InterestAnchors(
            offsets, codes, np.array(rows, np.int32), table, zeros, zeros, "history"
        )

    made, work = tmp_path / "anchors", tmp_path / "work"
    for folder in (made, work):
        folder.mkdir()
    rows = [[6, 2, 2, 0], [], [4, 6, 6, 1, 2]]
    save_anchors(made, (part(some) for some in rows), points, work)
    again = store.load(made, a.InterestAnchors)
    assert again.offsets.tolist() == [0, 0, 4, 4, 4, 4, 9]
    assert len(again.points) == 5 and not list(work.iterdir())
    expected = points[[row for some in rows for row in some]]
    np.testing.assert_array_equal(again.vectors_of(slice(None)), expected)
    with pytest.raises(DataError, match="different points"):
        save_anchors(made, iter([part([0]), part([0], points.copy())]), points, work)


def test_many_held_out_rows_are_sampled_by_user(tmp_path: Path) -> None:
    whole, parts = both(tmp_path, False)
    assert whole.catalog.vectors is not None
    vectors = whole.catalog.vectors
    space = a.ItemEmbeddings(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    codes = np.zeros((N_ITEMS, 1), np.int32)
    sids = a.SemanticIds(codes, np.ones(1, np.int32), np.zeros((1, DIM), np.float32))
    work, made, out = tmp_path / "work", tmp_path / "anchors", tmp_path / "labels"
    for folder in (work, made, out):
        folder.mkdir()
    each = (history_anchors(part, sids, space, 5) for part in parts)
    save_anchors(made, each, space.vectors, work)
    stored = StoredAnchors.open(made)
    label_parts(parts, space, stored, LabelConfig(), 5, out, work, max_held=600)
    made_first = (out / "labels-00001.parquet").read_bytes()
    fit = store.load(out, a.PseudoLabels).fit
    # Killed after some matches: what stands is taken, what was cut short is made again.
    kept = (work / "match-00000.safetensors").stat().st_mtime_ns
    (work / "match-00002.safetensors").write_bytes(b"cut short")
    label_parts(parts, space, stored, LabelConfig(), 5, out, work, max_held=600)
    assert (work / "match-00000.safetensors").stat().st_mtime_ns == kept
    assert (out / "labels-00001.parquet").read_bytes() == made_first
    assert 300 < fit["skill"]["n_rows"] < 900
    assert fit["pseudo_weight_factor"] > 0.5  # the planted clicks follow the kinds of items

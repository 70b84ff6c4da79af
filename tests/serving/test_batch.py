"""A table scored offline: the server's logits, the table's order, and every refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from malformed.told import told
from prerank import cli
from prerank.errors import ArtifactError
from prerank.serving.app import load
from prerank.serving.batch import Columns, Pairs, Scored, score_table
from prerank.serving.bundle import Bundle, graph_file
from prerank.serving.config import ServeConfig
from prerank.serving.export import load_trained
from prerank.serving.scorer import Scorer
from serving.small_run import N_ITEMS, N_USERS

N_ROWS = 700


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Pairs in no order, some of unknown users and items, some twice, with more columns."""
    rng = np.random.default_rng(3)
    user = rng.integers(100, 100 + N_USERS + 2, N_ROWS)
    item = rng.integers(1000, 1000 + N_ITEMS + 3, N_ROWS)
    return pl.DataFrame(
        {
            "user": user,
            "note": [f"row, {k}" for k in range(N_ROWS)],
            "item": item.astype(str),
            "price": rng.random(N_ROWS).astype(np.float32),
            "tags": [["a"] * (k % 3) for k in range(N_ROWS)],
            "request": user * 2 + rng.integers(0, 2, N_ROWS),
        }
    )


@pytest.fixture
def pairs(table: pl.DataFrame, tmp_path: Path) -> Path:
    table.write_parquet(tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet"


def scored(bundle: Bundle, pairs: Path, **more: Any) -> pl.DataFrame:
    out = pairs.parent / "scores.parquet"
    score_table(bundle.path, pairs, out, **more)
    return pl.read_parquet(out)


def server_logits(bundle: Bundle, table: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Ask what the server asks, once a user with all of the user's rows in their order."""
    loaded = load(bundle.path, ServeConfig())
    want = np.full(len(table), np.nan, np.float32)
    users = table["user"].cast(pl.String).to_numpy()
    for user in np.unique(users):
        rows = np.flatnonzero(users == user)
        items = loaded.scorer.item_rows(table["item"].cast(pl.String)[rows].to_list())
        want[rows] = loaded.scorer.logits(loaded.users.state(str(user)), items)
    return want


# ---- scores ------------------------------------------------------------------------------------


def test_logits_are_those_of_the_server(bundle: Bundle, table: pl.DataFrame, pairs: Path) -> None:
    found = scored(bundle, pairs)["logit"]
    assert found.dtype == pl.Float32
    np.testing.assert_array_equal(found.to_numpy(), server_logits(bundle, table))


def test_logits_are_those_of_training(
    bundle: Bundle, run_folder: Path, table: pl.DataFrame, pairs: Path
) -> None:
    ranker = load_trained(run_folder, "gpl").ranker
    user = table["user"].to_numpy() - 100
    item = table["item"].cast(pl.Int64).to_numpy() - 1000
    user, item = np.where(user < N_USERS, user, -1), np.where(item < N_ITEMS, item, -1)
    want = ranker.score(user, item[:, None])[:, 0]
    np.testing.assert_allclose(scored(bundle, pairs)["logit"].to_numpy(), want, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [1, 97, N_ROWS])
def test_rows_and_columns_stay_over_any_number_of_chunks(
    bundle: Bundle, table: pl.DataFrame, pairs: Path, chunk_rows: int
) -> None:
    found = scored(bundle, pairs, chunk_rows=chunk_rows)
    assert found.columns == [*table.columns, "logit", "known_user", "known_item"]
    assert found.select(table.columns).equals(table)
    assert found.schema["tags"] == pl.List(pl.String)
    np.testing.assert_allclose(found["logit"].to_numpy(), server_logits(bundle, table), atol=1e-6)


def test_unknown_users_and_items_are_flagged_and_counted(
    bundle: Bundle, table: pl.DataFrame, pairs: Path
) -> None:
    done = score_table(bundle.path, pairs, pairs.with_name("scores.csv.parquet"), chunk_rows=64)
    found = pl.read_parquet(done.path)
    known_user = table["user"] < 100 + N_USERS
    known_item = table["item"].cast(pl.Int64) < 1000 + N_ITEMS
    assert found["known_user"].equals(known_user.alias("known_user"))
    assert found["known_item"].equals(known_item.alias("known_item"))
    assert done == Scored(
        path=done.path,
        rows=N_ROWS,
        rows_written=N_ROWS,
        users=table["user"].filter(known_user).n_unique(),
        unknown_user_rows=int((~known_user).sum()),
        unknown_item_rows=int((~known_item).sum()),
        seconds=done.seconds,
        bundle=bundle.fingerprint,
        precision="float32",
    )
    strangers = found.filter(~pl.col("known_user")).group_by("item")  # one user to the model
    # Products of other shapes round otherwise, on some processors.
    assert strangers.agg(pl.col("logit").max() - pl.col("logit").min())["logit"].max() < 1e-6


def test_a_smaller_precision_is_close(bundle: Bundle, pairs: Path) -> None:
    exact = scored(bundle, pairs)["logit"]
    apart = (scored(bundle, pairs, precision="int8")["logit"] - exact).abs().max()
    assert 0 < float(apart) < 0.1  # type: ignore[arg-type]


# ---- forms of tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".feather", ".arrow", ".ipc"])
def test_every_form_of_table_gives_the_same(
    bundle: Bundle, table: pl.DataFrame, pairs: Path, suffix: str
) -> None:
    other, flat = pairs.with_suffix(suffix), table.drop("tags")
    if suffix in (".csv", ".tsv"):
        flat.write_csv(other, separator="\t" if suffix == ".tsv" else ",")
    else:
        flat.write_ipc(other)
    want = scored(bundle, pairs, chunk_rows=300)
    found = scored(bundle, other, chunk_rows=300)
    assert found["logit"].equals(want["logit"])
    assert found["note"].equals(want["note"])


def test_a_folder_and_a_glob_are_one_table(
    bundle: Bundle, table: pl.DataFrame, pairs: Path
) -> None:
    folder = pairs.parent / "days"
    folder.mkdir()
    empty = table.clear()
    for number, part in enumerate([table[:100], empty, table[100:650], table[650:]]):
        mixed = part if number else part.select(reversed(part.columns))
        mixed.write_parquet(folder / f"day-{number}.parquet")
    want, out = scored(bundle, pairs), pairs.with_name("other.parquet")
    for place in (folder, folder / "day-*.parquet"):
        score_table(bundle.path, place, out, chunk_rows=200)
        found = pl.read_parquet(out)
        assert found["note"].equals(want["note"])
        np.testing.assert_allclose(found["logit"].to_numpy(), want["logit"].to_numpy(), atol=1e-6)


def test_ids_are_text_or_integers_of_any_type(
    bundle: Bundle, table: pl.DataFrame, pairs: Path
) -> None:
    want = scored(bundle, pairs)["logit"]
    for kind in (pl.String, pl.UInt16, pl.Categorical):
        as_text = table["user"].cast(pl.String)
        user = as_text.cast(kind)
        table.with_columns(user).write_parquet(pairs)
        assert scored(bundle, pairs)["logit"].equals(want)


def test_csv_is_written_with_as_many_digits_as_needed(bundle: Bundle, pairs: Path) -> None:
    pl.read_parquet(pairs).drop("tags").write_parquet(pairs)
    score_table(bundle.path, pairs, pairs.with_name("scores.csv"), chunk_rows=99)
    found = pl.read_csv(pairs.with_name("scores.csv"), schema_overrides={"logit": pl.Float32})
    want = scored(bundle, pairs, chunk_rows=99)
    assert found.columns == want.columns
    assert found["logit"].equals(want["logit"]) and found["note"].equals(want["note"])


def test_columns_have_the_callers_names(bundle: Bundle, table: pl.DataFrame, pairs: Path) -> None:
    want = scored(bundle, pairs)["logit"]
    table.rename({"user": "uid", "item": "sku"}).write_parquet(pairs)
    assert scored(bundle, pairs, columns=Columns("uid", "sku"))["logit"].equals(want)


# ---- the best rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [53, N_ROWS])
@pytest.mark.parametrize("request_column", ["", "request"])
def test_the_best_rows_of_each_user_or_request_are_kept_in_order(
    bundle: Bundle, pairs: Path, request_column: str, chunk_rows: int
) -> None:
    columns = Columns(request=request_column)
    # The last bit of a logit may depend on how many rows are scored at once, so chunks are alike.
    every = scored(bundle, pairs, chunk_rows=chunk_rows)
    found = scored(bundle, pairs, columns=columns, top_k=3, chunk_rows=chunk_rows)
    # Rows of one pair tie: the earlier ones stay.
    group, logit = every[columns.group].to_list(), every["logit"].to_list()
    rank: dict[Any, list[int]] = {}
    for row in sorted(range(N_ROWS), key=lambda k: (-logit[k], k)):
        rank.setdefault(group[row], []).append(row)
    want = sorted(row for rows in rank.values() for row in rows[:3])
    assert found["note"].to_list() == every["note"][want].to_list()


def test_counts_of_the_best_rows(bundle: Bundle, table: pl.DataFrame, pairs: Path) -> None:
    done = score_table(bundle.path, pairs, pairs.with_name("s.parquet"), top_k=1, chunk_rows=40)
    assert (done.rows, done.rows_written) == (N_ROWS, table["user"].n_unique())


# ---- nothing half-written ----------------------------------------------------------------------


def test_a_failure_leaves_the_old_output_and_nothing_else(
    bundle: Bundle, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pairs.with_name("scores.parquet")
    out.write_text("precious")
    real, calls = Scorer.logits, iter(range(10**6))

    def fail(scorer: Scorer, *arguments: Any) -> Any:
        if next(calls) == 60:
            raise SystemExit(143)
        return real(scorer, *arguments)

    monkeypatch.setattr(Scorer, "logits", fail)
    with pytest.raises(SystemExit):
        score_table(bundle.path, pairs, out, chunk_rows=50)
    assert sorted(p.name for p in pairs.parent.iterdir()) == ["pairs.parquet", "scores.parquet"]
    assert out.read_text() == "precious"


def test_a_full_disk_is_told(bundle: Bundle, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(ArtifactError, match="disk is full"):
        score_table(bundle.path, pairs, pairs.with_name("s.parquet"))
    assert [p.name for p in pairs.parent.iterdir()] == ["pairs.parquet"]


def test_a_score_that_is_not_finite_is_an_error(
    bundle: Bundle, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: Scorer, __: Any, items: Any) -> Any:
        return np.full(len(items), np.nan, np.float32)

    monkeypatch.setattr(Scorer, "logits", nothing)
    with told("user ", about="no finite score", folder=pairs.parent):
        score_table(bundle.path, pairs, pairs.with_name("s.parquet"))


# ---- what must not work ------------------------------------------------------------------------


def change(**columns: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda table: table.with_columns(**columns)


def null_at(row: int, column: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    missing = pl.when(pl.int_range(pl.len()) == row).then(None).otherwise(pl.col(column))
    return change(**{column: missing})


ROW_400 = 400
TABLES: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str, str]] = {
    "no user": (lambda t: t.drop("user"), "pairs.parquet -> user", "--user-column"),
    "no item": (lambda t: t.drop("item"), "pairs.parquet -> item", "got: user, note"),
    "capital": (lambda t: t.rename({"item": "Item"}), "-> item", "column `item` is missing"),
    "null user": (null_at(ROW_400, "user"), "-> user, row 401", "an id is empty"),
    "null item": (null_at(ROW_400, "item"), "-> item, row 401", "an id in every row"),
    "empty item": (change(item=pl.lit("")), "-> item, row 1", "an id is empty"),
    "users as fractions": (change(user=pl.col("user") / 2), "-> user", "cast the ids to text"),
    "lists as items": (change(item=pl.col("tags")), "-> item", "text or integers"),
    "no rows": (lambda t: t.clear(), "pairs.parquet", "no rows"),
    "scored before": (change(logit=pl.lit(1.0)), "-> logit", "there already"),
    "flagged before": (change(known_item=pl.lit(True)), "-> known_item", "there already"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_scored(
    bundle: Bundle, table: pl.DataFrame, pairs: Path, kind: str
) -> None:
    changed, where, about = TABLES[kind]
    changed(table).write_parquet(pairs)
    with told(where, about=about, folder=pairs.parent):
        score_table(bundle.path, pairs, pairs.with_name("scores.parquet"), chunk_rows=150)


def test_a_null_request(bundle: Bundle, table: pl.DataFrame, pairs: Path) -> None:
    null_at(ROW_400, "request")(table).write_parquet(pairs)
    columns = Columns(request="request")
    with told("-> request, row 401", about="a request is null", folder=pairs.parent):
        score_table(bundle.path, pairs, pairs.with_name("s.parquet"), columns, top_k=2)
    with told("-> session", about="--request-column", folder=pairs.parent):
        columns = Columns(request="session")
        score_table(bundle.path, pairs, pairs.with_name("s.parquet"), columns, top_k=2)


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "absent": ("absent.parquet", None, "not there"),
    "another suffix": ("pairs.txt", b"user,item\n", "suffix of the table"),
    "no suffix": ("pairs", b"user,item\n", "got: none"),
    "noise": ("noise.parquet", bytes(range(256)), "cannot be read"),
    "empty CSV": ("empty.csv", b"", "cannot be read"),
    "header only": ("header.csv", b"user,item\n", "no rows"),
    "an id left out": ("short.csv", b"user,item\n1,2\n,3\n", "row 2"),
    "a column twice": ("twice.csv", b"user,item,user\n1,2,3\n", "stands in the header twice"),
    "too few cells": ("cut.tsv", b"user\titem\tnote\n1\t2\ta\n3\t4\n", "row 2"),
    "too many cells": ("long.csv", b"user,item\n1,2\n1,2,3,4\n", "cannot be read"),
    "UTF-16": ("wide.csv", "user,item\n1,2\n".encode("utf-16"), ""),
    "a glob of nothing": ("day-*.parquet", None, "no table here"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_table(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    name, content, about = FILES[kind]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with told(name, about=about, folder=tmp_path):
        score_table(bundle.path, tmp_path / name, tmp_path / "scores.parquet")


def test_a_truncated_file(bundle: Bundle, pairs: Path) -> None:
    pairs.write_bytes(pairs.read_bytes()[:-100])
    with told("pairs.parquet", about="cannot be read", folder=pairs.parent):
        score_table(bundle.path, pairs, pairs.with_name("scores.parquet"))


def test_an_empty_folder_and_files_that_differ(
    bundle: Bundle, table: pl.DataFrame, tmp_path: Path
) -> None:
    folder, out = tmp_path / "days", tmp_path / "scores.parquet"
    folder.mkdir()
    with told("days", about="no table here", folder=tmp_path):
        score_table(bundle.path, folder, out)
    table.write_parquet(folder / "1.parquet")
    table.cast({"user": pl.String}).write_parquet(folder / "2.parquet")
    with told("2.parquet -> user", about="Int64, as in 1.parquet", folder=tmp_path):
        score_table(bundle.path, folder, out)
    table.drop("note").write_parquet(folder / "2.parquet")
    with told("2.parquet -> note", about="got: absent", folder=tmp_path):
        score_table(bundle.path, folder, out)


def test_an_output_that_cannot_be(bundle: Bundle, pairs: Path) -> None:
    folder = pairs.parent
    (folder / "taken.csv").mkdir()
    for out, where, about in (
        (folder / "scores.txt", "--out", ".parquet or .csv"),
        (folder / "scores", "--out", "suffix of the output"),
        (folder / "absent" / "s.csv", "absent", "mkdir -p"),
        (folder / "taken.csv", "taken.csv", "is a folder"),
        (folder / "taken.csv" / ".." / "pairs.parquet", "--out", "take the place of the table"),
        (folder / "s.csv", "-> tags", "as .parquet"),
    ):
        with told(where, about=about, folder=folder):
            score_table(bundle.path, pairs, out)
    waited = pl.duration(seconds=pl.int_range(pl.len())).alias("waited")
    pl.read_parquet(pairs).drop("tags").with_columns(waited).write_parquet(pairs)
    with told("-> waited", about="as .parquet", folder=folder):
        score_table(bundle.path, pairs, folder / "s.csv")


def test_a_bundle_that_is_damaged_or_none(bundle: Bundle, pairs: Path) -> None:
    copy, out = shutil.copytree(bundle.path, pairs.parent / "bundle"), pairs.with_name("s.csv")
    pl.read_parquet(pairs).drop("tags").write_parquet(pairs)
    with told("absent", about="no bundle here", folder=pairs.parent):
        score_table(pairs.with_name("absent"), pairs, out)
    graph = copy / graph_file("user")
    graph.write_bytes(graph.read_bytes()[:-9])
    with told("model.onnx", about="damaged", folder=pairs.parent):
        score_table(copy, pairs, out)


def test_an_unknown_precision(bundle: Bundle, pairs: Path) -> None:
    with told("--precision", about="float32, float16, int8", folder=pairs.parent):
        score_table(bundle.path, pairs, pairs.with_name("s.parquet"), precision="int4")


# ---- the command -------------------------------------------------------------------------------


def test_the_command_says_what_it_did(bundle: Bundle, table: pl.DataFrame, pairs: Path) -> None:
    out = pairs.with_name("scores.parquet")
    words = ["score", str(bundle.path), str(pairs), "--out", str(out)]
    said = CliRunner().invoke(cli.app, words, catch_exceptions=False).stdout
    assert f"{N_ROWS} rows of" in said and f"scores: {out}" in said
    assert "scored as the unknown user" in said and "scored as the unknown item" in said
    done = CliRunner().invoke(cli.app, [*words, "--top-k", "2", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["rows"] == N_ROWS and found["rows_written"] == len(pl.read_parquet(out))
    assert found["path"] == str(out) and found["bundle"] == bundle.fingerprint
    assert {"users", "unknown_user_rows", "unknown_item_rows", "seconds"} <= found.keys()


def test_the_command_needs_no_torch_and_ends_with_the_documented_codes(
    bundle: Bundle, pairs: Path
) -> None:
    code = "import sys; sys.modules['torch'] = None; from prerank.cli import main; main()"

    def ended(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", code, "score", str(bundle.path), str(pairs), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    out = str(pairs.with_name("s.parquet"))
    assert ended("--out", out)[0] == 0
    assert ended("--out", out, "--user-column", "uid")[0] == 3
    assert ended("--out", f"{out}.gz")[0] == 2
    status, said = ended("--out", out, "--request-column", "request")
    assert status == 2 and "--top-k" in said


def test_chunks_cover_each_row_once(table: pl.DataFrame, pairs: Path) -> None:
    chunks = Pairs.open(pairs, Columns()).chunks(300)
    assert [(first, n) for _, first, n in chunks] == [(0, 300), (300, 300), (600, 100)]

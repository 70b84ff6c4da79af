"""Readers of public data sets, on small files in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prerank.artifacts import TEST, TRAIN, VALIDATION, Dataset
from prerank.data.config import PrepareConfig
from prerank.data.prepare import prepare
from prerank.errors import DataError

WIDE = {"validation_fraction": 0.25, "test_fraction": 0.25}


def load(source: str, path: Path, **more: Any) -> Dataset:
    config = {"source": source, "path": str(path), "split": WIDE, **more}
    return prepare(PrepareConfig.parse(config), seed=0)


def named(data: Dataset, table: str, *columns: str) -> list[tuple[Any, ...]]:
    """Return rows of a table with raw user and item ids."""
    rows = getattr(data, table)
    values = {"user": data.users.ids[rows.user], "item": data.items.ids[rows.item]}
    lists = [values.get(c, getattr(rows, c)).tolist() for c in ("user", "item", *columns)]
    return list(zip(*lists, strict=True))


# ---- MovieLens ------------------------------------------------------------------------------

RATINGS = [(1, 10, 5, 100), (1, 20, 3, 200), (2, 10, 4, 300), (2, 30, 1, 400)]


def movielens_dat(path: Path) -> None:
    lines = ["::".join(map(str, row)) for row in RATINGS]
    (path / "ratings.dat").write_text("\n".join(lines) + "\n")
    movies = "10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Action\n30::Untitled::Drama\n"
    (path / "movies.dat").write_text(movies, encoding="latin-1")
    (path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")


def movielens_csv(path: Path) -> None:
    rows = "".join(f"{u},{i},{float(r)},{t}\n" for u, i, r, t in RATINGS)
    (path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    (path / "movies.csv").write_text(
        'movieId,title,genres\n10,Amélie (2001),Comedy|Romance\n20,"Heat, the (1995)",Action\n'
        "30,Untitled,Drama\n40,Bare,(no genres listed)\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize("layout", [movielens_dat, movielens_csv])
def test_movielens(layout: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    data = load("movielens", tmp_path)
    expected = [("1", "10", 100_000, 1), ("1", "20", 200_000, 0), ("2", "10", 300_000, 1)]
    assert named(data, "exposures", "time", "click") == [*expected, ("2", "30", 400_000, 0)]
    assert data.exposures.split.tolist() == [TRAIN, TRAIN, VALIDATION, TEST]
    assert data.catalog.text[0] == "Amélie (2001) Comedy Romance"
    assert data.catalog.features.numeric["year"].tolist()[:2] == [2001, 1995]
    assert np.isnan(data.catalog.features.numeric["year"][2])
    assert data.catalog.features.categories["genres"] == ("Action", "Comedy", "Drama", "Romance")
    several = np.diff(data.catalog.features.lists["genres"].offsets).tolist()
    assert several == [2, 1, 1, 0][: len(data.items)]
    if layout is movielens_dat:
        assert data.user_features.categories["gender"] == ("F", "M")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_movielens_dat_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    movielens_dat(tmp_path)
    # In UTF-8 the second byte of Å is 0x85, which ends a line in Latin-1.
    movies = "10::Fucking Åmål (1998)::Drama\r\n20::Heat\x85 (1995)::Action\r\n30::Ida::Drama\r\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode(encoding))
    data = load("movielens", tmp_path)
    assert data.catalog.title.tolist() == ["Fucking Åmål (1998)", "Heat\x85 (1995)", "Ida"]
    assert data.catalog.features.categories["genres"] == ("Action", "Drama")


def test_movielens_a_movie_without_title_or_genres(tmp_path: Path) -> None:
    movielens_csv(tmp_path)
    movies = "movieId,title,genres\n10,,Comedy|Romance\n20,Heat (1995),\n30,Untitled,Drama\n"
    (tmp_path / "movies.csv").write_text(movies)
    catalog = load("movielens", tmp_path).catalog
    assert catalog.title.tolist() == ["", "Heat (1995)", "Untitled"]
    assert catalog.text.tolist() == ["Comedy Romance", "Heat (1995)", "Untitled Drama"]
    (tmp_path / "movies.csv").write_text(movies.replace("\n30,", "\n,"))
    with pytest.raises(DataError, match=r"an id is empty[\s\S]*movies\.csv -> item, row 3"):
        load("movielens", tmp_path)


def test_movielens_a_broken_line(tmp_path: Path) -> None:
    movielens_dat(tmp_path)
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n1::20::3\n")
    with pytest.raises(DataError, match=r"ratings\.dat, row 2"):
        load("movielens", tmp_path)
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n1::20::3::200\n1::70::4::300\n")
    with pytest.raises(DataError, match=r"unknown movie[\s\S]*ratings\.dat -> item, row 3"):
        load("movielens", tmp_path)
    (tmp_path / "movies.dat").unlink()
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n")
    with pytest.raises(DataError, match=r"not there[\s\S]*movies\.dat"):
        load("movielens", tmp_path)


# ---- RecBole --------------------------------------------------------------------------------


def recbole(path: Path, inter: str) -> None:
    (path / "toy.inter").write_text(inter)
    (path / "toy.item").write_text(
        "item_id:token\tmovie_title:token_seq\tgenre:token_seq\tyear:float\tstudio:token\n"
        'a\tThe "Red" Shoe\tdance drama\t1948\ts1\nb\tHeat\tcrime\t1995\ts1\nc\tIda\t\t\ts2\n'
        "d\tUgetsu\tghost\t1953\ts3\n"
    )
    (path / "toy.user").write_text("user_id:token\tage:token\nu\t30\nv\t30\n")


RATED = """user_id:token\titem_id:token\trating:float\ttimestamp:float
u\ta\t5\t100.0
u\tb\t2\t200.5
v\ta\t4\t300
v\tc\t3\t400
"""


def test_recbole_ratings(tmp_path: Path) -> None:
    recbole(tmp_path, RATED)
    data = load("recbole", tmp_path)
    assert named(data, "exposures", "time", "click") == [
        ("u", "a", 100_000, 1),
        ("u", "b", 200_500, 0),
        ("v", "a", 300_000, 1),
        ("v", "c", 400_000, 0),
    ]
    assert data.name == "toy"
    assert data.catalog.title.tolist()[:2] == ['The "Red" Shoe', "Heat"]
    assert data.catalog.text[0] == 'The "Red" Shoe dance drama s1'
    assert data.catalog.features.categories["studio"] == ("s1",)
    genre = data.catalog.features.lists["genre"]
    assert data.catalog.features.categories["genre"] == ("crime", "dance", "drama", "ghost")
    assert np.diff(genre.offsets).tolist() == [2, 1, 0, 1]
    assert "movie_title" not in data.catalog.features.lists
    assert data.catalog.features.numeric["year"].tolist()[:2] == [1948, 1995]


def test_recbole_threshold_is_an_option(tmp_path: Path) -> None:
    recbole(tmp_path, RATED)
    data = load("recbole", tmp_path, ratings={"threshold": 3})
    assert data.exposures.click.tolist() == [1, 0, 1, 1]


def test_recbole_labels(tmp_path: Path) -> None:
    recbole(
        tmp_path,
        RATED.replace("rating:float", "label:float")
        .replace("\t5\t", "\t0\t")
        .replace("\t2\t", "\t1\t")
        .replace("\t4\t", "\t0\t")
        .replace("\t3\t", "\t1\t"),
    )
    assert load("recbole", tmp_path).exposures.click.tolist() == [0, 1, 0, 1]


def test_recbole_positives_only_get_simulated_negatives(tmp_path: Path) -> None:
    lines = ["\t".join(line.split("\t")[:2] + line.split("\t")[3:]) for line in RATED.splitlines()]
    recbole(tmp_path, "\n".join(lines) + "\n")
    data = load("recbole", tmp_path)
    rows = named(data, "exposures", "click")
    assert [(u, i) for u, i, click in rows if click] == [
        ("u", "a"), ("u", "b"), ("v", "a"), ("v", "c"),
    ]  # fmt: skip
    # What v clicks in the test may be passed over in training.
    assert {(u, i) for u, i, click in rows if not click} == {
        ("u", "c"), ("u", "d"), ("v", "b"), ("v", "d"), ("v", "c"),
    }  # fmt: skip
    assert any("simulated" in note for note in data.notes)


@pytest.mark.parametrize(
    ("inter", "what"),
    [
        ("user_id\titem_id:token\nu\ta\n", "a header has no type"),
        ("user_id:token\trating:float\nu\t3\n", "`item_id:token` is missing"),
        ("user_id:token\titem_id:token\trating:float\nu\tz\t3\n", "does not have"),
        ("user_id:token\titem_id:token\trating:float\nu\ta\tgood\n", "not a number"),
        ("user_id:token\titem_id:token\n", "no rows"),
        ("user_id:token\titem_id:token\trating:float\trating:token\nu\ta\t1\t1\n", "twice"),
    ],
)
def test_recbole_bad_files(tmp_path: Path, inter: str, what: str) -> None:
    recbole(tmp_path, inter)
    with pytest.raises(DataError, match=what):
        load("recbole", tmp_path)


# ---- MIND -----------------------------------------------------------------------------------


def mind(path: Path) -> None:
    train, dev = path / "MINDsmall_train", path / "MINDsmall_dev"
    news = "".join(
        f"N{n}\tsports\tgolf\tTitle {n}\tAbstract {n}\thttp://x\t[]\t[]\n" for n in range(1, 7)
    )
    for folder in (train, dev):
        folder.mkdir()
        (folder / "news.tsv").write_text(news.replace("Abstract 2", ""))
    (train / "behaviors.tsv").write_text(
        "1\tU1\t11/13/2019 8:00:00 AM\tN5 N6\tN1-1 N2-0\n"
        "2\tU2\t11/13/2019 1:00:00 PM\t\tN3-0 N1-1\n"
        "3\tU1\t11/14/2019 12:00:00 AM\tN5 N6\tN3-1 N4-0\n"
    )
    (dev / "behaviors.tsv").write_text("1\tU1\t11/15/2019 9:00:00 AM\tN5 N6\tN4-1 N2 N3-0\n")


MORNING = 1_573_632_000_000  # 2019-11-13 08:00 UTC
HOUR = 3_600_000


def test_mind(tmp_path: Path) -> None:
    mind(tmp_path)
    data = load("mind", tmp_path)
    rows = named(data, "exposures", "time", "position", "click")
    assert rows[0] == ("U1", "N4", MORNING + 49 * HOUR, 0, 1)  # dev comes first by name
    assert rows[1][-1] == -1  # an impression without an answer is unknown
    assert rows[3:5] == [("U1", "N1", MORNING, 0, 1), ("U1", "N2", MORNING, 1, 0)]
    assert rows[5][2] == MORNING + 5 * HOUR
    assert data.exposures.split.tolist() == [TEST] * 3 + [TRAIN] * 4 + [VALIDATION] * 2
    assert data.cuts.test == MORNING + 49 * HOUR
    # Impression 1 of train and of dev are two requests.
    assert len(np.unique(data.exposures.request)) == 4
    assert named(data, "interactions", "time") == [
        ("U1", "N5", MORNING - 2000),
        ("U1", "N6", MORNING - 1000),
        ("U1", "N1", MORNING),
        ("U1", "N3", MORNING + 16 * HOUR),
        ("U2", "N1", MORNING + 5 * HOUR),
    ]
    assert data.catalog.text[:2].tolist() == [
        "Title 1 Abstract 1 sports golf",
        "Title 2 sports golf",
    ]


def test_mind_histories_of_users_who_come_late(tmp_path: Path) -> None:
    mind(tmp_path)
    dev = tmp_path / "MINDsmall_dev" / "behaviors.tsv"
    late = "2\tU9\t11/15/2019 9:30:00 AM\tN2 N1 N2\tN4-1 N3-0\n"
    dev.write_text(dev.read_text() + late)
    data = load("mind", tmp_path)
    rows = [row for row in named(data, "interactions", "time") if row[0] == "U9"]
    assert rows == [
        ("U9", "N2", MORNING - 3000),
        ("U9", "N1", MORNING - 2000),
        ("U9", "N2", MORNING - 1000),
    ]
    assert data.cuts.anchors is not None and data.cuts.anchors >= MORNING
    assert not any("were left out" in note for note in data.notes)


def test_mind_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no behaviors\.tsv"):
        load("mind", tmp_path)
    mind(tmp_path)
    file = tmp_path / "MINDsmall_dev" / "behaviors.tsv"
    file.write_text("1\tU1\t15/15/2019\tN5\tN4-1\n")
    with pytest.raises(DataError, match=r"behaviors\.tsv -> time, row 1"):
        load("mind", tmp_path)


@pytest.mark.parametrize(
    ("history", "impressions", "where", "got"),
    [
        ("N5", "N1-0 N4-2", "impressions", "'N4-2'"),
        ("N5", "N1-0 N4-", "impressions", "'N4-'"),
        ("N5", "", "impressions", "null"),
        ("N5", "N1-0 N99-1", "impressions", "'N99-1'"),
        ("N5", "N1-0  N2-1", "impressions", "''"),
        ("N5 N98", "N1-0", "history", "'N98'"),
    ],
)
def test_mind_names_the_line_of_a_bad_entry(
    tmp_path: Path, history: str, impressions: str, where: str, got: str
) -> None:
    mind(tmp_path)
    file = tmp_path / "MINDsmall_dev" / "behaviors.tsv"
    line = f"2\tU9\t11/15/2019 9:30:00 AM\t{history}\t{impressions}\n"
    file.write_text(file.read_text() + line)
    with pytest.raises(DataError) as caught:
        load("mind", tmp_path)
    assert caught.value.where == f"{file} -> {where}, row 2"
    assert caught.value.got == got and caught.value.must


# ---- RecFlow --------------------------------------------------------------------------------

FLAGS = (
    "realshow",
    "rerank_pos",
    "rerank_neg",
    "rank_pos",
    "rank_neg",
    "coarse_neg",
    "prerank_neg",
)
CLICKED_DAYS = {"effective_view": 3, "like": 1}
FEEDBACK = ("effective_view", "long_view", "like", "follow", "forward", "comment")


def recflow(path: Path) -> None:
    """Two days; each request has one video a flag, and the shown one again in realshow."""
    for folder in ("realshow", "all_stage"):
        (path / folder).mkdir()
    for day in (0, 1, 2, 3):
        rows = [
            {
                "request_id": 100 + day,
                "request_timestamp": 1_705_000_000_000 + day * 86_400_000,
                "user_id": day % 2,
                "device_id": 1,
                "age": 2 + day % 2,
                "gender": 1,
                "province": 5,
                "video_id": 10 + n,
                "author_id": 70 + n,
                "category_level_one": 1,
                "category_level_two": 2,
                "upload_type": 3,
                "upload_timestamp": 0,
                "duration": 7000,
                **{name: int(name == flag) for name in FLAGS},
                "rank_index": 0,
                "rerank_index": 0,
                "playing_time": 0,
                **{name: int(day < CLICKED_DAYS.get(name, 0)) for name in FEEDBACK},
            }
            for n, flag in enumerate(FLAGS)
        ]
        frame = pl.DataFrame(rows)
        frame.write_ipc(path / "all_stage" / f"2024-01-{13 + day}.feather", compression="lz4")
        shown = frame[:1].with_columns(pl.col("user_id").cast(pl.Int32))
        shown.write_ipc(path / "realshow" / f"2024-01-{13 + day}.feather", compression="lz4")
    (path / "seq_effective_50_dict.pkl").write_bytes(b"never read")


def test_recflow(tmp_path: Path) -> None:
    recflow(tmp_path)
    data = load("recflow", tmp_path)
    assert named(data, "exposures", "click") == [
        ("0", "10", 1), ("1", "10", 1), ("0", "10", 1), ("1", "10", 0),
    ]  # fmt: skip
    rows = data.candidates
    assert len(rows) == 14  # two training requests of seven candidates
    assert [rows.stages[code] for code in rows.stage[:7]] == [
        "exposed", "rerank", "rerank", "rank", "rank", "prerank", "recalled",
    ]  # fmt: skip
    assert rows.request[0] == data.exposures.request[0]
    assert data.catalog.text[0] == (
        "author_id_70 category_level_one_1 category_level_two_2 upload_type_3 duration_3"
    )
    assert data.user_features.categories["age"] == ("2", "3")
    liked = load("recflow", tmp_path, recflow={"label": "like"})
    assert liked.exposures.click.tolist() == [1, 0, 0, 0]


def test_recflow_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no feather files"):
        load("recflow", tmp_path)
    recflow(tmp_path)
    file = tmp_path / "realshow" / "2024-01-13.feather"
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*2024-01-13\.feather"):
        load("recflow", tmp_path)


# ---- Taobao-MM ------------------------------------------------------------------------------


def taobao(path: Path) -> None:
    def samples(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
        users, items, clicks = zip(*rows, strict=True)
        labels = [[1 - click, click] for click in clicks]
        kind = pl.List(pl.Int8)
        return pl.DataFrame(
            {"label_0": pl.Series(labels, dtype=kind), "129_1": users, "205": items}
        )

    def users(rows: dict[int, list[int]]) -> pl.DataFrame:
        features = {f"130_{n}": [n] * len(rows) for n in range(1, 6)}
        return pl.DataFrame(
            {
                "129_1": list(rows),
                **features,
                "150_2_180": pl.Series(list(rows.values()), dtype=pl.List(pl.Int64)),
                "151_2_180": pl.Series([[0] * len(v) for v in rows.values()]),
            }
        )

    train = [(user, 5, 1) for user in range(-4, 0)] + [(-4, 6, 0)]
    samples(train).write_parquet(path / "train_samples.parquet")
    samples([(-4, 7, 1), (9, 5, 0)]).write_parquet(path / "test_samples.parquet")
    histories = {-4: [1, 2], -3: [2], -2: [], -1: [3, 1, 1]}
    users(histories).write_parquet(path / "train_user_features.parquet")
    users({-4: [1, 2, 5], 9: [4]}).write_parquet(path / "test_user_features.parquet")
    pl.DataFrame({"205": [5, 8], "206": [1, 1], "213": [2, 3], "214": [4, 4]}).write_parquet(
        path / "item_features.parquet"
    )
    vectors = pl.Series([[3, 4], [0, -5]], dtype=pl.List(pl.Int8))
    pl.DataFrame({"205": [5, 1], "205_c": vectors}).write_parquet(
        path / "scl_embedding_int8_p90.parquet"
    )


EVERYTHING = {"history_needs_vector": False, "only_seen_items": False}


def test_taobao_mm(tmp_path: Path) -> None:
    taobao(tmp_path)
    data = load("taobao-mm", tmp_path, taobao_mm=EVERYTHING)
    assert data.time_unit == "order"
    assert data.items.ids.tolist() == list("1235678") or data.items.ids.tolist() == list("12345678")
    # User -4 is in train and test: the test history, which holds a training click, is not used.
    rows = named(data, "interactions", "time")
    assert [r for r in rows if r[0] == "-4"] == [("-4", "1", 0), ("-4", "2", 1)]
    assert [r for r in rows if r[0] == "-1"] == [("-1", "3", 0), ("-1", "1", 1), ("-1", "1", 2)]
    shown = named(data, "exposures", "time", "split")
    assert shown[-2:] == [("-4", "7", 3, TEST), ("9", "5", 2, TEST)]
    assert sum(split == VALIDATION for *_, split in shown) in (1, 2)
    assert data.catalog.vectors is not None
    known = {i: v.tolist() for i, v in zip(data.items.ids, data.catalog.vectors, strict=True)}
    assert known["5"] == pytest.approx([0.6, 0.8]) and known["1"] == [0.0, -1.0]
    assert np.isnan(known["8"]).all()
    assert data.catalog.features.categories["213"] == ("2", "3")
    assert len(data.candidates) == 0
    assert any("1 users are in train and test" in note for note in data.notes)


def test_taobao_mm_a_label_that_is_not_one_hot(tmp_path: Path) -> None:
    taobao(tmp_path)
    bad = pl.DataFrame({"label_0": [[1, 1]], "129_1": [1], "205": [5]})
    bad.write_parquet(tmp_path / "test_samples.parquet")
    with pytest.raises(DataError, match="not one-hot"):
        load("taobao-mm", tmp_path)


def test_taobao_mm_keeps_history_with_vectors_and_items_that_were_seen(tmp_path: Path) -> None:
    taobao(tmp_path)
    data = load("taobao-mm", tmp_path)
    # Only items 5 and 1 have a vector; 8 stands in the item table alone.
    assert data.items.ids.tolist() == ["1", "5", "6", "7"]
    rows = named(data, "interactions", "time")
    assert rows == [("-1", "1", 0), ("-1", "1", 1), ("-4", "1", 0)]
    assert any("4 of these were left out" in note for note in data.notes)
    short = load("taobao-mm", tmp_path, taobao_mm={**EVERYTHING, "history_length": 1})
    assert named(short, "interactions", "time") == [
        ("-1", "1", 0), ("-3", "2", 0), ("-4", "2", 0), ("9", "4", 0),
    ]  # fmt: skip


def test_taobao_mm_some_users_only(tmp_path: Path) -> None:
    taobao(tmp_path)
    whole = load("taobao-mm", tmp_path, taobao_mm={**EVERYTHING, "max_users": 99})
    assert len(whole.exposures) == 7
    few = load("taobao-mm", tmp_path, taobao_mm={**EVERYTHING, "max_users": 3})
    assert len(few.users) == 3
    users = set(few.users.ids)
    every = named(load("taobao-mm", tmp_path, taobao_mm=EVERYTHING), "exposures", "click")
    assert named(few, "exposures", "click") == [row for row in every if row[0] in users]
    assert any("3 users were drawn" in note for note in few.notes)

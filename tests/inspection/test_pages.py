"""What pages and their twins say, and what they refuse."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from inspection.small_run import FORMULA, ITEM_IDS, SCRIPT, TITLES, USER_IDS, user_id
from prerank.artifacts import TEST, InterestAnchors, PseudoLabels
from prerank.errors import ArtifactError
from prerank.inspection import labels, users
from prerank.inspection.app import PAGES, create_app
from prerank.inspection.labels import _first
from prerank.inspection.opened import OpenedRun
from prerank.inspection.tree import SidTree
from prerank.store import load
from prerank.vocabulary import Vocabulary

KNOWN: dict[str, dict[str, Any]] = {
    "/artifact": {"key": "labels/gpl"},
    "/user": {"id": "u005"},
    "/item": {"id": ITEM_IDS[1]},
}
PATHS = [page.path for page in PAGES]


def get(client: TestClient, path: str, status: int = 200, **params: Any) -> Any:
    found = client.get(path, params=params)
    assert found.status_code == status, found.text[:2000]
    return found


class Seen(HTMLParser):
    """Collects tags, attributes, and text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("path", PATHS)
def test_every_page_has_a_twin_and_loads_nothing_from_elsewhere(
    client: TestClient, path: str
) -> None:
    page = get(client, path, **KNOWN.get(path, {}))
    twin = get(client, "/index.json" if path == "/" else f"{path}.json", **KNOWN.get(path, {}))
    assert isinstance(twin.json(), dict)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    seen = Seen(page.text)
    for tag, attrs in seen.tags:
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "/").startswith(("/", "#")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs)
    assert "This page as JSON" in seen.text


@pytest.mark.parametrize("path", PATHS)
def test_hostile_titles_and_ids_stay_text(client: TestClient, path: str) -> None:
    hostile = {"/user": {"id": USER_IDS[0]}, "/item": {"id": ITEM_IDS[0]}, **{"/items": {"q": "<"}}}
    page = get(client, path, **hostile.get(path, KNOWN.get(path, {})))
    tags = [tag for tag, _ in Seen(page.text).tags]
    assert "img" not in tags and tags.count("script") in (0, 3)
    assert "<script>alert" not in page.text and "<script>u0" not in page.text


def test_hostile_items_can_be_reached_by_their_links(client: TestClient) -> None:
    page = get(client, "/items", q="script")
    link = next(
        a["href"] for t, a in Seen(page.text).tags if (a.get("href") or "").startswith("/item?")
    )
    assert Seen(client.get(str(link)).text).text.count(SCRIPT) >= 1
    for place, one in ITEM_IDS.items():
        assert get(client, "/item.json", id=one).json()["title"] == TITLES[place]


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("/user", {"id": "nobody"}, 404),
        ("/item", {"id": "../../../etc/passwd"}, 404),
        ("/artifact", {"key": "../../etc/passwd"}, 404),
        ("/artifact", {"key": "/etc"}, 404),
        ("/artifact", {"key": ".work"}, 404),
        ("/user", {"id": "u005", "method": "../labels"}, 404),
        ("/user", {"id": "u005", "left": "nothing"}, 404),
        ("/user", {"id": "u005", "among": "nothing"}, 404),
        ("/user", {"id": "u005", "request": "99"}, 404),
        ("/users", {"left": "nothing"}, 404),
        ("/sids", {"prefix": "999"}, 404),
        ("/sids", {"prefix": "0.0.0.0"}, 404),
        ("/labels", {"method": "exposed-only"}, 404),
        ("/labels", {"user": "nobody"}, 404),
        ("/compare", {"pool": "x"}, 404),
        ("/compare", {"method": "x"}, 404),
        ("/items", {"page": "999"}, 404),
        ("/nothing", {}, 404),
        ("/static/../app.py", {}, 404),
        ("/static/app.py", {}, 404),
        ("/user", {}, 422),
        ("/users", {"page": "0"}, 422),
        ("/users", {"page": "a"}, 422),
        ("/users", {"unknown": "1"}, 422),
        ("/users", {"page": ["1", "2"]}, 422),
        ("/users", {"q": "x" * 600}, 422),
        ("/sids", {"prefix": "1.x"}, 422),
        ("/sids", {"prefix": "1" * 300}, 422),
        ("/labels", {"label_min": "nan"}, 422),
        ("/labels", {"label_min": "2"}, 422),
        ("/labels", {"sort": "label; DROP TABLE"}, 422),
        ("/labels", {"popularity": "11"}, 422),
        ("/labels/download", {"format": "exe"}, 422),
    ],
)
def test_what_is_not_there_or_malformed_is_refused(
    client: TestClient, path: str, params: dict[str, Any], status: int
) -> None:
    page = get(client, path, status, **params)
    assert f"Status {status}" in page.text and "Traceback" not in page.text
    if path in PATHS:
        error = get(client, f"{path}.json", status, **params).json()["error"]
        assert error["what"]


def test_other_hosts_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_nothing_can_be_written(client: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/labels").status_code == 405


def test_empty_form_fields_are_no_filter(client: TestClient) -> None:
    empty = {"user": "", "label_min": "", "popularity": "", "sort": "", "title": ""}
    assert (
        get(client, "/labels.json", **empty).json()["n"] == get(client, "/labels.json").json()["n"]
    )


# ---- what they say ---------------------------------------------------------------------------


def test_overview_is_the_report(client: TestClient, run: OpenedRun) -> None:
    data = get(client, "/index.json").json()
    assert data["summary"] and data["cascade"] == json.loads(json.dumps(run.extra["cascade"]))
    assert {one["stage"] for one in data["stages"]} >= {"dataset", "rankers/gpl/seed0", "report"}
    assert not data["stale"]
    page = get(client, "/").text
    assert all(one["fingerprint"] in page for one in data["stages"])


def test_user_by_hand(client: TestClient, run: OpenedRun, run_folder: Path) -> None:
    data = get(client, "/user.json", id="u005", anchors=500, history=2000).json()
    who = int(run.dataset.users.lookup(["u005"])[0])
    log = run.dataset.interactions
    items = log.item[log.user == who][::-1]
    assert [one["id"] for one in data["history"]] == run.dataset.items.ids[items].tolist()
    anchors: InterestAnchors = load(run_folder / "anchors" / "llm", InterestAnchors)
    mine = slice(int(anchors.offsets[who]), int(anchors.offsets[who + 1]))
    assert [one["probability"] for one in data["anchors"]] == pytest.approx(
        np.exp(anchors.logprob[mine]).tolist()
    )
    assert [one["first_code"] for one in data["anchors"]] == anchors.codes[mine, 0].tolist()
    best = (anchors.vectors_of(mine) @ run.space().vectors.T).argmax(axis=1)
    named = [one["near"][0]["id"] for one in data["anchors"]]
    assert named == run.dataset.items.ids[best].tolist()

    labels: PseudoLabels = load(run_folder / "labels" / "gpl", PseudoLabels)
    rows = np.flatnonzero(labels.user == who)
    by_item = {one["id"]: one for one in data["candidates"]}
    assert len(by_item) == len(rows)
    ranker = {name: run.ranker(name) for name in ("gpl", "exposed-only")}
    pairs = labels.user[rows], labels.item[rows], labels.time[rows]
    scores = {name: one.score_pairs(*pairs) for name, one in ranker.items()}
    for place, row in enumerate(rows.tolist()):
        one = by_item[str(run.dataset.items.ids[labels.item[row]])]
        for name in ("label", "confidence", "relevance", "dispersion", "history", "llm"):
            assert one[name] == pytest.approx(float(getattr(labels, name)[row]), nan_ok=True)
        assert one["because"]["rank"] == int(labels.anchor[row]) - mine.start + 1
        assert one["truth"] in (pytest.approx(0.9), pytest.approx(0.1))
        assert one["left_score"] == pytest.approx(float(scores["gpl"][place]), abs=1e-5)
        assert one["right_score"] == pytest.approx(float(scores["exposed-only"][place]), abs=1e-5)
        assert one["move"] == one["right"] - one["left"]
    in_order = sorted(by_item.values(), key=lambda one: one["left"])
    falling = [one["left_score"] for one in in_order]
    assert falling == sorted(falling, reverse=True)


def test_pool_rows_are_one_request_with_its_clicks(client: TestClient, run: OpenedRun) -> None:
    pools = run.dataset.pools
    who = str(run.dataset.users.ids[pools.user[0]])
    name = pools.pools[int(pools.pool[0])]
    data = get(client, "/user.json", id=who, among=name).json()
    assert data["among"] == name and {one["truth"] for one in data["candidates"]} <= {0, 1}
    same = (pools.user == pools.user[0]) & (pools.pool == pools.pool[0])
    assert data["n_requests"] == len(np.unique(pools.request[same]))


def test_users_begin_with_the_worst_disagreement(client: TestClient, run: OpenedRun) -> None:
    rows = get(client, "/users.json").json()["users"]
    gaps = [one["disagreement"] for one in rows]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] >= 0 and gaps[0] <= 1
    shown = get(client, "/user.json", id=rows[0]["id"]).json()
    assert shown["disagreement"] == pytest.approx(gaps[0])


def test_search_and_surprise(client: TestClient) -> None:
    found = get(client, "/users.json", q="u00").json()
    assert [one["id"] for one in found["users"]] == [user_id(k) for k in range(3, 10)]
    assert get(client, "/users.json", q="zzz").json()["n"] == 0
    moved = client.get("/user/surprise", follow_redirects=False)
    assert moved.status_code == 303 and moved.headers["location"].startswith("/user?id=")
    assert client.get("/user/surprise").status_code == 200


def test_ranks_and_footrule_by_hand() -> None:
    group = np.array([0, 0, 0, 1, 1])
    score = np.array([0.1, 0.3, 0.2, 5, 5], np.float32)
    assert users.ranks_in(group, score).tolist() == [3, 1, 2, 1, 2]  # ties keep their order


def test_tree_by_hand() -> None:
    tree = SidTree.of(np.array([[1, 0], [0, 2], [1, 1], [0, 2], [1, 0]], np.int32))
    codes, _, count = tree.children(())
    assert codes.tolist() == [0, 1] and count.tolist() == [2, 3]
    codes, start, count = tree.children((1,))
    assert codes.tolist() == [0, 1] and count.tolist() == [2, 1]
    assert sorted(tree.items[start[0] : start[0] + 2].tolist()) == [0, 4]
    assert tree.node((0, 2)) == (0, 2) and tree.node((2,)) == (5, 5)


def test_the_tree_leads_from_the_root_to_every_item(client: TestClient, run: OpenedRun) -> None:
    root = get(client, "/sids.json").json()
    assert sum(one["items"] for one in root["children"]) == root["n_items"] == 60
    codes = run.semantic_ids.codes
    assert {one["code"] for one in root["children"]} == set(codes[:, 0].tolist())
    sid = ".".join(map(str, codes[7].tolist()))
    leaf = get(client, "/sids.json", prefix=sid).json()
    ids = run.dataset.items.ids
    same = ids[(codes == codes[7]).all(axis=1)].tolist()
    assert sorted(one["id"] for one in leaf["items"]) == sorted(same)
    mates = get(client, "/item.json", id=str(ids[7])).json()["bucket"]
    assert sorted([str(ids[7]), *(one["id"] for one in mates)]) == sorted(same)


def test_neighbours_are_the_nearest(client: TestClient, run: OpenedRun) -> None:
    ids, vectors = run.dataset.items.ids, run.space().vectors
    near = get(client, "/item.json", id=str(ids[9])).json()["neighbours"]
    cosine = vectors[9] @ vectors.T
    cosine[9] = -2
    assert near[0]["cosine"] == pytest.approx(float(cosine.max()), abs=1e-6)
    assert [one["cosine"] for one in near] == pytest.approx(np.sort(cosine)[::-1][:10].tolist())


def frame_of(client: TestClient, **params: Any) -> pl.DataFrame:
    return pl.read_parquet(
        io.BytesIO(get(client, "/labels/download", format="parquet", **params).content)
    )


def test_filters_and_downloads_agree(client: TestClient, run_folder: Path, run: OpenedRun) -> None:
    labels: PseudoLabels = load(run_folder / "labels" / "gpl", PseudoLabels)
    whole = frame_of(client)
    assert len(whole) == len(labels)
    assert whole["label"].to_list() == pytest.approx(labels.label.tolist())
    assert set(whole["truth"].cast(pl.Float64).round(3).to_list()) == {0.9, 0.1}
    middle = float(np.median(labels.label))
    some = frame_of(client, label_min=middle, title="SHOE")
    want = whole.filter(
        (pl.col("label") >= middle) & pl.col("title").str.to_lowercase().str.contains("shoe")
    )
    assert 0 < len(some) < len(whole) and some["item_id"].to_list() == want["item_id"].to_list()
    assert get(client, "/labels.json", label_min=middle, title="SHOE").json()["n"] == len(some)
    mine = frame_of(client, user="u005")
    assert set(mine["user_id"].to_list()) == {"u005"}
    one = frame_of(client, item=ITEM_IDS[0])
    assert set(one["title"].to_list()) == {SCRIPT}


@pytest.mark.parametrize("near", [0, 1 << 18])
def test_pages_of_a_list_are_the_download(
    client: TestClient, near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prerank.inspection.labels.NEAR_ROWS", near)
    for asked in ({}, {"label_min": 0.1}, {"label_min": 0.1, "sort": "label", "order": "lowest"}):
        first = get(client, "/labels.json", **asked).json()
        assert first["pages"] > 1
        shown = list(first["labels"])
        for page in range(2, first["pages"] + 1):
            shown += get(client, "/labels.json", page=page, **asked).json()["labels"]
        whole = frame_of(client, **asked)
        assert [one["label"] for one in shown] == pytest.approx(whole["label"].to_list())
        pairs = set(zip(whole["user_id"], whole["item_id"], strict=True))
        assert {(one["user"], one["item"]["id"]) for one in shown} == pairs


def test_first_rows_by_hand() -> None:
    fit = pl.DataFrame({"label": [0.5, None, 0.9, 0.5, 0.5], "row": [0, 1, 2, 3, 4]})
    assert _first(fit, "label", 3, down=True)["row"].to_list() == [2, 0, 3]
    assert _first(fit, "label", 4, down=False)["row"].to_list() == [0, 3, 4, 2]
    assert _first(fit, "label", 9, down=False)["row"].to_list() == [0, 3, 4, 2, 1]
    empty = fit.head(0)
    assert not len(_first(empty, "label", 3, down=True))


def test_rows_far_apart_are_picked_as_rows_nearby_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, rng = 600, np.random.default_rng(0)
    columns = {name: rng.random(n, dtype=np.float32) for name in labels.NUMBERS}
    ids = {"user": np.arange(n) // 10, "item": np.arange(n) % 10, "time": np.arange(n)}
    table = pl.DataFrame({**ids, **columns})
    table.write_parquet(tmp_path / "labels.parquet")
    rows = rng.permutation(n)[:20]
    picked = pl.DataFrame({"row": rows.astype(np.uint32), "user": rows // 10})
    for near in (0, n):
        monkeypatch.setattr(labels, "NEAR_ROWS", near)
        frame = pl.scan_parquet(tmp_path / "labels.parquet")
        found = labels._picked(frame, picked.with_row_index("place"))
        assert found.select(labels.SHOWN).equals(table[rows.tolist()].select(labels.SHOWN))


def test_parts_are_those_of_the_tables(client: TestClient) -> None:
    about = get(client, "/labels.json").json()["about"]
    for key, name in (("by_popularity", "popularity"), ("by_confidence", "confidence")):
        for place, part in enumerate(about[key]):
            assert get(client, "/labels.json", **{name: place + 1}).json()["n"] == part["n"]


def test_sorted_labels(client: TestClient) -> None:
    high = get(client, "/labels.json", sort="label").json()["labels"]
    low = get(client, "/labels.json", sort="label", order="lowest").json()["labels"]
    assert [one["label"] for one in high] == sorted((one["label"] for one in high), reverse=True)
    assert [one["label"] for one in low] == sorted(one["label"] for one in low)
    assert low[0]["label"] < high[0]["label"]


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_unknown_values_come_last_in_a_sorted_download(
    run: OpenedRun, run_folder: Path, order: str
) -> None:
    opened = OpenedRun(run_folder)
    table = run.labels("gpl")
    every_third = pl.int_range(pl.len()) % 3 == 0
    unknown = pl.when(every_third).then(float("nan")).otherwise(pl.col("relevance"))
    holed = table.frame.with_columns(unknown.cast(pl.Float32).alias("relevance"))
    opened._labels["gpl"] = replace(table, frame=holed)
    asked = {"sort": "relevance", "order": order}
    found = frame_of(TestClient(create_app([opened]), base_url="http://localhost"), **asked)
    values = found["relevance"].to_numpy()
    n_known = int((~np.isnan(values)).sum())
    assert 0 < n_known < len(values) and not np.isnan(values[:n_known]).any()
    steps = np.diff(values[:n_known])
    assert (steps <= 0).all() if order == "highest" else (steps >= 0).all()


@pytest.mark.parametrize(
    ("asked", "status"),
    [("", 200), ("bytes=0-9", 206), ("lines=1-2", 400), ("bytes=99999999-", 416)],
)
def test_a_download_leaves_no_file_behind(
    client: TestClient, asked: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    headers = {"range": asked} if asked else {}
    assert client.get("/labels/download", headers=headers).status_code == status
    assert not list(tmp_path.iterdir())


def test_no_formula_reaches_a_spreadsheet(client: TestClient) -> None:
    sent = get(client, "/labels/download", format="csv")
    assert "attachment" in sent.headers["content-disposition"]
    table = pl.read_csv(io.BytesIO(sent.content), infer_schema=False)
    texts = [*table["title"], *table["item_id"], *table["user_id"]]
    assert f"'{FORMULA}" in texts and "'-1+1" in texts and "'=u2" in texts
    assert not [text for text in texts if re.match(r"[=+\-@\t\r]", text)]
    assert len(table) == get(client, "/labels.json").json()["n"]
    kept = frame_of(client)["title"].to_list()  # Parquet is no spreadsheet: texts as they are
    assert FORMULA in kept


def test_compare_marks_what_the_report_tests(client: TestClient, run: OpenedRun) -> None:
    data = get(client, "/compare.json", method=["gpl", "exposed-only"]).json()
    rows = {row["name"]: row["segments"] for row in data["runs"][0]["methods"]}
    assert set(rows) == {"gpl", "exposed-only"}
    record = run.seen.record("gpl", data["pool"], "all", "gauc")  # type: ignore[union-attr]
    gap = run.seen.difference("gpl", data["pool"], "all", "gauc")  # type: ignore[union-attr]
    assert record is not None and gap is not None
    one = rows["gpl"]["all"]
    assert (one["value"], one["low"], one["high"]) == (record.value, record.low, record.high)
    assert one["difference"] == gap.value and one["mark"] in ("win", "tie", "loss")
    assert data["simulations"][0]["result"]["by_day"][SCRIPT]


def test_runs_side_by_side(
    run: OpenedRun, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run_folder, old)
    (old / "report" / "users.safetensors").unlink()
    about = old / "report" / "manifest.json"
    manifest = json.loads(about.read_text())
    del manifest["files"]["users.safetensors"]
    about.write_text(json.dumps(manifest))
    runs = [run, OpenedRun(run.root), OpenedRun(old)]
    both = TestClient(create_app(runs), base_url="http://localhost")
    page = get(both, "/compare").text
    assert "Side by side" in page and "on the same candidates" in page
    assert "evaluated before values of users were kept" in page
    same, before = get(both, "/compare.json").json()["pairs"]
    assert same["same_data"] and not before["methods"] and before["n_shared"] == 0
    row = next(one for one in same["methods"] if one["name"] == "gpl")["segments"]["all"]
    assert row["value"] == 0 and row["mark"] == "tie" and row["n"] > 1
    assert get(both, "/compare.json", metric="auc").json()["pairs"][0]["why"]
    # From too few users there is a value, and neither an interval nor a verdict.
    monkeypatch.setattr("prerank.inspection.compare.LEAST_USERS", row["n"] + 1)
    few = get(both, "/compare.json").json()["pairs"][0]["methods"]
    cell = next(one for one in few if one["name"] == "gpl")["segments"]["all"]
    assert cell == {**row, "low": None, "high": None, "p": None, "p_holm": None, "mark": ""}
    assert f"{row['n']:,} users" in get(both, "/compare").text


def test_runs_of_other_data_are_paired_by_user_id(
    run: OpenedRun, run_folder: Path, tmp_path: Path
) -> None:
    """The other run knows its users in another order, and one of them under another id."""
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    manifest = json.loads((other / "dataset" / "manifest.json").read_text())
    (other / "dataset" / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "x"}))
    opened = OpenedRun(other)
    pools = run.dataset.pools
    tested = np.unique(pools.user[(pools.split == TEST) & (pools.pool == 0)])
    ids = opened.dataset.users.ids.astype(object)
    ids[tested[0]] += " of the others"
    opened.__dict__["dataset"] = replace(opened.dataset, users=Vocabulary(ids.astype(np.str_)))
    both = TestClient(create_app([run, opened]), base_url="http://localhost")
    pair = get(both, "/compare.json", pool=pools.pools[0]).json()["pairs"][0]
    assert not pair["same_data"] and pair["n_shared"] == len(tested) - 1
    assert "the datasets differ" in get(both, "/compare").text


# ---- runs that are not finished --------------------------------------------------------------


def test_a_run_that_is_half_made_says_so(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "dataset", tmp_path / "dataset")
    opened = OpenedRun(tmp_path)
    opened.warm()
    part = TestClient(create_app([opened]), base_url="http://localhost")
    assert "not evaluated yet" in get(part, "/").text
    for path in ("/users", "/items"):
        get(part, path)
    get(part, "/user", id="u005")
    for page in ("/user", "/user.json"):
        assert "no candidates named" in get(part, page, 404, id="u005", among="labelled").text
    for path in ("/sids", "/labels", "/compare", "/report"):
        get(part, path, 404)


def test_a_pre_ranker_that_cannot_be_read_takes_no_page_with_it(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(run_folder, folder)
    about = folder / "rankers" / "gpl" / "seed0" / "pre_ranker.json"
    about.write_text("{}")
    manifest = about.with_name("manifest.json")
    values = json.loads(manifest.read_text())
    values["files"]["pre_ranker.json"] = sha256(b"{}").hexdigest()
    manifest.write_text(json.dumps(values))
    opened = OpenedRun(folder)
    opened.warm()
    old = TestClient(create_app([opened]), base_url="http://localhost")
    assert "gpl cannot be read" in get(old, "/users").text
    assert "gpl cannot be read" in get(old, "/user", id="u005").text
    rows = get(old, "/user.json", id="u005").json()["candidates"]
    assert {row["left"] for row in rows} == {None} and None not in {row["right"] for row in rows}


def test_a_folder_without_artifacts_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="no run here"):
            OpenedRun(folder)


def test_a_damaged_artifact_is_named(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "semantic_ids"
    folder.mkdir()
    for file in (run_folder / "semantic_ids").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "sids.safetensors").write_bytes(b"broken")
    hurt = TestClient(create_app([OpenedRun(tmp_path)]), base_url="http://localhost")
    assert "damaged" in get(hurt, "/sids", 500).text


def test_the_run_is_not_touched(client: TestClient, run_folder: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = (p for p in run_folder.rglob("*") if p.is_file())
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}

    before = state()
    for path in PATHS:
        get(client, path, **KNOWN.get(path, {}))
    get(client, "/labels/download")
    assert state() == before

"""The server as its clients meet it: answers, limits, bad input, overload, hot swap."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from prerank.cli import app
from prerank.errors import ConfigError
from prerank.serving import wire
from prerank.serving.app import create_app, serve
from prerank.serving.bundle import Bundle
from prerank.serving.config import ServeConfig
from prerank.serving.export import load_trained
from prerank.serving.listen import listen
from prerank.serving.users import (
    MOST_LATE,
    REST_S,
    RedisStore,
    StoreDownError,
    fill_redis,
    open_store,
)
from serving.servers import TOKEN, Running, free_port, redis_server, serving
from serving.small_run import N_ITEMS

ITEMS = [str(1000 + i) for i in range(N_ITEMS)]


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("serve") / "log"
    limits = ("--set", "max_candidates=1000", "--set", "max_body=20000", "--set", "timeout_s=0.5")
    with serving(bundle.path, log, *limits) as running:
        yield running
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


def rank(client: httpx.Client, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/rank", json=request)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def ranker(run_folder: Path) -> Any:
    return load_trained(run_folder, "gpl").ranker


# ---- answers -----------------------------------------------------------------------------------


def test_scores_equal_those_of_training(client: httpx.Client, ranker: Any) -> None:
    found = rank(client, user="121", candidates=ITEMS)
    want = ranker.score([21], [range(N_ITEMS)])[0]
    order = np.argsort(-want, kind="stable")
    assert found["user"] == "known" and found["unknown_items"] == 0
    np.testing.assert_allclose(found["logits"], want[order], atol=1e-5)
    got = dict(zip(found["items"], found["logits"], strict=True))
    np.testing.assert_allclose([got[item] for item in ITEMS], want, atol=1e-5)


def test_top_k_order_and_duplicates(client: httpx.Client) -> None:
    every = rank(client, user="121", candidates=ITEMS)
    some = rank(client, user="121", candidates=ITEMS[::-1], top_k=3)
    assert some["logits"] == every["logits"][:3]
    twice = rank(client, user="121", candidates=[*ITEMS, *ITEMS], top_k=2)
    assert twice["items"] == [every["items"][0]] * 2
    assert rank(client, user=121, candidates=[1000, 1001])["user"] == "known"  # ids as numbers


def test_unknown_user_and_items_have_the_stated_fallback(client: httpx.Client, ranker: Any) -> None:
    found = rank(client, user="nobody", candidates=["1000", "absent"])
    want = ranker.score([-1], [[0, -1]])[0]
    got = dict(zip(found["items"], found["logits"], strict=True))
    np.testing.assert_allclose([got["1000"], got["absent"]], want, atol=1e-5)
    assert found["user"] == "unknown" and found["unknown_items"] == 1
    assert rank(client, candidates=["1000", "absent"])["logits"] == found["logits"]


def test_given_features_and_history_take_the_place_of_the_stored(
    client: httpx.Client, bundle: Bundle
) -> None:
    row = bundle.users.row(21, named=True)
    features = {
        name.partition(":")[2]: value for name, value in row.items() if name.startswith("feature:")
    }
    rows, start = bundle.histories
    history = [ITEMS[k] for k in rows[start[21] : start[22]]]
    stored = rank(client, user="121", candidates=ITEMS)
    given = rank(client, user="121", candidates=ITEMS, features=features, history=history)
    np.testing.assert_allclose(given["logits"], stored["logits"], atol=1e-5)
    other = rank(client, user="121", candidates=ITEMS, features={"city": "Ulm"}, history=[])
    assert np.abs(np.subtract(other["logits"], stored["logits"])).max() > 1e-3
    unseen = rank(client, user="121", candidates=ITEMS, features={"city": "Atlantis"}, history=[])
    missing = rank(client, user="121", candidates=ITEMS, features={}, history=["absent"])
    assert unseen["logits"] == missing["logits"]


@pytest.mark.parametrize("by_id", [False, True])
def test_binary_equals_json(client: httpx.Client, bundle: Bundle, by_id: bool) -> None:
    want = rank(client, user="121", candidates=ITEMS, top_k=5)
    kind = np.int64 if by_id else np.int32
    listed = np.arange(N_ITEMS) + (1000 if by_id else 0)
    mark = 0 if by_id else int(client.get("/v1/bundle").json()["item_mark"])
    body = wire.encode_request("121", listed.astype(kind), 5, item_mark=mark)
    answer = client.post("/v1/rank", content=body, headers={"content-type": wire_type()})
    assert answer.status_code == 200, answer.text
    position, logits, unknown, flags = wire.decode_answer(answer.content)
    assert [ITEMS[k] for k in position] == want["items"]
    np.testing.assert_allclose(logits, want["logits"], atol=1e-6)
    assert (unknown, flags) == (0, 0)


def wire_type() -> str:
    return "application/octet-stream"


def test_layout_of_the_binary_body_by_hand() -> None:
    body = wire.encode_request("ab", np.array([1, -1], np.int32), 3, item_mark=5)
    assert body.hex(" ", 4) == (
        "50524b31 00000200 03000000 02000000 05000000 00000000 61620000 00000000 01000000 ffffffff"
    )


def test_pages_beside_rank(client: httpx.Client, bundle: Bundle) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json()["bundle"] == bundle.fingerprint
    assert client.get("/v1/bundle").json()["user_features"] == ["city", "age", "searches", "taste"]
    rank(client, user="nobody", candidates=["absent"])
    text = client.get("/metrics").text
    assert 'prerank_requests_total{status="200"}' in text and "prerank_seconds_bucket" in text
    assert "prerank_inside 0.0" in text
    schema = client.get("/openapi.json").json()
    assert "/v1/rank" in schema["paths"]


# ---- bad input (tests/malformed has the table) ------------------------------------------------


def test_size_type_method_and_path(client: httpx.Client) -> None:
    many = json.dumps({"candidates": list(range(1_000_000))}).encode()
    assert client.post("/v1/rank", content=many).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * 8000

    assert client.post("/v1/rank", content=chunks()).status_code == 413
    answer = client.post("/v1/rank", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]["must"]
    assert client.get("/v1/rank").status_code == 405
    assert client.get("/nowhere").json()["error"]["what"] == "Not Found"
    assert client.post("/v1/admin/reload").status_code == 403


def test_slow_body_is_given_up(server: Running) -> None:
    with begun(server, 100) as link:
        link.sendall(b"{")
        assert b"408" in link.recv(4096).split(b"\r\n")[0]


def test_a_client_that_hangs_up_is_no_failure_of_the_server(
    server: Running, client: httpx.Client
) -> None:
    for _ in range(2):
        with begun(server, 100) as link:
            link.sendall(b"{")
            time.sleep(0.1)  # the server waits for the rest; its log is looked at in the end
    until(lambda: 'prerank_requests_total{status="499"} 2.0' in client.get("/metrics").text)
    assert 'status="500"' not in client.get("/metrics").text
    until(lambda: "prerank_inside 0.0" in client.get("/metrics").text)


def test_fuzz(server: Running) -> None:
    """Schemathesis from the server's own OpenAPI page, for a bounded time."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.url}/openapi.json",
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--phases",
        "fuzzing,coverage",
        "--max-examples",
        "60",
        "--max-time",
        "15",
        "--seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


# ---- overload, swap, shutdown, token -----------------------------------------------------------


def begun(running: Running, length: int) -> socket.socket:
    """Return a connection whose request stands inside the server, its body unfinished."""
    host, port = running.url.removeprefix("http://").split(":")
    link = socket.create_connection((host, int(port)), 10)
    head = "POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    link.sendall(f"{head}content-length: {length}\r\n\r\n".encode())
    return link


def test_full_server_sheds_with_retry_after_and_recovers(bundle: Bundle, tmp_path: Path) -> None:
    body = json.dumps({"user": "121", "candidates": ITEMS}).encode()
    limits = ("--set", "queue=2", "--set", "timeout_s=30")
    with serving(bundle.path, tmp_path / "log", *limits) as running, running.client() as client:
        links = [begun(running, len(body)) for _ in range(2)]
        until(lambda: "prerank_inside 2.0" in client.get("/metrics").text)
        for _ in range(3):
            shed = client.post("/v1/rank", content=body * 100)  # its body is not waited for
            assert shed.status_code == 503 and shed.headers["retry-after"] == "1"
            assert "full" in shed.json()["error"]["what"]
        for link in links:
            link.sendall(body)
            assert link.recv(9999).startswith(b"HTTP/1.1 200")
            link.close()
        assert rank(client, user="121", candidates=ITEMS)["user"] == "known"
        assert 'prerank_requests_total{status="503"} 3.0' in client.get("/metrics").text


def test_whole_requests_that_come_at_once_are_shed_too(bundle: Bundle) -> None:
    """A request whose body is there already must not run to its end before the next is counted."""
    app = create_app(bundle.path, ServeConfig(queue=3))

    async def ask() -> Counter[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"user": "121", "candidates": ITEMS}
            calls = [client.post("/v1/rank", json=body) for _ in range(10)]
            return Counter(answer.status_code for answer in await asyncio.gather(*calls))

    assert asyncio.run(ask()) == {200: 3, 503: 7}


def test_hot_swap_loses_no_request(bundle: Bundle, exposed_bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle.path)
    stop, seen, failed = threading.Event(), set[str](), list[str]()
    with serving(link, tmp_path / "log", token=TOKEN) as running:
        headers = {"authorization": f"Bearer {TOKEN}"}

        def ask() -> None:
            with running.client(headers=headers) as client:
                while not stop.is_set():
                    answer = client.post("/v1/rank", json={"user": "121", "candidates": ITEMS})
                    if answer.status_code != 200:
                        failed.append(answer.text)
                    else:
                        seen.add(answer.json()["bundle"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        with running.client(headers=headers) as client:
            for target in (exposed_bundle, bundle, exposed_bundle):
                link.unlink()
                link.symlink_to(target.path)
                answer = client.post("/v1/admin/reload")
                assert answer.json()["fingerprint"] == target.fingerprint
                assert client.get("/readyz").json()["bundle"] == target.fingerprint
            link.unlink()
            link.symlink_to(tmp_path)  # no bundle at all
            refused = client.post("/v1/admin/reload")
            assert refused.status_code == 409 and "old bundle stays" in refused.text
            link.unlink()
            link.symlink_to(bundle.path)
            running.process.send_signal(signal.SIGHUP)
            until(lambda: client.get("/readyz").json()["bundle"] == bundle.fingerprint)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert seen == {bundle.fingerprint, exposed_bundle.fingerprint}


def until(true: Any) -> None:
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came true")


def test_token_guards_all_but_health(bundle: Bundle, tmp_path: Path) -> None:
    with serving(bundle.path, tmp_path / "log", token=TOKEN) as running, running.client() as client:
        ask = {"candidates": ["1000"]}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            answer = client.post("/v1/rank", json=ask, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/admin/reload", headers=headers).status_code == 401
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/v1/rank", json=ask, headers=right).status_code == 200
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200


def test_a_token_is_read_without_the_line_end_of_its_file(bundle: Bundle) -> None:
    guarded = TestClient(create_app(bundle.path, ServeConfig(), f"{TOKEN}\n"))
    for given, status in ((TOKEN, 200), (f"{TOKEN}s", 401), ("", 401)):
        answer = guarded.get("/v1/bundle", headers={"authorization": f"Bearer {given}"})
        assert answer.status_code == status


@pytest.mark.parametrize("token", ["  ", "\n", "pässword", "one\ntwo"])
def test_a_token_that_nobody_could_send_is_told_at_the_start(bundle: Bundle, token: str) -> None:
    with pytest.raises(ConfigError, match="PRERANK_TOKEN") as told:
        create_app(bundle.path, ServeConfig(), token)
    assert not token.strip() or token not in str(told.value)


def test_an_idle_connection_stays_as_long_as_it_is_told(bundle: Bundle, tmp_path: Path) -> None:
    """Uvicorn's own five seconds are fewer than any load balancer's, which would answer 502."""
    ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    limits = ("--set", "keep_alive_s=2")
    with serving(bundle.path, tmp_path / "log", *limits) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 20) as link:
            for _ in range(2):
                link.sendall(ask)
                answer = b""
                while not answer.endswith(b"}"):
                    part = link.recv(9999)
                    assert part, "closed too early"
                    answer += part
                assert answer.startswith(b"HTTP/1.1 200")
            start = time.monotonic()
            assert link.recv(9999) == b""  # closed by the server
            assert 1 < time.monotonic() - start < 5
    assert ServeConfig().keep_alive_s > 60


def test_shutdown_ends_running_requests_first(bundle: Bundle, tmp_path: Path) -> None:
    body = json.dumps({"user": "121", "candidates": ITEMS}).encode()
    limits = ("--set", "timeout_s=30")
    with serving(bundle.path, tmp_path / "log", *limits) as running, running.client() as client:
        link = begun(running, len(body))
        until(lambda: "prerank_inside 1.0" in client.get("/metrics").text)
        running.process.terminate()
        until(lambda: refused(running))
        link.sendall(body)
        assert link.recv(9999).startswith(b"HTTP/1.1 200")
        link.close()
        client.close()
        assert running.process.wait(20) == 128 + signal.SIGTERM
    assert running.log.read_text().splitlines()[-1] == "stopped"  # a server has no work to keep


def refused(running: Running) -> bool:
    try:
        httpx.get(f"{running.url}/healthz")
    except httpx.ConnectError:
        return True
    return False


@pytest.mark.parametrize("kind", ["corrupt", "foreign", "absent"])
def test_bad_bundle_is_told_at_the_start(
    bundle: Bundle, run_folder: Path, tmp_path: Path, kind: str
) -> None:
    path = {"foreign": run_folder / "dataset", "absent": tmp_path / "no"}.get(kind)
    if path is None:
        path = shutil.copytree(bundle.path, tmp_path / "copy")
        (path / "schema.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "prerank", "serve", str(path), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "bundle" in done.stderr or "damaged" in done.stderr


@pytest.mark.parametrize("port", ["0", "99999"])
def test_a_port_that_is_none_is_told(bundle: Bundle, port: str) -> None:
    for command in ("serve", "inspect"):
        told = CliRunner().invoke(app, [command, str(bundle.path), "--port", port])
        assert told.exit_code == 2 and "port" in told.stderr


def test_a_port_that_is_taken_is_told(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"http://127.0.0.1:{port}\n(.*\n)*.*--port"):
            serve(bundle.path, ServeConfig(), "127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("192.0.2.1", 8080)  # of the documentation, of no machine


def test_a_server_goes_on_without_its_folder(bundle: Bundle, tmp_path: Path) -> None:
    path = shutil.copytree(bundle.path, tmp_path / "copy")
    with serving(path, tmp_path / "log") as running, running.client() as client:
        before = client.get("/v1/bundle").json()
        shutil.rmtree(path)
        assert client.get("/v1/bundle").json() == before


def test_a_set_named_twice_in_a_request_counts_once(bundle: Bundle) -> None:
    schema = bundle.features("item")  # tags are a set, searches of users a sequence
    once, twice = (
        schema.row({"tags": ["new", "sale"]}),
        schema.row({"tags": ["new", "new", "sale"]}),
    )
    assert {k: v.tolist() for k, v in once.items()} == {k: v.tolist() for k, v in twice.items()}
    users = bundle.features("user")
    one, two = users.row({"searches": ["hat"]}), users.row({"searches": ["hat", "hat"]})
    assert {k: v.tolist() for k, v in one.items()} != {k: v.tolist() for k, v in two.items()}


def test_a_category_may_be_a_whole_number(client: httpx.Client, bundle: Bundle) -> None:
    """Logs may hold categories as integers; training and requests read them as their text."""
    schema = bundle.features("user")
    codes = {name: {**of, "3": of[next(iter(of))]} for name, of in schema.codes.items()}
    numbered = replace(schema, codes=codes)
    for name, number, text, none in (("city", 3, "3", None), ("searches", [3], ["3"], [])):
        one, other, missing = (numbered.row({name: value}) for value in (number, text, none))
        same = [np.array_equal(one[table], other[table]) for table in one]
        assert all(same), name
        assert not all(np.array_equal(one[table], missing[table]) for table in one), name
    asked = {"city": 3, "searches": [1, 2]}
    unseen = rank(client, user="121", candidates=ITEMS, features=asked)
    assert unseen["logits"] == rank(client, user="121", candidates=ITEMS, features={})["logits"]


# ---- Redis -------------------------------------------------------------------------------------


def test_redis_store_and_what_happens_without_it(bundle: Bundle, tmp_path: Path) -> None:
    import redis

    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    options = ("--user-store", url, "--set", "store_timeout_s=0.5")
    with redis_server(tmp_path / "redis", port) as store:
        assert fill_redis(bundle, url) == 40
        with (
            serving(bundle.path, tmp_path / "log", *options) as running,
            running.client() as client,
            redis.Redis(port=port) as keys,
        ):
            ask = {"user": "121", "candidates": ITEMS}
            stored = rank(client, **ask)
            assert stored["user_store"] == "hit"
            fresh = {"features": {"city": "Ulm"}, "history": ["1002", "1001", "gone"]}
            keys.set("prerank:user:121", json.dumps(fresh))
            hit = rank(client, **ask)
            given = rank(client, **ask, **fresh)
            assert hit["logits"] == given["logits"] != stored["logits"]
            keys.set("prerank:user:new", json.dumps(fresh))
            assert rank(client, user="new", candidates=ITEMS)["user_store"] == "hit"
            assert rank(client, user="nobody", candidates=ITEMS)["user_store"] == "miss"
            for odd in ("[1]", "{", '{"features": 3}', '{"features": {"age": "old"}}'):
                keys.set("prerank:user:odd", odd)
                assert rank(client, user="odd", candidates=ITEMS)["user_store"] == "unreadable"
                assert rank(client, **ask)["user_store"] == "hit"  # the store does not rest for it
            keys.hset("prerank:user:table", "age", 3)
            assert rank(client, user="table", candidates=ITEMS)["user_store"] == "unreadable"
            assert rank(client, **ask)["user_store"] == "hit"
            assert running.log.read_text().count("cannot be read as it is") == 1
            assert 'outcome="unreadable"} 5.0' in client.get("/metrics").text
            # Gone in the middle of a request: it hangs, and is killed while one waits for it.
            store.send_signal(signal.SIGSTOP)
            silent = rank(client, **ask)
            assert silent["user_store"] == "down"
            time.sleep(REST_S + 0.1)  # so that the server asks it again
            threading.Timer(0.1, store.kill).start()
            assert rank(client, **ask) == silent
            store.wait(10)
            for _ in range(3):
                fallen = rank(client, **ask)
                assert fallen["user_store"] == "down"
                np.testing.assert_allclose(fallen["logits"], stored["logits"], atol=1e-5)
    with (
        redis_server(tmp_path / "redis", port),
        serving(bundle.path, tmp_path / "log2", *options) as running,
        running.client() as client,
    ):
        assert rank(client, user="121", candidates=ITEMS)["user_store"] == "miss"  # empty store


def test_what_fits_of_a_stored_record_is_used(bundle: Bundle, tmp_path: Path) -> None:
    """Records are raw and outlive any bundle: a feature more, or one unfit, costs no other."""
    import redis

    port = free_port()
    options = ("--user-store", f"redis://127.0.0.1:{port}/0", "--set", "store_timeout_s=0.5")
    fit = {"features": {"city": "Ulm", "age": 30.0}, "history": ["1002", "1001"]}
    ask = {"user": "121", "candidates": ITEMS}
    with (
        redis_server(tmp_path / "redis", port),
        serving(bundle.path, tmp_path / "log", *options) as running,
        running.client() as client,
        redis.Redis(port=port) as keys,
    ):

        def stored(record: object) -> tuple[str, list[float]]:
            keys.set("prerank:user:121", json.dumps(record))
            found = rank(client, **ask)
            return found["user_store"], found["logits"]

        def given(**parts: Any) -> list[float]:
            logits: list[float] = rank(client, **ask, **parts)["logits"]
            return logits

        keys.delete("prerank:user:121")
        embedded = rank(client, **ask)["logits"]
        assert stored(fit) == ("hit", given(**fit)) != ("hit", embedded)
        more = {**fit["features"], "vip": 1.0, "gone": {}}  # type: ignore[dict-item]
        assert stored({**fit, "features": more}) == ("hit", given(**fit))
        odd = {"city": "Ulm", "age": "old", "taste": [1], "searches": [3]}
        want = given(features={"city": "Ulm"}, history=fit["history"])
        assert stored({**fit, "features": odd}) == ("unreadable", want)
        assert stored({**fit, "features": 3}) == ("unreadable", given(history=fit["history"]))
        assert stored({**fit, "history": 3}) == ("unreadable", given(features=fit["features"]))
        assert stored([1]) == ("unreadable", embedded)


def test_one_late_answer_of_redis_is_one_requests_trouble(tmp_path: Path) -> None:
    port = free_port()

    async def ask(store: RedisStore) -> str:
        try:
            await store.get("nobody")
        except StoreDownError as error:
            return error.what
        return ""

    async def meet(running: subprocess.Popen[str]) -> None:
        store = RedisStore(f"redis://127.0.0.1:{port}/0", 0.4)
        assert await ask(store) == ""
        for _ in range(2):
            running.send_signal(signal.SIGSTOP)
            for _ in range(MOST_LATE - 1):
                assert "does not answer" in await ask(store)
            running.send_signal(signal.SIGCONT)
            assert await ask(store) == ""  # it does not rest, and counts anew
        running.send_signal(signal.SIGSTOP)
        for _ in range(MOST_LATE):
            assert "does not answer" in await ask(store)
        assert "a moment ago" in await ask(store)
        running.send_signal(signal.SIGCONT)
        await asyncio.sleep(REST_S)
        assert await ask(store) == ""
        running.kill()
        running.wait(10)
        assert "does not answer" in await ask(store)  # refused
        assert "a moment ago" in await ask(store)
        await store.close()

    with redis_server(tmp_path / "redis", port) as running:
        asyncio.run(meet(running))


@pytest.mark.parametrize("url", ["redis://localhost:notaport/0", "localhost:6379"])
def test_an_address_of_redis_that_is_none_is_told(bundle: Bundle, url: str) -> None:
    with pytest.raises(ConfigError, match="redis://host:port/db"):
        fill_redis(bundle, url)
    if url.startswith("redis://"):
        with pytest.raises(ConfigError, match="cannot be read"):
            open_store(url, 0.1)

"""Requests that cannot be: 4xx that says what, where, must be, got, hint; never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from prerank.serving import wire
from prerank.serving.app import BINARY, JSON, create_app
from prerank.serving.bundle import Bundle
from prerank.serving.config import ServeConfig

LIMITS = ServeConfig(max_candidates=1000, max_body=20_000)
TOKEN = "open sesame"


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> Iterator[TestClient]:
    app = create_app(bundle.path, LIMITS)
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(bundle: Bundle) -> TestClient:
    app = create_app(bundle.path, LIMITS, TOKEN)
    return TestClient(app, raise_server_exceptions=False)


def told(answer: Any, status: int, where: str, about: str = "") -> None:
    """Expect one form of complaint, in JSON, of which nothing is left out."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    error = answer.json()["error"]
    assert set(error) == {"what", "where", "must", "got", "hint"}
    assert error["what"] and where in error["where"] and error["where"]
    assert error["must"] or error["hint"]
    assert about in error["what"] + error["must"]
    assert "Traceback" not in answer.text and len(answer.content) < 2000


def one(**values: Any) -> dict[str, Any]:
    return {"candidates": ["1"], **values}


def feature(name: str, value: Any) -> dict[str, Any]:
    return one(features={name: value})


BODIES: dict[str, tuple[Any, int, str, str]] = {
    # malformed
    "cut short": (b'{"candidates": [', 400, "body", "no JSON"),
    "empty": (b"", 400, "body", "no JSON"),
    "zero bytes": (b"\0" * 40, 400, "body", "no JSON"),
    "not UTF-8": (b'{"user": "\xff"}', 400, "body", "no JSON"),
    "UTF-16": ('{"candidates": ["1"]}'.encode("utf-16"), 400, "body", "no JSON"),
    "lone surrogate": (b'{"user": "\\ud800", "candidates": ["1"]}', 400, "body", "no JSON"),
    "single quotes": (b"{'candidates': ['1']}", 400, "body", "no JSON"),
    "a comma too many": (b'{"candidates": ["1"],}', 400, "body", "no JSON"),
    "more after the end": (b'{"candidates": ["1"]} {}', 400, "body", "no JSON"),
    "a form": (b"candidates=1&user=2", 400, "body", "no JSON"),
    "brackets without end": (b"[" * 19_000, 400, "body", "no JSON"),
    # of wrong types
    "a list": ([1], 422, "body", "valid"),
    "a number": (3, 422, "body", "valid"),
    "null": (None, 422, "body", "valid"),
    "unknown key": (one(topk=1), 422, "topk", "valid"),
    "top_k zero": (one(top_k=0), 422, "top_k", "valid"),
    "top_k negative": (one(top_k=-1), 422, "top_k", "valid"),
    "top_k text": (one(top_k="3"), 422, "top_k", "valid"),
    "top_k a half": (one(top_k=1.5), 422, "top_k", "valid"),
    "top_k true": (one(top_k=True), 422, "top_k", "valid"),
    "user a list": (one(user=[1]), 422, "user", "valid"),
    "user a float": (one(user=1.5), 422, "user", "valid"),
    "user true": (one(user=True), 422, "user", "valid"),
    "huge user": (one(user="x" * 600), 422, "user", "valid"),
    "features a list": (one(features=[]), 422, "features", "valid"),
    "history a text": (one(history="1"), 422, "history", "valid"),
    "history of nulls": (one(history=[None]), 422, "history", "valid"),
    "history of two kinds": (one(history=["1", 1]), 422, "history", "valid"),
    "huge history": ({"candidates": [1], "history": [1] * 6_000 + [""]}, 422, "history", "valid"),
    # candidates
    "no candidates": ({"candidates": []}, 422, "candidates", "valid"),
    "candidates missing": ({"user": "1"}, 422, "candidates", "valid"),
    "candidates null": ({"candidates": None}, 422, "candidates", "valid"),
    "candidates a text": ({"candidates": "1"}, 422, "candidates", "valid"),
    "candidates of two kinds": ({"candidates": ["1", 1]}, 422, "candidates", "valid"),
    "candidates nested": ({"candidates": [["1"]]}, 422, "candidates", "valid"),
    "candidates with null": ({"candidates": ["1", None]}, 422, "candidates", "valid"),
    "candidates of floats": ({"candidates": [1.5]}, 422, "candidates", "valid"),
    "one too many": ({"candidates": ["1"] * 1001}, 422, "candidates", "too many"),
    "a million": ({"candidates": [1] * 1_000_000}, 413, "body", "too large"),
    "a huge candidate": ({"candidates": ["x" * 30_000]}, 413, "body", "too large"),
    # features
    "NaN": (b'{"candidates": ["1"], "features": {"age": NaN}}', 422, "features", "finite"),
    "NaN in words": (feature("age", "NaN"), 422, "features.age", "wrong type"),
    "infinity": (b'{"candidates": ["1"], "features": {"age": 1e999}}', 422, "features", "finite"),
    "minus infinity": (b'{"candidates": [1], "features": {"age": -1e999}}', 422, "", "finite"),
    "beyond float32": (feature("age", 1e39), 422, "features.age", "finite"),
    "a whole number beyond": (feature("age", 10**400), 422, "features.age", "finite"),
    "infinity in a vector": (b'{"candidates": [1], "features": {"taste": [1e999]}}', 422, "", ""),
    "beyond float32 in a vector": (feature("taste", [1e39, 0, 0]), 422, "taste", "finite"),
    "unknown feature": (feature("shoe", 1), 422, "features.shoe", "unknown feature"),
    "a huge name": (feature("x" * 9_000, 1), 422, "features.x", "unknown feature"),
    "a name of control": (feature("\x1b[31m\n", 1), 422, "features.", "unknown feature"),
    "a number as text": (feature("age", "x"), 422, "features.age", "wrong type"),
    "a truth as a number": (feature("age", True), 422, "features.age", "wrong type"),
    "a fraction as a category": (feature("city", 3.5), 422, "features.city", "wrong type"),
    "a truth as a category": (feature("city", True), 422, "features.city", "wrong type"),
    "an object as a category": (feature("city", {}), 422, "features.city", "wrong type"),
    "a number as a list": (feature("searches", 1), 422, "features.searches", "wrong type"),
    "a list of fractions": (feature("searches", [1.5]), 422, "features.searches", "wrong type"),
    "a list of truths": (feature("searches", [True]), 422, "features.searches", "wrong type"),
    "a text as a vector": (feature("taste", "1,2,3"), 422, "features.taste", "wrong type"),
    "a vector too short": (feature("taste", [1]), 422, "features.taste", "length"),
    "a vector with null": (feature("taste", [1, None, 1]), 422, "features.taste", "wrong type"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_json_body_that_cannot_be_is_told(client: TestClient, kind: str) -> None:
    body, status, where, about = BODIES[kind]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v1/rank", content=content, headers={"content-type": JSON})
    told(answer, status, where, about)


GOOD = wire.encode_request("121", np.arange(4, dtype=np.int64))
BINARIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "body"),
    "half a header": (GOOD[:10], 400, "body"),
    "a header alone": (GOOD[:24], 400, "body"),
    "a byte too few": (GOOD[:-1], 400, "body"),
    "a byte too many": (GOOD + b"x", 400, "body"),
    "another magic": (b"XXXX" + GOOD[4:], 400, "body"),
    "JSON": (b'{"candidates": ["1"], "user": "nobody"}', 400, "body"),
    "unknown flags": (GOOD[:4] + b"\x08" + GOOD[5:], 400, "body"),
    "a user that is no UTF-8": (GOOD.replace(b"121", b"\xff\xff\xff"), 400, "body"),
    "a user longer than the body": (GOOD[:6] + b"\xff\xff" + GOOD[8:], 400, "body"),
    "4 billion candidates": (GOOD[:12] + b"\xff\xff\xff\xff" + GOOD[16:], 400, "body"),
    "no candidates": (wire.encode_request("1", np.zeros(0, np.int64)), 422, "candidates"),
    "one too many": (wire.encode_request("1", np.zeros(1001, np.int64)), 422, "candidates"),
    "a million": (wire.encode_request("1", np.zeros(1_000_000, np.int64)), 413, "body"),
    "a huge user": (wire.encode_request("x" * 600, np.arange(4)), 422, "user"),
    "rows of another bundle": (
        wire.encode_request("1", np.arange(4, dtype=np.int32), item_mark=3),
        409,
        "item mark",
    ),
}


@pytest.mark.parametrize("kind", BINARIES)
def test_a_binary_body_that_cannot_be_is_told(client: TestClient, kind: str) -> None:
    body, status, where = BINARIES[kind]
    told(client.post("/v1/rank", content=body, headers={"content-type": BINARY}), status, where)


SOUND = json.dumps({"user": "121", "candidates": ["1000", "1001"]}).encode()
CALLS: dict[str, tuple[str, str, dict[str, str], int, str]] = {
    "no content type": ("POST", "/v1/rank", {}, 415, "content-type"),
    "text": ("POST", "/v1/rank", {"content-type": "text/plain"}, 415, "content-type"),
    "a form": ("POST", "/v1/rank", {"content-type": "multipart/form-data"}, 415, "content-type"),
    "an odd type": ("POST", "/v1/rank", {"content-type": "\xff;;"}, 415, "content-type"),
    "compressed": (
        "POST",
        "/v1/rank",
        {"content-type": JSON, "content-encoding": "gzip"},
        415,
        "content-encoding",
    ),
    "a length in words": (
        "POST",
        "/v1/rank",
        {"content-type": JSON, "content-length": "many"},
        413,
        "body",
    ),
    "a length below zero": (
        "POST",
        "/v1/rank",
        {"content-type": JSON, "content-length": "-1"},
        413,
        "body",
    ),
    "get": ("GET", "/v1/rank", {}, 405, "GET /v1/rank"),
    "delete": ("DELETE", "/v1/rank", {}, 405, "DELETE /v1/rank"),
    "an unknown method": ("BREW", "/v1/rank", {}, 405, "BREW /v1/rank"),
    "post to a page": ("POST", "/healthz", {}, 405, "POST /healthz"),
    "an unknown path": ("GET", "/v2/rank", {}, 404, "GET /v2/rank"),
    "a path that leads out": ("GET", "/v1/../../etc/passwd", {}, 404, "GET"),
    "the same, written out": ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404, "GET"),
    "a path of control": ("GET", "/%1b%5b31m%0a", {}, 404, "GET"),
    "a huge path": ("GET", "/" + "x" * 9_000, {}, 404, "GET"),
    "reload without a token": ("POST", "/v1/admin/reload", {}, 403, "server"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_that_cannot_be_is_told(client: TestClient, kind: str) -> None:
    method, path, headers, status, where = CALLS[kind]
    content = SOUND if method == "POST" else None
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    told(client.request(method, path, headers=sent, content=content), status, where)


TOKENS = ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"]


@pytest.mark.parametrize("given", [*TOKENS, "Bearer \xff", "Bearer " + "x" * 9_000])
def test_a_wrong_token_is_told(guarded: TestClient, given: str) -> None:
    headers = {"authorization": given.encode("latin-1")}
    for method, path in (("POST", "/v1/rank"), ("POST", "/v1/admin/reload"), ("GET", "/v1/bundle")):
        answer = guarded.request(method, path, headers=headers)
        told(answer, 401, "authorization", "token")
        assert answer.headers["www-authenticate"] == "Bearer" and TOKEN not in answer.text


def test_what_is_odd_and_yet_served(client: TestClient) -> None:
    """Unknown and duplicate ids, in JSON and binary, have their stated fallback."""
    odd = ["1000", "1000", "absent", "", "\x00", "x" * 9_000]
    answer = client.post("/v1/rank", json={"user": "\x1b[31m", "candidates": odd})
    assert answer.status_code == 200
    found = answer.json()
    assert sorted(found["items"]) == sorted(odd)
    assert (found["unknown_items"], found["user"]) == (4, "unknown")
    twice = [logit for item, logit in zip(found["items"], found["logits"], strict=True)
             if item == "1000"]  # fmt: skip
    assert len(twice) == 2 and twice[0] == twice[1]
    body = wire.encode_request("121", np.array([-1, 2**40, 1000, 1000], np.int64), 2**31)
    answer = client.post("/v1/rank", content=body, headers={"content-type": BINARY})
    position, logits, unknown, _ = wire.decode_answer(answer.content)
    assert sorted(position) == [0, 1, 2, 3] and unknown == 2 and np.isfinite(logits).all()

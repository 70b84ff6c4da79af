"""Train/serve skew: a running server's scores against those of training, on logged requests."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import IntArray, TimeArray
from prerank.errors import ArtifactError, ConfigError
from prerank.serving.config import clean_token
from prerank.serving.export import MAX_DIFFERENCE, Trained

TIMEOUT_S = 10.0
TRIES, MOST_WAIT_S = 5, 5.0  # of a request that a full server turns away; between two of them


@dataclass(frozen=True)
class Skew:
    """What a replay found.

    Attributes:
        requests, rows: how many requests and candidates were replayed.
        max_difference: largest absolute difference of two logits.
        user: the user id where it was found.
        bundle: the fingerprint of the bundle that served.
    """

    requests: int
    rows: int
    max_difference: float
    user: str
    bundle: str


def check_skew(trained: Trained, url: str, n_requests: int = 200, token: str = "") -> Skew:
    """Replay the latest logged requests of a run through the server at ``url``.

    Each is asked twice: by user id alone, where the server's own features and history count, and
    with the history the user had when it was logged. Both are scored by the pre-ranker too.
    Candidates that stand in their user's history are left out where the data has no time: there
    training reads a history without them.

    Raises:
        ArtifactError: a difference above 1e-4, or the server does not answer as it should.
        ConfigError: ``url`` is no server's address, or the token cannot be used.
    """
    token = clean_token(token)
    _require_address(url)
    worst = Skew(0, 0, 0.0, "", "")
    ranker, dataset = trained.ranker, trained.dataset
    log = dataset.exposures
    rows = np.flatnonzero(np.isin(log.request, latest_requests(trained, n_requests)))
    order = rows[np.argsort(log.request[rows], kind="stable")]
    borders = np.flatnonzero(np.diff(log.request[order])) + 1
    for request in np.split(order, borders):
        user, moment = int(log.user[request[0]]), log.time[request[:1]]
        items = np.unique(log.item[request])
        kept = ranker.context.left_out(np.full(len(items), user, np.int32), items) < 0
        items = items[kept]
        if not len(items):
            continue
        then = _history_at(trained, user, int(moment[0]))
        for seen, history in ((None, None), (moment, then)):
            want = ranker.score([user], items[None], seen)[0]
            got, bundle = _ask(trained, url, token, user, items, history)
            apart = float(np.abs(got - want).max())
            name = str(dataset.users.ids[user])
            farther = not apart <= worst.max_difference
            worst = Skew(
                worst.requests + 1,
                worst.rows + len(items),
                apart if farther else worst.max_difference,
                name if farther else worst.user,
                bundle,
            )
    if not worst.max_difference <= MAX_DIFFERENCE:
        raise ArtifactError(
            "the server's scores are not those of training",
            where=f"{url}, user {worst.user}",
            must=f"within {MAX_DIFFERENCE}",
            got=worst.max_difference,
            hint="export the run again and reload; with a user store, fill it from that bundle",
        )
    return worst


def latest_requests(trained: Trained, n: int) -> TimeArray:
    """Return the latest ``n`` logged requests; drawn by the run's seed where nothing says when.

    Codes of requests follow their names, or their users, not their moments.
    """
    log, dataset = trained.dataset.exposures, trained.dataset
    requests, of_row = np.unique(log.request, return_inverse=True)
    if dataset.time_unit != "ms":  # positions in the orders of two users do not compare
        rng = seeds.rng(trained.seed, "skew")
        return rng.permutation(requests)[:n]
    moments = np.full(len(requests), np.iinfo(np.int64).min)
    np.maximum.at(moments, of_row, log.time)
    return requests[np.argsort(moments, kind="stable")[-n:]]


def _require_address(url: str) -> None:
    """Raise ConfigError unless ``url`` has a scheme, a host, and a port that is one if any."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            "the address of the server cannot be read",
            where="--url",
            must="http://host:port",
            got=url,
        )


def _history_at(trained: Trained, user: int, moment: int) -> IntArray:
    """Return the items of a user's history as of a moment, all of them, oldest first."""
    context = trained.ranker.context
    end = context.history_ends(np.array([user], np.int32), np.array([moment], np.int64))[0]
    return context.interactions.item[context.starts[user] : end]


def _ask(
    trained: Trained, url: str, token: str, user: int, items: IntArray, history: IntArray | None
) -> tuple[NDArray[np.float64], str]:
    """Return the server's logits of ``items``, in their order, and its bundle."""
    ids, dataset = trained.dataset.items.ids, trained.dataset
    name = str(dataset.users.ids[user])
    asked: dict[str, Any] = {"user": name, "candidates": ids[items].tolist()}
    if history is not None:
        asked["history"] = ids[history].tolist()
    body = _sent(url, token, asked)
    try:
        found = json.loads(body)
        logit = dict(zip(found["items"], found["logits"], strict=True))
        logits = np.array([logit[name] for name in asked["candidates"]], dtype=np.float64)
        return logits, str(found["bundle"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "the server's answer cannot be read",
            where=url,
            must="items, logits and bundle, as `prerank serve` answers",
            got=repr(error),
        ) from None


def _sent(url: str, token: str, asked: dict[str, Any]) -> bytes:
    """Return what the server answers; a full one is asked again, a few times."""
    for left in reversed(range(TRIES)):
        status, wait, body = _answer(url, token, asked)
        if not (status == 503 and wait.isdecimal() and left):
            break
        time.sleep(min(int(wait), MOST_WAIT_S))
    if status != 200:
        said = body[:500].decode(errors="replace")
        raise ArtifactError(
            "the server refused a replayed request", where=url, got=f"{status} {said}".strip()
        )
    return body


def _answer(url: str, token: str, asked: dict[str, Any]) -> tuple[int, str, bytes]:
    """Return the status of an answer, its Retry-After, and its body."""
    try:
        call = urllib.request.Request(
            f"{url.rstrip('/')}/v1/rank",
            json.dumps(asked).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {token}"},
        )
        try:
            answer = urllib.request.urlopen(call, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as refused:
            answer = refused
        with answer:
            return answer.status, answer.headers.get("retry-after", ""), answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ArtifactError(
            "the server does not answer", where=url, got=str(error) or repr(error)
        ) from None

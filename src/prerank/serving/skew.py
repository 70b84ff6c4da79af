"""Train/serve skew: a running server's scores against those of training, on logged requests."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np

from prerank.artifacts import IntArray
from prerank.errors import ArtifactError
from prerank.serving.export import MAX_DIFFERENCE, Trained

TIMEOUT_S = 10.0


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
    """
    worst = Skew(0, 0, 0.0, "", "")
    ranker, dataset = trained.ranker, trained.dataset
    log = dataset.exposures
    last = np.unique(log.request)[-n_requests:]
    rows = np.flatnonzero(np.isin(log.request, last))
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
        for time, history in ((None, None), (moment, then)):
            want = ranker.score([user], items[None], time)[0]
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


def _history_at(trained: Trained, user: int, moment: int) -> IntArray:
    """Return the items of a user's history as of a moment, all of them, oldest first."""
    context = trained.ranker.context
    end = context.history_ends(np.array([user], np.int32), np.array([moment], np.int64))[0]
    return context.interactions.item[context.starts[user] : end]


def _ask(
    trained: Trained, url: str, token: str, user: int, items: IntArray, history: IntArray | None
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str]:
    """Return the server's logits of ``items``, in their order, and its bundle."""
    ids, dataset = trained.dataset.items.ids, trained.dataset
    name = str(dataset.users.ids[user])
    asked: dict[str, Any] = {"user": name, "candidates": ids[items].tolist()}
    if history is not None:
        asked["history"] = ids[history].tolist()
    call = urllib.request.Request(
        f"{url.rstrip('/')}/v1/rank",
        json.dumps(asked).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(call, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ArtifactError(
            "the server refused a replayed request", where=url, got=error.read(500).decode()
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError("the server does not answer", where=url, got=error) from None
    logit = dict(zip(found["items"], found["logits"], strict=True))
    return np.array([logit[name] for name in asked["candidates"]]), found["bundle"]

"""Where the server finds what it knows of a user: in this process, or in Redis.

The bundle's users are always in the process. A Redis store comes before them: it holds raw
features and item ids, so it outlives any bundle. Where Redis fails or does not know the user, the
bundle's state is used; where the bundle does not know the user either, the unknown user. What fits
of a record that does not fit as a whole is used.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prerank.errors import ArtifactError, ConfigError, DataError, MissingExtraError, PrerankError
from prerank.serving.bundle import HISTORY, OFFSETS, Bundle, feature_column
from prerank.serving.scorer import Scorer, UserState, require_rows

KEY = "prerank:user:"
REDIS_URL = "redis://host:port/db"
FILL_CHUNK = 2000
REST_S = 1.0  # a Redis that is gone is left alone for a while: no request waits in vain
MOST_LATE = 5  # answers in a row that came too late; fewer are no sign that it is gone


class Users:
    """The users of a bundle, in this process.

    Args:
        bundle: whose vocabulary, features and histories these are.
        scorer: maps raw histories of requests to item rows.
    """

    def __init__(self, bundle: Bundle, scorer: Scorer) -> None:
        frame = bundle.users
        self.scorer = scorer
        self.n_users = len(frame)
        self.schema = bundle.features("user")
        self._tables = bundle.user_tables
        self._history, self._offsets = bundle.histories
        self._row_of = dict(zip(frame["id"].to_list(), range(len(frame)), strict=True))
        require_rows(bundle, "users", self.n_users, bundle.about["n_users"])
        require_rows(bundle, "borders of histories", len(self._offsets), self.n_users + 2)
        _require_borders(bundle, self._history, self._offsets)
        for table in self._tables.values():
            require_rows(bundle, "a table of users", len(table), self.n_users + 1)
        strange = (self._history < 0) | (self._history >= scorer.n_items)
        require_rows(bundle, "the items of histories", int((~strange).sum()), len(strange))

    def known(self, user: str | None) -> bool:
        """Say whether the bundle was trained with this user."""
        return user in self._row_of

    def state(self, user: str | None) -> UserState:
        """Return the bundle's state of a user id; the unknown user for any other."""
        row = self._row_of.get(user, self.n_users) if user is not None else self.n_users
        one = slice(row, row + 1)
        history = self._history[self._offsets[row] : self._offsets[row + 1]]
        return UserState(row, {name: rows[one] for name, rows in self._tables.items()}, history)

    def given(
        self,
        state: UserState,
        features: Mapping[str, object] | None,
        history: list[str] | None,
    ) -> UserState:
        """Return ``state`` with the given features and history in place of its own.

        Raises:
            DataError: a feature is unknown, of a wrong type or not finite.
        """
        tables = state.tables if features is None else self.schema.row(features)
        rows = state.history if history is None else self.scorer.history(history)
        return UserState(state.row, tables, rows)

    def stored(
        self, state: UserState, record: Mapping[str, Any]
    ) -> tuple[UserState, tuple[DataError, ...]]:
        """Return ``state`` with a store's record in place of its own, and what is wrong with that.

        Features or a history that cannot be read at all leave those of ``state``.
        """
        features, history = record.get("features"), record.get("history")
        tables, rows, wrong = state.tables, state.history, tuple[DataError, ...]()
        if isinstance(features, dict):
            tables, wrong = self.schema.stored(features)
        elif features is not None:
            wrong += (_no_part("features", "an object", features),)
        if isinstance(history, list):
            rows = self.scorer.history([str(item) for item in history])
        elif history is not None:
            wrong += (_no_part("history", "a list", history),)
        return UserState(state.row, tables, rows), wrong


def _no_part(where: str, must: str, got: object) -> DataError:
    return DataError("wrong type", where=where, must=f"{must}, or null", got=type(got).__name__)


def _require_borders(bundle: Bundle, history: NDArray[Any], offsets: NDArray[Any]) -> None:
    """Raise ArtifactError unless histories (T,) can be cut at the offsets (U + 2,)."""
    fits = history.dtype == np.int32 and offsets.dtype == np.int64 and history.ndim == 1
    rising = fits and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all())
    if not rising or offsets[-1] != len(history):
        raise ArtifactError(
            "the histories of users cannot be cut",
            where=str(bundle.path / OFFSETS),
            must=f"rising int64 from 0 to {len(history)}, the int32 rows of {HISTORY}",
            got=f"{offsets.dtype} and {history.dtype}, up to {offsets[-1]}",
            hint="export the run again",
        )


class UserStore(Protocol):
    """A store of raw user features and histories outside the process."""

    async def get(self, user: str) -> Mapping[str, Any] | None:
        """Return ``{"features": {...}, "history": [...]}``, None if nothing is known.

        Raises:
            StoreDownError: the store does not answer.
            UnreadableError: it holds something else.
        """

    async def close(self) -> None:
        """Let go of all connections."""


class StoreDownError(PrerankError):
    """The user store does not answer."""


class UnreadableError(PrerankError):
    """What the user store holds of a user cannot be read."""


@dataclass
class RedisStore:
    """Users in Redis: key ``prerank:user:ID``, value a JSON object of features and history.

    Args:
        url: ``redis://host:port/db``.
        timeout_s: longest wait for an answer; then the request falls back.
    """

    url: str
    timeout_s: float = 0.05

    def __post_init__(self) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise MissingExtraError(
                "redis is absent", hint='pip install "prerank[serve]"'
            ) from None
        with _readable_url(self.url):
            self._client: Any = Redis.from_url(
                self.url,
                socket_timeout=self.timeout_s,
                socket_connect_timeout=self.timeout_s,
                retry=None,
            )
        self._rest_until = 0.0
        self._late = 0  # answers in a row that came too late

    async def get(self, user: str) -> Mapping[str, Any] | None:
        """Return what Redis holds of a user, None if nothing.

        Raises:
            StoreDownError: no answer in time.
            UnreadableError: no JSON object.
        """
        text = await self._text(KEY + user)
        if text is None:
            return None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UnreadableError("the user store holds no JSON object", where=KEY + user)
        return found

    async def _text(self, key: str) -> bytes | None:
        from redis.exceptions import RedisError, ResponseError
        from redis.exceptions import TimeoutError as LateError

        if time.monotonic() < self._rest_until:
            raise StoreDownError("the user store was down a moment ago")
        try:
            async with asyncio.timeout(self.timeout_s):
                text: bytes | None = await self._client.get(key)
        except (LateError, TimeoutError) as error:
            # One late answer is one request's trouble; many in a row are everybody's.
            self._late += 1
            raise self._down(error, rests=self._late >= MOST_LATE) from None
        except ResponseError as error:  # an answer, and at once: nobody waits for the next
            self._late = 0
            if str(error).startswith("WRONGTYPE"):
                raise UnreadableError("the user store holds no text", where=key) from None
            raise self._down(error, rests=False) from None
        except (RedisError, OSError) as error:
            raise self._down(error, rests=True) from None
        self._late = 0
        return text

    def _down(self, error: Exception, *, rests: bool) -> StoreDownError:
        if rests:
            self._rest_until = time.monotonic() + REST_S
        return StoreDownError("the user store does not answer", got=error)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def open_store(url: str, timeout_s: float) -> UserStore | None:
    """Return the store that ``url`` names; None for ``embedded``.

    Raises:
        DataError: another kind of store.
    """
    if url == "embedded":
        return None
    if url.partition("://")[0] in ("redis", "rediss", "unix"):
        return RedisStore(url, timeout_s)
    raise DataError(
        "unknown user store",
        where="--user-store",
        must=f"embedded or {REDIS_URL}",
        got=_without_password(url),
    )


def fill_redis(bundle: Bundle, url: str) -> int:
    """Write the users of a bundle into Redis; return how many.

    Raises:
        StoreDownError: Redis does not answer.
    """
    try:
        from redis import Redis
        from redis.exceptions import RedisError
    except ImportError:
        raise MissingExtraError("redis is absent", hint='pip install "prerank[serve]"') from None
    names = bundle.features("user").names
    item_ids = np.array(bundle.items["id"].to_list(), dtype=object)
    history, offsets = bundle.histories
    first = 0
    with _readable_url(url):
        opened = Redis.from_url(url)
    try:
        with opened as client:
            for part in bundle.users.iter_slices(FILL_CHUNK):
                values = {
                    KEY + row["id"]: json.dumps(
                        {
                            "features": {
                                name: row[feature_column(name)]
                                for name in names
                                if row[feature_column(name)] is not None
                            },
                            "history": item_ids[history[offsets[k] : offsets[k + 1]]].tolist(),
                        }
                    )
                    for k, row in enumerate(part.iter_rows(named=True), first)
                }
                client.mset(values)
                first += len(part)
    except (RedisError, OSError) as error:
        raise StoreDownError(
            "the user store does not answer", where=_without_password(url), got=error
        ) from None
    return len(bundle.users)


@contextmanager
def _readable_url(url: str) -> Iterator[None]:
    """Turn what the client says of an address that is none into an error with a place."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            "the address of the user store cannot be read",
            where=_without_password(url),
            must=REDIS_URL,
            got=error,
        ) from None


def _without_password(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)

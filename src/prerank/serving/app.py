"""Scores of a bundle over HTTP: JSON or a binary body in, the best candidates out.

One process, one event loop. A request is let in or turned away before its body is read; scoring
takes turns, and between two turns the loop looks at its sockets, so that a full server still
answers 503 at once. A new bundle is loaded beside the old one and then takes its place; requests
that began with the old one end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prerank import __version__
from prerank.errors import DataError, PrerankError
from prerank.progress import log
from prerank.serving import wire
from prerank.serving.bundle import Bundle, readable
from prerank.serving.config import ServeConfig, clean_token
from prerank.serving.listen import address, listen
from prerank.serving.scorer import Scorer, UserState
from prerank.serving.users import StoreDownError, UnreadableError, Users, UserStore, open_store

JSON, BINARY = "application/json", "application/octet-stream"
RETRY_AFTER = {"Retry-After": "1"}
MAX_ID = 512
MAX_HISTORY = 10_000
WARM_UP = 64  # candidates scored once before a bundle takes over
TELL_EVERY_S = 60.0  # a store's unreadable records are many at once, or none


class RefusedError(Exception):
    """A request that is not served: HTTP status and what is wrong, in prerank's form."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        must: str = "",
        got: object = "",
        where: str = "",
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status, self.headers = status, dict(headers or {})
        said = {"what": what, "where": where, "must": must, "got": str(got)[:200], "hint": hint}
        # Half of a surrogate pair, in a name that was refused, is no text that can be sent.
        self.body = {key: text.encode(errors="replace").decode() for key, text in said.items()}


class RankRequest(BaseModel):
    """Who asks, and which candidates."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    user: Annotated[str, Field(max_length=MAX_ID)] | int | None = Field(
        None, description="user id; null or an unknown one = the unknown user"
    )
    candidates: (
        Annotated[list[str], Field(min_length=1)] | Annotated[list[int], Field(min_length=1)]
    ) = Field(
        description="item ids; unknown ones are scored as the unknown item; duplicates are scored "
        "and returned as often as they stand here"
    )
    top_k: int | None = Field(None, ge=1, description="how many to return; null = all")
    features: dict[str, JsonValue] | None = Field(
        None, description="raw user features in place of the stored ones; left out = missing"
    )
    history: (
        Annotated[list[str], Field(max_length=MAX_HISTORY)]
        | Annotated[list[int], Field(max_length=MAX_HISTORY)]
        | None
    ) = Field(None, description="item ids, oldest first, in place of the stored history")


class RankResponse(BaseModel):
    """Candidates from best to worst."""

    items: list[str] = Field(description="item ids; ties keep the order of the request")
    logits: list[float]
    user: Literal["known", "unknown"] = Field(description="whether the model knows the user's id")
    user_store: Literal["embedded", "hit", "miss", "down", "unreadable"] = Field(
        description="where features and history came from; miss and down fall back to embedded, "
        "unreadable has what could be read of the record"
    )
    unknown_items: int = Field(description="candidates scored as the unknown item")
    bundle: str = Field(description="fingerprint of the bundle that scored")


class ErrorBody(BaseModel):
    """What is wrong with a request."""

    what: str
    where: str
    must: str
    got: str
    hint: str


class ErrorResponse(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorBody


@dataclass(frozen=True, eq=False)
class Loaded:
    """A bundle ready to serve; ``about`` is what a caller may know of it."""

    bundle: Bundle
    scorer: Scorer
    users: Users
    about: Mapping[str, Any]


def load(path: Path, config: ServeConfig) -> Loaded:
    """Read, check and warm up a bundle.

    Raises:
        ArtifactError: there is no sound bundle at ``path``.
    """
    bundle = Bundle.read(path)
    with readable(path):
        scorer = Scorer(bundle, config.precision, config.threads)
        users = Users(bundle, scorer)
        scorer.rank(users.state(None), np.zeros(WARM_UP, dtype=np.int32), 1)
        about = _about(bundle)
    return Loaded(bundle, scorer, users, about)


class Metrics:
    """What Prometheus sees of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kinds: dict[str, Any] = {"registry": self.registry}
        buckets = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1)
        self.requests = Counter("prerank_requests", "Answers by status", ["status"], **kinds)
        self.seconds = Histogram(
            "prerank_seconds", "Seconds of a rank request inside", buckets=buckets, **kinds
        )
        self.candidates = Counter("prerank_candidates", "Candidates scored", **kinds)
        self.unknown_items = Counter("prerank_unknown_items", "Of these, unknown", **kinds)
        self.unknown_users = Counter("prerank_unknown_users", "Requests of unknown users", **kinds)
        self.store = Counter("prerank_user_store", "User store by outcome", ["outcome"], **kinds)
        self.inside = Gauge("prerank_inside", "Rank requests inside the server", **kinds)
        self.reloads = Counter("prerank_reloads", "Reloads by outcome", ["outcome"], **kinds)


class Service:
    """The state of a server.

    Args:
        path: of the bundle; a link that is moved to another bundle is followed on reload.
        config: limits and places.
        token: bearer token of every /v1 path; empty = open, and no reload over HTTP.

    Raises:
        ConfigError: a token of blanks alone, or one that no header can carry.
    """

    def __init__(self, path: Path, config: ServeConfig, token: str = "") -> None:
        self.path, self.config, self._token = path, config, clean_token(token).encode()
        self.loaded = load(path, config)
        self.store: UserStore | None = open_store(config.user_store, config.store_timeout_s)
        self.metrics = Metrics()
        self.inside = 0
        self._turn = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._tell_from = 0.0

    def check_token(self, request: Request) -> None:
        """Raise 401 unless the request carries the token, where there is one."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._token)
        if self._token and not (scheme.lower() == "bearer" and right):
            raise RefusedError(
                401,
                "the bearer token is missing or wrong",
                where="authorization",
                must="Bearer and the server's token",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def reload(self) -> Loaded:
        """Load the bundle at the path again and let it take over; the old one stays on failure.

        Raises:
            ArtifactError: there is no sound bundle.
        """
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(load, self.path, self.config)
            except PrerankError as error:
                self.metrics.reloads.labels("failed").inc()
                log(f"serve: the old bundle stays: {error}")
                raise
            self.loaded = loaded
            self.metrics.reloads.labels("done").inc()
            log(f"serve: bundle {loaded.bundle.fingerprint} took over")
            return loaded

    async def rank(self, request: Request) -> Response:
        """Answer one rank request, or raise RefusedError."""
        if self.inside >= self.config.queue:
            raise RefusedError(
                503,
                "the server is full",
                where="server",
                hint="ask again a second later",
                headers=RETRY_AFTER,
            )
        self.inside += 1
        self.metrics.inside.inc()
        start = time.perf_counter()
        try:
            body = await self._body(request)
            return await self._rank(_media_type(request), body)
        finally:
            self.inside -= 1
            self.metrics.inside.dec()
            self.metrics.seconds.observe(time.perf_counter() - start)

    async def _body(self, request: Request) -> bytes:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":  # a small body may unpack to a huge one
            raise RefusedError(
                415,
                "a compressed body is not read",
                where="content-encoding",
                must="identity, or left out",
                got=encoding,
            )
        limit = self.config.max_body
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit, declared)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.config.timeout_s):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit, f"more than {limit}")
                    parts.append(part)
        except TimeoutError:
            raise RefusedError(
                408,
                "the body came too slowly",
                where="body",
                must=f"within {self.config.timeout_s} s",
            ) from None
        except ClientDisconnect:  # nobody reads this answer; the metrics count it
            raise RefusedError(
                499, "the client hung up", where="body", must="sent to its end"
            ) from None
        return b"".join(parts)

    async def _rank(self, media_type: str, body: bytes) -> Response:
        loaded = self.loaded  # a reload meanwhile must not mix two bundles
        if media_type == BINARY:
            return await self._rank_binary(loaded, body)
        if media_type != JSON:
            raise RefusedError(
                415,
                "unknown content type",
                where="content-type",
                must=f"{JSON} or {BINARY}",
                got=media_type,
            )
        asked = _parse(body)
        self._check_size(len(asked.candidates))
        user = None if asked.user is None else str(asked.user)
        ids = _texts(asked.candidates)
        state, source = await self._state(loaded, user)
        history = None if asked.history is None else _texts(asked.history)
        try:
            state = loaded.users.given(state, asked.features, history)
        except DataError as error:
            raise _unfit(error) from None
        rows = loaded.scorer.item_rows(ids)
        best, logits, unknown = await self._score(loaded, state, rows, asked.top_k)
        known = loaded.users.known(user)
        self._count(len(ids), unknown, known, source)
        answer = {
            "items": [ids[k] for k in best.tolist()],
            "logits": logits,
            "user": "known" if known else "unknown",
            "user_store": source,
            "unknown_items": unknown,
            "bundle": loaded.bundle.fingerprint,
        }
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)

    async def _rank_binary(self, loaded: Loaded, body: bytes) -> Response:
        try:
            asked = wire.decode_request(body)
        except DataError as error:
            raise _unfit(error, 400) from None
        self._check_size(len(asked.candidates))
        if asked.user is not None and len(asked.user) > MAX_ID:
            raise RefusedError(
                422,
                "the user id is too long",
                where="user",
                must=f"at most {MAX_ID} characters",
                got=len(asked.user),
            )
        if asked.by_id:
            rows = loaded.scorer.item_rows(list(map(str, asked.candidates.tolist())))
        else:
            if asked.item_mark != loaded.bundle.item_mark:
                raise RefusedError(
                    409,
                    "the item rows belong to another item vocabulary",
                    where="item mark",
                    must=f"item mark {loaded.bundle.item_mark}",
                    got=asked.item_mark,
                    hint="/v1/bundle says the mark; item ids need none",
                )
            rows = loaded.scorer.known_rows(asked.candidates)
        state, source = await self._state(loaded, asked.user)
        best, logits, unknown = await self._score(loaded, state, rows, asked.top_k)
        known = loaded.users.known(asked.user)
        self._count(len(rows), unknown, known, source)
        store_down = source in ("down", "unreadable")
        flags = wire.UNKNOWN_USER * (not known) | wire.STORE_DOWN * store_down
        answer = wire.encode_answer(best, logits, unknown_items=unknown, flags=flags)
        return Response(answer, media_type=BINARY)

    def _check_size(self, n_candidates: int) -> None:
        if n_candidates == 0:
            raise RefusedError(
                422, "there are no candidates", where="candidates", must="at least one", got=0
            )
        most = self.config.max_candidates
        if n_candidates > most:
            raise RefusedError(
                422,
                "too many candidates",
                where="candidates",
                must=f"at most {most}",
                got=n_candidates,
                hint="split the request, or raise the server's max_candidates",
            )

    async def _state(self, loaded: Loaded, user: str | None) -> tuple[UserState, str]:
        """Return what is known of a user and where it came from."""
        state = loaded.users.state(user)
        if self.store is None or user is None:
            return state, "embedded"
        try:
            found = await self.store.get(user)
        except StoreDownError:
            return state, "down"
        except UnreadableError as error:
            self._tell(user, error)
            return state, "unreadable"
        if found is None:
            return state, "miss"
        state, wrong = loaded.users.stored(state, found)
        if wrong:
            self._tell(user, wrong[0])
        return state, "unreadable" if wrong else "hit"

    def _tell(self, user: str, error: PrerankError) -> None:
        """Say what is wrong with a user's record, now and then; the metrics count them all."""
        if time.monotonic() >= self._tell_from:
            self._tell_from = time.monotonic() + TELL_EVERY_S
            log(f"serve: the user store's record of {user!r} cannot be read as it is: {error}")

    async def _score(
        self, loaded: Loaded, state: UserState, rows: NDArray[Any], top_k: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Wait for a turn and score; return best positions, their logits, unknown items."""
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise RefusedError(
                503,
                "no turn in time",
                where="server",
                hint="ask again a second later",
                headers=RETRY_AFTER,
            ) from None
        try:
            # Requests that came meanwhile are counted, or turned away, before this one is scored;
            # without a pause none of them would be seen until all before it are done.
            await asyncio.sleep(0)
            best, logits = loaded.scorer.rank(state, rows, top_k)
        finally:
            self._turn.release()
        if not np.isfinite(logits).all():
            raise RefusedError(
                422,
                "the features give no finite score",
                where="features",
                must="numbers of a usual size",
            )
        return best, logits, int((rows == loaded.scorer.n_items).sum())

    def _count(self, n_candidates: int, unknown: int, known: bool, source: str) -> None:
        self.metrics.candidates.inc(n_candidates)
        self.metrics.unknown_items.inc(unknown)
        self.metrics.unknown_users.inc(not known)
        self.metrics.store.labels(source).inc()


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _texts(ids: list[str] | list[int]) -> list[str]:
    return list(map(str, ids))


def _too_large(limit: int, got: str) -> RefusedError:
    return RefusedError(
        413, "the body is too large", where="body", must=f"at most {limit} bytes", got=got
    )


def _unfit(error: DataError, status: int = 422) -> RefusedError:
    return RefusedError(
        status,
        error.what,
        where=error.where,
        must=error.must,
        got=error.got,
        hint=error.hint,
    )


def _parse(body: bytes) -> RankRequest:
    try:
        return RankRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:200]
        if first["type"] == "json_invalid":
            raise RefusedError(
                400, "the body is no JSON", where="body", must="JSON in UTF-8", got=first["msg"]
            ) from None
        raise RefusedError(
            422,
            "the request is not valid",
            where=where or "body",
            must=first["msg"],
            hint="/openapi.json has the form of a request",
        ) from None


def create_app(path: Path, config: ServeConfig, token: str = "") -> FastAPI:
    """Return the application that serves the bundle at ``path``.

    Raises:
        ArtifactError: there is no sound bundle.
        ConfigError: the token cannot be used.
        DataError: an unknown user store.
    """
    service = Service(path, config, token)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks: set[asyncio.Task[None]] = set()

        async def reload_quietly() -> None:
            with contextlib.suppress(PrerankError):  # it has told the log
                await service.reload()

        def on_hangup() -> None:
            task = asyncio.get_running_loop().create_task(reload_quietly())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        yield
        if service.store is not None:
            await service.store.close()

    app = FastAPI(title="prerank", version=__version__, lifespan=lifespan)
    app.state.service = service
    _add_handlers(app, service)
    _add_routes(app, service)
    return app


def _add_handlers(app: FastAPI, service: Service) -> None:
    """One form for every error; a client never sees a stack trace."""

    def answer(problem: RefusedError) -> Response:
        service.metrics.requests.labels(str(problem.status)).inc()
        body = orjson.dumps({"error": problem.body})
        return Response(body, problem.status, problem.headers, JSON)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        return answer(
            RefusedError(
                error.status_code,
                str(error.detail),
                where=f"{request.method} {request.url.path}"[:200],
                hint="/openapi.json has every path and its methods",
                headers=error.headers,
            )
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return answer(RefusedError(500, "something went wrong here; the server's log says what"))


def _add_routes(app: FastAPI, service: Service) -> None:
    error = {"model": ErrorResponse}
    said: dict[int | str, dict[str, Any]] = {
        status: {**error, "description": text}
        for status, text in {
            400: "malformed body",
            401: "no or a wrong token",
            408: "the body came too slowly",
            409: "item rows of another vocabulary",
            413: "the body is too large",
            415: "unknown content type",
            422: "a value is wrong",
            503: "the server is full; retry after the given seconds",
        }.items()
    }
    ask = {
        "required": True,
        "content": {
            JSON: {"schema": RankRequest.model_json_schema()},
            BINARY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
    done: dict[str, Any] = {
        "model": RankResponse,
        "description": "candidates, best first",
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.post(
        "/v1/rank",
        responses={200: done, **said},
        openapi_extra={"requestBody": ask},
        response_class=Response,
    )
    async def rank(request: Request) -> Response:
        """Score candidates for a user and return the best, best first."""
        service.check_token(request)
        found = await service.rank(request)
        service.metrics.requests.labels("200").inc()
        return found

    @app.get("/v1/bundle", responses={401: said[401]})
    async def bundle(request: Request) -> Mapping[str, Any]:
        """Say which bundle is serving."""
        service.check_token(request)
        return service.loaded.about

    @app.post(
        "/v1/admin/reload",
        responses={401: said[401], 403: error, 409: {**error, "description": "old bundle stays"}},
    )
    async def reload(request: Request) -> Mapping[str, Any]:
        """Load the bundle at the server's path again; only where a token is set."""
        if not service._token:
            raise RefusedError(
                403,
                "reload over HTTP needs a token",
                where="server",
                hint="start it with PRERANK_TOKEN, or send it SIGHUP",
            )
        service.check_token(request)
        try:
            loaded = await service.reload()
        except PrerankError as failed:
            raise RefusedError(
                409,
                f"the old bundle stays: {failed.what}",
                where="bundle",
                hint="the server's log says more",
            ) from None
        return loaded.about

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Say that a bundle is loaded and requests are taken."""
        return {"status": "ready", "bundle": service.loaded.bundle.fingerprint}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text form."""
        return Response(generate_latest(service.metrics.registry), media_type="text/plain")


def _about(bundle: Bundle) -> dict[str, Any]:
    names = ("run", "dataset", "method", "model", "n_users", "n_items", "max_history")
    about = {name: bundle.about[name] for name in names}
    return {
        "fingerprint": bundle.fingerprint,
        "item_mark": str(bundle.item_mark),
        "user_features": list(bundle.features("user").names),
        **about,
    }


def serve(path: Path, config: ServeConfig, host: str, port: int, token: str = "") -> None:
    """Serve until SIGTERM or SIGINT; running requests get ``shutdown_s`` to end.

    Raises:
        ConfigError: the port is taken, or the token cannot be used.
        ArtifactError: there is no sound bundle at ``path``.
    """
    import uvicorn

    app = create_app(path, config, token)
    mark = app.state.service.loaded.bundle.fingerprint
    with listen(host, port) as taken, contextlib.suppress(KeyboardInterrupt):
        log(f"serve: bundle {mark} on {address(host, port)}")
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=config.keep_alive_s,
            timeout_graceful_shutdown=config.shutdown_s,
        )
        uvicorn.Server(settings).run(sockets=[taken])

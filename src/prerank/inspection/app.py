"""The inspector: pages of a finished run, each with a .json twin made by the same function.

Read-only. Every parameter of a URL is checked by a model of `asked` before anything is read, names
of artifacts, methods, users and items are looked up among those of the run, and no path is ever
built from a URL. Pages load nothing from anywhere else and need JavaScript for plots only.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from prerank.errors import PrerankError
from prerank.evaluation import sections
from prerank.evaluation.html import Figures, asset, environment, plotly_script
from prerank.evaluation.plots import Plot
from prerank.inspection import asked, compare, items, labels, overview, users
from prerank.inspection.asked import Asked, RefusedError
from prerank.inspection.opened import OpenedRun
from prerank.progress import log
from prerank.serving.listen import address, listen

PACKAGE = "prerank.inspection"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'none'"
)
ANYWHERE = ("0.0.0.0", "::")
MENU = (
    ("/", "Overview"),
    ("/users", "Users"),
    ("/items", "Items"),
    ("/sids", "Semantic IDs"),
    ("/labels", "Labels"),
    ("/compare", "Compare"),
)
KEPT_PLOTS = 64
Runs = Sequence[OpenedRun]
Data = dict[str, Any]


def _no_plots(runs: Runs, data: Data) -> dict[str, list[Plot]]:
    return {}


@dataclass(frozen=True)
class Page:
    """One page: its path (the twin is the same with ``.json``), what it takes and shows.

    ``plots_of`` says what the plots depend on: those of equal answers are drawn once.
    """

    path: str
    menu: str
    template: str
    asked: type[Asked]
    data: Callable[[Runs, Any], Data]
    plots: Callable[[Runs, Data], Mapping[str, list[Plot]]] = _no_plots
    plots_of: Callable[[Data], str] = lambda data: ""
    more: Callable[[Data], Data] = field(default=lambda data: {})

    @property
    def twin(self) -> str:
        """The path of the same page as JSON."""
        return f"{self.path if self.path != '/' else '/index'}.json"


PAGES = (
    Page(
        "/",
        "/",
        "overview.html.jinja",
        asked.Overview,
        lambda runs, a: overview.overview(runs[0], a),
        lambda runs, data: overview.overview_plots(runs[0], data),
        more=lambda data: {"graph": sections.graph_of(data["stages"])},
    ),
    Page(
        "/artifact",
        "/",
        "artifact.html.jinja",
        asked.Artifact,
        lambda runs, a: overview.artifact(runs[0], a),
    ),
    Page(
        "/users",
        "/users",
        "users.html.jinja",
        asked.Users,
        lambda runs, a: users.users(runs[0], a),
    ),
    Page("/user", "/users", "user.html.jinja", asked.User, lambda runs, a: users.user(runs[0], a)),
    Page(
        "/items",
        "/items",
        "items.html.jinja",
        asked.Items,
        lambda runs, a: items.items(runs[0], a),
    ),
    Page("/item", "/items", "item.html.jinja", asked.Item, lambda runs, a: items.item(runs[0], a)),
    Page(
        "/sids",
        "/sids",
        "sids.html.jinja",
        asked.Sids,
        lambda runs, a: items.sids(runs[0], a),
        lambda runs, data: items.sids_plots(runs[0], data),
        lambda data: str(data["prefix"]),
    ),
    Page(
        "/labels",
        "/labels",
        "labels.html.jinja",
        asked.Labels,
        lambda runs, a: labels.labels(runs[0], a),
        lambda runs, data: labels.labels_plots(runs[0], data),
        lambda data: str(data["method"]),
        lambda data: {"audit_sheets": labels.audit_sheets_of(data)},
    ),
    Page(
        "/compare",
        "/compare",
        "compare.html.jinja",
        asked.Compare,
        compare.compare,
        compare.compare_plots,
        lambda data: str(data.get("pool", "")),
    ),
)


@cache
def static(name: str) -> tuple[bytes, str]:
    """Return the bytes and the content type of a file that pages load."""
    if name == "style.css":
        text = asset("page.css") + asset("inspect.css", PACKAGE)
    else:
        text = plotly_script() if name == "plotly.js" else asset(name)
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return text.encode(), f"{kind}; charset=utf-8"


STATIC = ("style.css", "figures.js", "plotly.js")


@cache
def zipped(name: str) -> bytes:
    """Return a static file compressed."""
    return gzip.compress(static(name)[0], 6)


@cache
def mark(name: str) -> str:
    """Return a static file's address; it changes with the content, so it can be kept for ever."""
    return f"/static/{name}?v={hashlib.sha256(static(name)[0]).hexdigest()[:12]}"


def link(path: str, values: Mapping[str, Any] | None = None, **more: Any) -> str:
    """Return an address with the parameters that are not empty."""
    pairs = {**(values or {}), **more}
    kept = [(name, value) for name, value in pairs.items() if value not in ("", None, [])]
    text = urlencode(kept, doseq=True)
    return f"{path}?{text}" if text else path


def percent(value: float | None) -> str:
    """Return a share in percent, a dash for none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` decimals, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def render(page: str, runs: Runs, plots: Mapping[str, list[Plot]], **values: Any) -> str:
    """Return a page of the inspector as HTML."""
    figures = Figures()
    templates = environment(PACKAGE)
    templates.filters["percent"] = percent
    templates.filters["figure"] = figure
    return templates.get_template(page).render(
        **values,
        run_name=runs[0].name,
        has_report="report" in runs[0].artifacts,
        pages=MENU,
        plots=plots,
        plot=figures.add,
        figures=figures.json,
        link=link,
        static=mark,
    )


def create_app(runs: Runs, host: str = "127.0.0.1") -> FastAPI:
    """Return the inspector of ``runs``; the first one is shown, the others are compared with it.

    Args:
        runs: opened folders.
        host: the address it is bound to: a request must name it, so that a web site cannot read
            a local inspector through a name of its own.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.runs, app.state.lock = runs, threading.Lock()
    app.state.plots = {}
    names = ["*"] if host in ANYWHERE else ["localhost", "127.0.0.1", "[::1]", host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    for page in PAGES:
        app.get(page.path)(_html(app, page))
        app.get(page.twin)(_json(app, page))
    _add_files(app)
    _add_errors(app)
    return app


def drawn(app: FastAPI, page: Page, data: Data) -> Mapping[str, list[Plot]]:
    """Return the plots of a page; drawing takes longer than all else, so the latest are kept."""
    known: dict[tuple[str, str], Mapping[str, list[Plot]]] = app.state.plots
    key = page.path, page.plots_of(data)
    if key not in known:
        if len(known) >= KEPT_PLOTS:
            del known[next(iter(known))]
        known[key] = page.plots(app.state.runs, data)
    return known[key]


def made(app: FastAPI, page: Page, wanted: Asked) -> str:
    """Return a page as HTML."""
    with app.state.lock:
        data = page.data(app.state.runs, wanted)
        plots = drawn(app, page, data)
    return render(
        page.template,
        app.state.runs,
        plots,
        data=data,
        menu=page.menu,
        twin=link(page.twin, wanted.model_dump(exclude_defaults=True)),
        asked=wanted.model_dump(exclude_defaults=True),
        **page.more(data),
    )


def _html(app: FastAPI, page: Page) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        wanted = asked.parse(page.asked, request.query_params)
        return _answer(made(app, page, wanted), "text/html; charset=utf-8")

    return answer


def _json(app: FastAPI, page: Page) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        wanted = asked.parse(page.asked, request.query_params)
        with app.state.lock:
            data = page.data(app.state.runs, wanted)
        return _answer(_dumps(data), "application/json")

    return answer


def _dumps(data: Any) -> bytes:
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _answer(
    content: str | bytes, media_type: str, status: int = 200, policy: str = POLICY
) -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(content, status, headers, media_type)


class _SentOnce(FileResponse):
    """A temporary file, deleted however its sending ends: a range that is none sends nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink()


def _add_files(app: FastAPI) -> None:
    def file(name: str) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            content, kind = static(name)
            headers = {
                "Cache-Control": "public, max-age=31536000, immutable",
                "X-Content-Type-Options": "nosniff",
                "Vary": "Accept-Encoding",
            }
            if "gzip" in request.headers.get("accept-encoding", ""):
                return Response(
                    zipped(name), 200, {**headers, "Content-Encoding": "gzip"}, media_type=kind
                )
            return Response(content, 200, headers, media_type=kind)

        return answer

    for name in STATIC:
        app.get(f"/static/{name}")(file(name))

    @app.get("/favicon.ico")
    def favicon() -> Response:
        """No picture: browsers ask for one."""
        return Response(status_code=204)

    @app.get("/user/surprise")
    def surprise(request: Request) -> Response:
        """Go to a random user."""
        asked.parse(Asked, request.query_params)
        with app.state.lock:
            who = users.surprise(app.state.runs[0])
        return RedirectResponse(link("/user", id=who), 303, {"Cache-Control": "no-store"})

    @app.get("/report")
    def report(request: Request) -> Response:
        """Send the run's own report, a self-contained page."""
        asked.parse(Asked, request.query_params)
        run: OpenedRun = app.state.runs[0]
        run.manifest("report")
        text = (run.store.path("report") / "report.html").read_text(encoding="utf-8")
        return _answer(text, "text/html; charset=utf-8", policy=REPORT_POLICY)

    @app.get("/labels/download")
    def download(request: Request) -> Response:
        """Send the labels asked for as a file."""
        wanted = asked.parse(asked.Download, request.query_params)
        handle, name = tempfile.mkstemp(suffix=f".{wanted.format}", prefix="prerank-labels-")
        os.close(handle)
        path = Path(name)
        try:
            with app.state.lock:
                rows = labels.file_rows(app.state.runs[0], wanted)
            labels.write_rows(rows, wanted, path)
        except BaseException:
            path.unlink()
            raise
        kinds = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return _SentOnce(
            path, 200, headers, kinds[wanted.format], filename=f"labels.{wanted.format}"
        )


def _add_errors(app: FastAPI) -> None:
    def refuse(request: Request, status: int, what: str, hint: str) -> Response:
        if request.url.path.endswith(".json"):
            return _answer(
                _dumps({"error": {"what": what, "hint": hint}}), "application/json", status
            )
        text = render(
            "error.html.jinja",
            app.state.runs,
            {},
            menu="",
            twin="",
            asked={},
            status=status,
            what=what,
            hint=hint,
        )
        return _answer(text, "text/html; charset=utf-8", status)

    @app.exception_handler(RefusedError)
    def refused(request: Request, error: RefusedError) -> Response:
        return refuse(request, error.status, error.what, error.hint)

    @app.exception_handler(PrerankError)
    def broken(request: Request, error: PrerankError) -> Response:
        return refuse(request, 500, error.what, f"{error.where} {error.hint}".strip())

    @app.exception_handler(HTTPException)
    def plain(request: Request, error: HTTPException) -> Response:
        what = "there is no such page" if error.status_code == 404 else str(error.detail)
        return refuse(request, error.status_code, what, "the menu has all pages")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        return refuse(request, 500, f"unexpected {type(error).__name__}", "the log has the rest")


def warm_pages(app: FastAPI) -> None:
    """Make every page that needs no parameter once, so that nobody waits for its plots."""
    for page in PAGES:
        if not any(field.is_required() for field in page.asked.model_fields.values()):
            with contextlib.suppress(RefusedError):
                made(app, page, page.asked())


def inspect(folders: Sequence[Path], host: str, port: int) -> None:
    """Show the runs in ``folders`` until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is taken.
        ArtifactError: a folder holds no finished artifact, or one is damaged.
    """
    import uvicorn

    with listen(host, port) as taken, contextlib.suppress(KeyboardInterrupt):
        runs = [OpenedRun(folder) for folder in folders]
        log(f"inspect: reading {runs[0].root}")
        runs[0].warm()
        app = create_app(runs, host)
        warm_pages(app)
        log(f"inspect: {address(host, port)} (Ctrl-C ends it)")
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(settings).run(sockets=[taken])

"""Answers the browser. Whatever is wrong is said in one sentence of JSON."""

import importlib.resources
import json
import pathlib
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mtl_jax.errors import UserError
from mtl_jax.serving.corrections import Conflict
from mtl_jax.serving.session import Session, Unknown

# Bytes of the largest photograph, and of the largest correction.
UPLOAD_LIMIT, _CORRECTION_LIMIT = 512 * 2**20, 32 * 2**20
# Bytes beyond a limit that are still read.
_DRAINED = 64 * 2**20

_PAGE = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    # What the page shows changes with every correction.
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src 'self' "
    "blob: data:; script-src 'self'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_STATUS = {Unknown: 404, Conflict: 409, UserError: 422}
_NOT_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f]|^\.{0,2}$")


def create_app(
    session: Session,
    hosts: frozenset[str] | None,
    *,
    upload_limit: int = UPLOAD_LIMIT,
) -> Starlette:
    """Makes the application.

    Args:
      session: what it shows.
      hosts: names of this machine that a browser may ask for; None for any. Otherwise
        pages of other sites could read photographs (DNS rebinding).
      upload_limit: bytes of the largest photograph.
    """

    def network(request: Request) -> Response:
        said = {**session.describe_network(), "upload_limit": upload_limit}
        return JSONResponse(said)

    def listing(request: Request) -> Response:
        return JSONResponse(session.describe_all())

    async def upload(request: Request) -> Response:
        name = _name(request)
        limit = f"{name} is larger than {upload_limit:,} bytes; reduce it."
        contents = await _body(request, upload_limit, limit)
        return JSONResponse(await run_in_threadpool(session.add, name, contents))

    def one(request: Request) -> Response:
        return JSONResponse(session.describe(_key(request)))

    def view(request: Request) -> Response:
        return Response(session.view(_key(request)), media_type="image/jpeg")

    def mask(request: Request) -> Response:
        part = request.path_params["part"]
        return Response(session.mask_view(_key(request), part), media_type="image/png")

    def gradient(request: Request) -> Response:
        return Response(session.gradient_view(_key(request)), media_type="image/png")

    async def correct(request: Request) -> Response:
        key, said = _key(request), await _correction(request)
        return JSONResponse(await run_in_threadpool(session.correct, key, said))

    def withdraw(request: Request) -> Response:
        version = request.query_params.get("version", "")
        return JSONResponse(session.withdraw(_key(request), version))

    def table(request: Request) -> Response:
        return _download(session.table(), "predictions.csv", "text/csv; charset=utf-8")

    def masks(request: Request) -> Response:
        return _download(session.masks(), "masks.zip", "application/zip")

    photograph = "/photographs/{key}"
    routes = [
        Route("/network", network),
        Route("/photographs", listing),
        Route("/photographs", upload, methods=["POST"]),
        Route(photograph, one),
        Route(f"{photograph}/view.jpg", view),
        Route(f"{photograph}/gradient.png", gradient),
        Route(f"{photograph}/masks/{{part}}.png", mask),
        Route(f"{photograph}/correction", correct, methods=["PUT"]),
        Route(f"{photograph}/correction", withdraw, methods=["DELETE"]),
        Route("/predictions.csv", table),
        Route("/masks.zip", masks),
        Route("/", _asset),
        Route("/{file}", _asset),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _say_status,
        UserError: _say_mistake,
        OSError: _say_refusal,
        Exception: _say_bug,
    }
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, hosts=hosts)],
        exception_handlers=handlers,
    )


async def _asset(request: Request) -> Response:
    name = request.path_params.get("file", "")
    if name not in _PAGE:
        raise HTTPException(404)
    file, kind = _PAGE[name]
    text = (importlib.resources.files("mtl_jax.serving") / "page" / file).read_bytes()
    return Response(text, media_type=kind)


def _name(request: Request) -> str:
    """The name of the file that is uploaded."""
    name = request.query_params.get("name", "")
    if _NOT_A_NAME.search(name) or len(name.encode("utf-8", "replace")) > 255:
        raise HTTPException(
            400, f"{name!r} is no name of a file; give it without folders."
        )
    return name


async def _correction(request: Request) -> dict[str, Any]:
    limit = "The correction is larger than any that the page sends."
    body = await _body(request, _CORRECTION_LIMIT, limit)
    try:
        said = json.loads(body)
    except ValueError:
        raise HTTPException(400, "The correction is no JSON.") from None
    if not isinstance(said, dict):
        raise HTTPException(400, "The correction is no JSON object.")
    return said


def _key(request: Request) -> str:
    return request.path_params["key"]


def _download(path: pathlib.Path, name: str, kind: str) -> Response:
    return FileResponse(
        path, media_type=kind, filename=name, background=BackgroundTask(path.unlink)
    )


async def _body(request: Request, limit: int, sentence: str) -> bytes:
    """Reads the body of a request, and keeps no more than the limit.

    A browser hears of a refusal only when it has sent all; so some more is read.
    """
    length = request.headers.get("content-length", "")
    is_over = length.isdecimal() and int(length) > limit
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            is_over = is_over or size > limit
            if size > limit + _DRAINED:
                break
            if not is_over:
                parts.append(part)
    except ClientDisconnect:
        raise HTTPException(400, "The browser has broken off.") from None
    if is_over:
        raise HTTPException(413, sentence)
    return b"".join(parts)


class _Guard:
    """Lets only this page ask, and no other page of the browser."""

    def __init__(self, app: Any, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        headers = Request(scope).headers
        host, origin = headers.get("host", ""), headers.get("origin")
        answer = self._app
        if self._hosts is not None and _host_of(f"//{host}") not in self._hosts:
            answer = _refusal(
                f"This page is not at {host!r}; open the printed address."
            )
        elif origin is not None and origin.partition("//")[2] != host:
            answer = _refusal(f"A page of {origin!r} may not ask this one.")
        await answer(scope, receive, send_with_headers)


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _refusal(sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, 403)


def _say_status(request: Request, error: HTTPException) -> Response:
    said = error.detail
    # Starlette's own words.
    if error.status_code == 404:
        said = f"There is no {request.url.path!r} here; open the page anew."
    if error.status_code == 405:
        said = f"{request.url.path!r} does not take {request.method}."
    return JSONResponse({"error": said}, error.status_code, error.headers)


def _say_mistake(request: Request, error: UserError) -> Response:
    kinds = (_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    return JSONResponse({"error": str(error)}, next(kinds))


def _say_refusal(request: Request, error: OSError) -> Response:
    reason = error.strerror or str(error)
    said = f"{error.filename or 'A file'} cannot be used ({reason}); see to that."
    return JSONResponse({"error": said}, 507)


def _say_bug(request: Request, error: Exception) -> Response:
    said = f"The page's program has failed ({type(error).__name__}: {error})."
    return JSONResponse({"error": said}, 500)

"""The operators' port: probes, metrics, and with `--debug` the store."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from kube2iam.admin.health import Page

log = logging.getLogger(__name__)

_MOST_CONNECTIONS = 64

_SPARING = 20
"""Times as long as rendering took is what a costly page rests: whoever reaches the node may ask for it."""

Render = Callable[[Mapping[str, list[str]]], Page]
Pages = Mapping[str, Render]
"""Path -> what renders it from the query's fields."""

NOT_FOUND = Page(404, "text/plain; charset=utf-8", b"404 page not found\n")


def answer(pages: Pages, path: str, query: str) -> Page:
    """The page at `path`, or 404."""
    page = pages.get(path)
    return NOT_FOUND if page is None else page(parse_qs(query, keep_blank_values=True))


def sparing(render: Callable[[], Page], clock: Callable[[], float] = monotonic) -> Render:
    """`render`, at most a twentieth of the time: who asks sooner again is shown the page of a moment ago."""
    shown, stale_at = NOT_FOUND, float("-inf")

    def page(_query: Mapping[str, list[str]]) -> Page:
        nonlocal shown, stale_at
        begun = clock()
        if begun >= stale_at:
            shown = render()
            stale_at = begun + _SPARING * (clock() - begun)
        return shown

    return page


class AdminServer:
    """Serves `pages` over HTTP on a port of their own, on every address."""

    def __init__(self, pages: Pages, *, port: int) -> None:
        self._pages = pages
        self._port = port
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen; raises OSError if the port can't be had."""
        silent = logging.getLogger(f"{__name__}.http")
        silent.disabled = True  # aiohttp logs a traceback for whatever is no HTTP, and pods may reach this port
        self._runner = web.ServerRunner(_BoundedServer(self._answer, logger=silent), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, _listen(self._port)).start()

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        try:
            page = answer(self._pages, request.path, request.query_string)
        except Exception:
            log.exception("a page was not rendered", extra={"req.path": request.path})
            raise
        return web.Response(status=page.status, body=page.body, headers={"Content-Type": page.content_type})


class _BoundedServer(web.Server):
    """Has a number of connections at most: the oldest one makes room, so that nobody can keep the probes out."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open: dict[RequestHandler, asyncio.Transport] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Take one more."""
        super().connection_made(handler, transport)
        self._open[handler] = transport
        if len(self._open) > _MOST_CONNECTIONS:
            self._open.pop(next(iter(self._open))).abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget it."""
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False)
    return socket.create_server(("", port))

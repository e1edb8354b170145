"""The operators' port: probes, metrics, and with `--debug` the store."""

import socket
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from aiohttp import web

from kube2iam.admin.health import Page

Pages = Mapping[str, Callable[[Mapping[str, list[str]]], Page]]
"""Path -> what renders it from the query's fields."""

NOT_FOUND = Page(404, "text/plain; charset=utf-8", b"404 page not found\n")


def answer(pages: Pages, path: str, query: str) -> Page:
    """The page at `path`, or 404."""
    page = pages.get(path)
    return NOT_FOUND if page is None else page(parse_qs(query, keep_blank_values=True))


class AdminServer:
    """Serves `pages` over HTTP on a port of their own, on every address."""

    def __init__(self, pages: Pages, *, port: int) -> None:
        self._pages = pages
        self._port = port
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen; raises OSError if the port can't be had."""
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, _listen(self._port)).start()

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        page = answer(self._pages, request.path, request.query_string)
        return web.Response(status=page.status, body=page.body, headers={"Content-Type": page.content_type})


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=False)
    return socket.create_server(("", port))

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from kube2iam.admin.health import Page
from kube2iam.admin.server import AdminServer


@pytest.fixture
async def base() -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = AdminServer({"/readyz": lambda query: Page(503, "text/plain", repr(query).encode())}, port=port)
    await server.start()
    yield f"http://127.0.0.1:{port}"
    await server.stop()


async def test_a_page_is_served_with_its_query(base: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{base}/readyz?verbose") as reply:
        assert reply.status == 503
        assert reply.content_type == "text/plain"
        assert await reply.text() == "{'verbose': ['']}"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/debug/store", 404), ("POST", "/readyz", 405), ("HEAD", "/readyz", 503)]
)
async def test_nothing_else_is_served(base: str, method: str, path: str, status: int) -> None:
    async with aiohttp.ClientSession() as session, session.request(method, f"{base}{path}") as reply:
        assert reply.status == status


async def test_a_port_that_is_taken_is_an_error(base: str) -> None:
    taken = AdminServer({}, port=int(base.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        await taken.start()
    await taken.stop()

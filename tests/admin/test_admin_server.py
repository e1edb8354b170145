import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest

from kube2iam.admin.health import Page
from kube2iam.admin.server import AdminServer, sparing
from tests.fakes.world import free_ports


@pytest.fixture
async def base() -> AsyncIterator[str]:
    (port,) = free_ports(1)
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


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", bytes(90)])
async def test_what_is_no_http_is_not_worth_a_line(base: str, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    writer.write(raw)
    assert await reader.readexactly(12) == b"HTTP/1.0 400"
    writer.close()
    assert caplog.records == []


async def test_a_page_that_fails_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_query: object) -> Page:
        raise KeyError

    (port,) = free_ports(1)
    server = AdminServer({"/broken": broken}, port=port)
    await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/broken") as reply:
        assert reply.status == 500
    await server.stop()
    assert [(record.message, record.name) for record in caplog.records] == [
        ("a page was not rendered", "kube2iam.admin.server")
    ]


async def test_silent_connections_keep_nobody_out(base: str) -> None:
    port = int(base.rpartition(":")[2])
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
    async with aiohttp.ClientSession() as session, session.get(f"{base}/readyz") as reply:
        assert reply.status == 503
    async with asyncio.timeout(5):
        for reader, _ in silent[:136]:
            with suppress(ConnectionError):
                assert await reader.read() == b""
    for _, writer in silent:
        writer.transport.abort()


async def test_a_port_that_is_taken_is_an_error(base: str) -> None:
    taken = AdminServer({}, port=int(base.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        await taken.start()
    await taken.stop()


def test_a_costly_page_is_rendered_a_twentieth_of_the_time() -> None:
    now, rendered = 100.0, 0

    def render() -> Page:
        nonlocal now, rendered
        rendered += 1
        now += 0.1
        return Page(200, "text/plain", str(rendered).encode())

    page = sparing(render, lambda: now)
    seen = []
    for _ask in range(400):
        seen.append(page({}).body)
        now += 0.01
    assert (seen[0], seen[1], seen[-1]) == (b"1", b"1", b"3")
    assert rendered == 3

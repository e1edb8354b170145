"""One pod does its worst; another asks as usual, and must not notice."""

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kube2iam.domain.errors import Reason
from tests.fakes.front import CREDENTIALS, LIST, OTHER, POD, Port, request, scripted_port

ROOT = Path(__file__).resolve().parents[3]
MIB = 1024 * 1024
HOSTILE = "127.0.0.66"


def resident() -> int:
    """Bytes of this process in memory: server and attacker together."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def unnoticed(port: Port, *, requests: int = 200) -> bool:
    """Whether a neighbour's p99 is under 100 ms; it may be more where the machine is busy without any attack."""
    if not port.usual:
        async with scripted_port() as quiet:
            port.usual = await p99(quiet)
    return await p99(port, requests=requests) < max(0.1, 5 * port.usual)


async def p99(port: Port, *, requests: int = 200) -> float:
    """Seconds: how long a neighbour waits, half on one connection and half on new ones."""
    times = []
    kept = await port.connect(OTHER)
    for number in range(requests):
        begun = time.perf_counter()
        client = kept if number % 2 else await port.connect(OTHER)
        assert (await client.ask(request(LIST))).body == b"other-role"
        times.append(time.perf_counter() - begun)
        if client is not kept:
            client.close()
            port.clients.remove(client)
        await asyncio.sleep(0)
    return sorted(times)[int(len(times) * 0.99) - 1]


@asynccontextmanager
async def hammering(port: Port, kind: str) -> AsyncIterator[None]:
    """Another process that asks for what costs something, as fast as it can, on 20 connections."""
    command = [sys.executable, "-m", "tests.fakes.hammer", str(port.number), HOSTILE, "20", kind]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield
    finally:
        process.kill()
        await process.wait()


async def test_three_thousand_silent_connections() -> None:
    async with scripted_port() as port:
        port.resolver.add(HOSTILE, "hostile")
        before = resident()
        silent = [await port.connect(HOSTILE) for _ in range(1000)]
        assert port.server.limits.connections <= 513
        for client in silent[:]:
            if client.reader.at_eof():
                client.close()
        for _ in range(2000):
            client = await port.connect(HOSTILE)
            if client.reader.at_eof():
                client.close()
        assert port.server.limits._connections[HOSTILE] == 512
        assert await unnoticed(port)
        assert resident() - before < 60 * MIB  # both ends are in this process


async def test_slowloris() -> None:
    async with scripted_port(header_timeout=1.0) as port:
        clients = [await port.connect(HOSTILE) for _ in range(300)]
        begun = time.perf_counter()
        beginning = request(CREDENTIALS, *(f"X-{number}: y" for number in range(20)))
        at = 0
        while port.server.limits._connections.get(HOSTILE) and time.perf_counter() - begun < 5:
            for client in clients:
                client.send(beginning[at : at + 1])
            at += 1
            assert await unnoticed(port, requests=20)
        assert 0.9 < time.perf_counter() - begun < 3.5
        assert at < len(beginning)


async def test_a_herd_from_unknown_addresses() -> None:
    async with scripted_port(max_held=400, max_held_per_pod=20, max_connections_per_pod=30) as port:
        herd = [
            (await port.connect(f"127.0.{third}.{fourth}")).send(request(CREDENTIALS))
            for third in range(1, 31)
            for fourth in range(1, 11)
        ]
        async with asyncio.timeout(5):
            while port.server.limits.held < 200:
                await asyncio.sleep(0.001)
        assert await unnoticed(port)
        statuses = [(await client.reply()).status for client in herd]
        assert statuses == [503] * 300
        assert port.server.limits.held == 0


@pytest.mark.parametrize("kind", ["kept", "new"])
async def test_one_pod_that_hammers(kind: str) -> None:
    async with scripted_port(max_request_rate=20.0) as port:
        port.upstream.open.set()
        port.resolver.add(HOSTILE, "hostile")
        async with hammering(port, kind):
            async with asyncio.timeout(20):
                while Reason.OVER_LIMIT not in port.counted.denials:
                    await asyncio.sleep(0.01)
            assert await unnoticed(port)
        assert len(port.upstream.asked) < 1000


async def test_pipelines_that_nobody_reads() -> None:
    async with scripted_port() as port:
        port.resolver.add(HOSTILE, "hostile")
        before = resident()
        clients = [await port.connect(HOSTILE, receive_buffer=2048) for _ in range(20)]
        for client in clients:
            client.reader._limit = 0  # type: ignore[attr-defined]
            client.writer.transport.set_write_buffer_limits(0)
        for _ in range(10):
            for client in clients:
                if not client.writer.transport.get_write_buffer_size():
                    client.send(request(CREDENTIALS) * 200)
            await asyncio.sleep(0)
        assert await unnoticed(port)
        held = sum(len(found._stash) + found.transport.get_write_buffer_size() for found in port.server._connections)
        assert held < 20 * MIB
        assert resident() - before < 40 * MIB


async def test_labels_stay_few_whatever_is_sent() -> None:
    async with scripted_port() as port:
        client = await port.connect(POD)
        for number in range(300):
            method = "GET" if number % 2 else "PROPFIND"
            await client.ask(request(f"/latest/{number}/x", f"X-{number}: y", method=method))
            await port.ask(f"M{number} /{number} HTTP/9.{number}\r\n\r\n".encode())
        assert {method for _, method, _ in port.counted.seen} == {"GET", "other"}
        assert len(port.counted.seen) < 10
        assert len(port.server.heads) < 10


async def test_remembered_requests_are_bounded() -> None:
    async with scripted_port() as port:
        client = await port.connect(POD)
        for number in range(3000):
            assert (await client.ask(request(LIST, f"X-{number}: {'y' * 900}"))).body == b"app"
        assert len(port.server.heads) <= 1024
        assert sum(map(len, port.server.heads)) <= MIB

"""A hostile process beside the real agent: memory stays, nobody else notices, and the log says nothing of a bug."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.attack import HOSTILE, KINDS
from tests.fakes.front import Client, request
from tests.fakes.world import ROLES, AgentProcess, world

ROOT = Path(__file__).resolve().parents[2]
NEIGHBOUR = "127.0.0.3"
QUICK = 0.1
"""Seconds that a neighbour may wait during an attack."""
SLOWED = 100
"""Times that it waits without one: more than `QUICK` only where the machine has other work, and both are slow."""
MOST_MIB = 20.0
SETTLED_MIB = 5.0
"""What a second attack of the same kind may add to the first one's."""

CONNECTIONS, DENIALS = "kube2iam_open_connections", "kube2iam_denials_total"
REQUESTS = "kube2iam_http_request_duration_seconds_count"
MARKS = {
    "silent": (CONNECTIONS, 400),
    "dribble": (CONNECTIONS, 100),
    "unread": (CONNECTIONS, 30),
    "herd": (DENIALS, 500),
    "hammer": (REQUESTS, 5000),
    "odd": (REQUESTS, 1000),
    "ever_new": (REQUESTS, 1000),
}
"""What the agent itself has of an attack: a metric, and how much more of it there is at least.

Of connections whose bytes wait it has few: beyond 4 MiB for one pod it cuts them.
"""


async def counted(agent: AgentProcess, name: str) -> float:
    """A metric of the agent, all labels together."""
    status, page = await agent.page("/metrics")
    assert status == 200
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


async def calm(agent: AgentProcess) -> None:
    """Wait until the agent has none of the attacker's connections any more."""
    async with asyncio.timeout(20):
        while await counted(agent, CONNECTIONS):
            await asyncio.sleep(0.05)


@asynccontextmanager
async def attacked(agent: AgentProcess, kind: str) -> AsyncIterator[None]:
    """While the attack goes on."""
    command = [sys.executable, "-m", "tests.fakes.attack", kind, str(agent.port)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"begun\n"
        yield
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()


async def connect(agent: AgentProcess, source: str) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", agent.port, local_addr=(source, 0)))


async def p99(agent: AgentProcess, requests: int = 200) -> float:
    """Seconds that a neighbour waits, half on one connection and half on new ones; each answer must be right."""
    times = []
    kept = await connect(agent, NEIGHBOUR)
    for number in range(requests):
        begun = time.perf_counter()
        client = kept if number % 2 else await connect(agent, NEIGHBOUR)
        assert (await client.ask(request(ROLES))).body == b"neighbour"
        times.append(time.perf_counter() - begun)
        if client is not kept:
            client.close()
    kept.close()
    return sorted(times)[int(requests * 0.99) - 1]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_attack_costs_no_memory_and_no_neighbour_anything(kind: str, tmp_path: Path) -> None:
    async with world(tmp_path / "state") as around:
        around.pod("hostile", HOSTILE, "app")
        around.pod("neighbour", NEIGHBOUR, "neighbour")
        async with around.agent("--log-level=info") as agent:
            usual, waited, grown, marks = [await p99(agent)], [], [], []
            before = agent.resident_mib
            mark, enough = MARKS[kind]
            for _ in range(2):
                await calm(agent)
                usual.append(await p99(agent))
                marked = await counted(agent, mark)
                async with attacked(agent, kind):
                    waited.append(await p99(agent))
                    grown.append(agent.resident_mib - before)
                    marks.append(await counted(agent, mark) - marked)
            assert min(marks) > enough, "the attack came to nothing"
            assert max(waited) < max(QUICK, SLOWED * max(usual)), (waited, usual)
            assert max(grown) < MOST_MIB
            assert grown[1] - grown[0] < SETTLED_MIB
        assert [line for line in agent.lines if line.get("level") not in {"info", "warning", None}] == []
        assert len(agent.lines) < 200

"""How long pods wait that nobody has asked for yet, and what their waiting costs STS."""

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import median

from tests.bench.node import ADDRESSES, PODS, agent_on, full_node, role_of
from tests.fakes.world import ROLES

COLD = "110 roles cold, STS at 100 ms: seconds until every pod has credentials"
PREFETCHED = "prefetched: milliseconds of a pod's first request"
CALLS = "AssumeRole calls for 500 first requests of 110 pods of one role"
STS_DELAY = 0.1
HERD = 500
_HOST = "Host: 169.254.169.254"
_TTL = "X-aws-ec2-metadata-token-ttl-seconds: 21600"
_RETRY = 0.5
"""Seconds that an SDK may take after a 503, at most, before it asks again."""


async def measure(rounds: int) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        COLD: median([await cold() for _ in range(rounds)]),
        PREFETCHED: median([await prefetched() for _ in range(rounds)]),
        CALLS: await calls_for_one_role(),
    }


async def cold() -> float:
    """Seconds until 110 pods of 110 roles that ask at once all have credentials; nothing was prefetched."""
    async with full_node(sts_delay=STS_DELAY) as around, agent_on(around, "--prefetch=false") as agent:
        begun = time.monotonic()
        await asyncio.gather(*(_as_sdk(agent.port, address) for address in ADDRESSES))
        return time.monotonic() - begun


async def prefetched() -> float:
    """Median milliseconds of each pod's first request, one pod after the other, on an agent that has prefetched."""
    took: list[float] = []
    async with full_node(sts_delay=STS_DELAY) as around, agent_on(around) as agent:
        for number, address in enumerate(ADDRESSES):
            begun = time.monotonic()
            await _ask(agent.port, address, role_of(number))
            took.append((time.monotonic() - begun) * 1000)
    return median(took)


async def calls_for_one_role() -> int:
    """AssumeRole calls that 500 first requests of 110 pods of one role cost, all at once."""
    async with full_node(roles=1, sts_delay=STS_DELAY) as around, agent_on(around, "--prefetch=false") as agent:
        addresses = [ADDRESSES[number % PODS] for number in range(HERD)]
        await asyncio.gather(*(_ask(agent.port, address, role_of(0)) for address in addresses))
        return len(around.sts.asked)


async def _as_sdk(port: int, address: str) -> None:
    """A session token, the role's name, its credentials; a request that is told to come back does."""
    pod = await _Pod.connect(port, address)
    token = f"X-aws-ec2-metadata-token: {await pod.ask('PUT', '/latest/api/token', _TTL)}"
    role = await pod.ask("GET", ROLES, token)
    await pod.ask("GET", f"{ROLES}{role}", token)
    pod.close()


async def _ask(port: int, address: str, role: str) -> None:
    pod = await _Pod.connect(port, address)
    await pod.ask("GET", f"{ROLES}{role}")
    pod.close()


class _Pod:
    """A pod's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, address: str) -> "_Pod":
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))

    async def ask(self, method: str, path: str, *headers: str) -> str:
        """The body of a 200."""
        while (answer := await self._exchange(method, path, headers))[0] == 503:
            await asyncio.sleep(random.uniform(0, _RETRY))
        status, body = answer
        if status != 200:
            raise RuntimeError(f"{method} {path} was answered {status}")
        return body

    def close(self) -> None:
        self._writer.close()

    async def _exchange(self, method: str, path: str, headers: Sequence[str]) -> tuple[int, str]:
        self._writer.write("\r\n".join([f"{method} {path} HTTP/1.1", _HOST, *headers, "", ""]).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split()[1]), (await self._reader.readexactly(length)).decode()

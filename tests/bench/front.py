"""The pods' port under load: the agent, the agent without limits, a bare aiohttp server, a protocol without work."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.load import Measured, ask, cores, loads, on
from tests.bench.node import ADDRESSES, agent_on, full_node, role_of
from tests.bench.servers import BODIES
from tests.fakes.world import ROLES, AgentProcess, free_ports

BARE, AGENT, UNLIMITED, FLOOR = "bare aiohttp", "agent", "agent, no limits", "no work at all"
NO_LIMITS = tuple(
    f"--{name}=0"
    for name in (
        "max-request-line",
        "max-header-bytes",
        "max-headers",
        "max-body-bytes",
        "header-timeout",
        "idle-timeout",
        "max-connections",
        "max-connections-per-pod",
        "max-request-rate",
        "max-held",
        "max-held-per-pod",
    )
)
_SERVERS = Path(__file__).with_name("servers.py")
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"

_SHOWN = BARE, AGENT, UNLIMITED, FLOOR
REQUESTS = "requests answered by the agent under load, thousands"
GROWTH = "resident memory after them above before, MiB"
DEFENCE = "what the limits cost of the requests/s, %"

Row = dict[str, Any]
_Runs = Mapping[tuple[str, str], Sequence[Measured]]


@dataclass(frozen=True, slots=True)
class _Server:
    """A server that runs."""

    name: str
    port: int
    pid: int


async def measure(seconds: float, rounds: int) -> tuple[list[Row], dict[str, float]]:
    """A row for each load and server, medians over the rounds; and what the load did to the agent's memory."""
    async with AsyncExitStack() as running:
        enter = running.enter_async_context
        around = await enter(full_node())
        agent, unlimited = await enter(agent_on(around)), await enter(agent_on(around, *NO_LIMITS))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        await _keep_bodies(agent, folder)
        servers = [
            await enter(_server(BARE, "bare", folder)),
            _Server(AGENT, agent.port, agent.process.pid),
            _Server(UNLIMITED, unlimited.port, unlimited.process.pid),
            await enter(_server(FLOOR, "floor", folder)),
        ]
        token = await agent.ask(ADDRESSES[0], "/latest/api/token", "PUT", **{_TTL: "21600"})
        idle = agent.resident_mib
        runs: dict[tuple[str, str], list[Measured]] = {}
        for _ in range(rounds):
            servers.append(servers.pop(0))
            for load in loads(role_of(0), token.body.decode()):
                for server in servers:
                    run = await ask(load, server.port, server.pid, seconds)
                    runs.setdefault((load.name, server.name), []).append(run)
        figures = {
            REQUESTS: sum(run.requests for (_, server), of in runs.items() if server == AGENT for run in of) / 1000,
            GROWTH: agent.resident_mib - idle,
            DEFENCE: 100 * (1 - median(_ratios(runs))),
        }
        return sorted(_rows(runs), key=_order), figures


async def _keep_bodies(agent: AgentProcess, folder: Path) -> None:
    """Write what the agent answers to where the other servers look for it."""
    for name, path in zip(BODIES, ("/latest/meta-data/instance-id", f"{ROLES}{role_of(0)}"), strict=True):
        (folder / name).write_bytes((await agent.ask(ADDRESSES[0], path)).body)


@asynccontextmanager
async def _server(name: str, kind: str, folder: Path) -> AsyncIterator[_Server]:
    """A server of servers.py as a process of its own."""
    (port,) = free_ports(1)
    command = (*on(cores()[0]), sys.executable, str(_SERVERS), kind, str(port), str(folder))
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _accepts(port)
        yield _Server(name, port, process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _accepts(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _order(row: Row) -> tuple[int, int]:
    return [load.name for load in loads("", "")].index(row["load"]), _SHOWN.index(row["server"])


def _ratios(runs: _Runs) -> Iterator[float]:
    """Requests/s of the agent, of those without limits, within each round."""
    for (load, server), of_server in runs.items():
        if server == AGENT:
            yield from (run.rate / other.rate for run, other in zip(of_server, runs[load, UNLIMITED], strict=True))


def _rows(runs: _Runs) -> Iterator[Row]:
    for (load, server), of_server in runs.items():
        row: Row = {"load": load, "server": server, "failed": sum(run.failed for run in of_server)}
        row |= {name: median(getattr(run, name) for run in of_server) for name in ("rate", "p50", "p99", "cpu")}
        pairs = zip(of_server, runs[load, BARE], strict=True)
        row["times"] = median(run.rate / bare.rate for run, bare in pairs)  # within a round: the machine's mood cancels
        yield row

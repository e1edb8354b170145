"""A full node: 110 pods on loopback addresses and 300 namespaces, the agent on the first core."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from tests.bench.load import cores, on
from tests.fakes.world import AgentProcess, World, world

PODS = 110
NAMESPACES = 300
ADDRESSES: Sequence[str] = ("127.0.0.1", *(f"127.1.0.{number}" for number in range(1, PODS)))
"""The pods'; the first is where wrk calls from."""
_TOKEN_TAIL = "t" * 700


@asynccontextmanager
async def full_node(*, roles: int = PODS, sts_delay: float = 0.0) -> AsyncIterator[World]:
    """The node, its pods sharing `roles` roles; `sts_delay` in seconds. No agent runs yet."""
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as around:
            around.sts.delay, around.sts.padding = sts_delay, _TOKEN_TAIL
            for number in range(NAMESPACES - 1):
                around.objects.create("namespaces", "", {"metadata": {"name": f"ns-{number}"}})
            for number, address in enumerate(ADDRESSES):
                around.pod(f"pod-{number}", address, role_of(number, roles))
            yield around


def role_of(number: int, roles: int = PODS) -> str:
    """The role of a pod by its number."""
    return f"role-{number % roles}"


def agent_on(around: World, *flags: str, ready: bool = True) -> AbstractAsyncContextManager[AgentProcess]:
    """The agent of the node, on the core of the servers."""
    return around.agent(*flags, ready=ready, under=on(cores()[0]))

"""Real clients with their default credential chains, behind the real redirect and the real agent.

Each scenario runs with every client, one after another: what counts is the client's own patience, not this machine's.
"""

import asyncio

import pytest

from kube2iam.demo.probes import LISTING
from tests.clients.builds import CLIENTS, Client
from tests.clients.node import FirstPacket, Node, Said
from tests.clients.results import Table, role

LATE = 0.7
"""Seconds from a pod's first packet until the cluster shows its address."""
SLOW = 1.5
"""Seconds that STS takes. Clients cut a request at one."""
OWN_TIME = 10.0
"""Seconds within which each client says that there are no credentials."""

TOKEN = "/latest/api/token"
COLD = "--prefetch=false"

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.folder),
]


def is_a(wanted: str, said: Said, node: Node) -> None:
    """Fail unless the client has this role's session."""
    seen = "\n".join([said.text, f"after {said.seconds:.2f} s; the agent:", *node.log()[-12:]])
    assert f":assumed-role/{wanted}/" in said.identity, seen


async def test_warm(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "warm")
    await node.run_pod(client, wanted)
    await node.warm(client, wanted)
    async with node.program(client) as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    table.put(client, "warm", said.seconds)


async def test_address_known_late(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "address late")
    node.schedule(client, wanted)
    async with node.program(client) as program:
        first = FirstPacket(node.links[client.name])
        answer = asyncio.create_task(program.ask("new"))
        await first.seen()
        asyncio.get_running_loop().call_later(LATE, node.give_address, client)
        said = await answer
    is_a(wanted, said, node)
    assert said.seconds > LATE
    table.put(client, "address late", said.seconds)


async def test_role_changes_while_it_runs(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted, later = role(client, "new role"), role(client, "next")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        is_a(wanted, await program.ask("new"), node)
        node.change_role(client, later)
        await node.known(client, later)
        said = await program.ask("again")
    is_a(later, said, node)
    table.put(client, "new role", said.seconds)


async def test_agent_restarts_while_it_runs(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "restart")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        is_a(wanted, await program.ask("new"), node)
        await node.restart_agent()
        said = await program.ask("again")
    is_a(wanted, said, node)
    asked = node.requests(client)
    assert {status for _, status in asked} == {200}
    assert asked[-1][0].endswith(wanted)
    assert not (client.keeps_token and TOKEN in dict(asked)), "else nothing shows that session tokens outlive the agent"
    table.put(client, "restart", said.seconds)


async def test_no_role(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    await node.run_pod(client, None)
    async with node.program(client) as program:
        said = await program.ask("new")
        everything = said.text + program.errors()
    assert not said.identity
    assert said.text.startswith("no ")
    assert not [name for name, text in node.canaries.items() if text in everything]
    assert node.requests(client)[-1] == (LISTING, 404)
    assert said.seconds < OWN_TIME
    table.put(client, "no role", said.seconds)


async def test_cold(node: Node, client: Client, table: Table) -> None:
    await node.guard(COLD)
    wanted = role(client, "cold")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    table.put(client, "cold", said.seconds)


async def test_sts_slow(node: Node, client: Client, table: Table) -> None:
    await node.guard(COLD)
    wanted = role(client, "STS 1.5 s")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        node.sts.seconds = SLOW
        try:
            said = await program.ask("new")
        finally:
            node.sts.seconds = 0.0
    is_a(wanted, said, node)
    assert said.seconds > SLOW
    table.put(client, "STS 1.5 s", said.seconds)


async def test_v1_off(node: Node, client: Client, table: Table) -> None:
    """The agent refuses version 1 too, so that a client that falls back to it gets nothing."""
    await node.guard(COLD, "--imdsv2=required")
    wanted = role(client, "v1 off")
    await node.run_pod(client, wanted)
    async with node.program(client, AWS_EC2_METADATA_V1_DISABLED="true") as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    table.put(client, "v1 off", said.seconds)

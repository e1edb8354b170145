"""Real clients with their default credential chains, behind the real redirect and the real agent.

Each scenario runs with every client, one after another: what counts is the client's own patience, not this machine's.
So the bounds are of two kinds: on the time between a client's first request and its last answer, by the agent's log,
and on what the program's user waits for, the SDK's own time included.
"""

import asyncio
import time
from collections.abc import Sequence

import pytest

from kube2iam.demo.probes import LISTING, ask
from tests.clients.builds import CLIENTS, Client
from tests.clients.node import Exchange, FirstPacket, Node, Said
from tests.clients.results import Table, role

LATE = 0.7
"""Seconds from a pod's first packet until the cluster shows its address."""
SLOW = 1.5
"""Seconds that STS takes. Clients cut a request at one."""
QUICK = 1.0
"""Seconds within which a client is served that need not wait, by the agent and by itself."""
AT_ONCE = 0.2
"""Seconds within which one request is answered where all is at hand, on a machine with other work."""

TOKEN = "/latest/api/token"
LAST = "/latest/meta-data/instance-id"
"""No client asks for it; a test does when a client has asked for all it wants."""
COLD = "--prefetch=false"
V1_OFF = {"AWS_EC2_METADATA_V1_DISABLED": "true"}

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.folder),
]


def is_a(wanted: str, said: Said, node: Node) -> None:
    """Fail unless the client has this role's session."""
    seen = "\n".join([said.text, f"after {said.seconds:.2f} s; the agent:", *node.log()[-12:]])
    assert f":assumed-role/{wanted}/" in said.identity, seen


def all_well(exchanges: Sequence[Exchange]) -> None:
    """Fail unless the client was refused nothing, not even for a moment."""
    assert {exchange.status for exchange in exchanges} == {200}, exchanges


def took(exchanges: Sequence[Exchange]) -> float:
    """Seconds from the client's first request to its last answer."""
    return exchanges[-1].answered - min(exchange.came for exchange in exchanges)


async def test_warm(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "warm")
    await node.run_pod(client, wanted)
    await node.warm(client, wanted)
    called = node.sts.calls[wanted]
    async with node.program(client) as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    asked = await node.answered(client, wanted)
    all_well(asked)
    assert max(exchange.seconds for exchange in asked) < AT_ONCE
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
    assert node.sts.calls[wanted] == called == 1
    table.put(client, "warm", said.seconds)


async def test_address_known_late(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "address late")
    node.schedule(client, wanted)
    await node.gone(client)
    given: list[float] = []

    def give_address() -> None:
        given.append(time.time())
        node.give_address(client)

    async with node.program(client) as program:
        first = FirstPacket(node.links[client.name])
        answer = asyncio.create_task(program.ask("new"))
        await first.seen()
        asyncio.get_running_loop().call_later(LATE, give_address)
        said = await answer
    is_a(wanted, said, node)
    asked = await node.answered(client, wanted)
    all_well(asked)
    held = [exchange for exchange in asked if exchange.came < given[0] < exchange.answered]
    assert held or client.patience < LATE, "nothing waited for the address"
    assert LATE < took(asked) < LATE + 2 * QUICK
    assert LATE < said.seconds < client.start + LATE + 2 * QUICK
    assert node.sts.calls[wanted] == 1
    table.put(client, "address late", said.seconds)


async def test_role_changes_while_it_runs(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted, later = role(client, "new role"), role(client, "next")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        is_a(wanted, await program.ask("new"), node)
        all_well(await node.answered(client, wanted))
        node.change_role(client, later)
        await node.known(client, later)
        node.exchanges.forget()
        said = await program.ask("again")
    is_a(later, said, node)
    asked = await node.answered(client, later)
    all_well(asked)
    assert (TOKEN in {exchange.path for exchange in asked}) != client.keeps_token
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
    table.put(client, "new role", said.seconds)


async def test_agent_restarts_while_it_runs(node: Node, client: Client, table: Table) -> None:
    await node.guard()
    wanted = role(client, "restart")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        is_a(wanted, await program.ask("new"), node)
        all_well(await node.answered(client, wanted))
        await node.restart_agent()
        node.exchanges.forget()
        said = await program.ask("again")
    is_a(wanted, said, node)
    asked = await node.answered(client, wanted)
    all_well(asked)
    # Else nothing would show that session tokens outlive the agent.
    assert (TOKEN in {exchange.path for exchange in asked}) != client.keeps_token
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
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
    asked = await node.answered(client, LISTING, 404)
    assert {exchange.status for exchange in asked if exchange.path == TOKEN} == {200}
    assert max(exchange.seconds for exchange in asked) < AT_ONCE
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
    table.put(client, "no role", said.seconds)


async def test_cold(node: Node, client: Client, table: Table) -> None:
    await node.guard(COLD)
    wanted = role(client, "cold")
    await node.run_pod(client, wanted)
    async with node.program(client) as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    asked = await node.answered(client, wanted)
    all_well(asked)
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
    assert node.sts.calls[wanted] == 1
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
    asked = await node.answered(client, wanted)
    assert {exchange.status for exchange in asked if exchange.path == TOKEN} == {200}
    # A client that asks again on 503 may be given one while STS is still thinking; to the others it is the end.
    assert {exchange.status for exchange in asked} <= {200, 503}
    assert SLOW < took(asked) < SLOW + QUICK
    assert SLOW < said.seconds < client.start + SLOW + QUICK
    assert node.sts.calls[wanted] == 1
    table.put(client, "STS 1.5 s", said.seconds)


async def test_v1_off(node: Node, client: Client, table: Table) -> None:
    """The agent refuses version 1 too, so that a request without a token would be seen as a 401."""
    await node.guard(COLD, "--imdsv2=required")
    wanted = role(client, "v1 off")
    await node.run_pod(client, wanted)
    async with node.program(client, **V1_OFF) as program:
        said = await program.ask("new")
    is_a(wanted, said, node)
    asked = await node.answered(client, wanted)
    all_well(asked)
    assert (asked[0].method, asked[0].path) == ("PUT", TOKEN)
    assert took(asked) < QUICK
    assert said.seconds < client.start + QUICK
    table.put(client, "v1 off", said.seconds)


async def test_v1_off_is_heeded(node: Node, client: Client) -> None:
    """The agent would serve version 1, and no token is to be had: a client that did not know the variable asks on."""
    await node.guard()
    await node.run_pod(client, role(client, "v1 off"))
    async with node.program(client, **V1_OFF) as program, node.without_tokens(client):
        said = await program.ask("new")
        await asyncio.to_thread(ask, node.places[client.name], LAST)
    assert said.text.startswith("no "), said
    assert [asked.path for asked in await node.answered(client, LAST) if asked.path != TOKEN] == [LAST]

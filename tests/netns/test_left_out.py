"""Who is said to be left out of the redirect is who reaches the real service: packets decide, and the agent says it."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube2iam.redirect.backends import BACKENDS
from kube2iam.redirect.coverage import unmatched
from kube2iam.redirect.routes import follow, route_to
from kube2iam.redirect.rule import Interfaces, RedirectRule
from tests.fakes.world import AgentProcess, world
from tests.netns.layouts import (
    AGENT_PORT,
    LAYOUTS,
    METADATA4,
    METADATA6,
    NODE4,
    NODE6,
    PATIENCE,
    POD4,
    POD6,
    REAL4,
    REAL6,
    Layout,
    Network,
    ask,
    inside,
    ip,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which only root may")

POD = POD4.format(2), POD6.format(2)
INTERFACES = ("docker0", "cali+", "eni+", "docker0,cali+", "auto", "!eth0", "+", "!docker0,!cali+", "auto,!eni+")


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Iterator[Layout]:
    with LAYOUTS[request.param]() as built:
        yield built


def left_out(namespace: str, interfaces: str, *pods: tuple[str, ...]) -> list[str]:
    return list(inside(namespace, lambda: unmatched(Interfaces.parse(interfaces), pods, route_to)))


@pytest.mark.parametrize("interfaces", INTERFACES)
def test_left_out_is_who_reaches_the_real_service(layout: Layout, interfaces: str) -> None:
    rule = RedirectRule.of((NODE4, NODE6), AGENT_PORT, interfaces)
    kept = inside(layout.node, follow(rule, lambda: POD))
    layout.run(lambda: BACKENDS["nft"]().ensure(kept))
    for metadata, address in zip((METADATA4, METADATA6), POD, strict=True):
        reached = ask(layout.pod, metadata)
        assert reached in {"agent", "real"}
        assert bool(left_out(layout.node, interfaces, (address,))) == (reached == "real")


def test_addresses_of_nobody_on_this_node_are_not_left_out(layout: Layout) -> None:
    elsewhere = [REAL4, REAL6, METADATA4, "198.51.100.7", "2001:db8:7::1"]
    itself = [NODE4, NODE6, "127.0.0.1", "::1"]
    gone = [POD4.format(99), POD6.format(99)] if layout.interface != "docker0" else []
    pods = [(address,) for address in (*elsewhere, *itself, *gone)]
    assert left_out(layout.node, "docker9", *pods, ()) == []
    assert len(left_out(layout.node, "docker9", *pods, POD)) == 1


def test_cilium_leads_to_its_pods_by_another_interface_than_they_come_from() -> None:
    network = Network()
    try:
        node = network.add("node")
        ip(
            node,
            "link add cilium_host type veth peer name cilium_net",
            "link set cilium_net up",
            "addr add 10.10.0.1/32 dev cilium_host",
            "addr add fd00:10::1/128 dev cilium_host nodad",
            "link set cilium_host up",
            "route add 10.10.0.1/32 dev cilium_host",
            "route add 10.10.0.0/24 via 10.10.0.1 dev cilium_host",
            "route add fd00:10::/64 dev cilium_host",
        )
        for address in POD:
            assert left_out(node, "lxc+", (address,)) == left_out(node, "auto", (address,)) == []
            assert left_out(node, "docker0", (address,)) == ["lxc+"]
    finally:
        network.close()


FLAGS = ("--iptables", "--redirect-backend=nft", f"--host-ip={NODE4},{NODE6}")


async def page_with(agent: AgentProcess, path: str, text: str) -> str:
    """The page, once it has `text`; TimeoutError if it does not come."""
    async with asyncio.timeout(PATIENCE):
        while text not in (page := (await agent.page(path))[1]):
            await asyncio.sleep(0.01)
        return page


@pytest.mark.parametrize("interfaces", ["docker9", "auto"])
def test_the_agent_says_that_pods_read_the_nodes_role(layout: Layout, interfaces: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as around:
            around.pod("a", POD[0])
            around.pod("b", None)
            around.pod("c", REAL4)
            async with around.agent(*FLAGS, f"--host-interface={interfaces}") as agent:
                await (check_silent if interfaces == "auto" else check_said)(agent)
                around.objects.delete("pods", "default", "a")
                await page_with(agent, "/metrics", "kube2iam_redirect_unmatched_pods 0.0")
                assert "[!]redirect" not in (await agent.page("/readyz?verbose"))[1]

    async def check_said(agent: AgentProcess) -> None:
        link = "docker0" if layout.interface == "docker0" else f"{layout.interface[:-1]}00000000002"
        said = await agent.heard("pods are not redirected")
        assert (said["level"], said["redirect.interface"], said["redirect.pods"]) == ("error", link, 1)
        assert said["error"].endswith(f"use auto or add {layout.interface}")
        await page_with(agent, "/readyz?verbose", f"[!]redirect degraded: {said['error']}")
        metrics = await page_with(agent, "/metrics", "kube2iam_redirect_unmatched_pods 1.0")
        assert 'kube2iam_degraded{cause="redirect"} 1.0' in metrics
        assert "kube2iam_redirect_present 1.0" in metrics
        assert ask(layout.pod, METADATA4) == "real"

    async def check_silent(agent: AgentProcess) -> None:
        await page_with(agent, "/metrics", "kube2iam_redirect_unmatched_pods 0.0")
        assert "redirect:" not in (await agent.heard("ready"))["degraded"]
        assert not any(line["msg"] == "pods are not redirected" for line in agent.lines)

    layout.run(run)

"""Which pods a rule leaves out, by tables; and what is said of it, with routes that a test changes."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from kube2iam.redirect.coverage import Coverage, unmatched
from kube2iam.redirect.routes import Route
from kube2iam.redirect.rule import Interfaces

ROUTES = {
    "192.0.2.1": Route("eth0", direct=False),
    "2001:db8::1": Route("eth1", direct=False),
    "10.0.0.1": Route("cali1", direct=True),
    "fd00::1": Route("cali1", direct=True),
    "10.0.0.2": Route("cali2", direct=True),
    "10.0.0.3": Route("cni0", direct=True),
    "fd00::3": Route("cni0", direct=True),
    "10.0.1.1": Route("eth0", direct=False),
    "10.0.1.2": Route("eth0", direct=True),
    "fd00::12": Route("eth1", direct=True),
    "10.0.1.3": Route("flannel.1", direct=False),
    "10.0.2.1": Route("cilium_host", direct=False),
    "fd00::21": Route("cilium_host", direct=True),
}
VETH = [("10.0.0.1", "fd00::1"), ("10.0.0.2",)]
BRIDGE = [("10.0.0.3", "fd00::3")]
CILIUM = [("10.0.2.1",), ("fd00::21",)]
GONE = [("10.0.1.1",), ("10.0.1.2", "fd00::12"), ("10.0.1.3",), ("10.9.9.9",)]
"""Routed to the network, on the uplinks' own networks, over a tunnel, and not at all (or to the node itself)."""
PENDING = [()]
CASES = [
    # --host-interface, pods, the interfaces of those that are left out
    ("docker0", VETH, ["cali1", "cali2"]),
    ("docker0", BRIDGE, ["cni0"]),
    ("docker0", CILIUM, ["lxc+", "lxc+"]),
    ("docker0", [*GONE, *PENDING], []),
    ("docker0", [*GONE, *PENDING, *VETH], ["cali1", "cali2"]),
    ("cali+", VETH, []),
    ("cali1", VETH, ["cali2"]),
    ("cali+", [*VETH, *BRIDGE], ["cni0"]),
    ("cali+,cni0", [*VETH, *BRIDGE], []),
    ("cal", VETH, ["cali1", "cali2"]),
    ("lxc+", CILIUM, []),
    ("cilium_host", CILIUM, ["lxc+", "lxc+"]),
    ("+", [*VETH, *BRIDGE, *CILIUM, *GONE], []),
    ("!eth0", [*VETH, *BRIDGE, *CILIUM, *GONE], []),
    ("!eth+,!cali2", VETH, ["cali2"]),
    ("cali+,!cali1", VETH, ["cali1"]),
    ("auto", [*VETH, *BRIDGE, *CILIUM, *GONE, *PENDING], []),
    ("auto,!cni0", [*VETH, *BRIDGE], ["cni0"]),
]


@pytest.mark.parametrize(("text", "pods", "interfaces"), CASES)
def test_left_out_is_who_is_attached_by_what_the_rule_does_not_match(
    text: str, pods: list[tuple[str, ...]], interfaces: list[str]
) -> None:
    assert unmatched(Interfaces.parse(text), pods, ROUTES.get) == interfaces


def test_a_pod_counts_also_if_one_of_its_families_is_left_out() -> None:
    routes = {**ROUTES, "fd00::1": Route("tap0", direct=True)}
    assert unmatched(Interfaces.parse("cali+"), VETH, routes.get) == ["tap0"]


def test_auto_leaves_nobody_out_while_the_default_route_moves() -> None:
    def moving(address: str) -> Route | None:
        asked.append(address)
        return Route(f"eth{len(asked)}", direct=True)

    asked: list[str] = []
    assert unmatched(Interfaces.parse("auto"), VETH, moving) == []
    assert len(asked) == len(set(asked))


def test_nothing_counts_where_the_kernel_tells_no_route() -> None:
    assert unmatched(Interfaces.parse("docker0"), VETH, lambda _: None) == []


# What is said


@dataclass
class Node:
    """The addresses of its pods."""

    pods: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self) -> Iterable[tuple[str, ...]]:
        return iter(self.pods)

    def coverage(self, text: str = "docker0", period: float = 3600.0) -> Coverage:
        return Coverage(text, self, period=period, pause=0.0, route=ROUTES.get)


async def test_it_is_said_once_until_it_is_another_kind_or_over(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    coverage = node.coverage()
    seen: list[int | None] = []
    assert coverage.unmatched is None
    with caplog.at_level(logging.INFO, "kube2iam"):
        for pods in ([], BRIDGE, BRIDGE, VETH[:1], VETH, [*VETH, *BRIDGE], [], []):
            node.pods = list(pods)
            await coverage.look()
            seen.append(coverage.unmatched)
    assert seen == [0, 1, 1, 1, 2, 3, 0, 0]
    said = [
        (
            record.levelname,
            record.getMessage(),
            *(vars(record).get(f"redirect.{name}") for name in ("interface", "pods")),
        )
        for record in caplog.records
    ]
    assert said == [
        ("ERROR", "pods are not redirected", "cni0", 1),
        ("ERROR", "pods are not redirected", "cali1", 1),
        ("ERROR", "pods are not redirected", "cali1, cali2, cni0", 3),
        ("INFO", "no pod is left out of the redirect any more", "cali+,cni0", None),
    ]


async def test_the_sentence_says_what_to_write() -> None:
    node = Node(list(BRIDGE))
    coverage = node.coverage("docker0,!eth0")
    assert coverage.problem is None
    await coverage.look()
    assert coverage.problem == (
        "--host-interface=docker0,!eth0 does not match cni0, by which 1 pod of this node is reached: "
        "it can read the node's role; use auto or add cni0"
    )
    node.pods = []
    await coverage.look()
    assert coverage.problem is None


async def test_the_sentence_stays_short_on_a_full_node() -> None:
    routes = {f"10.1.0.{number}": Route(f"cali{number:03}", direct=True) for number in range(110)}
    coverage = Coverage("docker0", lambda: [(address,) for address in routes], period=3600.0, route=routes.get)
    await coverage.look()
    assert coverage.problem == (
        "--host-interface=docker0 does not match cali000, cali001, cali002 and 107 more, "
        "by which 110 pods of this node are reached: they can read the node's role; use auto or add cali+"
    )


@pytest.mark.parametrize("period", [0.01, 3600.0])
async def test_it_looks_when_a_period_is_over_and_when_addresses_change(period: float) -> None:
    node = Node()
    coverage = node.coverage(period=period)
    running = asyncio.create_task(coverage.run())
    async with asyncio.timeout(5):
        for pods in (VETH, BRIDGE, VETH):
            while not coverage._changed._waiters:  # until it waits for a change
                await asyncio.sleep(0)
            node.pods = list(pods)
            if period > 1:
                coverage.changed()
            while coverage.unmatched != len(pods):
                await asyncio.sleep(0)
    running.cancel()


async def test_other_changes_of_pods_are_no_reason_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    node = Node(list(VETH))
    coverage = node.coverage()
    await coverage.look()
    monkeypatch.setattr(coverage, "look", look)
    running = asyncio.create_task(coverage.run())
    for _ in range(100):
        node.pods.reverse()
        coverage.changed()
        await asyncio.sleep(0)
    assert looks == 0
    running.cancel()

"""From the index to what the cache keeps warm."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import AssumeRoleRequest, Decision, Grant
from kube2iam.sts.prefetch import DEBOUNCE, Prefetch
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import request


@dataclass
class Index:
    """What prefetch needs of a PodIndex."""

    live: list[Pod] = field(default_factory=list)
    synced: bool = True
    wakes: list[Callable[[], None]] = field(default_factory=list)

    def pods(self) -> Collection[Pod]:
        return list(self.live)

    def holds(self, pod: Pod) -> bool:
        return any(pod is known for known in self.live)

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        assert key == ""
        self.wakes.append(wake)
        return lambda: self.wakes.remove(wake)

    def change(self) -> None:
        for wake in self.wakes:
            wake()


@dataclass
class Wanted:
    """What the cache was told."""

    told: list[set[AssumeRoleRequest]] = field(default_factory=list)

    def want(self, requests: Iterable[AssumeRoleRequest]) -> None:
        self.told.append(set(requests))


def pod(name: str) -> Pod:
    return Pod("shop", name, f"uid-{name}", 0)


def decide(asked: Pod) -> Decision:
    if asked.name == "none":
        return Denial(Reason.NO_ROLE, "no role")
    return Grant(asked, request(asked.name), "pod annotation")


@asynccontextmanager
async def running(index: Index, wanted: Wanted) -> AsyncIterator[Prefetch]:
    prefetch = Prefetch(index, decide, wanted)
    task = asyncio.create_task(prefetch.run())
    try:
        yield prefetch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@exact_time
async def test_the_requests_of_all_live_pods_are_wanted_and_nothing_else() -> None:
    index, wanted = Index([pod("a"), pod("b"), pod("none")]), Wanted()
    async with running(index, wanted) as prefetch:
        await prefetch.primed.wait()
        assert wanted.told == [{request("a"), request("b")}]
        index.live.pop(0)
        index.change()
        await asyncio.sleep(1)
        assert wanted.told[1:] == [{request("b")}]


@exact_time
async def test_a_burst_of_changes_is_one_look() -> None:
    index, wanted = Index([pod("a")]), Wanted()
    async with running(index, wanted) as prefetch:
        await prefetch.primed.wait()
        for _change in range(200):
            index.change()
        await asyncio.sleep(10)
        assert len(wanted.told) == 2


@exact_time
async def test_others_have_their_turn_while_a_full_node_is_decided_about() -> None:
    index, wanted, turns = Index([pod(f"pod-{number}") for number in range(110)]), Wanted(), 0
    async with running(index, wanted) as prefetch:
        await asyncio.sleep(DEBOUNCE)
        while not prefetch.primed.is_set():
            turns += 1
            await asyncio.sleep(0)
    assert len(wanted.told[0]) == 110
    assert turns >= 25


@exact_time
async def test_a_pod_that_changes_during_a_look_is_decided_about_as_it_is() -> None:
    heard: list[Pod] = []
    index, wanted = Index([pod(f"pod-{number}") for number in range(20)]), Wanted()
    old, new = index.live[-1], pod("pod-19")

    def note(asked: Pod) -> Decision:
        heard.append(asked)
        if asked.name == "pod-0":
            index.live[-1] = new
            index.change()
        return decide(asked)

    prefetch = Prefetch(index, note, wanted)
    index.live = list(index.live)
    task = asyncio.create_task(prefetch.run())
    await prefetch.primed.wait()
    await asyncio.sleep(1)
    assert any(asked is new for asked in heard)
    assert not any(asked is old for asked in heard)
    task.cancel()
    await asyncio.wait({task})


@exact_time
async def test_nothing_is_told_from_half_an_index() -> None:
    index, wanted = Index([pod("a")], synced=False), Wanted()
    async with running(index, wanted) as prefetch:
        index.change()
        await asyncio.sleep(1)
        assert (wanted.told, prefetch.primed.is_set()) == ([], False)
        index.synced = True
        index.change()
        await prefetch.primed.wait()
        assert wanted.told == [{request("a")}]


@exact_time
async def test_an_agent_that_cannot_decide_yet_is_not_primed() -> None:
    index, wanted = Index([pod("a")]), Wanted()
    decisions: list[Decision] = [Denial(Reason.NOT_READY, "still being discovered")]
    prefetch = Prefetch(index, lambda _pod: decisions[-1], wanted)
    task = asyncio.create_task(prefetch.run())
    await asyncio.sleep(1)
    assert not prefetch.primed.is_set()
    decisions.append(decide(pod("a")))
    prefetch.changed()
    await prefetch.primed.wait()
    assert wanted.told[-1] == {request("a")}
    task.cancel()
    await asyncio.wait({task})


@exact_time
async def test_it_lets_go_of_the_index_at_its_end() -> None:
    index = Index()
    async with running(index, Wanted()) as prefetch:
        await prefetch.primed.wait()
        assert len(index.wakes) == 1
    assert index.wakes == []

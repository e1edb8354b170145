import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.duplicates import DuplicateResolver
from kube2iam.kube.stores import PodStore
from tests.fakes.kube import Answer, FakeApiServer, Raw, listing, pod, refusal, stream
from tests.fakes.virtual_time import virtual_time
from tests.kube.following import Counted


@asynccontextmanager
async def resolving(
    server: FakeApiServer, *, node: str = "n1", mine: Callable[[Pod], bool] = lambda _pod: True
) -> AsyncIterator[tuple[DuplicateResolver, Counted]]:
    api, counted = await ClusterApi.connect(api_server=server.url), Counted()
    resolver = DuplicateResolver(
        api, project=PodStore(PodIndex(), lambda _key: True).project, mine=mine, node=node, counters=counted
    )
    yield resolver, counted
    await resolver.aclose()
    await api.aclose()


def dying(name: str) -> Raw:
    raw = pod(name, ip="10.0.0.1")
    raw["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    return raw


HOST = pod("host", ip="10.0.0.1", spec={"hostNetwork": True})
DONE = pod("done", status={"phase": "Succeeded", "podIP": "10.0.0.1"})
ELSEWHERE = pod("elsewhere", ip="10.0.0.2")
ODD = pod("odd", status=3)
ALIVE = pod("alive", ip="10.0.0.1")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([ALIVE], "alive"),
        ([dying("old"), HOST, DONE, ELSEWHERE, ODD, ALIVE, None], "alive"),
        ([ALIVE, pod("too", ip="10.0.0.1")], None),
        ([dying("old")], None),
        ([], None),
    ],
)
async def test_the_one_live_pod_that_the_api_server_names(items: list[Raw], expected: str | None) -> None:
    async with FakeApiServer() as server:
        server.lists(listing(*items))
        async with resolving(server) as (resolver, counted):
            found = await resolver.resolve("10.0.0.1")
            assert (found and found.name) == expected
            assert counted.duplicates == {"asked": 1} | ({"resolved": 1} if expected else {})
    assert server.asked[0].query["fieldSelector"] == "status.podIP=10.0.0.1,spec.nodeName=n1"


async def test_without_a_node_the_cluster_is_asked_and_others_pods_left_out() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(ALIVE))
        async with resolving(server, node="", mine=lambda found: found.node == "n2") as (resolver, _):
            assert await resolver.resolve("10.0.0.1") is None
    assert server.asked[0].query["fieldSelector"] == "status.podIP=10.0.0.1"


@pytest.mark.parametrize(
    "answer",
    [
        refusal(403),
        refusal(500),
        Answer(pieces=[b"nonsense"]),
        Answer(pieces=[b"[]"]),
        Answer(pieces=[b'{"items": 1}']),
        stream(then="reset"),
    ],
)
async def test_where_the_api_server_can_not_tell_nobody_gets_anything(answer: Answer) -> None:
    async with FakeApiServer() as server:
        server.lists(answer)
        async with resolving(server) as (resolver, counted):
            assert await resolver.resolve("10.0.0.1") is None
            assert counted.duplicates == {"asked": 1}


async def test_missing_rights_are_said_with_their_mend(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeApiServer() as server:
        server.lists(refusal(403))
        async with resolving(server) as (resolver, _):
            await resolver.resolve("10.0.0.1")
    assert "a ClusterRole that allows get, list, watch on pods" in vars(caplog.records[0])["error"]


@virtual_time
async def test_one_question_serves_all_who_ask_within_five_seconds() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(ALIVE))
        async with resolving(server) as (resolver, _):
            gone = asyncio.create_task(resolver.resolve("10.0.0.1"))
            rest = [asyncio.create_task(resolver.resolve("10.0.0.1")) for _ in range(20)]
            await asyncio.sleep(0)
            gone.cancel()
            found = await asyncio.gather(*rest)
            assert {one and one.name for one in found} == {"alive"}
            await asyncio.sleep(4.9)
            await resolver.resolve("10.0.0.1")
            assert len(server.asked) == 1
            await asyncio.sleep(0.2)
            await resolver.resolve("10.0.0.1")
            assert len(server.asked) == 2


@virtual_time
async def test_an_api_server_that_hangs_is_waited_for_two_seconds() -> None:
    async with FakeApiServer() as server:
        server.lists(stream())
        async with resolving(server) as (resolver, _):
            begun = asyncio.get_running_loop().time()
            assert await resolver.resolve("10.0.0.1") is None
            assert 2 <= asyncio.get_running_loop().time() - begun < 3.5

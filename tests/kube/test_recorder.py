import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kube2iam.kube.api import ClusterApi
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.recorder import EventRecorder
from tests.fakes.kube import Answer, FakeApiServer, refusal
from tests.fakes.virtual_time import virtual_time
from tests.kube.following import Counted

CREATED = Answer(201, [b"{}"])
EVENT = ("Pod", "default", "app", "uid-1", "RoleDenied", "the namespace does not allow it")


@asynccontextmanager
async def recording(server: FakeApiServer) -> AsyncIterator[tuple[EventRecorder, Counted]]:
    api, counted = await ClusterApi.connect(api_server=server.url), Counted()
    start = 1767225600.0 - asyncio.get_running_loop().time()
    recorder = EventRecorder(
        api,
        node="n1",
        counters=counted,
        clock=lambda: start + asyncio.get_running_loop().time(),
        backoff=Backoff(most=60, random=lambda: 1.0),
    )
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder, counted
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await api.aclose()


@virtual_time
async def test_an_event_is_what_kubectl_describe_shows() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        async with recording(server) as (recorder, counted):
            recorder.record(*EVENT)
            await server.until_asked(1)
            await asyncio.sleep(1)
            assert counted.events == {"sent": 1}
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/namespaces/default/events")
    name = asked.body["metadata"].pop("name")
    assert name.startswith("app.")
    times = asked.body.pop("firstTimestamp"), asked.body.pop("lastTimestamp")
    assert times == ("2026-01-01T00:00:00Z",) * 2
    assert asked.body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "default"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "default",
            "name": "app",
            "uid": "uid-1",
        },
        "type": "Warning",
        "reason": "RoleDenied",
        "message": "the namespace does not allow it",
        "count": 1,
        "source": {"component": "kube2iam", "host": "n1"},
        "reportingComponent": "kube2iam",
        "reportingInstance": "n1",
    }


@virtual_time
async def test_what_is_said_of_a_namespace_is_filed_in_it() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        async with recording(server) as (recorder, _):
            recorder.record("Namespace", "", "team", "", "AllowedRolesUnreadable", "it is no JSON")
            await server.until_asked(1)
    (asked,) = server.asked
    assert asked.path == "/api/v1/namespaces/team/events"
    assert asked.body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "namespace": "team",
        "name": "team",
    }


@virtual_time
async def test_repetitions_are_counted_up_every_five_minutes() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        async with recording(server) as (recorder, _):
            for _ in range(450):
                recorder.record(*EVENT)
                await asyncio.sleep(1)
    assert [asked.method for asked in server.asked] == ["POST", "PATCH"]
    patch = server.asked[1]
    assert patch.path == f"/api/v1/namespaces/default/events/{server.asked[0].body['metadata']['name']}"
    assert patch.headers["Content-Type"] == "application/merge-patch+json"
    assert set(patch.body) == {"count", "lastTimestamp"}
    assert 300 <= patch.body["count"] <= 303


@virtual_time
async def test_an_event_that_the_cluster_has_forgotten_is_created_anew() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, refusal(404), CREATED, resource="events")
        async with recording(server) as (recorder, _):
            recorder.record(*EVENT)
            await asyncio.sleep(400)
            recorder.record(*EVENT)
            await asyncio.sleep(1)
    assert [asked.method for asked in server.asked] == ["POST", "PATCH", "POST"]
    assert server.asked[2].body["count"] == 2


def test_without_the_right_to_patch_an_event_is_not_counted_up_and_holds_nobody_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(CREATED, refusal(403), CREATED, refusal(403), CREATED, resource="events")
            async with recording(server) as (recorder, counted):
                for _ in range(2):
                    recorder.record(*EVENT)
                    await asyncio.sleep(301)
                    recorder.record(*EVENT)
                    await asyncio.sleep(1)
                recorder.record("Pod", "default", "other", "", "RoleDenied", "no")
                await asyncio.sleep(1)
                assert counted.events == {"sent": 3, "failed": 2}
        assert [asked.method for asked in server.asked] == ["POST", "PATCH", "POST", "PATCH", "POST"]

    caplog.set_level(logging.WARNING, "kube2iam")
    run()
    assert [record.getMessage() for record in caplog.records] == ["events can't be counted up"]


@virtual_time
async def test_a_storm_is_five_posts_a_second_and_its_rest_is_dropped() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        async with recording(server) as (recorder, counted):
            for number in range(5000):
                recorder.record("Pod", "default", f"app-{number}", "", "RoleDenied", "no")
            await asyncio.sleep(10)
            assert 40 <= len(server.asked) <= 52
            assert counted.events["dropped"] == 5000 - 256
            assert len(recorder._series) <= 1024


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_while_the_api_server_refuses_little_is_asked_and_nothing_lost(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(*[refusal(status)] * 8, CREATED, resource="events")
            async with recording(server) as (recorder, counted):
                recorder.record(*EVENT)
                await asyncio.sleep(150)
                assert counted.events == {"failed": 8}
                await asyncio.sleep(60)
                assert counted.events == {"failed": 8, "sent": 1}

    caplog.set_level(logging.WARNING, "kube2iam")
    run()
    (said,) = caplog.records
    assert said.getMessage() == "events can't be posted"
    mend = {401: "token is not accepted", 403: "a ClusterRole that allows create, patch on events"}.get(status, "")
    assert mend in vars(said)["error"]


@virtual_time
async def test_an_event_that_is_refused_for_what_it_is_does_not_block_others() -> None:
    async with FakeApiServer() as server:
        server.lists(refusal(422), CREATED, resource="events")
        async with recording(server) as (recorder, counted):
            recorder.record(*EVENT)
            recorder.record("Pod", "default", "other", "", "RoleDenied", "no")
            await asyncio.sleep(2)
            assert counted.events == {"failed": 1, "sent": 1}


@virtual_time
async def test_the_api_server_may_be_away() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        port = server.port
        async with recording(server) as (recorder, counted):
            await server.stop_listening()
            recorder.record(*EVENT)
            await asyncio.sleep(20)
            assert counted.events["failed"] >= 3
            await server.listen(port)
            await asyncio.sleep(60)
            assert counted.events["sent"] == 1


@virtual_time
async def test_long_names_and_messages_fit() -> None:
    async with FakeApiServer() as server:
        server.lists(CREATED, resource="events")
        async with recording(server) as (recorder, _):
            recorder.record("Pod", "default", "a" * 253, "", "RoleDenied", "x" * 5000)
            await server.until_asked(1)
    assert len(server.asked[0].body["metadata"]["name"]) <= 253
    assert len(server.asked[0].body["message"]) == 1024


def test_delays_double_with_jitter_up_to_a_ceiling() -> None:
    backoff = Backoff(first=1, most=10, random=lambda: 0.0)
    assert [backoff.next() for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff.next(at_least=60) == 60
    backoff.reset()
    assert backoff.next() == 0.5

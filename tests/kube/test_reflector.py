import asyncio
import json
import logging
from collections.abc import Mapping

import pytest

from tests.fakes.kube import (
    Answer,
    FakeApiServer,
    bookmark,
    error,
    event,
    listing,
    pod,
    refusal,
    stream,
)
from tests.fakes.virtual_time import virtual_time
from tests.kube.following import following

HANG = stream()
HALF = json.dumps(event("ADDED", pod("b"))).encode()[:40]
DEEP = b"[" * 100_000
NO_METADATA = {"kind": "Pod"}


# What a healthy API server sends


@virtual_time
async def test_the_list_fills_the_store_and_the_watch_goes_on_from_it() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(pod("a", ip="10.0.0.1"), version="7"))
        server.watches(
            stream(
                event("ADDED", pod("b", ip="10.0.0.2", version="8")),
                event("MODIFIED", pod("a", ip="10.0.0.3", version="9")),
            )
        )
        async with following(server.url, field_selector="spec.nodeName=n1") as here:
            await here.until("a", "b")
            await here.until_true(lambda: "10.0.0.3" in here.index.addresses())
            assert here.reflector.synced.is_set()
            assert here.reflector.last_heard is not None
            assert set(here.index.addresses()) == {"10.0.0.2", "10.0.0.3"}
        list_, watch = server.asked
    assert dict(list_.query) == {"fieldSelector": "spec.nodeName=n1", "limit": "500"}
    assert dict(watch.query) == {
        "fieldSelector": "spec.nodeName=n1",
        "watch": "true",
        "resourceVersion": "7",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "290",
    }
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer secret"}
    assert list_.headers["User-Agent"].startswith("kube2iam/")


@virtual_time
async def test_deleted_by_uid_leaves_the_next_pod_of_that_name() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(pod("a", uid="old", ip="10.0.0.1")))
        server.watches(
            stream(
                event("ADDED", pod("a", uid="new", ip="10.0.0.2", version="12")),
                event("DELETED", pod("a", uid="old", ip="10.0.0.1", version="13")),
                event("ADDED", pod("done", version="14")),
            )
        )
        async with following(server.url) as here:
            await here.until("a", "done")
            assert [pod.uid for pod in here.index.pods()] == ["new", "uid-done"]


@virtual_time
async def test_pages_are_followed_to_the_end_and_replace_at_once() -> None:
    async with FakeApiServer() as server:
        server.lists(
            listing(pod("a"), version="7", cursor="one"),
            listing(pod("b"), version="7", cursor="two"),
            listing(pod("c"), version="7"),
        )
        server.watches(HANG)
        async with following(server.url) as here:
            await here.until("a", "b", "c")
            await server.until_asked(4)
    assert [asked.query.get("continue") for asked in server.asked] == [None, "one", "two", None]
    assert server.asked[3].query["resourceVersion"] == "7"


@virtual_time
async def test_a_list_whose_pages_expire_begins_anew() -> None:
    async with FakeApiServer() as server:
        server.lists(
            listing(pod("old"), version="7", cursor="one"), refusal(410, "Expired"), listing(pod("a"), version="9")
        )
        server.watches(HANG)
        async with following(server.url) as here:
            await here.until("a")
            await server.until_asked(4)
            assert here.counted.failures == {"http-410": 1}
    assert [asked.query.get("continue") for asked in server.asked] == [None, "one", None, None]


@virtual_time
async def test_a_watch_that_ends_is_resumed_from_the_last_bookmark() -> None:
    end = asyncio.Event()
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(stream(event("ADDED", pod("a", version="8")), bookmark("99"), end, then="eof"), HANG)
        async with following(server.url) as here:
            await here.until("a")
            asyncio.get_running_loop().call_later(100, end.set)
            await server.until_asked(3)
            assert not here.counted.failures
    assert server.count(watch=False) == 1
    assert server.asked[2].query["resourceVersion"] == "99"


@virtual_time
async def test_a_silent_peer_is_left() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(HANG)
        async with following(server.url, silence=120.0) as here:
            begun = asyncio.get_running_loop().time()
            await server.until_asked(3)
            assert 120 <= asyncio.get_running_loop().time() - begun < 123
            assert not here.counted.failures, "a quiet cluster may have nothing to say"
    assert server.count(watch=False) == 1


@pytest.mark.parametrize(("random", "period"), [(0.0, 1440), (0.5, 1800), (0.999, 2160)])
def test_everything_is_listed_again_each_resync_period_give_or_take_a_fifth(random: float, period: int) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(version="7"))
            server.watches(HANG)
            async with following(server.url, resync=1800.0, window=100.0, random=lambda: random) as here:
                begun = asyncio.get_running_loop().time()
                await server.until_listed(2)
                assert period - 1 <= asyncio.get_running_loop().time() - begun < period + 35
                assert not here.counted.failures

    run()


# Later lists are cheap, and never older than what was seen


NEWEST = {"limit": "500"}
BEHIND = refusal(504, "Timeout: Too large resource version: 8, current: 5", Retry_After="1")


def not_older_than(version: str) -> Mapping[str, str]:
    return {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"}


@virtual_time
async def test_a_later_list_takes_what_the_server_has_at_hand() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"), listing(version="12"), listing(version="15"))
        gone = stream(event("ADDED", pod("a", version="8")), error(410, "Expired"))
        server.watches(gone, stream(bookmark("14")), HANG)
        async with following(server.url, resync=600.0):
            await server.until_listed(4)
    assert server.lists_asked() == [NEWEST, not_older_than("8"), not_older_than("14"), not_older_than("15")]


@pytest.mark.parametrize("no", [refusal(400), refusal(410, "Expired"), refusal(422), BEHIND])
def test_a_version_that_the_server_does_not_take_is_left_at_once(no: Answer) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(version="8"), no, refusal(500), listing(pod("restored"), version="5"))
            server.watches(HANG)
            async with following(server.url, resync=600.0) as here:
                await server.until_listed(2)
                begun = asyncio.get_running_loop().time()
                await here.until("restored")
                assert asyncio.get_running_loop().time() - begun < 5
                await server.until_listed(5)
        assert server.lists_asked() == [NEWEST, not_older_than("8"), NEWEST, NEWEST, not_older_than("5")]
        assert server.asked[-2].query["resourceVersion"] == "5"

    run()


@pytest.mark.parametrize("busy", [refusal(429), refusal(500), refusal(504, "gateway"), Answer(then="reset")])
def test_a_busy_server_is_not_asked_for_more(busy: Answer) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(version="7"), busy, listing(version="9"))
            server.watches(stream(error(410, "Expired")), HANG)
            async with following(server.url):
                await server.until_listed(3)
        assert server.lists_asked() == [NEWEST, not_older_than("7"), not_older_than("7")]

    run()


@virtual_time
async def test_what_is_more_than_a_page_is_listed_in_pages_again() -> None:
    many = [pod(f"p{number}") for number in range(501)]
    async with FakeApiServer() as server:
        server.lists(listing(*many[:500], cursor="one"), listing(*many[500:]), listing(version="20"))
        server.watches(HANG)
        async with following(server.url, resync=600.0):
            await server.until_listed(4)
    assert server.lists_asked() == [NEWEST, NEWEST | {"continue": "one"}, NEWEST, not_older_than("20")]


@virtual_time
async def test_a_resync_that_fails_leaves_the_watch_running() -> None:
    end = asyncio.Event()
    async with FakeApiServer() as server:
        server.lists(listing(version="7"), refusal(500))
        server.watches(stream(end, then="eof"), stream(event("ADDED", pod("late"))))
        async with following(server.url, resync=60.0, silence=600.0) as here:
            asyncio.get_running_loop().call_later(61, end.set)
            await here.until("late")
    assert [asked.watch for asked in server.asked] == [False, True, False, True]


@virtual_time
async def test_windows_differ_so_that_nodes_do_not_ask_together() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(HANG)
        async with following(server.url, random=lambda: 0.999):
            await server.until_asked(2)
    assert server.asked[1].query["timeoutSeconds"] == "232"


# Objects of the wrong shape


@virtual_time
async def test_a_pod_of_the_wrong_shape_costs_itself_only() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(pod("a"), pod("odd", status={"podIP": "nonsense"}), 17, version="7"))
        server.watches(
            stream(event("ADDED", pod("odd2", spec=3, version="8")), event("ADDED", pod("b", version="9"))),
        )
        async with following(server.url) as here:
            await here.until("a", "b")
            assert here.counted.malformed == {"pods": 3}
            assert not here.counted.failures
    assert server.count(watch=False) == 1


@virtual_time
async def test_an_unreadable_change_takes_what_was_known_until_it_is_readable_again() -> None:
    mended = asyncio.Event()
    async with FakeApiServer() as server:
        server.lists(listing(pod("a", ip="10.0.0.1"), pod("b", ip="10.0.0.2"), version="7"))
        server.watches(
            stream(
                event("MODIFIED", pod("a", status={"podIPs": "10.0.0.9"}, version="8")),
                mended,
                event("MODIFIED", pod("a", ip="10.0.0.1", version="9")),
            ),
        )
        async with following(server.url) as here:
            await here.until("b")
            mended.set()
            await here.until("a", "b")


@virtual_time
async def test_the_version_moves_on_past_an_unreadable_object() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        odd = pod("odd", spec=[], version="55")
        server.watches(stream(event("ADDED", odd), then="reset"), HANG)
        async with following(server.url):
            await server.until_asked(3)
    assert server.asked[2].query["resourceVersion"] == "55"


@pytest.mark.parametrize("kind", ["MODIFIED", "DELETED"])
def test_an_event_that_names_no_pod_has_everything_listed_again(kind: str) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(pod("a"), version="7"), listing(version="9"))
            server.watches(stream(event(kind, NO_METADATA)), HANG)
            async with following(server.url) as here:
                await server.until_asked(4)
                assert here.names() == set()
                assert here.counted.failures == {"malformed": 1}

    run()


# Faults: whatever lasts, the requests are few


WRONG_LISTS = {
    "http-401": refusal(401),
    "http-403": refusal(403),
    "http-404": refusal(404),
    "http-410": refusal(410),
    "http-429": refusal(429),
    "http-500": refusal(500),
    "http-502": Answer(502, [b"<html>bad gateway</html>"]),
    "malformed": Answer(pieces=[b"<html>welcome</html>"]),
    "malformed ": Answer(pieces=[b'{"items": []}']),
    "malformed  ": Answer(pieces=[b'{"metadata": {"resourceVersion": "1"}, "items": 5}']),
    "malformed   ": Answer(pieces=[b'{"metadata": {"resourceVersion": 1}}']),
    "malformed    ": Answer(pieces=[DEEP]),
    "malformed     ": Answer(pieces=[b'[{"metadata": 1}]']),
    "malformed      ": listing(cursor="again"),
    "broken": Answer(pieces=[b'{"metadata"'], then="reset"),
    "silent": Answer(pieces=[b'{"metadata"'], then="hang"),
}

WRONG_WATCHES = {
    "http-401": refusal(401),
    "http-403": refusal(403),
    "http-410": refusal(410),
    "http-410 event": stream(error(410, "Expired"), then="eof"),
    "behind": refusal(504, "Timeout: Too large resource version: 9, current: 5"),
    "http-400": refusal(400, "invalid resource version"),
    "http-429": Answer(429, [b"too many requests\n"]),
    "http-500": refusal(500),
    "http-500 event": stream(error(500)),
    "http-502": Answer(502, [b"bad\ngateway\n"]),
    "http-0 event": stream(event("ERROR", {"message": "what?"})),
    "http-0 odd": stream(event("ERROR", {"code": "410"})),
    "hasty": stream(then="eof"),
    "hasty with events": stream(event("ADDED", pod("a")), then="eof"),
    "hasty half": stream(HALF, then="eof"),
    "broken": stream(then="reset"),
    "broken half": stream(HALF, then="reset"),
    "malformed": stream(b"not json\n"),
    "malformed html": stream(b"<html>\n", then="eof"),
    "malformed text": stream(b'"ADDED"\n'),
    "malformed list": stream(b"[1, 2]\n"),
    "malformed without object": stream({"type": "ADDED"}),
    "malformed object": stream({"type": "ADDED", "object": None}),
    "malformed kind": stream({"type": 1, "object": {}}),
    "malformed unhashable kind": stream({"type": ["ADDED"], "object": {}}),
    "malformed unknown kind": stream(event("EXPLODED", pod("a"))),
    "malformed deep": stream(DEEP + b"\n"),
    "malformed nameless": stream(event("DELETED", NO_METADATA)),
    "malformed long": stream(b'{"x": "' + b"x" * 5 * 2**20, b'"}\n'),
}


@pytest.mark.parametrize("reason", WRONG_LISTS)
def test_a_list_that_fails_for_ever_costs_few_requests(reason: str) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(WRONG_LISTS[reason])
            async with following(server.url) as here:
                await asyncio.sleep(300)
                assert set(here.counted.failures) == {reason.strip()}
                assert not here.reflector.synced.is_set()
                assert here.reflector.trouble
                assert 5 <= len(server.asked) <= 30

    run()


@pytest.mark.parametrize("reason", WRONG_WATCHES)
def test_a_watch_that_fails_for_ever_costs_few_requests(reason: str) -> None:
    """Also where every LIST between two of them succeeds."""

    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(pod("a"), version="7"))
            server.watches(WRONG_WATCHES[reason])
            async with following(server.url) as here:
                await asyncio.sleep(300)
                assert set(here.counted.failures) == {reason.partition(" ")[0]}
                assert here.reflector.synced.is_set()
                assert here.names() <= {"a"}
                assert 4 <= len(server.asked) <= 30

    run()


@pytest.mark.parametrize("wrong", sorted(WRONG_WATCHES))
def test_after_any_fault_the_store_is_right_again(wrong: str) -> None:
    @virtual_time
    async def run() -> None:
        async with FakeApiServer() as server:
            server.lists(listing(pod("a"), version="7"))
            server.watches(WRONG_WATCHES[wrong], stream(event("ADDED", pod("b", version="12"))))
            async with following(server.url) as here:
                await here.until("a", "b")
                await asyncio.sleep(10)
                assert here.reflector.trouble is None

    run()


@virtual_time
async def test_a_failed_watch_asks_for_no_list_where_its_version_is_good() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(refusal(429), refusal(500), stream(then="reset"), stream(then="eof"), HANG)
        async with following(server.url):
            await server.until_asked(6)
    assert server.count(watch=False) == 1


@virtual_time
async def test_retry_after_is_waited_for() -> None:
    async with FakeApiServer() as server:
        server.lists(refusal(429, Retry_After="60"), refusal(503, Retry_After="86400"), listing(pod("a")))
        server.watches(HANG)
        loop = asyncio.get_running_loop()
        async with following(server.url) as here:
            begun = loop.time()
            await server.until_asked(2)
            assert 60 <= loop.time() - begun < 62
            await here.until("a")
            assert 180 <= loop.time() - begun < 184


@virtual_time
async def test_the_first_failure_after_a_steady_watch_waits_little() -> None:
    ends = [asyncio.Event(), asyncio.Event()]
    async with FakeApiServer() as server:
        server.lists(*[refusal(500)] * 6, listing(version="7"))
        server.watches(stream(ends[0], then="reset"), stream(ends[1], then="reset"), HANG)
        loop = asyncio.get_running_loop()
        async with following(server.url):
            await server.until_asked(8)
            await asyncio.sleep(10)
            broken = loop.time()
            ends[0].set()
            await server.until_asked(9)
            assert loop.time() - broken < 1


@virtual_time
async def test_the_api_server_may_be_away_at_start_and_later() -> None:
    async with FakeApiServer() as away:
        url, port = away.url, away.port
    async with following(url) as here:
        await asyncio.sleep(300)
        assert here.counted.failures.keys() == {"unreachable"}
        assert here.counted.failures["unreachable"] <= 16
        server = FakeApiServer()
        server.lists(listing(pod("a"), version="7"))
        server.watches(HANG)
        await server._runner.setup()
        await server.listen(port)
        await here.until("a")
        await server._runner.cleanup()
        await asyncio.sleep(300)
        assert here.names() == {"a"}, "what was known is served on"
        assert here.reflector.trouble
        again = FakeApiServer()
        again.lists(listing(pod("b"), version="2"))
        again.watches(refusal(410), HANG)
        await again._runner.setup()
        await again.listen(port)
        await here.until("b")
        await again._runner.cleanup()


@virtual_time
async def test_refusals_are_said_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kube2iam")
    async with FakeApiServer() as server:
        server.lists(*[refusal(403, "pods is forbidden")] * 4, *[refusal(401)] * 2, listing(version="7"))
        server.watches(HANG)
        async with following(server.url):
            await server.until_asked(8)
            await asyncio.sleep(10)
    said = [(record.levelname, getattr(record, "reason", "")) for record in caplog.records]
    assert said == [("ERROR", "http-403"), ("ERROR", "http-401"), ("INFO", ""), ("INFO", "")]
    forbidden, unknown = (vars(record)["error"] for record in caplog.records[:2])
    assert forbidden.startswith("HTTP 403: pods is forbidden; ")
    assert "a ClusterRole that allows get, list, watch on pods, namespaces" in forbidden
    assert "token is not accepted: it must be that of its ServiceAccount" in unknown


@virtual_time
async def test_trouble_is_over_when_the_list_comes() -> None:
    async with FakeApiServer() as away:
        url, port = away.url, away.port
    async with following(url) as here:
        await asyncio.sleep(60)
        assert here.reflector.trouble
        server = FakeApiServer()
        server.lists(listing(pod("a"), version="7"))
        server.watches(refusal(429))
        await server._runner.setup()
        await server.listen(port)
        await here.reflector.synced.wait()
        assert here.reflector.trouble is None
        await server.until_asked(3)
        assert here.reflector.trouble == "HTTP 429: no"
        await server._runner.cleanup()


@virtual_time
async def test_trouble_is_over_when_the_watch_opens() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(refusal(500), stream(event("ADDED", pod("a"))))
        async with following(server.url) as here:
            await server.until_asked(2)
            await here.until("a")
            assert here.reflector.trouble is None


@virtual_time
async def test_a_way_that_comes_and_goes_is_said_once_and_asked_ever_less(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kube2iam")
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(stream(event("ADDED", pod("a")), error(500)))
        async with following(server.url):
            await asyncio.sleep(600)
            assert len(server.asked) < 30
    assert [record.getMessage() for record in caplog.records] == ["listed", "can't follow the cluster"]


@virtual_time
async def test_being_cancelled_takes_no_time_and_closes_the_connection() -> None:
    async with FakeApiServer() as server:
        server.lists(listing(version="7"))
        server.watches(HANG)
        loop = asyncio.get_running_loop()
        async with following(server.url):
            await server.until_asked(2)
            begun = loop.time()
        assert loop.time() - begun < 1

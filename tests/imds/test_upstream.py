import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from kube2iam.imds.guard import may_leave
from kube2iam.imds.upstream import Upstream, UpstreamError
from tests.fakes.imds import CANARIES, DOCUMENT, NODE_ROLE, ForgivingImds, forgiving_imds


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def imds() -> AsyncIterator[ForgivingImds]:
    async with forgiving_imds() as service:
        yield service


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
async def upstream(imds: ForgivingImds, clock: Clock, failures: list[str]) -> AsyncIterator[Upstream]:
    client = Upstream(imds.address, clock=clock, failed=failures.append)
    yield client
    await client.aclose()


async def test_a_value_is_fetched_with_a_token_of_the_agents_own(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.tokens = "required"
    reply = await upstream.get("meta-data/hostname")
    assert (reply.status, reply.body) == (200, b"ip-10-0-0-1.eu-west-1.compute.internal")
    assert [(request.method, request.target) for request in imds.received] == [
        ("PUT", "/latest/api/token"),
        ("GET", "/latest/meta-data/hostname"),
    ]
    assert imds.received[0].headers["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
    assert set(imds.received[1].headers) == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "x-aws-ec2-metadata-token",
    }


async def test_what_never_changes_is_asked_for_once(imds: ForgivingImds, upstream: Upstream) -> None:
    path = "dynamic/instance-identity/document"
    assert upstream.peek(path) is None
    first = await upstream.get(path)
    imds.status = 500
    assert upstream.peek(path) is first
    assert await upstream.get(path) is first
    assert first.body.decode() == DOCUMENT
    assert imds.paths() == [f"/latest/{path}"]


async def test_a_bad_beginning_does_not_stay(imds: ForgivingImds, upstream: Upstream) -> None:
    """What a pod was given while the service began, the agent does not take for its region."""
    path = "meta-data/placement/region"
    imds.extra = {path: ""}
    assert (await upstream.get(path)).body == b""
    assert upstream.peek(path) is None
    imds.extra = {path: "<html>"}
    await upstream.get(path)
    imds.extra = {path: "eu-west-1"}
    assert await upstream.text(path) == "eu-west-1"


async def test_what_may_change_is_asked_for_each_time(imds: ForgivingImds, upstream: Upstream) -> None:
    for _ in range(2):
        assert (await upstream.get("meta-data/security-groups")).body == b"default\niam"
    assert upstream.peek("meta-data/security-groups") is None
    assert len(imds.paths()) == 2


async def test_the_token_is_kept_and_renewed_before_it_expires(
    imds: ForgivingImds, upstream: Upstream, clock: Clock
) -> None:
    for _ in range(3):
        await upstream.get("meta-data/hostname")
    assert len(imds.paths("PUT")) == 1
    clock.now += 21_600
    await upstream.get("meta-data/hostname")
    assert len(imds.paths("PUT")) == 2


async def test_a_401_renews_the_token_once(imds: ForgivingImds, upstream: Upstream) -> None:
    await upstream.get("meta-data/hostname")
    imds.valid.clear()
    assert (await upstream.get("meta-data/hostname")).status == 200
    assert len(imds.paths("PUT")) == 2


async def test_a_401_that_stays_is_never_passed_on(
    imds: ForgivingImds, upstream: Upstream, failures: list[str]
) -> None:
    imds.status = 401
    reply = await upstream.get("meta-data/hostname")
    assert (reply.status, reply.body) == (503, b"")
    assert len(imds.paths()) == 2
    assert failures == ["status"]


async def test_a_herd_after_a_401_renews_the_token_once(imds: ForgivingImds, upstream: Upstream) -> None:
    await upstream.get("meta-data/hostname")
    imds.valid.clear()
    paths = [f"meta-data/events/{number}" for number in range(20)]
    replies = await asyncio.gather(*(upstream.get(path) for path in paths))
    assert {reply.status for reply in replies} == {404}
    assert len(imds.paths("PUT")) == 2


async def test_an_old_service_is_asked_without_a_token(imds: ForgivingImds, upstream: Upstream, clock: Clock) -> None:
    imds.tokens = "absent"
    for _ in range(2):
        assert (await upstream.get("meta-data/hostname")).status == 200
    assert len(imds.paths("PUT")) == 1
    assert "x-aws-ec2-metadata-token" not in imds.received[-1].headers
    clock.now += 301
    imds.tokens = "required"
    assert (await upstream.get("meta-data/hostname")).status == 200


async def test_tokens_that_become_required_are_used_at_once(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.tokens = "absent"
    await upstream.get("meta-data/hostname")
    imds.tokens = "required"
    assert (await upstream.get("meta-data/hostname")).status == 200


async def test_a_token_that_never_comes_costs_less_than_the_answer(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.token_delay = 60
    assert (await upstream.get("meta-data/hostname")).status == 200


@pytest.mark.parametrize("status", [300, 301, 302, 307, 400, 403, 405, 429, 500, 502, 503, 504])
async def test_every_other_status_is_an_empty_503(
    imds: ForgivingImds, upstream: Upstream, status: int, failures: list[str]
) -> None:
    imds.status = status
    reply = await upstream.get("meta-data/hostname")
    assert (reply.status, reply.body) == (503, b"")
    assert b"Retry-After: 1\r\n" in reply.tail
    assert b"Location" not in reply.tail
    assert imds.paths() == ["/latest/meta-data/hostname"]
    assert failures == ["status"]


async def test_what_is_absent_is_an_empty_404(upstream: Upstream) -> None:
    reply = await upstream.get("meta-data/spot/instance-action")
    assert (reply.status, reply.body) == (404, b"")


@pytest.mark.parametrize("size", [65_536, 65_537, 5_000_000])
async def test_bodies_have_a_limit(imds: ForgivingImds, upstream: Upstream, size: int, failures: list[str]) -> None:
    imds.extra = {"meta-data/events/long": "x" * size}
    reply = await upstream.get("meta-data/events/long")
    assert (reply.status, reply.length) == ((200, size) if size <= 65_536 else (503, 0))
    assert failures == ([] if size <= 65_536 else ["too-long"])


async def test_a_slow_service_costs_no_more_than_its_time(
    imds: ForgivingImds, upstream: Upstream, failures: list[str]
) -> None:
    imds.delay = 60
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert (await upstream.get("meta-data/hostname")).status == 503
    assert loop.time() - begun < 0.8
    assert failures == ["timeout"]


async def test_a_caller_waits_until_its_deadline_only(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.delay = 60
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert (await upstream.get("meta-data/hostname", loop.time() + 0.05)).status == 503
    assert loop.time() - begun < 0.5


async def test_a_service_that_is_away_is_a_503(failures: list[str], caplog: pytest.LogCaptureFixture) -> None:
    async with forgiving_imds() as imds:
        pass
    client = Upstream(imds.address, failed=failures.append)
    for _ in range(3):
        assert (await client.get("meta-data/hostname")).status == 503
    await client.aclose()
    assert failures == ["connection"] * 3
    assert [record.message for record in caplog.records] == ["the metadata service fails"]


async def test_callers_for_one_path_share_a_request(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.delay = 0.05
    replies = await asyncio.gather(*(upstream.get("meta-data/hostname") for _ in range(50)))
    assert {reply.status for reply in replies} == {200}
    assert len(imds.paths()) == 1


async def test_a_caller_that_leaves_takes_nothing_from_the_others(imds: ForgivingImds, upstream: Upstream) -> None:
    imds.delay = 0.05
    leaver = asyncio.create_task(upstream.get("meta-data/hostname"))
    stayer = asyncio.create_task(upstream.get("meta-data/hostname"))
    await asyncio.sleep(0)
    leaver.cancel()
    assert (await stayer).status == 200
    assert leaver.cancelled()


async def test_closing_ends_what_is_under_way(imds: ForgivingImds) -> None:
    imds.delay = 60
    client = Upstream(imds.address)
    waiting = asyncio.create_task(client.get("meta-data/hostname"))
    await imds.arrived.wait()
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_content_type_is_kept_or_plain(imds: ForgivingImds, upstream: Upstream) -> None:
    assert b"Content-Type: text/plain\r\n" in (await upstream.get("meta-data/hostname")).tail
    assert b"X-Canary" not in (await upstream.get("meta-data/hostname")).tail


@pytest.mark.parametrize(
    "path",
    ["user-data", "meta-data/iam/info", "meta-data/iam/security-credentials/", "dynamic/instance-identity/pkcs7",
     "meta-data/../user-data", "meta-data/%2e%2e/hostname", "meta-data/host%6eame", "meta-data//hostname",
     "meta-data/hostname?x", "meta-data/hostname;x", "meta-data\\hostname", "api/token", "meta-data/host name"],
)  # fmt: skip
async def test_the_guard_keeps_what_should_never_have_come_so_far(
    imds: ForgivingImds, upstream: Upstream, path: str
) -> None:
    assert (await upstream.get(path)).status == 404
    assert imds.received == []


async def test_what_the_operator_named_passes_the_guard(imds: ForgivingImds) -> None:
    client = Upstream(imds.address, named=["/latest/(user-data)"])
    assert (await client.get("user-data")).body == b"canary-user-data"
    await client.aclose()
    assert not may_leave("dynamic/instance-identity/pkcs7", ["user-data"])
    assert not may_leave("meta-data/iam/info", ["iam", "security-credentials"])
    assert not may_leave("meta-data/iam/security-credentials/x", ["iam", "security-credentials"])


async def test_what_the_agent_asks_for_itself(imds: ForgivingImds, upstream: Upstream) -> None:
    assert await upstream.instance_id() == "i-0abc"
    assert await upstream.text("meta-data/placement/region") == "eu-west-1"
    assert await upstream.node_role_name() == NODE_ROLE
    assert await upstream.node_profile_arn() == "arn:aws:iam::111122223333:instance-profile/canary-profile"
    imds.status = 500
    for ask in (upstream.instance_id, upstream.node_role_name, upstream.node_profile_arn):
        with pytest.raises(UpstreamError):
            await ask()
    with pytest.raises(UpstreamError, match="answered 500"):
        await upstream.text("meta-data/local-hostname")


async def test_what_the_service_does_not_have_is_told_apart_from_one_that_does_not_answer(
    imds: ForgivingImds, upstream: Upstream
) -> None:
    asks = (upstream.node_role_name, upstream.node_profile_arn, partial(upstream.text, "meta-data/placement/region"))
    imds.status = 404
    for ask in asks:
        with pytest.raises(LookupError, match="the metadata service has no meta-data/"):
            await ask()
    for imds.status in (403, 500, 503):
        for ask in asks:
            with pytest.raises(UpstreamError, match=f"answered {imds.status}") as error:
                await ask()
            assert not isinstance(error.value, LookupError)
    imds.delay = 5
    with pytest.raises(UpstreamError, match=r"took over 0\.75 s"):
        await upstream.text("meta-data/placement/region")


@pytest.mark.parametrize("body", ["", "x", "[]", "{}", '{"InstanceProfileArn": 1}'])
async def test_a_profile_that_cannot_be_read_is_named(imds: ForgivingImds, upstream: Upstream, body: str) -> None:
    imds.extra = {"meta-data/iam/info": body}
    with pytest.raises(UpstreamError, match="iam/info"):
        await upstream.node_profile_arn()


async def test_what_the_agent_learns_of_the_node_is_not_kept_for_pods(upstream: Upstream) -> None:
    await upstream.node_role_name()
    await upstream.node_profile_arn()
    for path in ("meta-data/iam/info", "meta-data/iam/security-credentials/"):
        assert upstream.peek(path) is None
        reply = await upstream.get(path)
        assert not any(canary.encode() in reply.tail for canary in CANARIES)


async def test_proxies_of_the_environment_are_not_used(imds: ForgivingImds, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = Upstream(imds.address)
    assert (await client.get("meta-data/hostname")).status == 200
    await client.aclose()


async def test_what_is_remembered_is_bounded(imds: ForgivingImds, upstream: Upstream) -> None:
    paths = [f"meta-data/placement/p{number}" for number in range(300)]
    imds.extra = dict.fromkeys(paths, "x")
    for path in paths:
        assert (await upstream.get(path)).status == 200
    assert len(upstream._constants) == 256


async def test_failures_that_come_and_go_do_not_fill_the_log(
    imds: ForgivingImds, upstream: Upstream, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def flicker() -> list[str]:
        caplog.clear()
        for status in (500, 200) * 20:
            imds.status = status
            await upstream.get("meta-data/hostname")
        return [record.message for record in caplog.records]

    once = ["the metadata service fails", "the metadata service answers again"]
    assert await flicker() == once
    assert await flicker() == []
    clock.now += 10
    assert await flicker() == once

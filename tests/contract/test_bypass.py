"""Hostile requests against the whole port, with a metadata service behind it that would hand out everything."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kube2iam.imds.allowlist import PROTECTED, Allowlist
from kube2iam.imds.paths import Kind, parse
from tests.contract.hostile import Row, generated, request, rows
from tests.fakes.imds import CANARIES, DOCUMENT, ForgivingImds, Received, understood
from tests.fakes.pods_port import ODD, OF_OTHERS, OTHER, PodsPort, pods_port

_UNSEEN = [text.encode() for text in (*CANARIES, *OF_OTHERS)]
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LAST = b"GET /last HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"
_MAY_BE = {
    "L": {200, 400, 403, 404},
    "D": {400, 401, 403, 404},
    "B": {400, 401, 403, 404, 405, 413, 414, 431},
    "M": {400, 403, 405},
    "T": {200, 400, 403, 404},
    "P": {200, 400, 401, 403, 404},
    "R": {200, 400, 401, 403, 404, 405, 413, 414, 431},
}


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[PodsPort]:
    async with pods_port(str(tmp_path)) as opened:
        opened.imds.tokens = "required"
        yield opened


def leaked(said: bytes) -> list[bytes]:
    return [text for text in _UNSEEN if text in said]


def strayed(imds: ForgivingImds) -> list[str]:
    """What reached the real service and is not the canonical path of a row, without a client's header."""
    allowlist = Allowlist()
    own = {"host", "user-agent", "accept", "accept-encoding", "x-aws-ec2-metadata-token"}
    odd = []
    for received in imds.received:
        if received.method == "PUT" and received.target == "/latest/api/token":
            continue
        target = parse(received.target.encode("latin-1"), allowlist)
        canonical = target.kind in {Kind.METADATA, Kind.LISTING} and received.target == f"/latest/{target.path}"
        secret = any(word in understood(received.target) for word in (*PROTECTED, "api/token"))
        if received.method != "GET" or not canonical or secret or received.body or set(received.headers) - own:
            odd.append(f"{received.method} {received.target}")
    return odd


async def _try(port: PodsPort, row: Row) -> tuple[bytes, list[int]]:
    """Send a request and a last, honest one; all that came back until the port closed, and the statuses in it."""
    said = await port.everything(row.raw + _LAST, patience=0.3)
    return said, [int(status) for status in _STATUS.findall(said)]


async def _still_works(port: PodsPort) -> bool:
    answer = await port.get("/latest/meta-data/iam/security-credentials/")
    return (answer.status, answer.body) == (200, b"pod-role")


async def test_every_known_trick(port: PodsPort, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    wrong = []
    for row in rows(await port.token(OTHER)):
        said, statuses = await _try(port, row)
        first = set(statuses if row.expected == "R" else statuses[:1])
        if leaked(said) or not first <= _MAY_BE[row.expected] or not statuses:
            wrong.append((row, said))
        assert await _still_works(port), row
    assert wrong == []
    assert strayed(port.imds) == []
    assert caplog.records == []


async def test_thousands_of_spellings(port: PodsPort, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    hostile = generated()
    assert len({row.raw for row in hostile}) >= 5000
    wrong: list[tuple[Row, bytes]] = []
    queue = iter(hostile)

    async def client() -> None:
        for row in queue:
            said, statuses = await _try(port, row)
            if leaked(said) or not set(statuses) <= _MAY_BE["R"]:
                wrong.append((row, said))

    async with asyncio.TaskGroup() as clients:
        for _ in range(32):
            clients.create_task(client())
    assert wrong == []
    assert strayed(port.imds) == []
    assert caplog.records == []
    assert await _still_works(port)


async def test_long_and_many(port: PodsPort) -> None:
    long = "A" * 100_000
    for raw in (
        request("GET /latest/meta-data/instance-id", [f"X-aws-ec2-metadata-token: {long}"]),
        request("GET /latest/meta-data/instance-id", [f"X-{number}: x" for number in range(500)]),
        request(f"GET /latest/{long}", []),
        request(f"{long} /latest/meta-data/instance-id", []),
        request(f"GET /latest/meta-data/instance-id?{long}", []),
    ):
        said = await port.everything(raw)
        assert leaked(said) == []
        found = _STATUS.match(said)
        assert found is None or found[1] in {b"400", b"405", b"414", b"431"}
        assert await _still_works(port)


@pytest.mark.parametrize("tokens", ["absent", "optional", "required"])
async def test_what_honest_clients_ask_for_works(port: PodsPort, tokens: str) -> None:
    port.imds.tokens = tokens
    assert (await port.get("/", headers=["X-aws-ec2-metadata-token: INVALID"])).status == 401
    assert (await port.get("/")).body.endswith(b"latest")
    for path, body in {
        "/latest/meta-data/placement/availability-zone/": b"eu-west-1a",
        "/latest/meta-data/placement/availability-zone": b"eu-west-1a",
        "/latest/meta-data/instance-id/": b"i-0abc",
        "/latest/dynamic/instance-identity/document/": DOCUMENT.encode(),
        "/2009-04-04/meta-data/instance-id": b"i-0abc",
        "/latest/meta-data//placement//region": b"eu-west-1",
    }.items():
        answer = await port.get(path)
        assert (answer.status, answer.body) == (200, body)


async def test_honest_clients_spell_http_in_many_ways(port: PodsPort) -> None:
    path = "/latest/meta-data/instance-id"
    ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60"
    for raw in (
        request(f"GET {path}", ["Host: 169.254.169.254:80"]),
        request(f"GET {path}", ["Host: instance-data"]),
        request(f"GET {path}", ["Host: [fd00:ec2::254]"]),
        f"GET {path} HTTP/1.0\r\n\r\n".encode(),
        request("PUT /latest/api/token", [ttl, "Content-Length: 0"]),
        request("PUT /latest/api/token", [ttl]),
        request("PUT /latest/api/token", [ttl, "Transfer-Encoding: chunked"]) + b"0\r\n\r\n",
    ):
        assert [answer.status for answer in await port.send(raw)] == [200], raw
    three = request(f"GET {path}", ["Connection: keep-alive"]) * 3
    assert [answer.body for answer in await port.send(three, wanted=3)] == [b"i-0abc"] * 3


async def test_a_role_name_may_be_escaped_as_boto2_does(port: PodsPort) -> None:
    answer = await port.get("/latest/meta-data/iam/security-credentials/a%2Bb%2Cc%40d", source=ODD)
    assert answer.status == 200
    assert b"secret-of-a+b,c@d" in answer.body


async def test_the_fake_would_hand_out_everything() -> None:
    """The oracle's own control: without our port, every canary could be had."""
    imds = ForgivingImds(tokens="optional")
    said = b"".join(
        imds.answer(Received("GET", target, {}))[1]
        for target in (
            "/latest/meta-data/placement/..;/IAM\\security%2dcredentials/canary-node-role",
            "/latest/?recursive=true",
            "/1.0/%252575ser-data",
        )
    )
    assert leaked(said)
    assert b"canary-user-data" in said

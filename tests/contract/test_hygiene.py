"""HTTP hygiene over real sockets, with a pod's eyes."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.front import CREDENTIALS, LIST, TOKEN, TTL, Port, request, scripted_port
from tests.fakes.requests import CHUNKED, GET, HOST, MALFORMED, PUT, SOUND

SECOND = request("/latest/user-data")


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with scripted_port() as opened:
        yield opened


LIMITS = {
    "33 request line": (b"GET /" + b"x" * 8176 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "33 longer request line": (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "33 request line without end": (b"GET /" + b"x" * 200_000, 414),
    "33 64 headers": (GET + HOST + b"A: b\r\n" * 63 + b"\r\n", 404),
    "33 65 headers": (GET + HOST + b"A: b\r\n" * 64 + b"\r\n", 431),
    "33 500 headers": (GET + HOST + b"".join(b"A%d: b\r\n" % number for number in range(500)) + b"\r\n", 431),
    "33 16 KiB of headers": (GET + HOST + b"A: " + b"x" * 16_354 + b"\r\n\r\n", 404),
    "33 more headers": (GET + HOST + b"A: " + b"x" * 16_384 + b"\r\n\r\n", 431),
    "33 header without end": (GET + HOST + b"X-aws-ec2-metadata-token: " + b"A" * 200_000, 431),
    "33 1 KiB of body": (PUT + HOST + b"Content-Length: 1024\r\n\r\n" + b"x" * 1024, 405),
    "33 longer body": (PUT + HOST + b"Content-Length: 1025\r\n\r\n" + b"x" * 1025, 413),
    "33 chunk size without end": (CHUNKED + b"0;" + b"x" * 200_000, 413),
    "33 empty lines without end": (b"\r\n" * 50_000, 400),
}


@pytest.mark.parametrize("case", LIMITS.values(), ids=LIMITS)
async def test_33_limits(port: Port, case: tuple[bytes, int]) -> None:
    raw, status = case
    client = (await port.connect()).send(raw)
    answer = await client.reply()
    assert (answer.status, answer.body) == (status, b"")
    if status not in {404, 405}:
        assert answer.headers["connection"] == "close"
        assert await client.gone()


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
async def test_34_malformed_is_answered_once_and_the_connection_closed(port: Port, case: tuple[bytes, int]) -> None:
    raw, status = case
    client = (await port.connect()).send(raw + SECOND)
    answer = await client.reply()
    assert answer.headers["connection"] == "close"
    assert (answer.status, answer.body) == (status, b"")
    assert await client.gone()
    assert (await port.ask(request(LIST))).body == b"app"


@pytest.mark.parametrize("case", SOUND.values(), ids=SOUND)
async def test_sound_requests_are_answered_and_kept_alive_if_they_may_be(port: Port, case: tuple[bytes, bool]) -> None:
    raw, keep = case
    client = (await port.connect()).send(raw)
    answer = await client.reply()
    assert answer.headers.get("connection") == (None if keep else "close")
    if keep:
        assert (await client.ask(request(LIST))).body == b"app"
    else:
        assert await client.gone()


class TestMethods:
    @pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PUT", "QUERY"])
    @pytest.mark.parametrize("path", [LIST, CREDENTIALS, "/latest/meta-data/instance-id", "/latest/user-data", "/"])
    async def test_27_only_get_and_head(self, port: Port, method: str, path: str) -> None:
        answer = await port.ask(request(path, method=method))
        assert (answer.status, answer.headers["allow"], answer.body) == (405, "GET, HEAD", b"")

    @pytest.mark.parametrize("method", ["get", "Get", "gET", "FROB"])
    async def test_27_other_words(self, port: Port, method: str) -> None:
        client = (await port.connect()).send(request(LIST, method=method))
        assert (await client.reply()).status == 405
        assert await client.gone()

    @pytest.mark.parametrize("method", ["POST", "OPTIONS", "DELETE"])
    async def test_27_the_token_is_put(self, port: Port, method: str) -> None:
        answer = await port.ask(request(TOKEN, f"{TTL}: 60", method=method))
        assert (answer.status, answer.headers["allow"]) == (405, "PUT")

    @pytest.mark.parametrize("line", ["CONNECT 169.254.169.254:80 HTTP/1.1", "CONNECT /latest HTTP/1.1"])
    async def test_27_connect(self, port: Port, line: str) -> None:
        client = (await port.connect()).send(f"{line}\r\nHost: 169.254.169.254\r\n\r\n".encode() + SECOND)
        assert (await client.reply()).status in {400, 405}
        assert await client.gone()


class TestTokenBodies:
    """What some clients send with the PUT: no body, in every way that there is to say so."""

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ("Content-Length: 0",),
            ("Expect: 100-continue",),
            ("Content-Length: 0", "Expect: 100-continue"),
        ],
    )
    async def test_34_none(self, port: Port, headers: tuple[str, ...]) -> None:
        client = await port.connect()
        assert (await client.ask(request(TOKEN, f"{TTL}: 60", *headers, method="PUT"))).status == 200
        assert (await client.ask(request(LIST))).body == b"app"

    async def test_34_chunked_and_empty(self, port: Port) -> None:
        client = await port.connect()
        client.send(request(TOKEN, f"{TTL}: 60", "Transfer-Encoding: chunked", method="PUT"))
        assert (await client.ask(b"0\r\n\r\n")).status == 200
        assert (await client.ask(request(LIST))).body == b"app"

    @pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
    async def test_expect_is_answered_before_the_body(self, port: Port, length: str) -> None:
        client = await port.connect()
        answer = await client.ask(request(TOKEN, f"{TTL}: 60", "Expect: 100-continue", length, method="PUT"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        client.send(b"GET /latest/user-data HTTP/1.1\r\n\r\n")
        assert await client.gone()


class TestUpgrades:
    """Rule 35: as if the client had not asked, and the connection is closed."""

    @pytest.mark.parametrize(
        "headers",
        [
            ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
            ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        ],
    )
    async def test_35_never(self, port: Port, headers: tuple[str, ...]) -> None:
        client = (await port.connect()).send(request(LIST, *headers) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = await client.reply()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"app", "close")
        assert await client.gone()


STREAM = request(LIST) + request("/latest/user-data") + request(CREDENTIALS) + request(LIST, "Connection: close")


@given(cuts=st.lists(st.integers(1, len(STREAM)), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_where_the_stream_is_cut_changes_nothing(port: Port, cuts: list[int]) -> None:
    client = await port.connect()
    at = 0
    for cut in [*sorted(set(cuts)), len(STREAM)]:
        client.send(STREAM[at:cut])
        await client.writer.drain()
        at = cut
    answers = [await client.reply() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 404, 200, 200]
    assert answers[0].body == answers[3].body == b"app"
    assert await client.gone()
    port.clients.remove(client)
    client.close()


@given(raw=st.binary(min_size=1, max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_end_well(port: Port, raw: bytes) -> None:
    client = (await port.connect()).send(raw + b"\r\n\r\n" + SECOND)
    client.writer.write_eof()
    said = await client.rest()
    assert b"HTTP/1.1 500" not in said
    assert said.count(b"HTTP/1.1 ") == said.count(b"Server: EC2ws")
    assert (await port.ask(request(LIST))).body == b"app"
    port.clients.remove(client)
    client.close()

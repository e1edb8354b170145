"""The pods' port over real sockets: order, waiting, hanging up, limits, the end."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Namespace
from kube2iam.imds import listen
from tests.fakes.front import CREDENTIALS, LIST, OTHER, POD, STRANGER, TOKEN, TTL, Port, request, scripted_port

INSTANCE_ID = "/latest/meta-data/instance-id"
REGION = "/latest/meta-data/placement/region"


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with scripted_port() as opened:
        yield opened


async def until(what: Callable[[], bool]) -> None:
    """Let the loop turn until `what()` holds."""
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.001)


class TestReplies:
    async def test_credentials(self, port: Port) -> None:
        answer = await port.ask(request(CREDENTIALS))
        assert answer.status == 200
        assert list(json.loads(answer.body)) == [
            "Code", "LastUpdated", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration",
        ]  # fmt: skip
        assert answer.body.startswith(b'{\n  "Code" : "Success",\n  "LastUpdated" : "20')
        assert answer.headers["server"] == "EC2ws"
        assert answer.headers["content-type"] == "text/plain"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])
        assert "connection" not in answer.headers
        assert "transfer-encoding" not in answer.headers

    async def test_many_on_one_connection(self, port: Port) -> None:
        client = await port.connect()
        for _ in range(3):
            assert (await client.ask(request(LIST))).body == b"app"
            assert (await client.ask(request(CREDENTIALS, "Connection: keep-alive"))).status == 200

    async def test_the_same_bytes_mean_the_same_to_each_pod_its_own(self, port: Port) -> None:
        for _ in range(3):
            assert (await port.ask(request(LIST), POD)).body == b"app"
            assert (await port.ask(request(LIST), OTHER)).body == b"other-role"
            assert (await port.ask(request(CREDENTIALS), OTHER)).status == 403

    async def test_a_changed_decision_is_seen_on_an_open_connection(self, port: Port) -> None:
        client = await port.connect()
        assert (await client.ask(request(LIST))).body == b"app"
        port.resolver.deny(POD, Reason.NAMESPACE_DENIED)
        answer = await client.ask(request(LIST))
        assert (answer.status, answer.body) == (403, b"")
        assert answer.headers["x-kube2iam-denied"] == "namespace-denied"
        del port.resolver.denials[POD]
        del port.resolver.grants[POD]
        port.resolver.add(POD, "successor", role="other-role")
        assert (await client.ask(request(LIST))).body == b"other-role"
        assert (await client.ask(request(CREDENTIALS))).status == 403

    @pytest.mark.parametrize("path", [LIST, CREDENTIALS, "/", INSTANCE_ID, "/latest/user-data"])
    async def test_head_is_get_without_the_body(self, port: Port, path: str) -> None:
        client = await port.connect()
        whole = await client.ask(request(path))
        head = await client.send(request(path, method="HEAD")).reply(bodiless=True)
        again = await client.ask(request(path))
        assert (head.status, head.headers["content-length"]) == (whole.status, whole.headers["content-length"])
        assert again.body == whole.body

    async def test_1_0_closes(self, port: Port) -> None:
        client = await port.connect()
        client.send(f"GET {LIST} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
        answer = await client.reply()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"app", "close")
        assert await client.gone()

    async def test_connection_close_closes_after_the_reply(self, port: Port) -> None:
        client = await port.connect()
        for raw in (request(LIST), request(LIST, "Connection: close")):
            answer = await client.ask(raw)
        assert (answer.body, answer.headers["connection"]) == (b"app", "close")
        assert await client.gone()

    async def test_ipv6(self, port: Port) -> None:
        port.resolver.add("::1", "six")
        client = await port.connect("::1", to="::1")
        assert (await client.ask(request(LIST))).body == b"app"

    async def test_ipv4_mapped_peer_is_the_ipv4_one(self) -> None:
        async with scripted_port() as port:
            dual = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            dual.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            dual.bind(("::", 0))
            dual.listen()
            acceptor = listen.Acceptor([dual], port.server._acceptor._factory)  # type: ignore[union-attr]
            await acceptor.start()
            port.number = dual.getsockname()[1]
            assert (await port.ask(request(LIST))).body == b"app"
            acceptor.stop()


class TestOrder:
    async def test_pipelined_requests_are_answered_in_order(self, port: Port) -> None:
        client = await port.connect()
        client.send(request(LIST) + request(CREDENTIALS) + request("/latest/user-data") + request(LIST))
        statuses = [(await client.reply()).status for _ in range(4)]
        assert statuses == [200, 200, 404, 200]

    async def test_requests_wait_for_the_slow_one_before_them(self, port: Port) -> None:
        client = await port.connect()
        client.send(request(LIST) + request(REGION) + request(LIST) + request(REGION) + request(CREDENTIALS))
        assert (await client.reply()).body == b"app"
        await until(lambda: len(port.upstream.asked) == 1)
        client.send(request(INSTANCE_ID))
        port.upstream.open.set()
        bodies = [(await client.reply()).body for _ in range(5)]
        assert bodies[:3] == [b"eu-west-1", b"app", b"eu-west-1"]
        assert bodies[4] == b"i-0abc"

    async def test_a_thousand_at_once(self, port: Port) -> None:
        client = await port.connect()
        client.send((request(LIST) + request(REGION)) * 500)
        port.upstream.open.set()
        for _ in range(500):
            assert (await client.reply()).body == b"app"
            assert (await client.reply()).body == b"eu-west-1"

    async def test_malformed_bytes_after_a_slow_request_come_after_its_reply(self, port: Port) -> None:
        client = await port.connect()
        client.send(request(REGION) + b"GARBAGE\r\n\r\n" + request(LIST))
        port.upstream.open.set()
        assert (await client.reply()).body == b"eu-west-1"
        refused = await client.reply()
        assert (refused.status, refused.headers["connection"]) == (400, "close")
        assert await client.gone()

    async def test_malformed_bytes_after_a_warm_request_come_after_its_reply(self, port: Port) -> None:
        client = (await port.connect()).send(request(LIST) + b"\0\r\n\r\n")
        assert [(await client.reply()).status, (await client.reply()).status] == [200, 400]

    async def test_nothing_after_a_closing_request_is_answered(self, port: Port) -> None:
        client = await port.connect()
        client.send(request(LIST, "Connection: close") + request(CREDENTIALS))
        assert (await client.reply()).body == b"app"
        assert await client.gone()

    async def test_a_beginning_is_not_forgotten_for_bytes_that_are_known(self, port: Port) -> None:
        client = await port.connect()
        await client.ask(request(LIST))  # remembered from now on
        await client.ask(request(LIST) + b"GET /latest/user-data HTTP/1.1\r\nX: ")
        assert (await client.ask(request(LIST))).status == 404

    async def test_bytes_beyond_a_request_are_not_remembered_with_it(self, port: Port) -> None:
        whole, begun, rest = request(LIST), b"GET /latest/us", b"er-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
        for source, body in ((POD, b"app"), (OTHER, b"other-role")):
            client = await port.connect(source)
            assert (await client.ask(whole + begun)).body == body
            assert (await client.ask(rest)).status == 404

    async def test_a_request_in_single_bytes(self, port: Port) -> None:
        client = await port.connect()
        for byte in request(LIST) + request(CREDENTIALS):
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.reply()).body == b"app"
        assert (await client.reply()).status == 200


class TestWaiting:
    async def test_a_pod_known_late_is_answered_at_once_then(self, port: Port) -> None:
        client = (await port.connect(STRANGER)).send(request(LIST))
        await until(lambda: port.resolver.waiting == 1)
        port.resolver.add(STRANGER, "late")
        assert (await client.reply(patience=0.5)).body == b"app"
        assert port.server.limits.held == 0

    @pytest.mark.parametrize("path", [LIST, CREDENTIALS, "/latest/meta-data/iam/info", REGION, INSTANCE_ID])
    async def test_an_address_never_known_is_told_so_in_time(self, port: Port, path: str) -> None:
        begun = time.perf_counter()
        answer = await port.ask(request(path), STRANGER)
        assert 0.75 < time.perf_counter() - begun < 1.0
        assert (answer.status, answer.body, answer.headers["retry-after"]) == (503, b"", "1")
        assert answer.headers["x-kube2iam-denied"] == "unknown-address"

    async def test_the_listing_bears_one_hold_and_then_tells_the_name(self, port: Port) -> None:
        port.resolver.add("127.0.0.4", "cold", warm=False)
        begun = time.perf_counter()
        answer = await port.ask(request(LIST), "127.0.0.4")
        assert 0.75 < time.perf_counter() - begun < 1.0
        assert (answer.status, answer.body) == (200, b"app")
        pending = await port.ask(request(CREDENTIALS), "127.0.0.4")
        assert (pending.status, pending.headers["x-kube2iam-denied"]) == (503, "sts-pending")

    async def test_address_and_sts_share_one_hold(self, port: Port) -> None:
        client = (await port.connect(STRANGER)).send(request(CREDENTIALS))
        begun = time.perf_counter()
        await asyncio.sleep(0.5)
        port.resolver.add(STRANGER, "late", warm=False)
        assert (await client.reply()).status == 503
        assert time.perf_counter() - begun < 1.0

    async def test_credentials_that_come_in_time(self, port: Port) -> None:
        port.resolver.add("127.0.0.4", "cold", warm=False)
        client = (await port.connect("127.0.0.4")).send(request(CREDENTIALS))
        await until(lambda: port.resolver.waiting == 1)
        port.resolver.give("127.0.0.4")
        assert (await client.reply(patience=0.5)).status == 200

    @pytest.mark.parametrize(
        ("reason", "listed", "status"), [(Reason.STS_REFUSED, 200, 403), (Reason.STS_UNAVAILABLE, 200, 500)]
    )
    async def test_what_sts_says_is_for_the_credentials_path(
        self, port: Port, reason: Reason, listed: int, status: int
    ) -> None:
        port.resolver.add("127.0.0.4", "cold", warm=False)
        port.resolver.refusals["127.0.0.4"] = Denial(reason, "scripted")
        assert (await port.ask(request(LIST), "127.0.0.4")).status == listed
        answer = await port.ask(request(CREDENTIALS), "127.0.0.4")
        assert (answer.status, answer.body, answer.headers["x-kube2iam-denied"]) == (status, b"", reason.code)

    async def test_a_role_that_changed_while_its_credentials_came(self, port: Port) -> None:
        port.resolver.add("127.0.0.4", "cold", warm=False)
        client = (await port.connect("127.0.0.4")).send(request(CREDENTIALS))
        await until(lambda: port.resolver.waiting == 1)
        port.resolver.add("127.0.0.4", "cold", role="new-role")
        assert (await client.reply()).status == 403

    async def test_who_hangs_up_is_forgotten(self) -> None:
        async with scripted_port(hold=30.0) as port:
            await self.hang_up(port)

    async def hang_up(self, port: Port) -> None:
        clients = [(await port.connect(STRANGER)).send(request(LIST)) for _ in range(5)]
        await until(lambda: port.resolver.waiting == 5)
        assert port.server.limits.held == 5
        for client in clients:
            client.close()
        await until(lambda: port.resolver.waiting == 0)
        await until(lambda: port.server.limits.held == 0 and port.server.limits.connections == 0)
        assert port.resolver.cancelled == 5
        assert port.server.limits._held == {}

    async def test_who_ends_its_side_while_waiting_has_left(self, port: Port) -> None:
        client = (await port.connect(STRANGER)).send(request(LIST))
        await until(lambda: port.resolver.waiting == 1)
        client.writer.write_eof()
        assert await client.gone()
        await until(lambda: port.resolver.waiting == 0)

    async def test_who_ends_its_side_has_its_warm_answers_first(self, port: Port) -> None:
        client = (await port.connect()).send(request(LIST) * 3)
        client.writer.write_eof()
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 3

    async def test_who_ends_its_side_before_its_turn_has_come_is_answered_too(self, port: Port) -> None:
        clients = [await port.connect() for _ in range(100)]
        for client in clients:
            client.send(request(LIST)).writer.write_eof()
        assert [(await client.rest())[-3:] for client in clients] == [b"app"] * 100


class TestTokens:
    async def test_a_token_serves_its_pod_only(self, port: Port) -> None:
        minted = await port.ask(request(TOKEN, f"{TTL}: 60", method="PUT"))
        header = f"X-aws-ec2-metadata-token: {minted.body.decode()}"
        assert minted.headers[TTL.lower()] == "60"
        assert (await port.ask(request(LIST, header))).status == 200
        assert (await port.ask(request(LIST, header), OTHER)).status == 401
        assert (await port.ask(request(LIST, header, "X-Forwarded-For: 127.0.0.2"))).status == 403

    @pytest.mark.parametrize("path", ["/", "/latest/", LIST, CREDENTIALS, INSTANCE_ID, "/latest/user-data"])
    async def test_a_bad_token_is_401(self, port: Port, path: str) -> None:
        answer = await port.ask(request(path, "X-aws-ec2-metadata-token: INVALID"))
        assert (answer.status, answer.body) == (401, b"")

    @pytest.mark.parametrize(("annotation", "status"), [("required", 401), ("optional", 200), ("requierd", 401)])
    async def test_a_namespace_decides(self, port: Port, annotation: str, status: int) -> None:
        port.resolver.namespaces["default"] = Namespace("default", {"iam.amazonaws.com/imdsv2": annotation})
        assert (await port.ask(request(LIST))).status == status
        assert port.counted.v1 == ["default"]

    async def test_required_also_for_a_pod_known_late(self, port: Port) -> None:
        port.resolver.namespaces["default"] = Namespace("default", {"iam.amazonaws.com/imdsv2": "required"})
        client = (await port.connect(STRANGER)).send(request(REGION))
        await until(lambda: port.resolver.waiting == 1)
        port.resolver.add(STRANGER, "late")
        assert (await client.reply()).status == 401
        assert port.upstream.asked == []

    async def test_a_token_of_the_addresss_last_pod_is_no_good_to_the_next(self, port: Port) -> None:
        port.resolver.add(STRANGER, "before")
        minted = await port.ask(request(TOKEN, f"{TTL}: 60", method="PUT"), STRANGER)
        port.resolver.forget(STRANGER)
        client = (await port.connect(STRANGER)).send(request(LIST, f"X-aws-ec2-metadata-token: {minted.body.decode()}"))
        await until(lambda: port.resolver.waiting == 1)
        port.resolver.add(STRANGER, "after")
        assert (await client.reply()).status == 401

    async def test_an_unknown_address_gets_no_value_of_the_real_service(self, port: Port) -> None:
        minted = await port.ask(request(TOKEN, f"{TTL}: 60", method="PUT"), STRANGER)
        answer = await port.ask(request(REGION, f"X-aws-ec2-metadata-token: {minted.body.decode()}"), STRANGER)
        assert answer.status == 503
        assert port.upstream.asked == []

    async def test_hop_limit_of_token_replies(self) -> None:
        async with scripted_port(imdsv2_hop_limit=3) as port:
            client = await port.connect()
            assert (await client.ask(request(LIST))).status == 200
            (connection,) = port.server._connections
            accepted = connection.transport.get_extra_info("socket")
            before = accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
            assert (await client.ask(request(TOKEN, f"{TTL}: 60", method="PUT"))).status == 200
            assert (before, accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)) == (64, 3)


class TestLog:
    async def test_a_refusal_is_one_line_until_it_changes(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "kube2iam.imds")
        client = await port.connect()
        told = Reason.ROLE_MALFORMED, Reason.NAMESPACE_DENIED, Reason.ROLE_MALFORMED
        for reason in told:
            port.resolver.deny(POD, reason)
            for _ in range(5):
                await client.ask(request(LIST))
        codes = [getattr(record, "reason") for record in caplog.records]  # noqa: B009 - an extra field
        assert codes == ["role-malformed", "namespace-denied"]
        assert [record.getMessage() for record in caplog.records] == ["refused"] * 2
        assert port.counted.denials == [reason for reason in told for _ in range(5)]

    async def test_it_names_the_pod(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "kube2iam.imds")
        await port.ask(request(f"{LIST}other"))
        (said,) = [vars(record) for record in caplog.records]
        granted = port.resolver.grants[POD]
        assert (said["pod.namespace"], said["pod.name"]) == (granted.pod.namespace, granted.pod.name)
        assert (said["reason"], said["pod.iam.role"]) == ("other-role", str(granted.arn))

    async def test_a_pod_without_a_role_is_no_news(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "kube2iam.imds")
        port.resolver.deny(POD, Reason.NO_ROLE)
        assert (await port.ask(request(LIST))).status == 404
        assert caplog.records == []

    async def test_strangers_do_not_fill_the_log(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        herd = [(await port.connect(f"127.0.8.{number}")).send(request(LIST)) for number in range(1, 100)]
        assert [(await client.reply()).status for client in herd] == [503] * 99
        assert len([record for record in caplog.records if record.message == "refused"]) == 20
        port.resolver.deny(POD, Reason.ROLE_MALFORMED)
        await port.ask(request(LIST))
        assert caplog.records[-1].__dict__["reason"] == "role-malformed"

    async def test_no_credentials_in_the_log(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG")
        assert (await port.ask(request(CREDENTIALS))).status == 200
        said = "\n".join(str(vars(record)) for record in caplog.records)
        assert "/latest/meta-data/iam/security-credentials/app" in said
        assert "secret-of" not in said
        assert "ttt" not in said

    async def test_a_bug_is_a_500_and_one_line(self, port: Port, caplog: pytest.LogCaptureFixture) -> None:
        port.resolver.warm_by_address = None  # type: ignore[assignment]
        client = (await port.connect()).send(request(CREDENTIALS))
        assert (await client.reply()).status == 500
        assert await client.gone()
        assert [record.getMessage() for record in caplog.records] == ["a request was not answered"]


class TestWhoAsks:
    @pytest.mark.parametrize("path", ["/", LIST, CREDENTIALS, INSTANCE_ID, "/latest/user-data"])
    async def test_the_node_itself_gets_nothing(self, port: Port, path: str) -> None:
        port.resolver.deny("127.0.0.1", Reason.NODE_ADDRESS)
        answer = await port.ask(request(path), "127.0.0.1")
        assert (answer.status, answer.body) == (403, b"")

    @pytest.mark.parametrize(
        "host", ["evil.example", "169.254.169.254.evil.example", "127.0.0.1", "169.254.169.254:8080", "localhost", ""]
    )
    async def test_foreign_hosts(self, port: Port, host: str) -> None:
        answer = await port.ask(f"GET {LIST} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (answer.status, answer.body) == (403, b"")

    @pytest.mark.parametrize(
        "host",
        [
            "169.254.169.254", "169.254.169.254:80", "[fd00:ec2::254]", "[FD00:EC2::254]:80", "instance-data",
            "Instance-Data.ec2.internal",
        ],
    )  # fmt: skip
    async def test_metadata_hosts(self, port: Port, host: str) -> None:
        assert (await port.ask(f"GET {LIST} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).body == b"app"

    @pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Remote-Addr"])
    async def test_headers_never_say_who(self, port: Port, name: str) -> None:
        assert (await port.ask(request(LIST, f"{name}: {OTHER}"))).body == b"app"


def page(path: str, query: str) -> tuple[int, str, bytes]:
    return 200, "application/json", f"{path}?{query}".encode()


class TestAdminOnTheSamePort:
    async def test_by_the_nodes_address(self) -> None:
        async with scripted_port(admin=page) as port:
            raw = f"GET /healthz?verbose HTTP/1.1\r\nHost: 127.0.0.1:{port.number}\r\n\r\n".encode()
            answer = await port.ask(raw, "127.0.0.1")
            assert (answer.status, answer.body) == (200, b"healthz?verbose")
            assert answer.headers["content-type"] == "application/json"
            assert (await port.ask(raw.replace(b"GET", b"POST"))).status == 405

    async def test_the_nodes_probes_wait_for_nobodys_share(self) -> None:
        async with scripted_port(admin=page, max_held=1, hold=5.0) as port:
            (await port.connect(STRANGER)).send(request(LIST))
            await until(lambda: port.server.limits.held == 1)
            raw = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port.number}\r\n\r\n".encode()
            assert (await port.ask(raw, "127.0.0.1")).status == 200
            assert (await port.ask(raw, "127.0.0.5")).status == 503, "a pod's does"
            port.resolver.deny("127.0.0.5", Reason.NODE_ADDRESS)
            assert (await port.ask(raw, "127.0.0.5")).status == 200

    async def test_never_by_the_metadata_address(self) -> None:
        async with scripted_port(admin=page) as port:
            assert (await port.ask(request("/healthz"))).status == 404
            assert (await port.ask(request("/metrics"))).status == 404

    async def test_never_without_one(self, port: Port) -> None:
        assert (await port.ask(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).status == 404


class TestLimits:
    async def test_connections_of_one_pod(self) -> None:
        async with scripted_port(max_connections_per_pod=3) as port:
            clients = [await port.connect() for _ in range(3)]
            assert all([(await client.ask(request(LIST))).status == 200 for client in clients])
            assert await (await port.connect()).gone()
            assert (await port.ask(request(LIST), OTHER)).status == 200
            clients[0].close()
            await until(lambda: port.server.limits.connections <= 2)
            assert (await port.ask(request(LIST))).status == 200

    async def test_connections_in_all(self) -> None:
        async with scripted_port(max_connections=2) as port:
            for source in (POD, OTHER):
                assert (await (await port.connect(source)).ask(request(LIST))).status == 200
            assert await (await port.connect(OTHER)).gone()

    async def test_costly_requests_above_the_rate_are_refused_and_warm_ones_never(self) -> None:
        async with scripted_port(max_request_rate=2.0) as port:
            port.upstream.open.set()
            client = await port.connect()
            statuses = [(await client.ask(request(REGION))).status for _ in range(12)]
            assert statuses == [200] * 10 + [503] * 2
            answer = await client.ask(request(REGION))
            assert (answer.headers["retry-after"], answer.headers["x-kube2iam-denied"]) == ("1", "over-limit")
            for raw in (request(LIST), request(CREDENTIALS), request(INSTANCE_ID)):
                assert all([(await client.ask(raw)).status == 200 for _ in range(50)])
            for _ in range(50):
                assert (await client.ask(request(TOKEN, f"{TTL}: 60", method="PUT"))).status == 200
            assert (await port.ask(request(REGION), OTHER)).status == 200

    async def test_held_requests_of_one_pod(self) -> None:
        async with scripted_port(max_held_per_pod=2, hold=5.0) as port:
            for _ in range(2):
                (await port.connect(STRANGER)).send(request(LIST))
            await until(lambda: port.server.limits.held == 2)
            answer = await port.ask(request(LIST), STRANGER)
            assert (answer.status, answer.headers["x-kube2iam-denied"]) == (503, "over-limit")
            assert (await port.ask(request(LIST), OTHER)).status == 200

    async def test_strangers_leave_room_for_pods_that_wait(self) -> None:
        async with scripted_port(max_held=4, max_held_per_pod=2) as port:
            strangers = [(await port.connect(f"127.0.9.{number}")).send(request(LIST)) for number in range(1, 10)]
            await until(lambda: port.server.limits.held == 2)
            pod = (await port.connect()).send(request(REGION))
            await until(lambda: port.upstream.asked != [])
            port.upstream.open.set()
            assert (await pod.reply()).body == b"eu-west-1"
            assert [(await client.reply()).status for client in strangers] == [503] * 9

    async def test_bytes_that_wait_for_one_pod(self) -> None:
        async with scripted_port(max_header_bytes=1 << 20, max_connections_per_pod=0) as port:
            port.resolver.add(POD, "pod")
            beginning = request(LIST)[:-2] + b"X-aws-ec2-metadata-token: " + b"x" * 300_000
            clients = [(await port.connect()).send(beginning) for _ in range(30)]
            await until(lambda: any(client.reader.at_eof() or client.reader.exception() for client in clients))
            assert (await port.ask(request(LIST), OTHER)).body == b"other-role"
            assert port.server.limits._kept[POD] <= 4 << 20
            for client in clients:
                client.close()
            await until(lambda: port.server.limits._kept == {})

    async def test_time_outs(self) -> None:
        async with scripted_port(header_timeout=1.0, idle_timeout=1.0) as port:
            silent, slow, idle = [await port.connect() for _ in range(3)]
            assert (await idle.ask(request(LIST))).status == 200
            slow.send(request(LIST)[:-1])
            begun = time.perf_counter()
            assert await silent.gone()
            assert await slow.gone()
            assert await idle.gone()
            assert 0.9 < time.perf_counter() - begun < 2.5
            await until(lambda: port.server.limits.connections == 0)

    async def test_zero_is_no_limit(self) -> None:
        names = ("request_line", "header_bytes", "headers", "body_bytes", "connections", "connections_per_pod")
        none: dict[str, Any] = {f"max_{name}": 0 for name in (*names, "request_rate", "held", "held_per_pod")}
        async with scripted_port(**none, header_timeout=0.0, idle_timeout=0.0) as port:
            headers = [f"X-{number}: {'x' * 300}" for number in range(300)]
            assert (await port.ask(request(f"/latest/{'x' * 20_000}", *headers))).status == 404

    async def test_a_client_that_does_not_read_is_not_read_from(self, port: Port) -> None:
        client = await port.connect(receive_buffer=4096)
        client.reader._limit = 0  # type: ignore[attr-defined]
        await until(lambda: len(port.server._connections) == 1)
        (connection,) = port.server._connections
        sent = 0
        while sent < 200_000 and not connection._stuck:
            client.send(request(CREDENTIALS) * 100)
            sent += 100
            await asyncio.sleep(0.001)
        assert connection._stuck
        assert connection.transport.get_write_buffer_size() < 64 * 1024
        assert len(connection._stash) + len(connection._queue or ()) * 100 < 512 * 1024
        client.reader._limit = 1 << 16  # type: ignore[attr-defined]
        for _ in range(sent):
            assert (await client.reply()).status == 200


class TestEnd:
    async def test_drain_closes_idle_connections_and_ends_what_is_under_way(self, port: Port) -> None:
        idle = await port.connect()
        assert (await idle.ask(request(LIST))).status == 200
        busy = (await port.connect()).send(request(REGION))
        await until(lambda: len(port.upstream.asked) == 1)
        begun = (await port.connect()).send(request(LIST)[:20])
        await until(
            lambda: any(one._reader is not None and one._reader.bytes == 20 for one in port.server._connections)
        )
        ending = asyncio.create_task(port.server.drain())
        assert await idle.gone()
        begun.send(request(LIST)[20:])
        answer = await begun.reply()
        assert (answer.body, answer.headers["connection"]) == (b"app", "close")
        port.upstream.open.set()
        answer = await busy.reply()
        assert (answer.body, answer.headers["connection"]) == (b"eu-west-1", "close")
        await asyncio.wait_for(ending, 2)
        with pytest.raises(ConnectionRefusedError):
            await port.connect()

    async def test_drain_does_not_wait_for_ever(self, port: Port) -> None:
        (await port.connect()).send(request(REGION))
        await until(lambda: len(port.upstream.asked) == 1)
        begun = time.perf_counter()
        await port.server.drain(0.2)
        assert time.perf_counter() - begun < 1.5
        assert port.server.limits.connections == 0
        assert port.server.limits.held == 0

    async def test_a_successor_goes_on_with_the_sockets(self, port: Port) -> None:
        copies = [found.dup() for found in port.server.sockets]
        await port.server.drain(0.2)
        waiting = await port.connect()
        waiting.send(request(LIST))
        async with scripted_port() as successor:
            acceptor = listen.Acceptor(copies, successor.server._acceptor._factory)  # type: ignore[union-attr]
            await acceptor.start()
            assert (await waiting.reply()).body == b"app"
            acceptor.stop()


async def test_a_listener_that_the_loop_gave_up_is_replaced(port: Port) -> None:
    acceptor = port.server._acceptor
    assert acceptor is not None
    for _, copy, server in acceptor._accepting:
        server.close()
        copy.close()
    assert acceptor.broken
    client = (await port.connect()).send(request(LIST))
    assert (await client.reply()).body == b"app"
    await until(lambda: not acceptor.broken)

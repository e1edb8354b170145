"""What AWS clients need of the metadata service, rule by rule: every test is named after what some client would miss.

The numbers only tell the rules apart. Rules of other rooms (lifetimes, redirect) have their own tests.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kube2iam.domain.errors import Reason
from kube2iam.imds.paths import VERSIONS
from tests.fakes.imds import CANARIES
from tests.fakes.pods_port import (
    APP,
    FORBIDDEN,
    FOREIGN,
    MALFORMED,
    NODE,
    ODD,
    OTHER,
    PLAIN,
    STRANGER,
    STRICT,
    PodsPort,
    pod,
    pods_port,
)

LIST = "/latest/meta-data/iam/security-credentials"
TOKEN = "/latest/api/token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
HEADER = "X-aws-ec2-metadata-token"
GET = "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{more}\r\n"


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[PodsPort]:
    async with pods_port(str(tmp_path)) as opened:
        yield opened


async def seconds(port: PodsPort, path: str, source: str) -> tuple[int, float]:
    begun = time.perf_counter()
    answer = await port.get(path, source=source)
    return answer.status, time.perf_counter() - begun


class TestTokens:
    """Rules 1 to 9."""

    async def test_1_the_token_needs_nobody(self, port: PodsPort) -> None:
        port.imds.delay = port.imds.token_delay = 60
        port.index.replace_pods([])
        begun = time.perf_counter()
        await port.token(STRANGER)
        assert time.perf_counter() - begun < 0.2
        assert port.imds.received == []

    @pytest.mark.parametrize("ttl", [1, 60, 21_600])
    async def test_2_the_granted_time_is_repeated(self, port: PodsPort, ttl: int) -> None:
        answer = await port.get(TOKEN, method="PUT", headers=[f"{TTL}: {ttl}"])
        assert answer.status == 200
        assert re.fullmatch(rb"[\w-]{56}", answer.body)
        assert answer.headers["x-aws-ec2-metadata-token-ttl-seconds"] == str(ttl)
        assert answer.headers["content-type"] == "text/plain"

    @pytest.mark.parametrize("name", [TTL, TTL.lower(), TTL.upper()])
    async def test_3_header_names_have_no_case(self, port: PodsPort, name: str) -> None:
        assert (await port.get(TOKEN, method="PUT", headers=[f"{name}: 60"])).status == 200

    @pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "1e3", "60s", "0x3c", "6 0", "60,60"])
    async def test_3_any_other_time_is_an_empty_400(self, port: PodsPort, ttl: str) -> None:
        for headers in ([f"{TTL}: {ttl}"], []):
            answer = await port.get(TOKEN, method="PUT", headers=headers)
            assert (answer.status, answer.body) == (400, b"")

    @pytest.mark.parametrize(
        ("path", "headers"),
        [
            (TOKEN, ["X-Forwarded-For: 127.0.0.3"]),
            (f"{TOKEN}/", []),
            ("/2021-03-23/api/token", []),
            ("//latest/api/token", []),
        ],
    )
    async def test_4_what_the_real_service_answers_403(self, port: PodsPort, path: str, headers: list[str]) -> None:
        answer = await port.get(path, method="PUT", headers=[f"{TTL}: 60", *headers])
        assert (answer.status, answer.body) == (403, b"")

    @pytest.mark.parametrize(
        "more", ["", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n"]
    )
    async def test_4_an_empty_body_may_be_declared_in_any_way(self, port: PodsPort, more: str) -> None:
        raw = f"PUT {TOKEN} HTTP/1.1\r\nHost: 169.254.169.254\r\n{TTL}: 60\r\n{more}\r\n"
        end = "0\r\n\r\n" if "chunked" in more else ""
        assert [answer.status for answer in await port.send((raw + end).encode())] == [200]

    async def test_5_a_token_is_of_no_use_to_another_pod(self, port: PodsPort) -> None:
        token = await port.token(OTHER)
        assert (await port.get("/", headers=[f"{HEADER}: {token}"], source=APP)).status == 401
        assert (await port.get("/", headers=[f"{HEADER}: {token}"], source=OTHER)).status == 200

    async def test_5_a_token_is_not_the_next_pods(self, port: PodsPort) -> None:
        token = await port.token(APP)
        was = pod(APP)
        port.index.remove_pod(was.uid)
        port.index.upsert_pod(replace(was, name="next", uid="uid-next", created=2.0))
        assert (await port.get("/", headers=[f"{HEADER}: {token}"])).status == 401

    async def test_5_a_token_survives_a_restart(self, tmp_path: Path) -> None:
        async with pods_port(str(tmp_path)) as before:
            token = await before.token()
        async with pods_port(str(tmp_path)) as after:
            assert (await after.get("/latest/meta-data/instance-id", headers=[f"{HEADER}: {token}"])).status == 200

    async def test_6_the_pods_token_stays_here_and_the_agents_own_goes_out(self, port: PodsPort) -> None:
        port.imds.tokens = "required"
        token = await port.token()
        for headers in ([f"{HEADER}: {token}"], []):
            assert (await port.get("/latest/meta-data/hostname", headers=headers)).status == 200
        assert token not in str(port.imds.received)

    async def test_6_a_401_of_the_real_service_is_not_the_pods(self, port: PodsPort) -> None:
        assert (await port.get("/latest/meta-data/hostname")).status == 200
        port.imds.valid.clear()
        assert (await port.get("/latest/meta-data/hostname")).status == 200

    @pytest.mark.parametrize(
        "path", ["/", "/latest/", "/latest/meta-data/instance-id", f"{LIST}/", "/latest/user-data"]
    )
    async def test_7_optional_means_none_or_a_good_one(self, port: PodsPort, path: str) -> None:
        answer = await port.get(path, headers=[f"{HEADER}: INVALID"])
        assert (answer.status, answer.body) == (401, b"")
        assert (await port.get(path)).status in {200, 404}

    @pytest.mark.parametrize("path", ["/", "/latest/meta-data/instance-id", f"{LIST}/", f"{LIST}/pod-role"])
    async def test_8_required_means_a_good_one(self, tmp_path: Path, path: str) -> None:
        async with pods_port(str(tmp_path), require_token=True) as strict:
            assert (await strict.get(path)).status == 401
            assert (await strict.get(path, headers=[f"{HEADER}: {await strict.token()}"])).status == 200

    async def test_8_a_namespace_may_require_it(self, port: PodsPort) -> None:
        assert (await port.get(f"{LIST}/", source=STRICT)).status == 401
        token = await port.token(STRICT)
        assert (await port.get(f"{LIST}/", source=STRICT, headers=[f"{HEADER}: {token}"])).body == b"pod-role"

    async def test_8_requests_without_a_token_are_counted(self, port: PodsPort) -> None:
        await port.get(f"{LIST}/")
        assert port.counted.v1 == ["shop"]

    async def test_9_a_forwarded_request_is_refused_only_with_a_token(self, port: PodsPort) -> None:
        forwarded = f"X-Forwarded-For: {OTHER}"
        assert (await port.get(f"{LIST}/", headers=[forwarded, f"{HEADER}: {await port.token()}"])).status == 403
        others = [forwarded, f"Forwarded: for={OTHER}", f"X-Real-IP: {OTHER}", f"Via: 1.1 {OTHER}"]
        assert (await port.get(f"{LIST}/", headers=others)).body == b"pod-role"


class TestCredentials:
    """Rules 10 to 25."""

    @pytest.mark.parametrize("path", [LIST, f"{LIST}/", f"{LIST}/pod-role", f"{LIST}/pod-role/"])
    async def test_10_with_and_without_a_slash(self, port: PodsPort, path: str) -> None:
        assert (await port.get(path)).status == 200

    @pytest.mark.parametrize("version", VERSIONS)
    async def test_11_every_version(self, port: PodsPort, version: str) -> None:
        assert (await port.get(f"/{version}/meta-data/iam/security-credentials/")).body == b"pod-role"

    async def test_12_the_listing_is_one_bare_line(self, port: PodsPort) -> None:
        answer = await port.get(f"{LIST}/")
        assert (answer.body, answer.headers["content-length"]) == (b"pod-role", "8")
        assert answer.headers["content-type"] == "text/plain"

    @pytest.mark.parametrize("path", [f"{LIST}/", f"{LIST}/x", "/latest/meta-data/iam/info", "/latest/user-data", "/x"])
    @pytest.mark.parametrize("source", [APP, PLAIN, FORBIDDEN, MALFORMED, NODE])
    async def test_13_errors_have_no_body(self, port: PodsPort, path: str, source: str) -> None:
        answer = await port.get(path, source=source)
        assert answer.status == 200 or answer.body == b""

    async def test_14_the_role_is_its_bare_name(self, port: PodsPort) -> None:
        assert (await port.get(f"{LIST}/", source=FOREIGN)).body == b"far-role"

    @pytest.mark.parametrize(
        ("source", "spelling"),
        [
            (APP, "pod-role"),
            (APP, "role/pod-role"),
            (APP, "arn:aws:iam::123456789012:role/pod-role"),
            (APP, "arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fpod-role"),
            (FOREIGN, "far-role"),
            (FOREIGN, "team/sub/far-role"),
            (FOREIGN, "role/team/sub/far-role"),
            (FOREIGN, "arn:aws:iam::999999999999:role/team/sub/far-role"),
            (FOREIGN, "team%2Fsub%2Ffar-role"),
            (ODD, "a%2Bb%2Cc%40d"),
            (ODD, "a+b,c@d"),
        ],
    )
    async def test_15_every_spelling_of_the_own_role(self, port: PodsPort, source: str, spelling: str) -> None:
        assert (await port.get(f"{LIST}/{spelling}", source=source)).status == 200

    @pytest.mark.parametrize("name", ["neighbour-role", "POD-ROLE", "pod-rol", "sub/far-role", "a%252Bb%252Cc%2540d"])
    async def test_15_16_any_other_name_is_403_and_never_looked_up(self, port: PodsPort, name: str) -> None:
        port.credentials.warm = False
        for source in (APP, FOREIGN, ODD):
            answer = await port.get(f"{LIST}/{name}", source=source)
            assert (answer.status, answer.body) == (403, b"")
        assert port.credentials.started == []

    async def test_16_a_changed_role_ends_the_old_name(self, port: PodsPort) -> None:
        port.index.upsert_pod(replace(pod(APP), annotations={"iam.amazonaws.com/role": "new-role"}))
        assert (await port.get(f"{LIST}/pod-role")).status == 403
        assert (await port.get(f"{LIST}/new-role")).status == 200

    async def test_17_seven_keys_in_order(self, port: PodsPort) -> None:
        answer = await port.get(f"{LIST}/pod-role")
        document = json.loads(answer.body)
        assert list(document) == [
            "Code",
            "LastUpdated",
            "Type",
            "AccessKeyId",
            "SecretAccessKey",
            "Token",
            "Expiration",
        ]
        assert (document["Code"], document["Type"]) == ("Success", "AWS-HMAC")
        for name in ("LastUpdated", "Expiration"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document[name])
        assert all(document.values())

    async def test_18_headers(self, port: PodsPort) -> None:
        for path in (f"{LIST}/", f"{LIST}/pod-role", "/latest/meta-data/instance-id", "/", "/latest/user-data"):
            headers = (await port.get(path)).headers
            assert headers["server"] == "EC2ws"
            assert headers["content-type"] == "text/plain"
            assert not {"transfer-encoding", "content-encoding", "set-cookie"} & set(headers)
            assert "content-length" in headers
        (old,) = await port.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert old.headers["connection"] == "close"

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [
            (Reason.STS_PENDING, 503),
            (Reason.STS_UNAVAILABLE, 500),
            (Reason.NODE_CREDENTIALS, 500),
            (Reason.STS_REFUSED, 403),
        ],
    )
    async def test_19_what_sts_says_is_for_the_credentials_path(
        self, port: PodsPort, refusal: Reason, status: int
    ) -> None:
        port.credentials.warm, port.credentials.refusal = False, refusal
        assert (await port.get(f"{LIST}/")).body == b"pod-role"
        answer = await port.get(f"{LIST}/pod-role")
        assert (answer.status, answer.body) == (status, b"")
        assert answer.headers["x-kube2iam-denied"] == refusal.code
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None)

    @pytest.mark.parametrize(
        ("source", "status"), [(PLAIN, 404), (FORBIDDEN, 403), (MALFORMED, 403), (NODE, 403), (STRANGER, 503)]
    )
    @pytest.mark.parametrize(
        "path", [f"{LIST}/", f"{LIST}/pod-role", "/latest/meta-data/iam/info", "/latest/meta-data/iam/"]
    )
    async def test_19_who_gets_nothing(self, port: PodsPort, source: str, status: int, path: str) -> None:
        answer = await port.get(path, source=source)
        assert (answer.status, answer.body) == (status, b"")
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None)

    async def test_20_nobody_waits_longer_than_clients_do(self, port: PodsPort) -> None:
        port.credentials.warm, port.credentials.refusal = False, Reason.STS_PENDING
        outcomes = await asyncio.gather(
            seconds(port, f"{LIST}/pod-role", APP),
            seconds(port, f"{LIST}/", STRANGER),
            seconds(port, "/latest/meta-data/instance-id", STRANGER),
            seconds(port, "/", STRANGER),
        )
        assert [status for status, _ in outcomes] == [503, 503, 503, 200]
        assert all(0.7 < took < 1.0 for _, took in outcomes[:3])
        assert outcomes[3][1] < 0.5

    async def test_20_a_pod_that_becomes_known_is_answered_at_once(self, port: PodsPort) -> None:
        late = replace(pod(APP), ips=(STRANGER,), uid="uid-late")
        asking = asyncio.create_task(seconds(port, f"{LIST}/", STRANGER))
        asyncio.get_running_loop().call_later(0.3, port.index.upsert_pod, late)
        status, took = await asking
        assert status == 200
        assert 0.25 < took < 0.7

    async def test_24_the_profile_is_the_pods_own(self, port: PodsPort) -> None:
        document = json.loads((await port.get("/latest/meta-data/iam/info", source=FOREIGN)).body)
        assert list(document) == ["Code", "LastUpdated", "InstanceProfileArn", "InstanceProfileId"]
        assert document["Code"] == "Success"
        assert document["InstanceProfileArn"] == "arn:aws:iam::999999999999:instance-profile/team/sub/far-role"
        assert re.fullmatch(r"AIPA[A-Z2-7]{17}", document["InstanceProfileId"])

    async def test_25_the_iam_directory(self, port: PodsPort) -> None:
        assert (await port.get("/latest/meta-data/iam/")).body == b"info\nsecurity-credentials/"
        for path in ("", "/ec2/info", "/ec2/security-credentials/ec2-instance"):
            assert (await port.get(f"/latest/meta-data/identity-credentials{path}")).status == 404


class TestPassThrough:
    """Rules 26 to 32."""

    async def test_26_only_the_canonical_path_leaves(self, port: PodsPort) -> None:
        await port.get("//2009-04-04//meta-data///hostname//?x=/latest/user-data", headers=["X-Evil: 1", "Cookie: a"])
        (received,) = [request for request in port.imds.received if request.method == "GET"]
        assert received.target == "/latest/meta-data/hostname"
        assert not {"x-evil", "cookie"} & set(received.headers)

    @pytest.mark.parametrize(
        "path", ["/", "/latest/meta-data/instance-id", f"{LIST}/", f"{LIST}/pod-role", "/latest/user-data"]
    )
    async def test_27_head_is_get_without_a_body(self, port: PodsPort, path: str) -> None:
        get, head = await port.get(path), await port.get(path, method="HEAD")
        ignored = {"date"}
        assert head.status == get.status
        assert {name: value for name, value in head.headers.items() if name not in ignored} == {
            name: value for name, value in get.headers.items() if name not in ignored
        }
        said = await port.everything(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
        assert said.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PUT", "PROPFIND"])
    @pytest.mark.parametrize("path", ["/latest/meta-data/instance-id", f"{LIST}/pod-role", "/latest/user-data", "/"])
    async def test_27_other_methods(self, port: PodsPort, method: str, path: str) -> None:
        answer = await port.get(path, method=method)
        assert (answer.status, answer.body) == (405, b"")
        assert answer.headers["allow"] == "GET, HEAD"

    @pytest.mark.parametrize("path", [TOKEN, f"{TOKEN}/", "/2021-03-23/api/token"])
    async def test_27_the_token_is_not_for_reading(self, port: PodsPort, path: str) -> None:
        assert (await port.get(path)).status == 404

    @pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 429, 500, 503])
    async def test_30_nothing_of_an_error_passes(self, port: PodsPort, status: int) -> None:
        port.imds.status = status
        answer = await port.get("/latest/meta-data/hostname")
        assert (answer.status, answer.body, answer.headers["retry-after"]) == (503, b"", "1")
        assert "location" not in answer.headers

    async def test_30_the_real_service_may_be_slow_or_away(self, port: PodsPort) -> None:
        port.imds.delay = 60
        status, took = await seconds(port, "/latest/meta-data/hostname", APP)
        assert status == 503
        assert took < 0.95

    async def test_30_a_listing_shows_what_may_be_had(self, port: PodsPort) -> None:
        with_role = (await port.get("/latest/meta-data/")).body.decode().split("\n")
        without = (await port.get("/latest/meta-data", source=PLAIN)).body.decode().split("\n")
        assert set(with_role) - set(without) == {"iam/"}
        assert not {"identity-credentials/", "public-keys/", "managed-ssh-keys/", "tags/"} & set(with_role)
        assert {"instance-id", "placement/", "network/"} <= set(with_role)
        for entry in without:
            assert (await port.get(f"/latest/meta-data/{entry}", source=PLAIN)).status == 200

    async def test_30_a_listing_without_end_is_cut(self, tmp_path: Path) -> None:
        async with pods_port(str(tmp_path), allow=["meta-data/tags/.*"], deny=["meta-data/tags/instance/b.*"]) as port:
            port.imds.extra = {"meta-data/tags/instance": "\n".join(["a"] * 1000 + ["bad"] * 500)}
            assert (await port.get("/latest/meta-data/tags/instance/")).body.split(b"\n") == [b"a"] * 1000

    async def test_30_a_long_value_is_whole(self, tmp_path: Path) -> None:
        async with pods_port(str(tmp_path), allow=["user-data"]) as port:
            port.imds.extra = {"user-data": "\n".join(["echo"] * 3000)}
            assert (await port.get("/latest/user-data")).body == b"\n".join([b"echo"] * 3000)

    async def test_31_the_way_to_the_listings(self, port: PodsPort) -> None:
        assert (await port.get("/")).body.decode().split("\n") == list(VERSIONS)
        assert (await port.get("/latest")).body == (await port.get("/latest/")).body == b"dynamic\nmeta-data"
        assert (await port.get("/latest/dynamic/")).body == b"instance-identity/"
        assert (await port.get("/latest/dynamic/instance-identity/")).status == 404

    async def test_32_the_flags_adjust_the_rows(self, tmp_path: Path) -> None:
        allow = ["meta-data/tags/.*", "user-data", "meta-data/.*"]
        async with pods_port(str(tmp_path), allow=allow, deny=["meta-data/events/.*"]) as port:
            assert (await port.get("/latest/meta-data/tags/instance/Name")).body == b"canary-tag"
            assert (await port.get("/latest/user-data")).body == b"canary-user-data"
            assert (await port.get("/latest/")).body == b"dynamic\nmeta-data\nuser-data"
            assert (await port.get("/latest/meta-data/identity-credentials/ec2/info")).status == 404
            assert (await port.get("/latest/meta-data/events/maintenance/scheduled")).status == 404
            listing = (await port.get("/latest/meta-data/")).body.decode().split("\n")
            assert {"tags/", "public-keys/", "iam/"} <= set(listing)
            assert not {"events/", "identity-credentials/", "managed-ssh-keys/"} & set(listing)
            assert (await port.get(f"{LIST}/")).body == b"pod-role"


class TestHttp:
    """Rules 33 to 39."""

    @pytest.mark.parametrize(
        ("raw", "statuses"),
        [
            (GET.format(path="/" + "a" * 9000, more=""), [414]),
            (GET.format(path="/", more="X: " + "a" * 17_000 + "\r\n"), [431]),
            (GET.format(path="/", more="".join(f"X-{n}: 1\r\n" for n in range(70))), [431]),
            (f"PUT {TOKEN} HTTP/1.1\r\nHost: 169.254.169.254\r\n{TTL}: 60\r\nContent-Length: 2000\r\n\r\n", [413]),
        ],
    )
    async def test_33_sizes(self, port: PodsPort, raw: str, statuses: list[int]) -> None:
        said = await port.everything(raw.encode())
        assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", said)] == statuses
        assert b"Connection: close\r\n" in said

    @pytest.mark.parametrize(
        "more",
        [
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 0\r\nContent-Length: 0\r\n",
            "Content-Length: 1x\r\n",
            "Transfer-Encoding: gzip\r\n",
            "X: a\r\n b\r\n",
            "X: a\nY: b\r\n",
            "X : a\r\n",
            "Host: 169.254.169.254\r\n",
            "Content-Length: 3\r\n",
        ],
    )
    async def test_34_what_two_readers_may_read_differently(self, port: PodsPort, more: str) -> None:
        hidden = GET.format(path="/latest/", more="")
        said = await port.everything((GET.format(path="/", more=more) + hidden).encode())
        assert re.findall(rb"HTTP/1\.1 (\d+) ", said) == [b"400"]

    async def test_34_a_request_without_a_host(self, port: PodsPort) -> None:
        assert [answer.status for answer in await port.send(b"GET / HTTP/1.1\r\n\r\n")] == [400]
        assert [answer.status for answer in await port.send(b"GET / HTTP/1.0\r\n\r\n")] == [200]

    async def test_35_nothing_is_upgraded(self, port: PodsPort) -> None:
        said = await port.everything(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert said == b"" or said.startswith(b"HTTP/1.1 400 ")
        for more in ("Upgrade: h2c\r\nConnection: Upgrade\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n"):
            said = await port.everything((GET.format(path="/", more=more)).encode())
            assert said.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("169.254.169.254", 200),
            ("169.254.169.254:80", 200),
            ("[fd00:ec2::254]", 200),
            ("[fd00:ec2::254]:80", 200),
            ("instance-data", 200),
            ("instance-data.ec2.internal", 200),
            ("evil.example", 403),
            ("127.0.0.1", 403),
            ("169.254.169.254:8080", 403),
        ],
    )
    async def test_36_hosts(self, port: PodsPort, host: str, status: int) -> None:
        raw = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        assert [answer.status for answer in await port.send(raw)] == [status]

    @pytest.mark.parametrize("path", ["/healthz", "/metrics", "/livez", "/readyz?verbose", "/debug/store", "/status"])
    async def test_37_operators_pages_are_not_for_pods(self, port: PodsPort, path: str) -> None:
        assert (await port.get(path)).status == 404

    async def test_38_two_claimants_get_nothing(self, port: PodsPort) -> None:
        port.index.upsert_pod(replace(pod(APP), name="twin", uid="uid-twin", created=2.0))
        assert (await port.get(f"{LIST}/")).status == 503

    async def test_38_pod_and_decision_are_found_anew_on_one_connection(self, port: PodsPort) -> None:
        request = GET.format(path=f"{LIST}/", more="").encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, local_addr=(APP, 0))
        writer.write(request)
        first = await reader.readuntil(b"pod-role")
        port.index.remove_pod(pod(APP).uid)
        port.index.upsert_pod(replace(pod(APP), name="next", uid="uid-next", created=2.0, annotations=None))
        writer.write(request)
        second = await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        assert first.startswith(b"HTTP/1.1 200 ")
        assert second.startswith(b"HTTP/1.1 404 ")

    async def test_39_who_is_no_pod_of_this_node_sees_nothing_of_it(self, port: PodsPort) -> None:
        for source in (NODE, STRANGER):
            answer = await port.get("/latest/meta-data/instance-id", source=source)
            assert (answer.status, answer.body) == (403 if source == NODE else 503, b"")
        assert port.imds.paths() == []


async def test_no_reply_to_anyone_holds_a_canary(port: PodsPort) -> None:
    """All of the above at once: whatever is asked, from whatever address, in a world full of secrets."""
    paths = [
        f"{LIST}/",
        f"{LIST}/pod-role",
        "/latest/meta-data/",
        "/latest/dynamic/",
        "/latest/meta-data/iam/info",
        "/",
    ]
    said = b""
    for source in (APP, PLAIN, FORBIDDEN, FOREIGN, MALFORMED, NODE):
        for path in paths:
            said += (await port.get(path, source=source)).raw
    assert not any(canary.encode() in said for canary in CANARIES)

"""The SDK against moto's STS and against one that fails in every way, over real sockets."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.utils import get_environ_proxies

from kube2iam.domain.errors import Reason
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import TIMEOUTS, Fault, Kind, StsError
from kube2iam.sts.gate import SHORT
from kube2iam.sts.intermediate import IntermediateRole
from kube2iam.sts.keys import Keys
from kube2iam.sts.source import StsSource
from tests.fakes.aws import Answer, Form, HttpSts, granted, http_sts, moto_sts, refusal, use_keys
from tests.fakes.certificates import Authority
from tests.fakes.sts import request, requests

APP = request()


async def eu_west_1() -> str:
    return "eu-west-1"


async def nowhere() -> str:
    raise AssertionError("nobody is to ask the metadata service")


@asynccontextmanager
async def opened(region: str = "eu-west-1", **options: object) -> AsyncIterator[StsSource]:
    source = StsSource(region=region, discover_region=nowhere, **options)  # type: ignore[arg-type]
    await source.open()
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpSts]:
    with http_sts() as server:
        use_keys(monkeypatch, server.url)
        yield server


class TestAgainstMoto:
    async def test_a_role_session(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with moto_sts() as url:
            use_keys(monkeypatch, url)
            async with opened() as source:
                credentials = await source.fetch(request(duration=900), 5)
                assert re.fullmatch("ASIA[A-Z0-9]{16}", credentials.access_key_id)
                assert credentials.token
                assert 890 <= credentials.remaining(time.time()) <= 901
                assert abs(credentials.issued - time.time()) < 5
                assert await source.caller() == "arn:aws:sts::123456789012:user/moto"
                async with opened(signer=Given(credentials)) as assumed:
                    assert await assumed.caller() == "arn:aws:sts::123456789012:assumed-role/app/node-1"


@dataclass(frozen=True)
class Given:
    """Signs with the credentials of a role's session."""

    session: Credentials

    async def keys(self) -> Keys:
        return Keys(self.session.access_key_id, self.session.secret_access_key, self.session.token)

    def distrust(self, keys: Keys) -> bool:
        return False

    def explain(self, refused: Fault) -> Fault:
        return refused


class TestWhatIsAsked:
    async def test_every_field_of_the_request(self, sts: HttpSts) -> None:
        whole = replace(
            APP,
            external_id="right",
            source_identity="node-1",
            policy_arns=("arn:aws:iam::aws:policy/ReadOnlyAccess",),
            tags=(("kubernetes-namespace", "shop"), ("team", "böse & co")),
            transitive_tag_keys=("team",),
        )
        async with opened() as source:
            await source.fetch(whole, 5)
        (form,) = sts.forms
        assert form == {
            "Action": "AssumeRole",
            "Version": "2011-06-15",
            "RoleArn": str(APP.arn),
            "RoleSessionName": "node-1",
            "DurationSeconds": "3600",
            "ExternalId": "right",
            "SourceIdentity": "node-1",
            "PolicyArns.member.1.arn": "arn:aws:iam::aws:policy/ReadOnlyAccess",
            "Tags.member.1.Key": "kubernetes-namespace",
            "Tags.member.1.Value": "shop",
            "Tags.member.2.Key": "team",
            "Tags.member.2.Value": "böse & co",
            "TransitiveTagKeys.member.1": "team",
        }

    async def test_signed_for_the_region_with_the_nodes_keys(self, sts: HttpSts) -> None:
        async with opened("us-gov-west-1") as source:
            await source.fetch(APP, 5)
        assert "Credential=AKIANODE/" in sts.headers[0]["authorization"]
        assert "/us-gov-west-1/sts/" in sts.headers[0]["authorization"]


FIPS_AND_DUALSTACK = {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"}


class TestEndpoints:
    @pytest.mark.parametrize(
        ("region", "environment", "endpoint"),
        [
            ("eu-central-1", {}, "https://sts.eu-central-1.amazonaws.com"),
            ("us-east-1", {}, "https://sts.us-east-1.amazonaws.com"),
            ("cn-north-1", {}, "https://sts.cn-north-1.amazonaws.com.cn"),
            ("us-gov-west-1", {}, "https://sts.us-gov-west-1.amazonaws.com"),
            ("us-iso-east-1", {}, "https://sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", {}, "https://sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eu-isoe-west-1", {}, "https://sts.eu-isoe-west-1.cloud.adc-e.uk"),
            ("us-isof-south-1", {}, "https://sts.us-isof-south-1.csp.hci.ic.gov"),
            ("eu-west-1", {"AWS_STS_REGIONAL_ENDPOINTS": "legacy"}, "https://sts.eu-west-1.amazonaws.com"),
            ("us-west-2", {"AWS_USE_FIPS_ENDPOINT": "true"}, "https://sts-fips.us-west-2.amazonaws.com"),
            ("us-west-2", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "https://sts.us-west-2.api.aws"),
            ("us-west-2", FIPS_AND_DUALSTACK, "https://sts-fips.us-west-2.api.aws"),
            ("us-gov-west-1", {"AWS_USE_FIPS_ENDPOINT": "true"}, "https://sts.us-gov-west-1.amazonaws.com"),
            ("us-gov-west-1", FIPS_AND_DUALSTACK, "https://sts-fips.us-gov-west-1.api.aws"),
            (
                "cn-north-1",
                {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
                "https://sts.cn-north-1.api.amazonwebservices.com.cn",
            ),
            ("eusc-de-east-1", {}, "https://sts.eusc-de-east-1.amazonaws.eu"),
            (
                "us-west-2",
                {"AWS_ENDPOINT_URL_STS": "https://vpce-0a1b2c-sts.us-west-2.vpce.amazonaws.com"},
                "https://vpce-0a1b2c-sts.us-west-2.vpce.amazonaws.com",
            ),
        ],
    )
    async def test_regional_in_every_partition_and_as_the_environment_says(
        self, monkeypatch: pytest.MonkeyPatch, region: str, environment: dict[str, str], endpoint: str
    ) -> None:
        use_keys(monkeypatch, "")
        monkeypatch.delenv("AWS_ENDPOINT_URL_STS")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        async with opened(region) as source:
            assert await asked_at(source) == endpoint

    @pytest.mark.parametrize(
        ("flag", "environment", "region"),
        [
            ("eu-west-3", {"AWS_REGION": "us-east-2"}, "eu-west-3"),
            ("", {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-east-1"}, "us-east-2"),
            ("", {"AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
            ("", {}, "eu-west-1"),
            ("", {"AWS_REGION": "aws-global", "AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
            ("", {"AWS_DEFAULT_REGION": "aws-cn-global"}, "eu-west-1"),
            ("", {"AWS_REGION": " us-east-2\n"}, "us-east-2"),
            ("", {"AWS_REGION": " "}, "eu-west-1"),
            ("", {"AWS_REGION": "us-east-2b"}, "eu-west-1"),
        ],
    )
    async def test_the_region_comes_from_flag_environment_or_metadata(
        self, monkeypatch: pytest.MonkeyPatch, flag: str, environment: dict[str, str], region: str
    ) -> None:
        use_keys(monkeypatch, "")
        monkeypatch.delenv("AWS_ENDPOINT_URL_STS")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        source = StsSource(region=flag, discover_region=eu_west_1)
        await source.open()
        assert await asked_at(source) == f"https://sts.{region}.amazonaws.com"
        source.close()


async def test_a_region_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_keys(monkeypatch, "http://nowhere.test")
    monkeypatch.setenv("AWS_REGION", "aws-global")
    source = StsSource(discover_region=eu_west_1)
    await source.open()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "no region" in record.message
    assert vars(record)["sts.region"] == "aws-global"
    source.close()


async def test_and_that_once_however_long_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_keys(monkeypatch, "http://nowhere.test")
    monkeypatch.setenv("AWS_REGION", "us-east-1a")
    asked = 0

    async def discover() -> str:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OSError("refused")
        return "eu-west-1"

    source = StsSource(discover_region=discover)
    await source.open()
    assert [record.message[:8] for record in caplog.records] == ["not used", "the STS "]
    source.close()


async def test_without_a_region_it_says_so_and_asks_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_keys(monkeypatch, "http://nowhere.test")
    answers: list[str | Exception] = [OSError("refused"), OSError("refused"), OSError("away"), "eu-west-1"]

    async def discover() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            assert source.trouble == "the STS client is not made yet" or len(answers) < 3
            raise answer
        return answer

    source = StsSource(discover_region=discover)
    await source.open()
    assert [vars(record)["error"] for record in caplog.records] == ["OSError: refused", "OSError: away"]
    assert source.trouble == "the STS client cannot be made yet: OSError: away"
    source.close()


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("exceptions", ["", "127.0.0.1,169.254.0.0/16", "*"])
async def test_no_proxy_is_asked_for_the_nodes_own_credentials(
    monkeypatch: pytest.MonkeyPatch, variable: str, exceptions: str
) -> None:
    """It would answer with its own: the SDK asks the metadata service through it, and understands no CIDR."""
    use_keys(monkeypatch, "http://nowhere.test")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv(variable, exceptions)
    for _twice in range(2):
        async with opened():
            for address in ("169.254.169.254", "[fd00:ec2::254]"):
                assert get_environ_proxies(f"http://{address}/latest/api/token") == {}
            assert bool(get_environ_proxies("http://sts.test/")) is (exceptions != "*")
        assert len(os.environ[variable]) < 80


async def asked_at(source: StsSource) -> str:
    """The URL that a call would go to, resolved by the SDK for the call itself."""
    urls: list[str] = []

    def note(request: Any, **_rest: object) -> None:
        urls.append(request.url.rstrip("/"))
        raise ValueError("not sent")

    source._client.meta.events.register("before-send.sts", note)
    with pytest.raises(StsError):
        await source.fetch(APP, 5)
    return urls[0]


GARBAGE = "<html><body>proxy says hello</body></html>"
NO_TOKEN = granted({"RoleArn": "x"})[1].replace("<SessionToken>made-up-token</SessionToken>", "")
LONG_TOKEN = granted({"RoleArn": "x"})[1].replace("made-up-token", "t" * 40_000)
BAD_DATE = re.sub("<Expiration>.*</Expiration>", "<Expiration>soon</Expiration>", granted({"RoleArn": "x"})[1])


ANSWERS: list[tuple[Answer | None, str, Kind]] = [
    (refusal("AccessDenied", 403), "AccessDenied", Kind.REFUSED),
    (refusal("ValidationError"), "ValidationError", Kind.REFUSED),
    (refusal("MalformedPolicyDocument"), "MalformedPolicyDocument", Kind.REFUSED),
    (refusal("PackedPolicyTooLarge"), "PackedPolicyTooLarge", Kind.REFUSED),
    (refusal("RegionDisabledException", 403), "RegionDisabledException", Kind.REFUSED),
    (refusal("SomethingNew", 418), "SomethingNew", Kind.REFUSED),
    (refusal("ExpiredToken", 403), "ExpiredToken", Kind.NODE),
    (refusal("InvalidClientTokenId", 403), "InvalidClientTokenId", Kind.NODE),
    (refusal("SignatureDoesNotMatch", 403), "SignatureDoesNotMatch", Kind.NODE),
    (refusal("Throttling", 400), "Throttling", Kind.THROTTLED),
    (refusal("ServiceUnavailable", 503), "ServiceUnavailable", Kind.UNAVAILABLE),
    (refusal("SomethingNew", 500), "SomethingNew", Kind.UNAVAILABLE),
    ((503, ""), "503", Kind.UNAVAILABLE),
    ((403, GARBAGE), "403", Kind.UNAVAILABLE),
    ((407, "Proxy Authentication Required"), "407", Kind.UNAVAILABLE),
    ((403, "<html><p>unclosed"), "403", Kind.UNAVAILABLE),
    ((429, "slow down"), "429", Kind.THROTTLED),
    ((502, '{"message": "Bad Gateway"}'), "502", Kind.UNAVAILABLE),
    ((404, "<ErrorResponse><Error><Message>no</Message></Error></ErrorResponse>"), "404", Kind.UNAVAILABLE),
    ((429, GARBAGE), "429", Kind.THROTTLED),
    ((200, GARBAGE), "MalformedResponse", Kind.UNAVAILABLE),
    ((200, ""), "ResponseParserError", Kind.UNAVAILABLE),
    ((200, "<a>" * 400_000), "MalformedResponse", Kind.UNAVAILABLE),
    ((400, "<Error/>" + " " * 1_200_000), "400", Kind.UNAVAILABLE),
    ((200, NO_TOKEN), "MalformedResponse", Kind.UNAVAILABLE),
    ((200, LONG_TOKEN), "MalformedResponse", Kind.UNAVAILABLE),
    ((200, BAD_DATE), "MalformedResponse", Kind.UNAVAILABLE),
    (None, "ConnectionClosedError", Kind.UNAVAILABLE),
]


def always(answer: Answer | None, _form: Form) -> Answer | None:
    return answer


class TestFaults:
    async def test_each_answer_is_named(self, sts: HttpSts) -> None:
        async with opened() as source:
            for answer, code, kind in ANSWERS:
                sts.script = partial(always, answer)
                with pytest.raises(StsError) as raised:
                    await source.fetch(APP, 5)
                assert (raised.value.fault.code, raised.value.fault.kind) == (code, kind), answer

    async def test_the_text_of_sts_is_not_repeated(self, sts: HttpSts) -> None:
        sts.script = lambda _form: refusal("SignatureDoesNotMatch", 403, "canonical string with a-secret-token")
        async with opened() as source:
            with pytest.raises(StsError) as raised:
                await source.fetch(APP, 5)
        assert "a-secret-token" not in f"{raised.value} {raised.value.fault}"

    async def test_too_slow_is_given_up_in_time(self, sts: HttpSts) -> None:
        sts.delay = lambda _form: 3
        async with opened() as source:
            begun = time.monotonic()
            with pytest.raises(StsError, match="in time"):
                await source.fetch(APP, 1)
            assert time.monotonic() - begun < 1.9

    async def test_nobody_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        use_keys(monkeypatch, f"http://127.0.0.1:{port}")
        async with opened() as source:
            with pytest.raises(StsError, match="EndpointConnectionError: no connection"):
                await source.fetch(APP, 5)

    async def test_the_name_cannot_be_resolved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_keys(monkeypatch, "http://nowhere.test")
        async with opened() as source:
            with pytest.raises(StsError) as raised:
                await source.fetch(APP, 5)
        assert raised.value.fault.code in {"NameResolutionError", "Timeout"}, "the latter where DNS itself is away"

    async def test_settings_that_make_no_client_are_said_and_tried_again(
        self, sts: HttpSts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://user:a@secret@not a url")
        source = StsSource(region="eu-west-1", discover_region=nowhere)
        opening = asyncio.create_task(source.open())
        while not caplog.records:
            await asyncio.sleep(0.01)
        assert "//…@not a url" in str(vars(caplog.records[0])["error"])
        assert "secret" not in source.trouble
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        await opening
        assert (await source.fetch(APP, 5)).token
        source.close()

    async def test_tls_of_an_unknown_authority_and_then_a_known_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        authority = Authority(tmp_path)
        with http_sts(tls=authority.server()) as server:
            use_keys(monkeypatch, server.url)
            async with opened() as source:
                with pytest.raises(StsError, match=r"SSLError.*AWS_CA_BUNDLE"):
                    await source.fetch(APP, 5)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
            async with opened() as source:
                assert (await source.fetch(APP, 5)).token


class TestOwnKeys:
    async def test_none_at_all_is_the_nodes_trouble(self, sts: HttpSts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        async with opened() as source:
            with pytest.raises(StsError, match="NoCredentialsError") as raised:
                await source.fetch(APP, 5)
            assert raised.value.fault.denial.reason is Reason.NODE_CREDENTIALS
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIALATER")
            assert (await source.fetch(APP, 5)).token

    async def test_keys_that_sts_calls_expired_are_loaded_anew_and_tried_once_more(
        self, sts: HttpSts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def script(form: Form) -> Answer:
            old = "AKIANODE" in sts.headers[-1]["authorization"]
            return refusal("ExpiredToken", 403) if old else granted(form)

        async with opened() as source:
            await source.fetch(APP, 5)
            sts.script = script
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANEXT")
            assert (await source.fetch(APP, 5)).token
        assert len(sts.forms) == 3

    async def test_keys_that_stay_bad_are_not_loaded_for_every_call(self, sts: HttpSts) -> None:
        sts.script = lambda _form: refusal("InvalidClientTokenId", 403)
        async with opened() as source:
            for _ask in range(5):
                with pytest.raises(StsError):
                    await source.fetch(APP, 5)
        assert len(sts.forms) == 6

    async def test_a_source_that_does_not_answer_is_the_nodes_trouble(self, sts: HttpSts) -> None:
        class Silent:
            async def keys(self) -> Keys:
                await asyncio.Event().wait()
                raise AssertionError("nobody set it")

            def distrust(self, keys: Keys) -> bool:
                return keys.token is None

            def explain(self, refused: Fault) -> Fault:
                return refused

        async with opened(signer=Silent()) as source:
            with pytest.raises(StsError, match="cannot be loaded") as raised:
                await source.fetch(APP, SHORT + 0.1)
            assert raised.value.fault.kind is Kind.NODE
            with pytest.raises(StsError, match="no keys") as raised:
                await source.fetch(APP, SHORT)
            assert raised.value.fault.code in TIMEOUTS, "it is asked again with more time"
        assert sts.forms == []


class TestIntermediateRole:
    async def test_pods_roles_are_assumed_with_its_keys(self, sts: HttpSts) -> None:
        broker = request("broker")
        async with between(broker) as (source, middle):
            assert (await source.fetch(APP, 5)).token
            assert middle.trouble is None
        assert [form["RoleArn"] for form in sts.forms] == [str(broker.arn), str(APP.arn)]
        assert "Credential=ASIA" in sts.headers[1]["authorization"]
        assert sts.headers[1]["x-amz-security-token"] == "made-up-token"

    async def test_if_it_is_refused_that_is_the_nodes_trouble(self, sts: HttpSts) -> None:
        sts.script = lambda _form: refusal("AccessDenied", 403)
        async with between(request("broker")) as (source, middle):
            with pytest.raises(StsError, match=r"AccessDenied: the intermediate role .*broker") as raised:
                await source.fetch(APP, 5)
            assert raised.value.fault.kind is Kind.NODE
            assert middle.trouble == raised.value.fault.denial

    async def test_what_is_known_of_the_failure_is_said(self, sts: HttpSts) -> None:
        sts.script = lambda _form: (403, GARBAGE)
        async with between(request("broker")) as (source, _middle):
            with pytest.raises(
                StsError, match=r"403: the intermediate role .*broker.* a proxy, answers with HTTP status 403"
            ):
                await source.fetch(APP, 5)

    async def test_a_cold_node_bears_a_slow_one(self, sts: HttpSts, caplog: pytest.LogCaptureFixture) -> None:
        """More roles than there are places for slow calls: none is told that the node's credentials are bad."""
        sts.delay = lambda form: 1.5 if form["RoleArn"].endswith("broker") else 0.0
        loop = asyncio.get_running_loop()
        async with between(request("broker")) as (source, _middle):
            cache = CredentialCache(source)
            task = asyncio.create_task(cache.run())
            await cache.ready.wait()
            given = await asyncio.gather(*(cache.get(role, loop.time() + 5) for role in requests(60)))
            task.cancel()
            await asyncio.wait({task})
        assert len(given) == 60
        assert caplog.records == []

    async def test_a_session_that_sts_does_not_know_any_more_is_obtained_anew(self, sts: HttpSts) -> None:
        """Sessions of the intermediate role are numbered; calls with one that is `revoked` fail."""
        revoked: set[str] = set()

        def script(form: Form) -> Answer:
            status, text = granted(form)
            if form["RoleArn"] == str(broker.arn):
                return status, re.sub("ASIA[0-9]{16}", f"ASIA{len(sts.forms):016}", text)
            return refusal("InvalidClientTokenId", 403) if signed_with(sts) in revoked else (status, text)

        now = 100.0
        broker = request("broker")
        sts.script = script
        async with between(broker, monotonic=lambda: now) as (source, middle):
            await source.fetch(APP, 5)
            revoked.add(signed_with(sts))
            assert (await source.fetch(APP, 5)).token
            assert [form["RoleArn"] for form in sts.forms].count(str(broker.arn)) == 2
            revoked.add(signed_with(sts))
            with pytest.raises(StsError, match=r"InvalidClientTokenId: .*session of the intermediate role .*broker"):
                await source.fetch(APP, 5)
            assert [form["RoleArn"] for form in sts.forms].count(str(broker.arn)) == 2, "every five seconds at most"
            now += 6
            assert (await source.fetch(APP, 5)).token
            assert middle.trouble is None

    async def test_all_calls_that_were_out_with_a_refused_session_are_made_again(self, sts: HttpSts) -> None:
        async with between(request("broker")) as (_source, middle):
            refused = await middle.keys()
            assert [middle.distrust(refused) for _call in range(3)] == [True] * 3
            await middle.keys()
            assert len(sts.forms) == 2

    async def test_who_still_uses_the_old_session_is_given_the_new_one(self, sts: HttpSts) -> None:
        async with between(request("broker")) as (_source, middle):
            keys = await middle.keys()
            assert middle.distrust(Keys("ASIAOLD", "made-up"))
            assert await middle.keys() == keys
            assert len(sts.forms) == 1


def signed_with(sts: HttpSts) -> str:
    """The access key of the last call."""
    return sts.headers[-1]["authorization"].partition("Credential=")[2].partition("/")[0]


@asynccontextmanager
async def between(broker: AssumeRoleRequest, **options: Any) -> AsyncIterator[tuple[StsSource, IntermediateRole]]:
    """A source that signs with the session of `broker`, which the agent's own keys assume."""
    async with opened() as own:
        middle = IntermediateRole(CredentialCache(own), broker, **options)
        task = asyncio.create_task(middle.run())
        async with opened(signer=middle) as source:
            yield source, middle
        task.cancel()
        await asyncio.wait({task})


class TestSlowAnswers:
    @pytest.mark.parametrize("closes", [False, True])
    async def test_nobody_stays_on_the_line_for_those_that_trickle(self, sts: HttpSts, closes: bool) -> None:
        sts.closes = closes
        sts.trickles = lambda form: form["RoleArn"] != str(APP.arn)
        async with opened(calls=4) as source:
            await source.fetch(APP, 5)
            for _round in range(3):
                ended = await asyncio.gather(*(trickled(source, role) for role in requests(4)))
                assert ended == ["Timeout"] * 4
            assert (await source.fetch(APP, 5)).token
            while sts.trickling:
                await asyncio.sleep(0.01)

    async def test_nor_during_the_handshake(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with silent_server() as (url, gone):
            use_keys(monkeypatch, url)
            async with opened(calls=1) as source:
                for _call in range(4):
                    assert await trickled(source, APP) == "Timeout"
                await gone.wait()

    async def test_over_tls(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        with http_sts(tls=authority.server()) as server:
            use_keys(monkeypatch, server.url)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
            async with opened(calls=4) as source:
                await source.fetch(APP, 5)
                server.trickles = lambda _form: True
                assert await asyncio.gather(*(trickled(source, role) for role in requests(4))) == ["Timeout"] * 4
                while server.trickling:
                    await asyncio.sleep(0.01)

    async def test_those_that_take_over_a_second_hold_half_of_the_places(self, sts: HttpSts) -> None:
        slow = requests(64)
        sts.delay = lambda form: 0.01 if form["RoleArn"] == str(APP.arn) else 8.0
        async with opened() as source:
            cache = CredentialCache(source)
            task = asyncio.create_task(cache.run())
            await cache.ready.wait()
            cache.want(slow)
            begun = time.monotonic()
            while len(sts.forms) < 64:
                await asyncio.sleep(0.01)
            assert cache.in_flight == 64
            while cache.in_flight > 32:
                await asyncio.sleep(0.01)
            assert time.monotonic() - begun < 1.9
            assert (await cache.get(APP, asyncio.get_running_loop().time() + 0.8)).token
            assert cache.in_flight == 32
            task.cancel()
            await asyncio.wait({task})


async def trickled(source: StsSource, role: AssumeRoleRequest) -> str:
    """The fault's code of a call that is given 0.3 s."""
    with pytest.raises(StsError) as raised:
        await source.fetch(role, 0.3)
    return raised.value.fault.code


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The https URL of a server that never says anything, and an event: four clients came and are gone again."""
    gone = asyncio.Event()
    left = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        await reader.read()
        writer.close()
        left += 1
        if left == 4:
            gone.set()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", gone


class TestHerd:
    async def test_110_roles_over_real_sockets(self, sts: HttpSts) -> None:
        """How fast is measured by `make bench`. A busy machine may need a second call beyond the 32 long ones."""
        sts.delay = lambda _form: 0.1
        async with opened() as source:
            cache = CredentialCache(source)
            task = asyncio.create_task(cache.run())
            await cache.ready.wait()
            deadline = asyncio.get_running_loop().time() + 20
            given = await asyncio.gather(*(cache.get(role, deadline) for role in requests(110) for _pod in range(3)))
            task.cancel()
            await asyncio.wait({task})
        assert len(given) == 330
        assert len({form["RoleArn"] for form in sts.forms}) == 110
        assert len(sts.forms) <= 110 + 32

    async def test_the_loop_turns_while_the_sdk_works(self, sts: HttpSts) -> None:
        sts.delay = lambda _form: 0.1
        async with opened() as source:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0.001)
                    turns += 1

            counting = asyncio.create_task(count())
            await asyncio.gather(*(source.fetch(role, 5) for role in requests(20)))
            counting.cancel()
        assert turns > 10


def test_importing_the_package_does_not_import_the_sdk() -> None:
    code = "import sys, kube2iam.sts.source; print(sorted(m for m in sys.modules if m.startswith('boto')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

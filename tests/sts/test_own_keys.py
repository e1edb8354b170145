"""The agent's own keys through the SDK's chain: from each place they come from in a cluster, over real sockets."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import Kind, StsError
from kube2iam.sts.source import StsSource
from tests.fakes.aws import ROLE_SESSION, Answer, Form, HttpSts, granted, http_sts, refusal, use_keys
from tests.fakes.imds import NODE_ROLE, ForgivingImds, forgiving_imds
from tests.fakes.sts import request

APP, OTHER = request(), request("other")
PROFILE = f"meta-data/iam/security-credentials/{NODE_ROLE}"


def document(key: str, seconds: float = 6 * 3600) -> str:
    """Credentials as the metadata service and container endpoints give them."""
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    fields = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": key, "SecretAccessKey": "made-up", "Token": key}
    return json.dumps(fields | {"LastUpdated": end, "Expiration": end})


def signed_with(sts: HttpSts) -> tuple[str, str]:
    """Access key and token of the last call."""
    headers = sts.headers[-1]
    return headers["authorization"].partition("Credential=")[2].partition("/")[0], headers["x-amz-security-token"]


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpSts]:
    """STS, and an environment in which the agent has no keys yet."""
    with http_sts() as server:
        use_keys(monkeypatch, server.url)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        yield server


@pytest.fixture
async def imds(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForgivingImds]:
    """A metadata service that the SDK's chain asks."""
    async with forgiving_imds() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{service.address}")
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        yield service


@asynccontextmanager
async def opened() -> AsyncIterator[StsSource]:
    async def nowhere() -> str:
        raise AssertionError("the region is given")

    source = StsSource(region="eu-west-1", discover_region=nowhere)
    await source.open()
    try:
        yield source
    finally:
        source.close()


async def test_instance_profile(sts: HttpSts, imds: ForgivingImds) -> None:
    imds.tokens = "required"
    imds.extra = {PROFILE: document("ASIAPROFILE")}
    async with opened() as source:
        assert (await source.fetch(APP, 5)).token
    assert signed_with(sts) == ("ASIAPROFILE", "ASIAPROFILE")


async def test_container_endpoint(
    sts: HttpSts, imds: ForgivingImds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As EKS Pod Identity gives them: the token is read from a file each time."""
    token = tmp_path / "token"
    token.write_text("made-up-authorization")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://{imds.address}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    imds.extra = {"credentials": document("ASIACONTAINER"), PROFILE: document("ASIAPROFILE")}
    async with opened() as source:
        assert (await source.fetch(APP, 5)).token
    assert signed_with(sts) == ("ASIACONTAINER", "ASIACONTAINER")
    assert imds.received[0].headers["authorization"] == "made-up-authorization"


async def test_web_identity(sts: HttpSts, imds: ForgivingImds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As IRSA gives them: STS itself is asked, unsigned, with the token of the ServiceAccount."""
    token = tmp_path / "token"
    token.write_text("made-up-jwt")
    agent = "arn:aws:iam::123456789012:role/agent"
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", agent)
    sts.script = with_web_identity
    async with opened() as source:
        assert (await source.fetch(APP, 5)).token
    first, second = sts.forms
    assert (first["Action"], first["RoleArn"], first["WebIdentityToken"]) == (
        "AssumeRoleWithWebIdentity",
        agent,
        "made-up-jwt",
    )
    assert "authorization" not in sts.headers[0]
    assert second["RoleArn"] == str(APP.arn)
    assert signed_with(sts) == ("ASIAWEBIDENTITY", "made-up-token")
    assert imds.received == []


def with_web_identity(form: Form) -> Answer:
    if form["Action"] == "AssumeRole":
        return granted(form)
    text = ROLE_SESSION.replace("AssumeRoleRe", "AssumeRoleWithWebIdentityRe")
    return 200, text.format(key="ASIAWEBIDENTITY", expiration="2099-01-01T00:00:00Z")


async def test_keys_that_have_ended_are_not_used_for_ever(sts: HttpSts, imds: ForgivingImds) -> None:
    imds.extra = {PROFILE: document("ASIAPROFILE", 500)}
    async with opened() as source:
        await source.fetch(APP, 5)
        imds.extra = {PROFILE: document("ASIANEXT")}
        sts.script = lambda form: (
            refusal("ExpiredToken", 403) if signed_with(sts)[0] == "ASIAPROFILE" else granted(form)
        )
        assert (await source.fetch(OTHER, 5)).token
        assert signed_with(sts)[0] == "ASIANEXT"


@pytest.fixture
def process(sts: HttpSts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What a `credential_process` shows: keys so near their end that the SDK insists on others at each call."""
    shown = tmp_path / "shown"
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {shown}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    shown.write_text(process_document("ASIAFIRST"))
    return shown


def process_document(key: str) -> str:
    fields = json.loads(document(key, 500))
    return json.dumps({"Version": 1, "SessionToken": fields.pop("Token"), **fields})


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDenied", r"CredentialRetrievalError: .*cannot be loaded \(AccessDenied\)"),
        ("Throttling", r"CredentialRetrievalError: .*cannot be loaded \(Throttling\)"),
        ("InvalidIdentityToken", "InvalidIdentityToken: "),
        ("IDPCommunicationError", "IDPCommunicationError: "),
        ("ExpiredTokenException", "ExpiredTokenException: "),
    ],
)
async def test_a_web_identity_that_is_refused_is_the_nodes_trouble_by_its_name(
    sts: HttpSts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, says: str
) -> None:
    token = tmp_path / "token"
    token.write_text("made-up-jwt")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agent")
    sts.script = lambda _form: refusal(code, 400, "the JWT is made-up-jwt")
    async with opened() as source:
        with pytest.raises(StsError, match=says) as caught:
            await source.fetch(APP, 5)
    assert caught.value.fault.kind is Kind.NODE
    assert "made-up-jwt" not in str(caught.value)


async def test_a_source_that_hangs_up_is_the_nodes_trouble(
    sts: HttpSts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK's exceptions of this family have a response, which is None."""
    token = tmp_path / "token"
    token.write_text("made-up-jwt")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agent")
    sts.script = lambda _form: None
    async with opened() as source:
        with pytest.raises(StsError, match=r"cannot be loaded \(ConnectionClosedError\)") as caught:
            await source.fetch(APP, 5)
    assert caught.value.fault.kind is Kind.NODE
    assert all(record.exc_info is None for record in caplog.records if record.name.startswith("kube2iam"))


async def test_what_is_missing_or_fails_is_named(
    sts: HttpSts, process: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process.unlink()
    async with opened() as source:
        with pytest.raises(StsError, match=r"CredentialRetrievalError: .* cannot be loaded \(custom-process\)"):
            await source.fetch(APP, 5)
    (record,) = caplog.records
    assert "custom-process" in vars(record)["error"]
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agent")
    async with opened() as source:
        with pytest.raises(StsError, match=r"cannot be loaded \(FileNotFoundError, /nonexistent/token\)"):
            await source.fetch(APP, 5)


async def test_a_source_that_fails_takes_no_keys_away(sts: HttpSts, process: Path) -> None:
    async with opened() as source:
        await source.fetch(APP, 5)
        process.unlink()
        assert (await source.fetch(OTHER, 5)).token
        assert signed_with(sts)[0] == "ASIAFIRST"
        process.write_text(process_document("ASIANEXT"))
        while signed_with(sts)[0] == "ASIAFIRST":
            await source.fetch(OTHER, 5)
        assert signed_with(sts)[0] == "ASIANEXT"


async def test_a_source_that_hangs_delays_neither_warm_pods_nor_cold_ones(sts: HttpSts, process: Path) -> None:
    loop = asyncio.get_running_loop()
    async with opened() as source:
        cache = CredentialCache(source)
        task = asyncio.create_task(cache.run())
        await cache.ready.wait()
        warm = await cache.get(APP, loop.time() + 5)
        process.unlink()
        os.mkfifo(process)
        cold = asyncio.create_task(cache.get(OTHER, loop.time() + 5))
        writer = await opened_by_the_process(process)
        assert await cache.get(APP, loop.time()) == warm
        assert (await cold).token
        assert signed_with(sts)[0] == "ASIAFIRST"
        os.close(writer)
        task.cancel()
        await asyncio.wait({task})


async def opened_by_the_process(pipe: Path) -> int:
    """The writing end of `pipe`, once somebody reads: they wait until it is closed."""
    while True:
        with suppress(OSError):  # nobody reads yet
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        await asyncio.sleep(0.001)


async def test_a_chain_that_cannot_be_made_is_the_nodes_trouble(sts: HttpSts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "soon")
    async with opened() as source:
        with pytest.raises(StsError) as caught:
            await source.fetch(APP, 5)
    assert caught.value.fault.kind is Kind.NODE
    assert sts.headers == []

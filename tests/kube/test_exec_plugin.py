import asyncio
import json
import os
import sys
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from kube2iam.kube.api import ClusterApi
from kube2iam.kube.bearer import FileTokens, PluginTokens
from kube2iam.kube.errors import ClusterUnavailableError
from kube2iam.kube.exec_plugin import ExecPlugin
from tests.fakes.kube import FakeApiServer, listing, refusal

V1 = "client.authentication.k8s.io/v1"
V1BETA1 = "client.authentication.k8s.io/v1beta1"

PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
runs = here / "runs"
before = runs.read_text() if runs.exists() else ""
told = [sys.argv[1:], os.environ["KUBERNETES_EXEC_INFO"], os.environ.get("FLAVOUR"), sys.stdin.read()]
runs.write_text(before + json.dumps(told) + "\\n")
answer = here / "answer"
if answer.exists():
    sys.stderr.write("a long story\\n" + "x" * 200000 + "\\nno such account\\n")
    text = answer.read_text()
    sys.stdout.write(text)
    sys.exit(0 if text else 3)
count = len(runs.read_text().splitlines())
status = {{"token": f"token-{{count}}"}}
if (here / "expires").exists():
    status["expirationTimestamp"] = (here / "expires").read_text()
print(json.dumps({{"apiVersion": "{V1}", "kind": "ExecCredential", "status": status}}))
"""


class Clock:
    """2026-01-01, and as long after as a test says."""

    def __init__(self) -> None:
        self.now = 1767225600.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "get-token"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def plugin(program: Path, **changes: Any) -> ExecPlugin:
    raw = {"command": f"./{program.name}", "apiVersion": V1, **changes}
    return ExecPlugin.from_raw(raw, folder=program.parent, cluster={"server": "https://x"})


def runs(program: Path) -> list[Any]:
    return [json.loads(line) for line in (program.parent / "runs").read_text().splitlines()]


def kubeconfig(folder: Path, server: str, execute: dict[str, Any]) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"exec": execute}}],
            }
        )
    )
    return str(path)


async def test_arguments_environment_and_cluster_are_told_as_kubectl_tells_them(program: Path) -> None:
    cluster = {
        "server": "https://x",
        "certificate-authority": "/ca.crt",
        "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "me"}}],
    }
    raw = {
        "command": "./get-token",
        "apiVersion": V1,
        "args": ["-r", 7],
        "env": [{"name": "FLAVOUR", "value": "salt"}],
        "provideClusterInfo": True,
        "interactiveMode": "IfAvailable",
    }
    token = await ExecPlugin.from_raw(raw, folder=program.parent, cluster=cluster).run()
    assert token.value == "token-1"
    assert token.expires is None
    assert "token-1" not in repr(token)
    ((arguments, info, flavour, stdin),) = runs(program)
    assert (arguments, flavour, stdin) == (["-r", "7"], "salt", "")
    assert json.loads(info) == {
        "kind": "ExecCredential",
        "apiVersion": V1,
        "spec": {"interactive": False, "cluster": {"server": "https://x", "config": {"audience": "me"}}},
    }


async def test_the_plugin_runs_again_when_its_token_ends(program: Path) -> None:
    clock = Clock()
    (program.parent / "expires").write_text("2026-01-01T00:15:00Z")
    tokens = PluginTokens(plugin(program), clock=clock)
    assert await asyncio.gather(*(tokens.token() for _ in range(5))) == ["token-1"] * 5
    clock.now += 889
    assert await tokens.token() == "token-1"
    clock.now += 2
    (program.parent / "expires").write_text("2026-01-01T00:30:00Z")
    assert await tokens.token() == "token-2"
    assert await tokens.token() == "token-2"
    assert len(runs(program)) == 2


async def test_a_token_without_end_is_kept_until_it_is_refused(program: Path) -> None:
    tokens = PluginTokens(plugin(program))
    assert [await tokens.token(), await tokens.token()] == ["token-1", "token-1"]
    tokens.forget()
    assert await tokens.token() == "token-2"


async def test_requests_carry_the_plugins_token_and_a_refusal_renews_it(program: Path) -> None:
    async with FakeApiServer() as server:
        server.lists(listing(), refusal(401), listing())
        path = kubeconfig(program.parent, server.url, {"command": "./get-token", "apiVersion": V1})
        api = await ClusterApi.connect(kubeconfig=path)
        assert not (program.parent / "runs").exists(), "making the client asks for nothing"
        for _ in range(3):
            async with await api.request("GET", "/api/v1/pods"):
                pass
        await api.aclose()
    assert [asked.headers["Authorization"] for asked in server.asked] == [
        "Bearer token-1",
        "Bearer token-1",
        "Bearer token-2",
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("", "ended with status 3: no such account"),
        ("hello", "printed no ExecCredential"),
        ("[]", "printed no ExecCredential"),
        ("{}", "printed no ExecCredential"),
        (json.dumps({"apiVersion": V1, "status": []}), "printed no ExecCredential"),
        (json.dumps({"apiVersion": V1, "status": {"token": "t", "expirationTimestamp": "soon"}}), "no ExecCredential"),
        (json.dumps({"apiVersion": V1BETA1, "status": {"token": "t"}}), f"printed apiVersion {V1BETA1}, and the"),
        (json.dumps({"apiVersion": V1, "status": {}}), "returned no token"),
        (json.dumps({"apiVersion": V1, "status": {"clientCertificateData": "c"}}), "certificates .* not supported"),
    ],
)
async def test_a_plugin_that_fails_is_said_and_asked_again(program: Path, answer: str, expected: str) -> None:
    (program.parent / "answer").write_text(answer)
    async with FakeApiServer() as server:
        server.lists(listing())
        path = kubeconfig(program.parent, server.url, {"command": "./get-token", "apiVersion": V1})
        api = await ClusterApi.connect(kubeconfig=path)
        with pytest.raises(ClusterUnavailableError, match=expected):
            await api.request("GET", "/api/v1/pods")
        (program.parent / "answer").unlink()
        async with await api.request("GET", "/api/v1/pods") as response:
            assert response.status == 200
        await api.aclose()


async def test_a_missing_program_is_named_with_its_hint(tmp_path: Path) -> None:
    missing = plugin(tmp_path / "nowhere", installHint="install it with care\n")
    with pytest.raises(ClusterUnavailableError, match=r"nowhere' can't be run: No such file.*; install it with care$"):
        await missing.run()


async def test_a_plugin_that_hangs_is_killed_when_nobody_waits_any_more(tmp_path: Path) -> None:
    program = tmp_path / "hang"
    os.mkfifo(tmp_path / "pid")
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o755)
    task = asyncio.create_task(plugin(program).run())
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"apiVersion": V1}, "no command"),
        ({"command": "x"}, "apiVersion"),
        ({"command": "x", "apiVersion": V1, "args": "-r"}, "args is not a list"),
        ({"command": "x", "apiVersion": V1, "env": {"A": "b"}}, "env is not a list"),
        ({"command": "x", "apiVersion": V1, "env": ["A"]}, "env is not a list of name and value"),
        ({"command": "x", "apiVersion": V1, "interactiveMode": "Always"}, "no terminal"),
    ],
)
def test_a_plugin_of_the_wrong_shape_is_refused(raw: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ExecPlugin.from_raw(raw, folder=Path(), cluster={})


async def test_aws_eks_get_token_works(tmp_path: Path) -> None:
    """The real AWS CLI as `aws eks update-kubeconfig` writes it; it signs its token without asking anybody."""
    aws = str(Path(sys.executable).parent / "aws")
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    execute = {
        "apiVersion": V1BETA1,
        "command": aws,
        "args": ["--region", "eu-central-1", "eks", "get-token", "--cluster-name", "demo", "--output", "json"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }
    async with FakeApiServer() as server:
        server.lists(listing())
        api = await ClusterApi.connect(kubeconfig=kubeconfig(tmp_path, server.url, execute))
        for _ in range(2):
            async with await api.request("GET", "/api/v1/pods"):
                pass
        await api.aclose()
    first, second = (asked.headers["Authorization"].removeprefix("Bearer k8s-aws-v1.") for asked in server.asked)
    assert first == second, "the token is kept for its quarter of an hour"
    url = urlsplit(urlsafe_b64decode(first + "==").decode())
    assert url.hostname == "sts.eu-central-1.amazonaws.com"
    assert parse_qs(url.query)["Action"] == ["GetCallerIdentity"]


async def test_a_token_file_is_read_each_minute(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "token"
    tokens = FileTokens(file, clock=clock)
    with pytest.raises(ClusterUnavailableError, match="can't be read"):
        await tokens.token()
    file.write_text("\n")
    with pytest.raises(ClusterUnavailableError, match="is empty"):
        await tokens.token()
    file.write_text("one\n")
    assert await tokens.token() == "one"
    file.write_text("two\n")
    clock.now += 59
    assert await tokens.token() == "one"
    clock.now += 2
    assert await tokens.token() == "two"

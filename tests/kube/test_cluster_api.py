import asyncio
import base64
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from kube2iam.kube.api import ClusterApi, _socket
from kube2iam.kube.errors import ClusterConfigError, ClusterUnavailableError
from tests.fakes.certificates import Authority
from tests.fakes.kube import Answer, Asked, FakeApiServer, listing, refusal


def kubeconfig(folder: Path, *, cluster: Mapping[str, Any], user: Mapping[str, Any] | None = None) -> str:
    context = {"cluster": "c"} | ({"user": "u"} if user is not None else {})
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": context}, {"name": "there", "context": {"cluster": "x"}}],
                "clusters": [{"name": "c", "cluster": dict(cluster)}],
                "users": [{"name": "u", "user": dict(user or {})}],
            }
        )
    )
    return str(path)


async def ask(server: FakeApiServer, **connection: Any) -> Asked:
    """One request over a new connection, as the server saw it."""
    api = await ClusterApi.connect(**connection)
    try:
        async with await api.request("GET", "/api/v1/pods", query=[("fieldSelector", "spec.nodeName=n 1&x")]) as answer:
            assert answer.status == 200
    finally:
        await api.aclose()
    return server.asked[-1]


# --api-server


async def test_plain_http_with_a_token() -> None:
    async with FakeApiServer() as server:
        server.lists(listing())
        asked = await ask(server, api_server=server.url + "/", api_token="secret")
    assert asked.headers["Authorization"] == "Bearer secret"
    assert asked.query == {"fieldSelector": "spec.nodeName=n 1&x"}
    assert asked.path == "/api/v1/pods"


async def test_plain_http_without_a_token() -> None:
    async with FakeApiServer() as server:
        server.lists(listing())
        assert "Authorization" not in (await ask(server, api_server=server.url)).headers


@pytest.mark.parametrize("server", ["localhost:6443", "ftp://x", "https://", "https://x:99999", "https://[::1"])
async def test_a_server_that_is_no_url_is_named(server: str) -> None:
    with pytest.raises(ClusterConfigError, match=r"--api-server=.*: expected http://host\[:port\] or https://"):
        await ClusterApi.connect(api_server=server)


async def test_https_needs_a_known_authority_or_insecure(tmp_path: Path) -> None:
    async with FakeApiServer(tls=Authority(tmp_path).server()) as server:
        server.lists(listing())
        with pytest.raises(ClusterUnavailableError, match="certificate"):
            await ask(server, api_server=server.url)
        assert (await ask(server, api_server=server.url, insecure=True)).path == "/api/v1/pods"


async def test_no_server_is_needed_to_make_the_client_and_its_absence_is_said() -> None:
    api = await ClusterApi.connect(api_server="http://127.0.0.1:1", api_token="secret")
    with pytest.raises(ClusterUnavailableError, match=r"127\.0\.0\.1:1"):
        await api.request("GET", "/api/v1/pods")
    assert "secret" not in repr(vars(api))
    await api.aclose()


async def test_a_server_that_does_not_answer_is_left_in_time() -> None:
    async with FakeApiServer() as server:
        server.lists(Answer(pieces=[asyncio.Event()]))
        api = await ClusterApi.connect(api_server=server.url)
        answer = await api.request("GET", "/api/v1/pods", silence=0.05)
        with pytest.raises(TimeoutError):
            await answer.read()
        await api.aclose()


async def test_a_server_that_accepts_and_says_nothing_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = await ClusterApi.connect(api_server=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ClusterUnavailableError, match="in time"):
            await api.request("GET", "/api/v1/pods", timeout=0.05)
        await api.aclose()


def test_a_connection_notices_that_the_other_machine_is_gone() -> None:
    with _socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


# --kubeconfig


async def test_a_client_certificate_beside_the_kubeconfig(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("node-7")
    async with FakeApiServer(tls=authority.server(wants_clients=True)) as server:
        server.lists(listing())
        path = kubeconfig(
            tmp_path,
            cluster={"server": server.url, "certificate-authority": "ca.crt"},
            user={"client-certificate": certificate.name, "client-key": key.name},
        )
        assert (await ask(server, kubeconfig=path)).client == "node-7"


async def test_a_client_certificate_inside_the_kubeconfig(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = (base64.b64encode(file.read_bytes()).decode() for file in authority.issue("node-8"))
    ca = base64.b64encode(authority.certificate.read_bytes()).decode()
    async with FakeApiServer(tls=authority.server(wants_clients=True)) as server:
        server.lists(listing())
        path = kubeconfig(
            tmp_path,
            cluster={"server": server.url, "certificate-authority-data": ca},
            user={"client-certificate-data": certificate, "client-key-data": key},
        )
        assert (await ask(server, kubeconfig=path)).client == "node-8"


@pytest.mark.parametrize("insecure", ["flag", "file"])
async def test_any_certificate_will_do_where_that_is_said(tmp_path: Path, insecure: str) -> None:
    async with FakeApiServer(tls=Authority(tmp_path).server()) as server:
        server.lists(listing())
        cluster = {"server": server.url} | ({"insecure-skip-tls-verify": True} if insecure == "file" else {})
        path = kubeconfig(tmp_path, cluster=cluster, user={"token": "t"})
        asked = await ask(server, kubeconfig=path, insecure=insecure == "flag")
        assert asked.headers["Authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "me", "password": "pw"}, "Basic bWU6cHc="),
        ({}, None),
        (None, None),
    ],
)
async def test_users_of_a_kubeconfig(tmp_path: Path, user: Mapping[str, Any] | None, expected: str | None) -> None:
    async with FakeApiServer() as server:
        server.lists(listing())
        asked = await ask(server, kubeconfig=kubeconfig(tmp_path, cluster={"server": server.url}, user=user))
        assert asked.headers.get("Authorization") == expected


async def test_a_token_file_is_read_again_when_the_token_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    async with FakeApiServer() as server:
        server.lists(refusal(401), listing())
        path = kubeconfig(tmp_path, cluster={"server": server.url}, user={"tokenFile": "token"})
        api = await ClusterApi.connect(kubeconfig=path)
        for text in ("two", "three"):
            async with await api.request("GET", "/api/v1/pods"):
                token.write_text(text)
        token.unlink()
        async with await api.request("GET", "/api/v1/pods") as answer:
            assert answer.status == 200
        await api.aclose()
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer one", "Bearer two", "Bearer two"]


CONTEXT = "contexts: [{name: here, context: {cluster: c, user: u}}]\ncurrent-context: here\n"
CLUSTER = "clusters: [{name: c, cluster: {server: 'https://x'}}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "there is no such file"),
        ("a: [", "the file is not YAML: line"),
        ("\0", "the file is not YAML"),
        (b"\xff\xfe", "the file is not text in UTF-8"),
        ("", "the file is no kubeconfig"),
        ("[]", "the file is no kubeconfig"),
        (CLUSTER, "no current-context is set; .*it has: none"),
        (f"{CLUSTER}contexts: 3\ncurrent-context: a", "contexts is not a list of mappings"),
        (f"{CLUSTER}contexts: [{{name: b}}]\ncurrent-context: a", "names the context 'a', .*it has: b"),
        (f"{CONTEXT}clusters: []\n", "context 'here' names the cluster 'c', which is not in the file"),
        (f"{CONTEXT}{CLUSTER}", "context 'here' names the user 'u', which is not in the file"),
        (f"{CONTEXT}clusters: [{{name: c, cluster: 3}}]", "the cluster 'c' is not a mapping"),
        (f"{CONTEXT}clusters: [{{name: c, cluster: {{server: x}}}}]\nusers: [{{name: u}}]", "'c' has no server"),
        (
            f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{client-certificate: x.pem, client-key: y}}}}]",
            "names the file .*/x.pem, which does not exist",
        ),
        (f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{tokenFile: x}}}}]", "names the file .*/x, which does not"),
        (
            f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{client-certificate-data: '%%', client-key-data: eA==}}}}]",
            "its certificates can't be loaded",
        ),
        (f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{exec: {{}}}}}}]", "exec: has no command"),
        (f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{exec: 3}}}}]", "exec: is not a mapping"),
        (
            f"{CONTEXT}{CLUSTER}users: [{{name: u, user: {{exec: {{command: x, apiVersion: v1}}}}}}]",
            "exec: apiVersion is not client.authentication.k8s.io/v1",
        ),
    ],
)
async def test_a_kubeconfig_that_is_no_use_is_named_with_what_is_wrong(
    tmp_path: Path, text: str | bytes | None, expected: str
) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ClusterConfigError, match=f"--kubeconfig={path}: .*{expected}") as raised:
        await ClusterApi.connect(kubeconfig=str(path))
    assert str(raised.value).isprintable()


async def test_a_wrong_certificate_authority_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    path = kubeconfig(tmp_path, cluster={"server": "https://x", "certificate-authority": "ca.crt"})
    with pytest.raises(ClusterConfigError, match="its certificates can't be loaded"):
        await ClusterApi.connect(kubeconfig=path)


async def test_a_folder_is_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(ClusterConfigError, match="the file can't be read: Is a directory"):
        await ClusterApi.connect(kubeconfig=str(tmp_path))


# Inside a cluster


async def test_a_pod_finds_its_cluster_and_its_token_when_that_changes(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token = tmp_path / "token"
    token.write_text("first")
    async with FakeApiServer(tls=authority.server()) as server:
        server.lists(refusal(401), listing())
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        api = await ClusterApi.connect(environ=environ, service_account=tmp_path)
        for text in ("second", "third"):
            async with await api.request("GET", "/api/v1/pods"):
                token.write_text(text)
        await api.aclose()
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("environ", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}])
async def test_elsewhere_the_flags_are_named(tmp_path: Path, environ: Mapping[str, str]) -> None:
    with pytest.raises(ClusterConfigError, match="outside a cluster give --kubeconfig or --api-server"):
        await ClusterApi.connect(environ=environ, service_account=tmp_path)


# What it costs


def test_nothing_heavy_is_imported_before_a_connection_or_ever() -> None:
    code = """
import asyncio, json, sys
import kube2iam.kube.reflector, kube2iam.kube.recorder, kube2iam.kube.stores, kube2iam.kube.duplicates
before = "kubernetes" in sys.modules
api = asyncio.run(kube2iam.kube.api.ClusterApi.connect(api_server="http://127.0.0.1:1"))
models = [name for name in sys.modules if name.startswith("kubernetes.aio.client.") and name.count(".") > 3]
print(json.dumps([before, models]))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout
    assert json.loads(output) == [False, []]

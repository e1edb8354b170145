"""The agent's own executable against a real kube-apiserver, with the rights of `daemonset/kube2iam.yaml`."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster.apiserver import Admin, ApiServer
from tests.cluster.relay import Relay, relay
from tests.fakes.aws import moto_sts
from tests.fakes.world import ROLES, AgentProcess, Answer, world


@pytest.fixture(scope="module")
def sts() -> Iterator[str]:
    with moto_sts() as url:
        yield url


@asynccontextmanager
async def agent(
    server: ApiServer, sts: str, folder: Path, *flags: str, ready: bool = True
) -> AsyncIterator[tuple[AgentProcess, Relay]]:
    """The agent of node n1 and its way to the API server, which can be cut."""
    async with relay(server.port) as way, world(folder) as around:
        if not ready:
            way.cut()
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(await _kubeconfig(server, way))
        async with around.agent(f"--kubeconfig={kubeconfig}", *flags, ready=ready, AWS_ENDPOINT_URL_STS=sts) as running:
            yield running, way


async def _kubeconfig(server: ApiServer, way: Relay) -> str:
    cluster = {"server": f"https://127.0.0.1:{way.port}", "certificate-authority": str(server.certificate)}
    return json.dumps(
        {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "agent"}}],
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"token": await Admin(server).agent_token()}}],
        }
    )


async def asked(running: AgentProcess, address: str, until: Callable[[Answer], bool], path: str = ROLES) -> Answer:
    """Ask again, as an SDK would, until the answer is as it should be."""
    async with asyncio.timeout(40):
        while not until(answer := await running.ask(address, path)):
            await asyncio.sleep(0.1)
    return answer


def says(role: str) -> Callable[[Answer], bool]:
    return lambda answer: (answer.status, answer.body) == (200, role.encode())


def denied(reason: str) -> Callable[[Answer], bool]:
    return lambda answer: answer.reason == reason


async def test_a_pods_life_with_its_credentials(server: ApiServer, admin: Admin, sts: str, tmp_path: Path) -> None:
    async with agent(server, sts, tmp_path) as (running, _):
        await admin.pod("life", "app")
        waiting = asyncio.create_task(running.ask("127.0.1.1", ROLES))
        await asyncio.sleep(0.4)
        await admin.running("life", "127.0.1.1")
        held = await waiting
        assert says("app")(held), "a request that comes before the address is answered when that is known"
        assert held.seconds < 1

        credentials = await running.credentials("127.0.1.1")
        assert credentials.status == 200
        assert credentials.json()["Code"] == "Success"

        await admin.annotate("life", "other")
        await asked(running, "127.0.1.1", says("other"))
        assert (await running.credentials("127.0.1.1", "app")).reason == "other-role"

        await admin.delete("life")
        await asked(running, "127.0.1.1", denied("unknown-address"))

        await admin.pod("heir", "heir")
        await admin.running("heir", "127.0.1.1")
        await asked(running, "127.0.1.1", says("heir"))
        assert (await running.credentials("127.0.1.1", "heir")).status == 200
        await admin.delete("heir")


async def test_the_api_server_is_away_at_start(server: ApiServer, admin: Admin, sts: str, tmp_path: Path) -> None:
    await admin.pod("early", "app")
    await admin.running("early", "127.0.2.1")
    async with agent(server, sts, tmp_path, ready=False) as (running, way):
        await running.heard("can't follow the cluster")
        assert (await running.page("/livez"))[0] == 200
        status, text = await running.page("/readyz?verbose")
        assert status == 503
        assert "cluster" in text
        assert (await running.ask("127.0.2.1", ROLES)).reason == "not-synced"
        way.mend()
        await running.until_ready()
        assert says("app")(await running.ask("127.0.2.1", ROLES))
        assert (await running.page("/readyz"))[0] == 200
    await admin.delete("early")


async def test_the_api_server_dies_and_comes_back(server: ApiServer, admin: Admin, sts: str, tmp_path: Path) -> None:
    await admin.pod("before", "app")
    await admin.running("before", "127.0.3.1")
    async with agent(server, sts, tmp_path) as (running, _):
        await asked(running, "127.0.3.1", says("app"))
        server.kill()
        await running.heard("can't follow the cluster")
        assert (await running.credentials("127.0.3.1")).status == 200
        assert (await running.page("/readyz"))[0] == 200, "what is known is served on"
        assert "cluster" in (await running.page("/readyz?verbose"))[1]
        await asyncio.to_thread(server.start)
        await admin.delete("before")
        await admin.pod("after", "other")
        await admin.running("after", "127.0.3.2")
        await asked(running, "127.0.3.2", says("other"))
        await asked(running, "127.0.3.1", denied("unknown-address"))
    await admin.delete("after")


async def test_a_denied_pods_developer_finds_an_event(
    server: ApiServer, admin: Admin, sts: str, tmp_path: Path
) -> None:
    async with agent(server, sts, tmp_path) as (running, _):
        uid = await admin.pod("wrong", "arn:aws:iam:123567989012:role/nginx-role")
        await admin.running("wrong", "127.0.4.1")
        await asked(running, "127.0.4.1", denied("role-malformed"))
        found: list[dict[str, str]] = []
        async with asyncio.timeout(10):
            while not found:
                path = f"api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}"
                found = (await admin.do("GET", path))["items"]
        (event,) = found
        assert (event["type"], event["reason"]) == ("Warning", "RoleMalformed")
        assert "did you mean arn:aws:iam::123567989012:role/nginx-role" in event["message"]
    await admin.delete("wrong")


async def test_rights_that_are_missing_are_said_and_no_reason_to_end(
    server: ApiServer, admin: Admin, sts: str, tmp_path: Path
) -> None:
    await admin.do("DELETE", "apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kube2iam")
    async with agent(server, sts, tmp_path, ready=False) as (running, way):
        way.mend()
        async with asyncio.timeout(40):
            while "http-403" not in {line.get("reason") for line in running.lines}:
                running.said.clear()
                await running.said.wait()
        assert (await running.page("/livez"))[0] == 200
        assert "cannot list resource" in (await running.page("/readyz?verbose"))[1]

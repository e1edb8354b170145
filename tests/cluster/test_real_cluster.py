"""The cluster side against a real kube-apiserver, with the rights of `daemonset/kube2iam.yaml` and nothing more."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.decode import Page
from kube2iam.kube.duplicates import DuplicateResolver
from kube2iam.kube.recorder import EventRecorder
from kube2iam.kube.reflector import Reflector
from kube2iam.kube.stores import NamespaceStore, PodStore
from tests.cluster.apiserver import Admin, ApiServer, manifest
from tests.cluster.relay import Relay, relay
from tests.kube.following import Counted


def keep(key: str) -> bool:
    return key.startswith("iam.amazonaws.com/")


class Mirror:
    """This node's pods and the namespaces, through a relay, as the agent of node n1 sees them."""

    def __init__(self, api: ClusterApi, way: Relay, **options: Any) -> None:
        self.api, self.way = api, way
        self.index, self.counted = PodIndex(mine=lambda pod: pod.node == "n1"), Counted()
        self.store = PodStore(self.index, keep)
        backoff = {"backoff": Backoff(first=0.1, most=1.0)}
        self.pods = Reflector(
            api,
            self.store,
            resource="pods",
            field_selector="spec.nodeName=n1",
            counters=self.counted,
            **(backoff | options),
        )
        self.namespaces = Reflector(
            api, NamespaceStore(self.index, keep), resource="namespaces", counters=self.counted, **(backoff | options)
        )

    def find(self, address: str) -> str:
        found = self.index.find(address)
        return found.reason.code if isinstance(found, Denial) else found.name

    async def until(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for a change that makes it so."""
        changed = asyncio.Event()
        unsubscribe = self.index.subscribe("", changed.set)
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    await changed.wait()
                    changed.clear()
        finally:
            unsubscribe()

    async def until_failed(self, reason: str) -> None:
        async with asyncio.timeout(30):
            while not self.counted.failures[reason]:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def mirror(server: ApiServer, folder: Path, **options: Any) -> AsyncIterator[Mirror]:
    """A mirror with a token of the manifest's service account, found as inside a pod."""
    (folder / "token").write_text(await Admin(server).agent_token())
    (folder / "ca.crt").write_bytes(server.certificate.read_bytes())
    async with relay(server.port) as way:
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(way.port)}
        here = Mirror(await ClusterApi.connect(environ=environ, service_account=folder), way, **options)
        tasks = [asyncio.create_task(reflector.run()) for reflector in (here.pods, here.namespaces)]
        try:
            yield here
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await here.api.aclose()


@asynccontextmanager
async def pods(admin: Admin, *names: str) -> AsyncIterator[None]:
    """Takes away in the end what a test has made."""
    try:
        yield
    finally:
        for name in names:
            await admin.ask("DELETE", f"api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})


async def test_the_manifest_is_valid_to_the_letter(admin: Admin) -> None:
    applied = [await admin.apply(raw, dry=True) for raw in manifest() if raw["kind"] != "ServiceAccount"]
    assert [raw["kind"] for raw in applied] == ["ClusterRole", "ClusterRoleBinding", "DaemonSet"]
    (pod,) = [raw["spec"]["template"]["spec"] for raw in applied if raw["kind"] == "DaemonSet"]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["hostNetwork"]


async def test_the_agent_may_do_what_it_must_and_nothing_else(server: ApiServer, admin: Admin) -> None:
    agent = Admin(server, await admin.agent_token())
    allowed = ["api/v1/pods", "api/v1/namespaces", "api/v1/namespaces/default/pods"]
    denied = ["api/v1/secrets", "api/v1/nodes", "api/v1/serviceaccounts", "api/v1/events", "api/v1/configmaps"]
    assert [(await agent.ask("GET", path))[0] for path in allowed] == [200] * len(allowed)
    assert [(await agent.ask("GET", path))[0] for path in denied] == [403] * len(denied)
    status, _ = await agent.ask("POST", "api/v1/namespaces/default/pods", {"metadata": {"name": "x"}})
    assert status == 403


async def test_a_pods_life(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "app", "next", "elsewhere"):
        await asyncio.wait_for(here.pods.synced.wait(), 10)
        await admin.pod("elsewhere", "app", node="n2")
        await admin.running("elsewhere", "10.1.0.9")
        await admin.pod("app", "app")
        await here.until(lambda: [pod.name for pod in here.index.pods()] == ["app"])
        assert here.find("10.1.0.1") == Reason.UNKNOWN_ADDRESS.code

        await admin.running("app", "10.1.0.1", "fd00:1::1")
        await here.until(lambda: here.find("10.1.0.1") == here.find("fd00:1::1") == "app")

        await admin.annotate("app", "other")
        await here.until(lambda: _role(here.index.find("10.1.0.1")) == "other")

        await admin.delete("app")
        await here.until(lambda: here.find("10.1.0.1") == Reason.UNKNOWN_ADDRESS.code)

        await admin.pod("next", "next")
        await admin.running("next", "10.1.0.1")
        await here.until(lambda: here.find("10.1.0.1") == "next")
        assert not here.counted.failures


async def test_a_name_that_is_used_again_is_another_pod(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "same"):
        first = await admin.pod("same", "a")
        await admin.running("same", "10.1.1.1")
        await here.until(lambda: here.find("10.1.1.1") == "same")
        await admin.delete("same")
        second = await admin.pod("same", "b")
        await admin.running("same", "10.1.1.1")
        await here.until(lambda: _role(here.index.find("10.1.1.1")) == "b")
        assert first != second


async def test_namespaces_and_their_annotations(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here:
        await admin.namespace("team", **{"iam.amazonaws.com/allowed-roles": '["app"]', "other": "x"})
        await here.until(lambda: here.index.namespace("team") is not None)
        known = here.index.namespace("team")
        assert known is not None
        assert known.annotations == {"iam.amazonaws.com/allowed-roles": '["app"]'}


async def test_the_api_server_dies_and_comes_back(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "before", "after"):
        await admin.pod("before", "a")
        await admin.running("before", "10.1.2.1")
        await here.until(lambda: here.find("10.1.2.1") == "before")
        server.kill()
        await here.until_failed("unreachable")
        assert here.pods.trouble
        assert here.find("10.1.2.1") == "before", "what is known is served on"
        await asyncio.to_thread(server.start)
        await admin.pod("after", "b")
        await admin.running("after", "10.1.2.2")
        await here.until(lambda: here.find("10.1.2.2") == "after")
        await admin.delete("before")
        await here.until(lambda: here.find("10.1.2.1") == Reason.UNKNOWN_ADDRESS.code)


async def test_a_history_that_the_server_has_forgotten(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    """Real 410s: while the agent is cut off, pods come and go, etcd is compacted, and the API server starts anew."""
    async with mirror(server, tmp_path) as here, pods(admin, "gone", "kept", "new"):
        for name, address in (("gone", "10.1.3.1"), ("kept", "10.1.3.2")):
            await admin.pod(name, name)
            await admin.running(name, address)
        await here.until(lambda: here.find("10.1.3.1") == "gone" and here.find("10.1.3.2") == "kept")
        here.way.cut()
        await admin.delete("gone")
        await admin.pod("new", "new")
        await admin.running("new", "10.1.3.3")
        server.kill()
        await asyncio.to_thread(server.start)
        await admin.compact()
        here.way.mend()
        await here.until(lambda: here.find("10.1.3.3") == "new")
        assert here.find("10.1.3.1") == Reason.UNKNOWN_ADDRESS.code
        assert here.find("10.1.3.2") == "kept"
        assert here.counted.failures["http-410"] >= 1


async def test_later_lists_are_accepted_and_bring_what_is_there(
    server: ApiServer, admin: Admin, tmp_path: Path
) -> None:
    asked = []
    async with mirror(server, tmp_path, resync=3.0) as here, pods(admin, "app"):
        page = here.pods._wire.page

        async def heard(cursor: str, *, not_older_than: str = "") -> Page:
            asked.append(not_older_than)
            return await page(cursor, not_older_than=not_older_than)

        here.pods._wire.page = heard  # type: ignore[method-assign]
        await admin.pod("app", "a")
        await admin.running("app", "10.1.5.1")
        async with asyncio.timeout(30):
            while here.counted.lists["pods"] < 4:
                await asyncio.sleep(0.1)
        assert here.find("10.1.5.1") == "app"
        assert not here.counted.failures
    assert all(asked[1:]), "versions seen before"
    assert len(set(asked)) > 1


async def test_the_pages_of_a_list_may_differ_in_length(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "one", "two", "three"):
        for name in ("one", "two", "three"):
            await admin.pod(name, "a")
        wire = here.pods._wire
        wire._limit = 1
        first = await wire.page("")
        second = await wire.page(first.cursor)
        assert (len(first), len(second), second.cursor) == (1, 2, "")
        assert second.version == first.version


async def test_an_etcd_that_is_restored_from_a_backup(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    """Real 504s: the versions that the agent has seen are not there yet, and no watch says so."""
    async with mirror(server, tmp_path, resync=10.0) as here, pods(admin, "old", "lost"):
        await admin.pod("old", "old")
        await admin.running("old", "10.1.6.1")
        await here.until(lambda: here.find("10.1.6.1") == "old")
        server.kill()
        backup = server.save()
        await asyncio.to_thread(server.start)
        await admin.pod("lost", "lost")
        await admin.running("lost", "10.1.6.2")
        for number in range(200):
            await admin.annotate("lost", f"role-{number}")
        await here.until(lambda: _role(here.index.find("10.1.6.2")) == "role-199")
        server.kill()
        server.restore(backup)
        await asyncio.to_thread(server.start)
        await here.until(lambda: here.find("10.1.6.2") == Reason.UNKNOWN_ADDRESS.code, 60)
        assert here.find("10.1.6.1") == "old"
        assert here.counted.failures["behind"] >= 1
        await admin.annotate("old", "next")
        await here.until(lambda: _role(here.index.find("10.1.6.1")) == "next")


async def test_rights_that_are_taken_away_and_given_back(
    server: ApiServer, admin: Admin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    binding = "apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kube2iam"
    async with mirror(server, tmp_path, window=3.0) as here, pods(admin, "late"):
        await asyncio.wait_for(here.pods.synced.wait(), 10)
        await admin.do("DELETE", binding)
        await here.until_failed("http-403")
        assert "cannot" in (here.pods.trouble or here.namespaces.trouble or "")
        await admin.pod("late", "a")
        await admin.running("late", "10.1.4.1")
        for raw in manifest():
            await admin.apply(raw)
        await here.until(lambda: here.find("10.1.4.1") == "late")
    loud = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {vars(record)["reason"] for record in loud} == {"http-403"}
    assert len(loud) <= 2, "once for each resource"


async def test_a_token_that_is_no_good_is_replaced_by_the_file(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path, window=3.0) as here, pods(admin, "app"):
        await asyncio.wait_for(here.pods.synced.wait(), 10)
        good = (tmp_path / "token").read_text()
        (tmp_path / "token").write_text("no.good.token")
        assert here.api._tokens is not None
        here.api._tokens.forget()  # a minute has passed
        await here.until_failed("http-401")
        (tmp_path / "token").write_text(good)
        await admin.pod("app", "a")
        await here.until(lambda: [pod.name for pod in here.index.pods()] == ["app"])


async def test_events_are_accepted_and_found_where_kubectl_looks(
    server: ApiServer, admin: Admin, tmp_path: Path
) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "denied"):
        uid = await admin.pod("denied", "x")
        clock = [1767225600.0]
        recorder = EventRecorder(here.api, node="n1", counters=here.counted, clock=lambda: clock[0])
        task = asyncio.create_task(recorder.run())
        try:
            recorder.record("Pod", "default", "denied", uid, "NamespaceDenied", "its namespace does not allow it")
            recorder.record("Namespace", "", "default", "", "NamespaceUnreadable", "it is no JSON")
            async with asyncio.timeout(10):
                while here.counted.events["sent"] < 2:
                    await asyncio.sleep(0.05)
                clock[0] += 600
                recorder.record("Pod", "default", "denied", uid, "NamespaceDenied", "its namespace does not allow it")
                while here.counted.events["sent"] < 3:
                    await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert here.counted.events == {"sent": 3}
        found = await admin.do("GET", f"api/v1/namespaces/default/events?fieldSelector=involvedObject.uid={uid}")
        (event,) = found["items"]
        assert (event["reason"], event["count"], event["type"]) == ("NamespaceDenied", 2, "Warning")
        assert event["lastTimestamp"] == "2026-01-01T00:10:00Z"
        found = await admin.do("GET", "api/v1/namespaces/default/events?fieldSelector=involvedObject.kind=Namespace")
        assert [event["reason"] for event in found["items"]] == ["NamespaceUnreadable"]


async def test_the_api_server_tells_two_claimants_apart(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    async with mirror(server, tmp_path) as here, pods(admin, "one", "two", "far"):
        resolver = DuplicateResolver(
            here.api, project=here.store.project, mine=_on_n1, node="n1", counters=here.counted
        )
        for name, node in (("one", "n1"), ("far", "n2")):
            await admin.pod(name, name, node=node)
            await admin.running(name, "10.1.5.1")
        found = await resolver.resolve("10.1.5.1")
        assert found is not None
        assert found.name == "one"
        await resolver.aclose()


async def test_a_kubeconfig_whose_plugin_prints_a_real_token(server: ApiServer, admin: Admin, tmp_path: Path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": await admin.agent_token()},
    }
    (tmp_path / "credential.json").write_text(json.dumps(credential))
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": server.url, "certificate-authority": str(server.certificate)}}
        ],
        "users": [
            {
                "name": "u",
                "user": {
                    "exec": {
                        "apiVersion": "client.authentication.k8s.io/v1",
                        "command": "cat",
                        "args": [str(tmp_path / "credential.json")],
                        "interactiveMode": "Never",
                    }
                },
            }
        ],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    api = await ClusterApi.connect(kubeconfig=str(tmp_path / "kubeconfig"))
    async with await api.request("GET", "/api/v1/pods") as answer:
        assert answer.status == 200
    await api.aclose()


def _role(found: Pod | Denial) -> str | None:
    return None if isinstance(found, Denial) else found.annotation("iam.amazonaws.com/role")


def _on_n1(pod: Pod) -> bool:
    return pod.node == "n1"

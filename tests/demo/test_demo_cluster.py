import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from kube2iam.demo.cluster import ClusterServer, selector
from kube2iam.demo.objects import ApiError, Objects, merged

TOKEN = "made-up"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
MERGE = {"Content-Type": "application/merge-patch+json"}

Client = TestClient[Request, Application]


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
async def client(objects: Objects) -> AsyncIterator[Client]:
    server = TestServer(ClusterServer(objects, TOKEN, bookmark_period=0.01).app())
    async with TestClient(server, headers=AUTH) as client:
        yield client


def pod(name: str, *, node: str = "n1", address: str = "", **annotations: str) -> dict[str, Any]:
    status = {"podIP": address} if address else {}
    return {"metadata": {"name": name, "annotations": annotations}, "spec": {"nodeName": node}, "status": status}


async def watch(client: Client, path: str, **query: str) -> aiohttp.ClientResponse:
    return await client.get(path, params={"watch": "true", **query})


async def line(response: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(5):
        event = json.loads(await response.content.readline())
    return event["type"], event["object"]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer other"}, {"Authorization": "made-up"}])
async def test_no_token_no_answer(objects: Objects, header: dict[str, str]) -> None:
    async with TestClient(TestServer(ClusterServer(objects, TOKEN).app())) as client:
        response = await client.get("/api/v1/pods", headers=header)
        assert response.status == 401
        assert (await response.json())["reason"] == "Unauthorized"


async def test_list_has_version_and_follows_selector_and_namespace(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("one", address="10.0.0.1"))
    objects.create("pods", "a", pod("two", node="n2"))
    objects.create("pods", "b", pod("three"))

    async def names(path: str, **query: str) -> list[str]:
        answer = await (await client.get(path, params=query)).json()
        assert answer["kind"] == "PodList"
        assert answer["metadata"]["resourceVersion"] == str(objects.version)
        return [item["metadata"]["name"] for item in answer["items"]]

    assert await names("/api/v1/pods") == ["one", "two", "three"]
    assert await names("/api/v1/pods", fieldSelector="spec.nodeName=n1") == ["one", "three"]
    assert await names("/api/v1/pods", fieldSelector="spec.nodeName!=n1") == ["two"]
    assert await names("/api/v1/pods", fieldSelector="spec.nodeName=n1,status.podIP=10.0.0.1") == ["one"]
    assert await names("/api/v1/pods", fieldSelector="metadata.name=three") == ["three"]
    assert await names("/api/v1/namespaces/a/pods") == ["one", "two"]


async def test_a_list_is_not_older_than_asked(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("one"))

    async def listed(**query: str) -> tuple[int, str]:
        answer = await client.get("/api/v1/pods", params=query)
        raw = await answer.json()
        return answer.status, raw["message"] if answer.status != 200 else raw["items"][0]["metadata"]["name"]

    match = {"resourceVersionMatch": "NotOlderThan"}
    assert await listed(resourceVersion="1", **match) == (200, "one")
    assert await listed(resourceVersion=str(objects.version), **match) == (200, "one")
    assert await listed(resourceVersion="9", **match) == (504, "Too large resource version: 9, current: 2")
    assert (await listed(resourceVersion="1", resourceVersionMatch="Nonsense"))[0] == 422
    assert (await listed(resourceVersion="1", **match, **{"continue": "x"}))[0] == 422
    assert (await listed(**match))[0] == 422
    assert (await listed(resourceVersion="x", **match))[0] == 400


async def test_watch_begins_after_the_version_it_names(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("before"))
    version = objects.version
    response = await watch(client, "/api/v1/pods", resourceVersion=str(version))
    objects.create("pods", "a", pod("after"))
    kind, raw = await line(response)
    assert (kind, raw["metadata"]["name"]) == ("ADDED", "after")
    assert int(raw["metadata"]["resourceVersion"]) > version
    response.close()


async def test_watch_without_a_version_begins_with_what_is_there(client: Client, objects: Objects) -> None:
    objects.create("namespaces", "", {"metadata": {"name": "shop"}})
    response = await watch(client, "/api/v1/namespaces")
    kind, raw = await line(response)
    assert (kind, raw["metadata"]["name"]) == ("ADDED", "shop")
    response.close()


async def test_a_filtered_watch_sees_objects_come_change_and_leave(client: Client, objects: Objects) -> None:
    response = await watch(client, "/api/v1/pods", resourceVersion="1", fieldSelector="spec.nodeName=n1")
    objects.create("pods", "a", pod("p", node=""))
    objects.patch("pods", "a", "p", {"spec": {"nodeName": "n1"}})
    objects.patch("pods", "a", "p", {"status": {"podIP": "10.0.0.1"}})
    objects.delete("pods", "a", "p")
    seen = [await line(response) for _ in range(3)]
    assert [kind for kind, _ in seen] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(raw["metadata"]["resourceVersion"]) for _, raw in seen]
    assert versions == sorted(set(versions))
    response.close()


async def test_no_change_is_lost_while_a_watch_is_busy(client: Client, objects: Objects) -> None:
    response = await watch(client, "/api/v1/pods", resourceVersion="1")
    for number in range(200):
        objects.create("pods", "a", pod(f"p{number}", filler="x" * 2000))
        await asyncio.sleep(0)
    names = [(await line(response))[1]["metadata"]["name"] for _ in range(200)]
    assert names == [f"p{number}" for number in range(200)]
    response.close()


async def test_bookmarks_come_to_those_who_ask(client: Client, objects: Objects) -> None:
    response = await watch(client, "/api/v1/pods", resourceVersion="1", allowWatchBookmarks="true")
    objects.create("namespaces", "", {"metadata": {"name": "elsewhere"}})
    while (found := await line(response))[1]["metadata"]["resourceVersion"] != "2":
        pass
    assert found == ("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "2"}})
    response.close()


async def test_a_version_too_old_is_gone(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("p"))
    objects.compact()
    response = await watch(client, "/api/v1/pods", resourceVersion="1")
    kind, status = await line(response)
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
    assert await response.content.read() == b""


async def test_history_is_bounded_and_says_from_where(objects: Objects) -> None:
    for number in range(1100):
        objects.create("events", "a", {"metadata": {"name": str(number)}})
    assert len(list(objects.changes("events", objects.oldest))) == 1000
    with pytest.raises(ApiError, match="too old"):
        objects.changes("events", objects.oldest - 1)


async def test_a_watch_ends_when_its_time_is_up(client: Client) -> None:
    response = await watch(client, "/api/v1/pods", resourceVersion="1", timeoutSeconds="0")
    async with asyncio.timeout(5):
        assert await response.content.read() == b""


async def test_annotations_can_be_edited_as_with_curl(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("p", keep="1", drop="2"))
    patch = {"metadata": {"annotations": {"drop": None, "new": "3"}}}
    path = "/api/v1/namespaces/a/pods/p"
    response = await client.patch(path, data=json.dumps(patch), headers=MERGE)
    assert response.status == 200
    assert (await response.json())["metadata"]["annotations"] == {"keep": "1", "new": "3"}
    assert (await client.patch(path, data="{}", headers={"Content-Type": "text/plain"})).status == 415


async def test_put_needs_the_version_that_is_there(client: Client, objects: Objects) -> None:
    created = objects.create("pods", "a", pod("p"))
    stale = json.loads(json.dumps(created))
    objects.patch("pods", "a", "p", {"spec": {"nodeName": "n2"}})
    path = "/api/v1/namespaces/a/pods/p"
    assert (await client.put(path, json=stale)).status == 409
    del stale["metadata"]["resourceVersion"]
    answer = await client.put(path, json=stale)
    assert answer.status == 200
    assert (await answer.json())["metadata"]["uid"] == created["metadata"]["uid"]


async def test_events_are_created_patched_and_listed(client: Client) -> None:
    about = {"kind": "Pod", "namespace": "a", "name": "p"}
    path = "/api/v1/namespaces/a/events"
    created = await client.post(path, json={"metadata": {"generateName": "p."}, "involvedObject": about, "count": 1})
    assert created.status == 201
    name = (await created.json())["metadata"]["name"]
    assert name.startswith("p.")
    await client.patch(f"{path}/{name}", data=json.dumps({"count": 2}), headers=MERGE)
    found = await (await client.get(path, params={"fieldSelector": "involvedObject.name=p"})).json()
    assert [event["count"] for event in found["items"]] == [2]


async def test_status_is_a_path_of_its_own(client: Client, objects: Objects) -> None:
    objects.create("pods", "a", pod("p"))
    path = "/api/v1/namespaces/a/pods/p/status"
    await client.patch(path, data=json.dumps({"status": {"podIP": "10.0.0.9"}}), headers=MERGE)
    assert (await (await client.get("/api/v1/namespaces/a/pods/p")).json())["status"]["podIP"] == "10.0.0.9"
    assert (await client.delete("/api/v1/namespaces/a/pods/p")).status == 200
    assert (await client.get("/api/v1/namespaces/a/pods/p")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/v1/secrets", "", 404),
        ("GET", "/apis/apps/v1/deployments", "", 404),
        ("GET", "/api/v1/pods?watch=true&resourceVersion=x", "", 400),
        ("GET", "/api/v1/pods?fieldSelector=nonsense", "", 400),
        ("POST", "/api/v1/pods", "{}", 405),
        ("POST", "/api/v1/namespaces/a/pods", "[]", 400),
        ("POST", "/api/v1/namespaces/a/pods", "{", 400),
        ("DELETE", "/api/v1/pods", "", 405),
    ],
)
async def test_refusals_are_statuses(client: Client, method: str, path: str, body: str, status: int) -> None:
    response = await client.request(method, path, data=body)
    assert response.status == status
    assert (await response.json())["kind"] == "Status"


async def test_what_is_there_already_is_not_made_again(client: Client) -> None:
    assert (await client.post("/api/v1/namespaces", json={"metadata": {"name": "a"}})).status == 201
    assert (await client.post("/api/v1/namespaces", json={"metadata": {"name": "a"}})).status == 409


def test_merge_patch() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": None}, "d": [2]}) == {"a": {"c": 2}, "d": [2]}
    assert merged("text", {"a": 1}) == {"a": 1}


def test_a_selector_takes_a_missing_field_as_empty() -> None:
    assert selector("status.podIP=")({"status": {}})
    assert not selector("status.podIP=10.0.0.1")({})
    assert selector("")({})

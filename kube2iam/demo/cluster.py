"""A small Kubernetes API: LIST, WATCH with bookmarks and 410, field selectors, create, change, delete, a bearer token.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web

from kube2iam.demo.objects import ApiError, Change, Objects, Raw

KINDS = {
    "namespaces": "Namespace",
    "nodes": "Node",
    "pods": "Pod",
    "serviceaccounts": "ServiceAccount",
    "events": "Event",
}
CLUSTER_WIDE = {"namespaces", "nodes"}
BOOKMARK_PERIOD = 10.0
"""Seconds between bookmarks on a quiet watch."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Matches = Callable[[Raw], bool]


class ClusterServer:
    """The HTTP face of `objects`."""

    def __init__(self, objects: Objects, token: str, *, bookmark_period: float = BOOKMARK_PERIOD) -> None:
        self._objects = objects
        self._token = token
        self._bookmark_period = bookmark_period
        self._watches: set[asyncio.Task[Any]] = set()

    def app(self) -> web.Application:
        """The application, to be served over HTTP."""
        app = web.Application(middlewares=[self._guard])
        app.on_shutdown.append(self._end_watches)
        app.router.add_get("/version", _version)
        for collection in ("/api/v1/{resource}", "/api/v1/namespaces/{namespace}/{resource}"):
            app.router.add_get(collection, self._collection)
            app.router.add_post(collection, self._create)
            for member in (collection + "/{name}", collection + "/{name}/status"):
                app.router.add_get(member, self._one)
                app.router.add_put(member, self._replace)
                app.router.add_patch(member, self._patch)
                app.router.add_delete(member, self._delete)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the token, and turn every refusal into a Status."""
        try:
            self._admit(request)
            return await handler(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except web.HTTPException as error:
            status = ApiError(error.status, (error.reason or "").replace(" ", ""), error.text or "")
            return web.json_response(status.status(), status=error.status)

    def _admit(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise ApiError(401, "Unauthorized", "Unauthorized")

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        resource, namespace = _resource(request), request.match_info.get("namespace", "")
        matches = selector(request.query.get("fieldSelector", ""))
        if request.query.get("watch") in {"1", "true"}:
            return await self._watch(request, resource, namespace, matches)
        self._check_version(request.query)
        return web.json_response(
            {
                "kind": f"{KINDS[resource]}List",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": str(self._objects.version)},
                "items": [raw for raw in self._objects.list(resource, namespace) if matches(raw)],
            }
        )

    def _check_version(self, query: Mapping[str, str]) -> None:
        """A LIST may ask for a state that is not older than a version: this server has one only, the newest."""
        version, match = _since(query) or 0, query.get("resourceVersionMatch")
        if match and (match != "NotOlderThan" or "resourceVersion" not in query or "continue" in query):
            raise ApiError(422, "Invalid", f"resourceVersionMatch is forbidden: {match}")
        if version > self._objects.version:
            raise ApiError(504, "Timeout", f"Too large resource version: {version}, current: {self._objects.version}")

    async def _watch(self, request: web.Request, resource: str, namespace: str, matches: Matches) -> web.StreamResponse:
        since = _since(request.query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        if task is not None:
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)

        def seen(raw: Raw) -> bool:
            return (not namespace or raw["metadata"].get("namespace") == namespace) and matches(raw)

        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                await self._send_changes(response, resource, since, seen, request.query)
        return response

    async def _send_changes(
        self, response: web.StreamResponse, resource: str, since: int | None, seen: Matches, query: Mapping[str, str]
    ) -> None:
        """Send what changed after `since`, then what changes, until the caller's time is up."""
        if since is None:
            since = self._objects.version
            for raw in self._objects.list(resource):
                if seen(raw):
                    await response.write(_line("ADDED", raw))
        bookmarks = query.get("allowWatchBookmarks") in {"1", "true"}
        while True:
            try:
                changes, since = list(self._objects.changes(resource, since)), self._objects.version
            except ApiError as error:
                await response.write(_line("ERROR", error.status()))
                return
            for change in changes:
                if line := _seen_change(change, seen):
                    await response.write(line)
            try:
                async with asyncio.timeout(self._bookmark_period):
                    await self._objects.changed(since)
            except TimeoutError:
                if bookmarks:
                    await response.write(_line("BOOKMARK", _bookmark(resource, since)))

    async def _end_watches(self, _app: web.Application) -> None:
        for task in self._watches:
            task.cancel()

    async def _create(self, request: web.Request) -> web.Response:
        raw = await _body(request)
        namespace = request.match_info.get("namespace", "")
        resource = _resource(request)
        if resource not in CLUSTER_WIDE and not namespace:
            raise ApiError(405, "MethodNotAllowed", f"{resource} are created in a namespace")
        return web.json_response(self._objects.create(resource, namespace, _typed(resource, raw)), status=201)

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(self._objects.get(*_key(request)))

    async def _replace(self, request: web.Request) -> web.Response:
        raw = await _body(request)
        return web.json_response(self._objects.replace(*_key(request), _typed(_resource(request), raw)))

    async def _patch(self, request: web.Request) -> web.Response:
        if request.content_type not in {"application/merge-patch+json", "application/strategic-merge-patch+json"}:
            raise ApiError(415, "UnsupportedMediaType", "send application/merge-patch+json")
        return web.json_response(self._objects.patch(*_key(request), await _body(request)))

    async def _delete(self, request: web.Request) -> web.Response:
        return web.json_response(self._objects.delete(*_key(request)))


def selector(text: str) -> Matches:
    """The test that a field selector stands for: `spec.nodeName=a,status.podIP!=`."""
    wanted: list[tuple[Sequence[str], str, bool]] = []
    for part in filter(None, text.split(",")):
        field, equals, value = part.partition("=")
        if not equals:
            raise ApiError(400, "BadRequest", f'invalid selector: "{part}"')
        wanted.append((field.rstrip("!").split("."), value.removeprefix("="), not field.endswith("!")))
    return lambda raw: all((_field(raw, path) == value) is equal for path, value, equal in wanted)


def _field(raw: object, path: Sequence[str]) -> str:
    for key in path:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return "" if raw is None else str(raw)


def _seen_change(change: Change, seen: Matches) -> bytes:
    """The line for a filtered watch: an object that stops matching is DELETED for it, one that starts is ADDED."""
    before = change.before is not None and seen(change.before)
    if change.after is not None and seen(change.after):
        return _line("MODIFIED" if before else "ADDED", change.after)
    if before and change.before is not None:
        last = change.after or change.before
        last = {**last, "metadata": {**last["metadata"], "resourceVersion": str(change.version)}}
        return _line("DELETED", last)
    return b""


def _line(kind: str, raw: Raw) -> bytes:
    return json.dumps({"type": kind, "object": raw}).encode() + b"\n"


def _bookmark(resource: str, version: int) -> Raw:
    return {"kind": KINDS[resource], "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}}


def _resource(request: web.Request) -> str:
    resource = request.match_info["resource"]
    if resource not in KINDS:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return resource


def _key(request: web.Request) -> tuple[str, str, str]:
    return _resource(request), request.match_info.get("namespace", ""), request.match_info["name"]


def _since(query: Mapping[str, str]) -> int | None:
    """The version a watch starts after; None (also for `0`) means: begin with everything there is."""
    text = query.get("resourceVersion", "")
    if not text.isdigit() and text:
        raise ApiError(400, "BadRequest", f'invalid resource version "{text}"')
    return int(text or 0) or None


def _typed(resource: str, raw: Raw) -> Raw:
    return {"kind": KINDS[resource], "apiVersion": "v1", **raw}


async def _body(request: web.Request) -> Raw:
    try:
        raw = json.loads(await request.read())
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise ApiError(400, "BadRequest", "the body is not a JSON object")
    return raw


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"major": "1", "minor": "30", "gitVersion": "v1.30.0-demo"})

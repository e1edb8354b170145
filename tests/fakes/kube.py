"""An API server that answers what a test tells it, faults included, over real sockets.

Each resource has a script of answers for LIST and one for WATCH; the last answer of a script repeats for ever.
"""

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, then pieces of a body (an asyncio.Event is waited for), then the end: orderly, never, or by reset."""

    status: int = 200
    pieces: Sequence[bytes | asyncio.Event] = ()
    then: Literal["eof", "hang", "reset"] = "eof"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    client: str = ""
    """The common name of the client's certificate."""

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"


class FakeApiServer:
    """`async with FakeApiServer() as server:` listens; `server.url` says where. With `tls` it speaks https."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.asked: list[Asked] = []
        self._scripts: defaultdict[tuple[str, bool], list[Answer]] = defaultdict(list)
        self._arrived = asyncio.Condition()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)

    def lists(self, *answers: Answer, resource: str = "pods") -> None:
        """What each LIST gets, and any other request for a path that ends in `resource`."""
        self._scripts[resource, False] = list(answers)

    def watches(self, *answers: Answer, resource: str = "pods") -> None:
        """What each WATCH gets."""
        self._scripts[resource, True] = list(answers)

    def count(self, *, watch: bool) -> int:
        return sum(asked.watch == watch for asked in self.asked)

    def lists_asked(self) -> list[Mapping[str, str]]:
        """The queries of all LISTs."""
        return [asked.query for asked in self.asked if not asked.watch]

    async def until_listed(self, times: int) -> None:
        """Wait until `times` LISTs have come."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.count(watch=False) >= times)

    async def until_asked(self, times: int) -> None:
        """Wait until `times` requests have come."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked) >= times)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self.listen(0)
        return self

    async def listen(self, port: int) -> None:
        """Listen at `port`; 0 picks one."""
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._tls).start()

    async def stop_listening(self) -> None:
        """Refuse new connections."""
        for site in list(self._runner.sites):
            await site.stop()

    @property
    def port(self) -> int:
        return int(self._runner.addresses[0][1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        asked = Asked(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            json.loads(text) if text else None,
            _common_name(request),
        )
        answer = self._next(asked)
        async with self._arrived:
            self.asked.append(asked)
            self._arrived.notify_all()
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        for piece in answer.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                await response.write(piece)
        if answer.then == "hang":
            await asyncio.Event().wait()
        if answer.then == "reset" and request.transport is not None:
            request.transport.abort()
        return response

    def _next(self, asked: Asked) -> Answer:
        resource = next((part for part in reversed(asked.path.split("/")) if (part, asked.watch) in self._scripts), "")
        script = self._scripts[resource, asked.watch]
        if not script:
            return refusal(404, "no script")
        return script.pop(0) if len(script) > 1 else script[0]


def _common_name(request: web.Request) -> str:
    certificate = request.transport and request.transport.get_extra_info("peercert")
    subject = dict(field for fields in (certificate or {}).get("subject", ()) for field in fields)
    return str(subject.get("commonName", ""))


def listing(*items: object, version: str = "10", cursor: str = "") -> Answer:
    page = {"kind": "List", "metadata": {"resourceVersion": version, "continue": cursor}, "items": list(items)}
    return Answer(pieces=[json.dumps(page).encode()])


def stream(
    *events: bytes | Raw | asyncio.Event, then: Literal["eof", "hang", "reset"] = "hang", status: int = 200
) -> Answer:
    """A WATCH's answer; it hangs after its events, as a quiet cluster does."""
    pieces = [json.dumps(event).encode() + b"\n" if isinstance(event, dict) else event for event in events]
    return Answer(status, pieces, then)


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    """A Status object, as the API server refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return Answer(status, [json.dumps(body).encode()], headers={k.replace("_", "-"): v for k, v in headers.items()})


def event(kind: str, raw: object) -> Raw:
    return {"type": kind, "object": raw}


def error(code: int, message: str = "no") -> Raw:
    return event("ERROR", {"kind": "Status", "code": code, "message": message})


def bookmark(version: str) -> Raw:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": version}})


def pod(name: str, *, uid: str = "", ip: str = "", version: str = "11", **changes: Any) -> Raw:
    """A pod of node n1 in namespace default; `changes` replace whole sections."""
    raw: Raw = {
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"iam.amazonaws.com/role": name},
        },
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]} if ip else {"phase": "Pending"},
    }
    return raw | changes


def namespace(name: str, *, version: str = "11", **annotations: str) -> Raw:
    return {"metadata": {"name": name, "resourceVersion": version, "annotations": annotations}}

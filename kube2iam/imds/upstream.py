"""The real metadata service, asked by the agent itself: nothing of a pod's request reaches it but a canonical path."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from kube2iam.imds.guard import may_leave
from kube2iam.imds.replies import Reply, empty

log = logging.getLogger(__name__)

_TIMEOUT = 0.75
_TOKEN_TIMEOUT = 0.3
_TOKEN_TTL = 21_600
_TOKEN_SPARE = 60
_WITHOUT_TOKEN = 300.0
_MAX_BODY = 65_536
_MAX_CONNECTIONS = 32
_MOST_CONSTANTS = 256
_SAID_AGAIN = 10.0
"""Seconds after which a failure is worth another line: pods choose what is asked for, and so what fails."""
_TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - the name of a header
_TTL = f"{_TOKEN}-ttl-seconds"
_TOKEN_TEXT = re.compile(rb"[!-~]{1,1024}")
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}(?:; ?charset=[\w-]{1,32})?", re.ASCII)
_CONSTANT = re.compile(
    r"meta-data/(?:ami-id|ami-launch-index|instance-id|instance-life-cycle|instance-type|local-hostname|local-ipv4|mac"
    r"|reservation-id|placement/[\w.-]+|services/[\w.-]+)|dynamic/instance-identity/document",
    re.ASCII,
)
"""What does not change while the instance runs."""

_ABSENT = empty(404)
_UNAVAILABLE = Reply(503, headers={"Retry-After": "1"})


class UpstreamError(Exception):
    """The real service did not give what the agent asked for; the message says what came instead."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """`timeout`, `connection`, `too-long` or `status`."""


class AbsentError(UpstreamError, LookupError):
    """The real service answered that there is no such thing."""


class _Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str


class Upstream:
    """A client of the service at `metadata_addr` (host:port). To be made inside a running loop.

    It asks with a session token of its own, so that hop limits and "tokens required" are no obstacle to pods; and
    without one where the service has none. Uses no proxy, follows no redirect. `named`: the patterns of
    `--metadata-allow`.
    """

    def __init__(
        self,
        metadata_addr: str,
        *,
        named: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        failed: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        """`failed` hears the kind of each UpstreamError."""
        self._base = f"http://{metadata_addr}/latest/"
        self._named = frozenset(named)
        self._clock = clock
        self._failed = failed
        self._constants: dict[str, Reply] = {}
        self._flights: dict[str, asyncio.Task[Reply]] = {}
        self._token = ""
        self._token_until = float("-inf")
        self._renewal = asyncio.Lock()
        self._complained = False
        self._complains_again = float("-inf")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "kube2iam", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    def peek(self, path: str) -> Reply | None:
        """The answer for a value that never changes and has been asked for before."""
        return self._constants.get(path)

    async def get(self, path: str, deadline: float | None = None) -> Reply:
        """What a pod may see of the answer for `path`, a row of the allowlist: 200 and its body, or empty 404 or 503.

        `deadline` is a loop time. Callers for one path share one request, which goes on when a caller leaves.
        """
        known = self._constants.get(path)
        if known is not None:
            return known
        if not may_leave(path, self._named):
            log.error("a path that is on the allowlist may not leave", extra={"req.path": path})
            return _ABSENT
        flight = self._flights.get(path) or self._start(path)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(flight)
        except TimeoutError:
            return _UNAVAILABLE

    async def text(self, path: str) -> str:
        """The value of an allowed path, for the agent itself, asked for anew each time.

        Raises UpstreamError, AbsentError where the service has none.
        """
        return _text(await self._ask(path), path)

    async def instance_id(self) -> str:
        """The instance's id; raises UpstreamError where the service is away."""
        return await self.text("meta-data/instance-id")

    async def node_profile_arn(self) -> str:
        """The ARN of the node's own instance profile. For `--auto-discover-base-arn`; never for a pod.

        Raises UpstreamError, AbsentError where there is none.
        """
        path = "meta-data/iam/info"
        try:
            arn = json.loads(_text(await self._ask(path), path))["InstanceProfileArn"]
        except (ValueError, KeyError, TypeError):
            arn = None
        if not isinstance(arn, str):
            raise UpstreamError("status", f"{path} of the metadata service names no instance profile")
        return arn

    async def node_role_name(self) -> str:
        """The name of the node's own role. For `--auto-discover-default-role`; never for a pod.

        Raises UpstreamError, AbsentError where there is none.
        """
        path = "meta-data/iam/security-credentials/"
        return _text(await self._ask(path), path).splitlines()[0]

    async def aclose(self) -> None:
        """Give up what is under way and close the connections."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._session.close()

    def _start(self, path: str) -> asyncio.Task[Reply]:
        flight = asyncio.create_task(self._answer(path), name=f"metadata {path}")
        self._flights[path] = flight
        flight.add_done_callback(lambda _: self._flights.pop(path, None))
        return flight

    async def _answer(self, path: str) -> Reply:
        try:
            reply = await self._ask(path)
        except UpstreamError:
            return _UNAVAILABLE
        if reply.status == 200 and reply.body and _CONSTANT.fullmatch(path) and len(self._constants) < _MOST_CONSTANTS:
            self._constants[path] = reply
        return reply

    async def _ask(self, path: str) -> Reply:
        """200 with the body, or 404; raises UpstreamError for all else."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                answer = await self._ask_with_token(path)
            reply = _reply(answer)
        except TimeoutError:
            error = UpstreamError("timeout", f"the metadata service took over {_TIMEOUT} s")
        except (aiohttp.ClientError, OSError) as cause:
            why = getattr(cause, "strerror", None) or cause  # aiohttp's own text speaks of TLS, which there is none of
            error = UpstreamError("connection", f"the metadata service cannot be reached: {why}")
        except UpstreamError as refusal:
            error = refusal
        else:
            self._note(None)
            return reply
        self._note(error)
        raise error

    def _note(self, error: UpstreamError | None) -> None:
        """Count a failure; log where failures begin and end, but not each time that they come and go."""
        if error is None:
            if self._complained:
                log.info("the metadata service answers again")
            self._complained = False
            return
        self._failed(error.kind)
        now = self._clock()
        if not self._complained and now >= self._complains_again:
            log.warning("the metadata service fails", extra={"reason": error.kind, "error": str(error)})
            self._complained = True
            self._complains_again = now + _SAID_AGAIN

    async def _ask_with_token(self, path: str) -> _Answer:
        token = await self._current_token()
        answer = await self._request("GET", path, {_TOKEN: token} if token else {})
        if answer.status == 401:
            if token == self._token:
                self._token_until = float("-inf")
            token = await self._current_token()
            answer = await self._request("GET", path, {_TOKEN: token} if token else {})
        return answer

    async def _current_token(self) -> str:
        """The agent's session token, or an empty text while the service is asked without one."""
        async with self._renewal:
            now = self._clock()
            if now >= self._token_until:
                self._token = await self._new_token()
                self._token_until = now + (_TOKEN_TTL - _TOKEN_SPARE if self._token else _WITHOUT_TOKEN)
            return self._token

    async def _new_token(self) -> str:
        try:
            async with asyncio.timeout(_TOKEN_TIMEOUT):
                answer = await self._request("PUT", "api/token", {_TTL: str(_TOKEN_TTL)})
        except TimeoutError:
            return ""
        return answer.body.decode("ascii") if answer.status == 200 and _TOKEN_TEXT.fullmatch(answer.body) else ""

    async def _request(self, method: str, path: str, headers: Mapping[str, str]) -> _Answer:
        """One exchange; only the body of a 200 is read. Raises UpstreamError where it is too long."""
        url = URL(f"{self._base}{path}", encoded=True)
        async with self._session.request(method, url, headers=headers, allow_redirects=False) as response:
            body = await _read(response.content) if response.status == 200 else b""
            return _Answer(response.status, body, response.headers.get("Content-Type", ""))


def _reply(answer: _Answer) -> Reply:
    """What is made of an answer: its body only from a 200, nothing from a redirect, a 401 or a 403."""
    if answer.status == 404:
        return _ABSENT
    if answer.status != 200:
        raise UpstreamError("status", f"the metadata service answered {answer.status}")
    known = _CONTENT_TYPE.fullmatch(answer.content_type)
    return Reply(200, answer.body, content_type=answer.content_type if known else "text/plain")


async def _read(stream: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in stream.iter_chunked(_MAX_BODY):
        body += chunk
        if len(body) > _MAX_BODY:
            raise UpstreamError("too-long", f"the metadata service sent more than {_MAX_BODY} bytes")
    return bytes(body)


def _text(reply: Reply, path: str) -> str:
    if reply.status == 404:
        raise AbsentError("status", f"the metadata service has no {path}")
    text = reply.body.decode("utf-8", "replace").strip()
    if not text:
        raise UpstreamError("status", f"{path} of the metadata service is empty")
    return text

"""HTTP/1.1 as pods speak it: bytes in, sound requests out, replies in order. The one place where we write HTTP.

httptools (llhttp) finds the message borders and refuses ambiguous ones; it sets no limits and leaves Host, versions,
bodies and trailers to us. Whatever is malformed is answered once and the connection is never used again, so that no
byte is ever read as the beginning of another request (RFC 9112, section 11.2).
"""

import asyncio
import re
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any, NoReturn, Protocol, cast

import httptools

from kube2iam.domain.pod import canonical_address
from kube2iam.imds import replies
from kube2iam.imds.front import FORWARDED_FOR, HOST, TOKEN, TTL, Request
from kube2iam.imds.replies import Reply

_LENGTH = b"content-length"
_ENCODING = b"transfer-encoding"
_EXPECT = b"expect"
_READ = frozenset((HOST, _LENGTH, _ENCODING, _EXPECT, TOKEN, TTL, FORWARDED_FOR))
_REPEATABLE = frozenset((FORWARDED_FOR, _EXPECT))
_VERSIONS = frozenset(("1.0", "1.1"))
_METHOD = re.compile(rb"[A-Za-z-]{1,24} ")
_SLICE = 4096
"""Bytes that are parsed at once: bounds how many requests can wait parsed behind a slow one."""
_LINGER_BYTES = 1 << 20
"""Bytes that a connection may send after its end before it is reset."""
_WRITE_BUFFER = 4096
_DIGITS = 9
_NEVER = float("inf")


class Site(Protocol):
    """What all connections of a server share. Moments are loop times, coarse: they move about once a second."""

    longest_target: float
    most_header_bytes: float
    most_headers: float
    longest_body: float
    most_bytes: float
    """Of one request in all, its body's framing included."""
    header_deadline: float
    """When a request that begins now must have come whole."""
    idle_deadline: float
    linger_deadline: float
    date: bytes
    """The Date header of a reply, a whole line."""
    date_and_close: bytes
    """The same, and `Connection: close`."""
    draining: bool

    def opened(self, connection: "Connection") -> bool:
        """Whether the connection may stay."""

    def closed(self, connection: "Connection") -> None:
        """A connection that stayed is gone."""

    def handle(self, request: Request, connection: "Connection") -> Reply | Coroutine[Any, Any, Reply]:
        """The reply, or what will return it as a task of the connection. Does not raise."""

    def settle(self, request: Request, task: "asyncio.Task[Reply]") -> Reply:
        """The reply that a finished task of `handle` comes to. Does not raise."""

    def malformed(self, address: str, status: int) -> None:
        """Something that is no sound request is being answered with `status`."""


class _StopParsingError(Exception):
    """Leaves the parser from inside a callback."""


class Connection(asyncio.Protocol):
    """One connection of a pod. Requests are answered one at a time, in order."""

    __slots__ = (
        "_bytes", "_chunked", "_ended", "_fields", "_header_bytes", "_headers", "_headers_done", "_keep", "_parser",
        "_queue", "_site", "_stash", "_status", "_stuck", "_target", "_task", "address", "deadline", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, site: Site) -> None:
        self._site = site
        self.address = ""
        """The peer's canonical address, fixed at accept."""
        self.deadline = _NEVER
        """When the connection is closed unless something happens before."""
        self._parser: Any = None
        self._task: asyncio.Task[Reply] | None = None
        self._stuck = False
        """The client does not read what it is sent."""
        self._ended = False
        """No more requests are read: the last one is being answered, or has been."""
        self._queue: deque[tuple[Request | Reply, bool]] | None = None
        """Requests that wait for the one being answered, and whether the connection lives on after each."""
        self._stash = b""
        """Bytes that came meanwhile, unparsed; nothing more is read while there are any."""
        self._begin()

    def _begin(self) -> None:
        """Expect the first byte of a request."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._fields = 0
        self._header_bytes = 0
        self._bytes = 0
        self._headers_done = False
        self._chunked = False
        self._keep = True
        self._status = 400

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Fix who asks; close at once what is over a limit."""
        self.transport = transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if peer is not None:
            self.address = canonical_address(peer[0].partition("%")[0]) if ":" in peer[0] else peer[0]
        if peer is None or not self._site.opened(self):
            self._ended = True
            transport.abort()
            return
        self.deadline = self._site.header_deadline
        transport.set_write_buffer_limits(_WRITE_BUFFER)
        self._parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop working for a client that has gone."""
        if self._task is not None:
            self._task.cancel()
        if self._parser is not None:
            self._parser = None  # it holds this connection
            self._site.closed(self)

    def eof_received(self) -> None:
        """Take the end of the client's side as the end: it has left, or has all its answers."""
        self._ended = True

    def data_received(self, data: bytes) -> None:
        """Answer what is whole in `data`; keep the rest."""
        if self._ended:
            self._discard(data)
        elif self._task is not None or self._stuck or self._stash:
            self._stash += data
            self.transport.pause_reading()
        elif len(data) <= _SLICE:
            self._parse(data)
        else:
            self._parse_slices(data)

    def pause_writing(self) -> None:
        """Read and answer no more until the client takes what it has been sent."""
        self._stuck = True
        self.deadline = min(self.deadline, self._site.idle_deadline)

    def resume_writing(self) -> None:
        """Go on."""
        self._stuck = False
        self._advance()

    def expire(self) -> None:
        """Close what has taken too long."""
        self.transport.abort()

    def drain(self) -> None:
        """Close the connection now if nothing is under way on it, else after the reply."""
        if self._task is None and not self._stuck and not self._bytes and not self._ended:
            self._finish()

    # From bytes to requests

    def _parse_slices(self, data: bytes) -> None:
        for at in range(0, len(data), _SLICE):
            if self._ended:
                return
            if self._task is not None or self._stuck:
                self._stash = data[at:]
                self.transport.pause_reading()
                return
            self._parse(data[at : at + _SLICE])

    def _parse(self, data: bytes) -> None:
        if not self._bytes:
            self.deadline = self._site.header_deadline
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(405 if _METHOD.match(data) else 400)
        except httptools.HttpParserError:
            self._refuse(self._status)
        except httptools.HttpParserUpgrade:
            self._ended = True  # as if the client had not asked to speak something else; see on_headers_complete
        else:
            if self._bytes > self._site.most_bytes:
                self._refuse(413 if self._headers_done else 431 if self._target else 400)

    def on_url(self, part: bytes) -> None:
        """Take a piece of the request target."""
        self._target += part
        if len(self._target) > self._site.longest_target:
            self._stop(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field; keep it if a rule reads it."""
        if self._headers_done:
            self._stop(400)  # a trailer
        self._fields += 1
        self._header_bytes += len(name) + len(value) + 4
        if self._fields > self._site.most_headers or self._header_bytes > self._site.most_header_bytes:
            self._stop(431)
        name = name.lower()
        if name in _READ:
            if name in self._headers and name not in _REPEATABLE:
                self._stop(400)
            self._headers[name] = value.strip(b" \t")

    def on_headers_complete(self) -> None:
        """Judge the head; the parser has not looked at the version, at Host or at whether a body is welcome."""
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                self._stop(400)
            self._keep = False
            if not headers.get(HOST):
                headers.pop(HOST, None)  # HTTP/1.0 knows no Host
        elif HOST not in headers:
            self._stop(400)
        elif not parser.should_keep_alive() or parser.should_upgrade():
            self._keep = False
        self._headers_done = True
        if _ENCODING in headers or _LENGTH in headers:
            self._judge_body(version)

    def _judge_body(self, version: str) -> None:
        """Only a PUT may have a body, a short one; a chunked one must be empty."""
        encoding = self._headers.get(_ENCODING)
        length = self._headers.get(_LENGTH, b"0")
        if encoding is not None:
            self._chunked = True
            if version != "1.1" or encoding.lower() != b"chunked" or _LENGTH in self._headers:
                self._stop(400)
        if not length.isdigit() or len(length) > _DIGITS:
            self._stop(400)
        announced = self._chunked or int(length) > 0
        if announced and self._parser.get_method() != b"PUT":
            self._stop(400)
        if int(length) > self._site.longest_body:
            self._stop(413)
        if announced and _EXPECT in self._headers:
            # The client waits before it sends the body. Nothing in a body matters: answer now.
            self._keep = False
            self.on_message_complete()
            raise _StopParsingError

    def on_body(self, _part: bytes) -> None:
        """Drop a body, whose length is known to be within its limit."""
        if self._chunked:
            self._stop(400)

    def on_message_complete(self) -> None:
        """Answer the request, now or when its turn comes."""
        if self._ended:
            return
        request = Request(self._parser.get_method(), self._target, self._headers, self.address)
        keep = self._keep
        self._ended = not keep
        self._begin()
        if self._task is None and not self._stuck and not self._queue:
            self._answer(request, keep=keep)
        else:
            self._wait_in_line(request, keep=keep)

    def _stop(self, status: int) -> NoReturn:
        self._status = status
        raise _StopParsingError

    def _refuse(self, status: int) -> None:
        """Answer something malformed, after what came before it, and never use the connection again."""
        if self._ended:
            return  # bytes after the last request
        self._ended = True
        self._site.malformed(self.address, status)
        reply = replies.closing(status)
        if self._task is None and not self._stuck and not self._queue:
            self._send(reply, keep=False)
        else:
            self._wait_in_line(reply, keep=False)

    # From requests to replies

    def _wait_in_line(self, item: Request | Reply, *, keep: bool) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append((item, keep))

    def _answer(self, request: Request, *, keep: bool) -> None:
        answer = self._site.handle(request, self)
        if isinstance(answer, Reply):
            self._send(answer, keep=keep, head=request.method == b"HEAD")
            return
        self.deadline = _NEVER
        self._task = asyncio.get_running_loop().create_task(answer)
        self._task.add_done_callback(partial(self._answered, request, keep))

    def _answered(self, request: Request, keep: bool, task: "asyncio.Task[Reply]") -> None:  # noqa: FBT001 - a callback
        reply = self._site.settle(request, task)
        self._task = None
        if self._parser is not None and not self.transport.is_closing():
            self._send(reply, keep=keep, head=request.method == b"HEAD")
            self._advance()

    def _send(self, reply: Reply, *, keep: bool, head: bool = False) -> None:
        site = self._site
        if keep and not reply.closing and not site.draining:
            self.deadline = site.idle_deadline
            self.transport.write(reply.render(site.date, head=head))
        else:
            self.transport.write(reply.render(site.date_and_close, head=head))
            self._finish(linger=reply.closing)

    def _advance(self) -> None:
        """Go on with what has waited: requests first, then bytes."""
        while self._queue and self._task is None and not self._stuck:
            item, keep = self._queue.popleft()
            if isinstance(item, Reply):
                self._send(item, keep=keep)
            else:
                self._answer(item, keep=keep)
        if self._stash and self._task is None and not self._stuck and not self.transport.is_closing():
            data, self._stash = self._stash, b""
            self._parse_slices(data)
            if not self._stash:
                self.transport.resume_reading()

    def _finish(self, *, linger: bool = False) -> None:
        """Close after what has been written. `linger`: read on for a while, or the kernel's reset would eat the reply.

        See RFC 9112, section 9.6.
        """
        self._ended = True
        self._queue = None
        self._stash = b""
        if linger:
            self.deadline = self._site.linger_deadline
            self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    def _discard(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > _LINGER_BYTES:
            self.transport.abort()

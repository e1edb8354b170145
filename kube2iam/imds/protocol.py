"""HTTP/1.1 as pods speak it: bytes in, sound requests out.

httptools (llhttp) finds the message borders and refuses ambiguous ones; it sets no limits and leaves Host, versions,
bodies and trailers to us. Whatever is malformed gets a status, and the connection must not be used again, so that no
byte is ever read as the beginning of another request (RFC 9112, section 11.2).
"""

import re
from typing import Any, NoReturn, Protocol

import httptools

from kube2iam.imds.front import FORWARDED_FOR, HOST, TOKEN, TTL, Head

_LENGTH = b"content-length"
_ENCODING = b"transfer-encoding"
_EXPECT = b"expect"
_READ = frozenset((HOST, _LENGTH, _ENCODING, _EXPECT, TOKEN, TTL, FORWARDED_FOR))
_REPEATABLE = frozenset((FORWARDED_FOR, _EXPECT))
_METHOD = re.compile(rb"[A-Za-z-]{1,24} ")
_DIGITS = 9


class HttpLimits(Protocol):
    """What one request may take. Bytes and fields; infinite where a limit is off."""

    longest_target: float
    most_header_bytes: float
    most_headers: float
    longest_body: float
    most_bytes: float
    """In all, a chunked body's framing included."""


class Receiver(Protocol):
    """Takes requests as they become whole."""

    def received(self, head: Head) -> None:
        """One sound request; nothing more is to be read after one that does not keep the connection."""


class _StopParsingError(Exception):
    """Leaves the parser from inside a callback."""


class RequestReader:
    """Reads one connection's requests, one after the other."""

    def __init__(self, limits: HttpLimits, receiver: Receiver) -> None:
        self._limits = limits
        self._receiver: Receiver | None = receiver
        self._parser: Any = httptools.HttpRequestParser(self)
        self.only: Head | None = None
        """The request that the last `feed` has completed, if it was one and no more."""
        self._several = False
        self._begin()

    def _begin(self) -> None:
        self.bytes = 0
        """How many bytes of the current request have come, not counting a piece that ended another; 0 between them."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._fields = 0
        self._header_bytes = 0
        self._headers_done = False
        self._chunked = False
        self._keep = True
        self._status = 400

    def feed(self, data: bytes) -> int:
        """Read on; returns 0, or the status for what is malformed or too long. Not to be fed again after that."""
        self.bytes += len(data)
        self.only = None
        self._several = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            return 405 if self.bytes == len(data) and _METHOD.match(data) else 400
        except httptools.HttpParserError:
            return self._status
        except httptools.HttpParserUpgrade:
            return 0  # answered as if the client had not asked to speak something else; see on_headers_complete
        if self.bytes > self._limits.most_bytes:
            return 413 if self._headers_done else 431 if self._target else 400
        return 0

    def close(self) -> None:
        """Let go of the receiver and the parser, which hold each other."""
        self._receiver = None
        self._parser = None

    # What httptools says

    def on_message_begin(self) -> None:
        """See that a request has begun, also in the bytes that ended the one before it."""
        self.bytes = self.bytes or 1

    def on_url(self, part: bytes) -> None:
        """Take a piece of the request target."""
        self._target += part
        if len(self._target) > self._limits.longest_target:
            self._stop(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header field; keep it if a rule reads it."""
        if self._headers_done:
            self._stop(400)  # a trailer
        self._fields += 1
        self._header_bytes += len(name) + len(value) + 4
        if self._fields > self._limits.most_headers or self._header_bytes > self._limits.most_header_bytes:
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
        if version not in {"1.0", "1.1"}:
            self._stop(400)
        if version == "1.0":
            self._keep = False
            if not headers.get(HOST):
                headers.pop(HOST, None)  # it need not be sent, nor say anything
        elif HOST not in headers:
            self._stop(400)
        elif not parser.should_keep_alive() or parser.should_upgrade():
            self._keep = False
        self._headers_done = True
        if _ENCODING in headers or _LENGTH in headers:
            self._judge_body(version)

    def on_body(self, _part: bytes) -> None:
        """Drop a body, whose length is known to be within its limit."""
        if self._chunked:
            self._stop(400)

    def on_message_complete(self) -> None:
        """Hand the request on."""
        head = Head(self._parser.get_method(), self._target, self._headers, keep=self._keep)
        self._begin()
        self.only = None if self._several else head
        self._several = True
        if self._receiver is not None:
            self._receiver.received(head)
        if not head.keep:
            raise _StopParsingError

    def _judge_body(self, version: str) -> None:
        """Only a PUT may have a body, a short one; a chunked one must be empty."""
        encoding = self._headers.get(_ENCODING)
        if encoding is not None:
            self._chunked = True
            if version != "1.1" or encoding.lower() != b"chunked" or _LENGTH in self._headers:
                self._stop(400)
        length = self._headers.get(_LENGTH, b"0")
        if not length.isdigit() or len(length) > _DIGITS:
            self._stop(400)
        announced = self._chunked or int(length) > 0
        if announced and self._parser.get_method() != b"PUT":
            self._stop(400)
        if int(length) > self._limits.longest_body:
            self._stop(413)
        if announced and _EXPECT in self._headers:
            # The client waits before it sends the body. Nothing in a body matters: answer now.
            self._keep = False
            self.on_message_complete()

    def _stop(self, status: int) -> NoReturn:
        self._status = status
        raise _StopParsingError

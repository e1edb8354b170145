"""One connection of a pod: requests answered one at a time and in order, and nothing that a client does costs much."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, cast

from kube2iam.domain.pod import canonical_address
from kube2iam.imds import replies
from kube2iam.imds.front import Head, Request
from kube2iam.imds.protocol import HttpLimits, RequestReader
from kube2iam.imds.replies import Reply

_SLICE = 1024
"""Bytes that are parsed at once: bounds how many requests can wait parsed."""
_WAITING = 512
"""Bytes that a request takes while it waits parsed."""
_LONGEST_REMEMBERED = 1024
_MOST_REMEMBERED = 1024
_DISCARDED = 1 << 20
"""Bytes that a connection may send after its end before it is reset."""
_WRITE_BUFFER = 4096
_NEVER = float("inf")


class Site(HttpLimits, Protocol):
    """What all connections of a server share. Moments are loop times, coarse: they move with the server's tick."""

    header_deadline: float
    """When a request that begins now must have come whole."""
    idle_deadline: float
    linger_deadline: float
    date: bytes
    """The Date header of a reply, a whole line."""
    date_and_close: bytes
    """The same, and `Connection: close`."""
    draining: bool
    heads: dict[bytes, Head]
    """Whole requests by their bytes, as they were read before: clients send the same ones again and again."""

    def opened(self, connection: "Connection") -> bool:
        """Whether the connection may stay. Tells it its party."""

    def closed(self, connection: "Connection") -> None:
        """A connection that stayed is gone, and what worked for it."""

    def take_turn(self, party: str) -> bool:
        """Whether `party` may be served in this turn of the loop; if not, it is to wait for another."""

    def await_turn(self, party: str, step: Callable[[], None]) -> None:
        """Call `step`, which serves `party` once, in one of the next turns."""

    def keep(self, party: str, size: int) -> bool:
        """Count `size` bytes more (or less) that wait here for `party`. False, and not counted, if that is too much."""

    def write_soon(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write `data` in this turn of the loop, together with what others are to be sent."""

    def write_now(self) -> None:
        """Write what was to be written soon: nothing may overtake it, and a transport closes without it."""

    def handle(self, request: Request, connection: "Connection") -> Reply | Coroutine[Any, Any, Reply]:
        """The reply, or what will return it as a task of the connection. Does not raise."""

    def settle(self, request: Request, task: "asyncio.Task[Reply]") -> Reply:
        """The reply that a finished task of `handle` comes to. Does not raise."""

    def malformed(self, address: str, status: int) -> None:
        """Something that is no sound request is being answered with `status`."""


class Connection(asyncio.Protocol):
    """A connection, from accept to its end."""

    transport: asyncio.Transport
    address = ""
    """The peer's canonical address, fixed at accept."""
    party = ""
    """With whom it shares what one party may have: the pod's address, or one name for all addresses of no known pod."""
    deadline = _NEVER
    """When the connection is closed unless something happens before."""
    _reader: RequestReader | None = None
    _task: asyncio.Task[Reply] | None = None
    _stuck = False
    """The client does not read what it is sent."""
    _ended = False
    """No more requests are read: the last one is being answered, or has been."""
    _eof = False
    _admitted = False
    _lost = False
    _answered_now = False
    """A request has been answered in this turn of the loop: the next one is for another turn, after everyone else's."""
    _queue: deque[Head | Reply] | None = None
    """Requests that wait for their turn."""
    _stash = b""
    """Bytes that came meanwhile, unread; nothing more is taken from the kernel while there are any."""
    _discarded = 0
    _in_line = False
    """It will be this connection's turn."""
    _paused = False
    _kept = 0
    """Bytes that are counted as waiting here."""

    def __init__(self, site: Site) -> None:
        self._site = site

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Fix who asks; close at once what is over a limit."""
        self.transport = transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if peer is not None:
            self.address = canonical_address(peer[0].partition("%")[0]) if ":" in peer[0] else peer[0]
            self._admitted = self._site.opened(self)
        if self._admitted:
            self.deadline = self._site.header_deadline
            transport.set_write_buffer_limits(_WRITE_BUFFER)
        else:
            self._ended = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop working for a client that has gone."""
        self._ended = self._lost = True
        self._queue = None
        self._stash = b""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._count()
        if self._task is not None:
            self._task.cancel()
        elif self._admitted:
            self._site.closed(self)

    def eof_received(self) -> bool:
        """Take the end of the client's side as the end. It has left, unless answers wait that need nothing but time."""
        self._eof = True
        self._site.write_now()
        self._ended = self._task is not None or not (self._queue or self._stash)
        return not self._ended

    def data_received(self, data: bytes) -> None:
        """Answer what is whole in `data`; keep the rest."""
        if self._ended:
            self._discard(data)
        elif self._task is not None or self._stuck or self._queue or self._stash:
            self._stash += data
            self._pause()
            self._count()
        elif not self._site.take_turn(self.party):
            self._stash = data
            if len(data) > _SLICE:
                self._pause()
                self._count()
            self._in_line = True
            self._site.await_turn(self.party, self._advance)
        else:
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        """Answer or read what came while nothing else waited."""
        if self._reader is None or not self._reader.bytes:
            head = self._site.heads.get(data)
            if head is not None:
                self._ended = not head.keep
                self._answer(head)
                if self._eof:
                    self._go_on()
            else:
                self._read_first(data)
        else:
            self._read(data)

    def pause_writing(self) -> None:
        """Read and answer no more until the client takes what it has been sent."""
        self._stuck = True
        self.deadline = min(self.deadline, self._site.idle_deadline)

    def resume_writing(self) -> None:
        """Go on."""
        self._stuck = False
        self._go_on()

    def expire(self) -> None:
        """Close what has taken too long."""
        self.transport.abort()

    def drain(self) -> None:
        """Close the connection now if nothing is under way on it; else the next reply does."""
        partial_request = self._stash or self._queue or (self._reader is not None and self._reader.bytes)
        if self._task is None and not self._stuck and not partial_request and not self._ended:
            self._finish()

    # From bytes to requests

    def _read_first(self, data: bytes) -> None:
        """Read bytes that begin a request, and remember them if they are a whole one that makes sense."""
        self.deadline = self._site.header_deadline
        if self._reader is None:
            self._reader = RequestReader(self._site, self)
        reader = self._reader
        self._read(data)
        head, heads = reader.only, self._site.heads
        if head is not None and head.plan is not None and not reader.bytes and len(data) <= _LONGEST_REMEMBERED:
            if len(heads) >= _MOST_REMEMBERED:
                heads.clear()
            heads[data] = head

    def _read(self, data: bytes) -> None:
        """Read a slice; answer one request at most, so that a long pipeline takes turns with everyone else."""
        if len(data) > _SLICE:
            data, self._stash = data[:_SLICE], data[_SLICE:]
            self._pause()
        self._answered_now = False
        status = cast("RequestReader", self._reader).feed(data)
        if status and not self._ended:
            self._refuse(status)
        self._count()
        self._go_on()

    def received(self, head: Head) -> None:
        """Answer one request, now or when its turn comes."""
        if self._ended:
            return
        self._ended = not head.keep
        if self._task is None and not self._stuck and not self._queue and not self._answered_now:
            self._answered_now = True
            self._answer(head)
        else:
            self._wait_in_line(head)

    def _refuse(self, status: int) -> None:
        """Answer something malformed, after what came before it, and never use the connection again."""
        self._ended = True
        self._site.malformed(self.address, status)
        reply = replies.closing(status)
        if self._task is None and not self._stuck and not self._queue:
            self._send(reply, None)
        else:
            self._wait_in_line(reply)

    # From requests to replies

    def _wait_in_line(self, item: Head | Reply) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(item)

    def _answer(self, head: Head) -> None:
        request = Request(head, self.address)
        answer = self._site.handle(request, self)
        if isinstance(answer, Reply):
            self._send(answer, head)
        else:
            self.deadline = _NEVER
            self._task = asyncio.get_running_loop().create_task(answer)
            self._task.add_done_callback(partial(self._answered, request))

    def _answered(self, request: Request, task: "asyncio.Task[Reply]") -> None:
        reply = self._site.settle(request, task)
        self._task = None
        if self._lost:
            self._site.closed(self)
        elif not self.transport.is_closing():
            self._send(reply, request.head)
            self._go_on()

    def _send(self, reply: Reply, head: Head | None) -> None:
        site = self._site
        if head is not None and head.keep and not reply.closing and not site.draining:
            self.deadline = site.idle_deadline
            site.write_soon(self.transport, reply.render(site.date, head=head.bodiless))
        else:
            site.write_now()
            self.transport.write(reply.render(site.date_and_close, head=head is not None and head.bodiless))
            self._finish(linger=reply.closing)

    def _go_on(self) -> None:
        """Come back in another turn of the loop if something waits that could be done."""
        if self._task is not None or self._stuck or self._in_line:
            return
        if self._queue or self._stash:
            self._in_line = True
            self._site.await_turn(self.party, self._advance)
        elif self._eof:
            self._finish()

    def _advance(self) -> None:
        """Go on with what has waited: requests first, then bytes. One step; it may not be the time for it any more."""
        self._in_line = False
        if self._lost or self._task is not None or self._stuck or self.transport.is_closing():
            return
        if self._queue:
            item = self._queue.popleft()
            if isinstance(item, Reply):
                self._send(item, None)
            else:
                self._answer(item)
            self._count()
            self._go_on()
        elif self._stash and not self._ended:
            data, self._stash = self._stash, b""
            self._begin(data)
            if self._paused and not self._stash:
                self._paused = False
                self.transport.resume_reading()
                self._count()

    def _finish(self, *, linger: bool = False) -> None:
        """Close after what has been written. `linger`: read on for a while, or the kernel's reset would eat the reply.

        See RFC 9112, section 9.6.
        """
        self._site.write_now()
        self._ended = True
        self._queue = None
        self._stash = b""
        self._count()
        if linger:
            self.deadline = self._site.linger_deadline
            self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    def _pause(self) -> None:
        """Take nothing more from the kernel until what has come is done with."""
        self._paused = True
        self.transport.pause_reading()

    def _count(self) -> None:
        """Have the bytes counted that wait here; leave if the pod has too many of them."""
        kept = len(self._stash)
        if self._reader is not None:
            kept += self._reader.bytes
        if self._queue:
            kept += len(self._queue) * _WAITING
        if kept == self._kept:
            return
        if self._site.keep(self.party, kept - self._kept):
            self._kept = kept
        else:
            self.transport.abort()  # which loses them

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > _DISCARDED:
            self.transport.abort()

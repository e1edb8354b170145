"""The pods' port: its connections, what they share, how it opens and how it closes."""

import asyncio
import logging
import socket
from collections.abc import Iterable
from email.utils import formatdate
from functools import partial

from kube2iam.domain.errors import Denial
from kube2iam.imds.connection import Connection
from kube2iam.imds.dispatch import Admin, Dispatch, Metrics
from kube2iam.imds.front import Front, Head
from kube2iam.imds.limits import STRANGERS, PodLimits, room_for_connections
from kube2iam.imds.listen import Acceptor
from kube2iam.imds.turns import Turns
from kube2iam.settings import Settings

log = logging.getLogger(__name__)

_TICK = 0.5
_LINGER = 2.0
_TOGETHER = 64
"""Replies that wait for one another, for a millisecond or so."""
_REQUEST_LINE = len("GET  HTTP/1.1")
_NEVER = float("inf")


class Server:
    """The pods' port. To be made inside a running loop.

    `start` with listening sockets, `drain` in the end. `admin` answers the admin paths that come by the node's own
    address, where they share this port.
    """

    def __init__(self, front: Front, settings: Settings, metrics: Metrics, admin: Admin | None = None) -> None:
        self.limits = PodLimits(
            connections=room_for_connections(settings.max_connections),
            connections_per_pod=settings.max_connections_per_pod,
            rate=settings.max_request_rate,
            held=settings.max_held,
            held_per_pod=settings.max_held_per_pod,
        )
        """Also what is open and waiting now, for the metrics."""
        dispatch = Dispatch(
            front, limits=self.limits, metrics=metrics, admin=admin, hop_limit=settings.imdsv2_hop_limit
        )
        self._pods = front.pods
        self._turns = Turns()
        self.take_turn = self._turns.take
        self.await_turn = self._turns.wait
        self.keep = self.limits.keep
        self._unsent: list[tuple[asyncio.WriteTransport, bytes]] = []
        self.handle = dispatch.handle
        self.settle = dispatch.settle
        self.malformed = dispatch.malformed
        self.longest_target = (settings.max_request_line or _NEVER) - _REQUEST_LINE
        self.most_header_bytes = settings.max_header_bytes or _NEVER
        self.most_headers = settings.max_headers or _NEVER
        self.longest_body = settings.max_body_bytes or _NEVER
        self.most_bytes = self.longest_target + self.most_header_bytes + self.longest_body
        self.heads: dict[bytes, Head] = {}
        self.draining = False
        self._header_timeout = settings.header_timeout or _NEVER
        self._idle_timeout = settings.idle_timeout or _NEVER
        self._connections: set[Connection] = set()
        self._none_left = asyncio.Event()
        self._acceptor: Acceptor | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._mending: asyncio.Task[None] | None = None
        self._tell_time()

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        """Accept on listening `sockets`, which are this server's to close from now on."""
        self._acceptor = Acceptor(sockets, partial(Connection, self))
        await self._acceptor.start()
        self._timer = self._loop.call_later(_TICK, self._tick)

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets, for a successor to go on with."""
        return [] if self._acceptor is None else list(self._acceptor.sockets)

    def stop_accepting(self) -> None:
        """Take no new connections; replies close theirs from now on, and idle ones close at once."""
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None
        self.draining = True
        for connection in list(self._connections):
            connection.drain()

    async def drain(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - what is left then is cut off, not raised
        """Stop, let what is under way end, at most `timeout` seconds, then cut off the rest."""
        self.stop_accepting()
        try:
            async with asyncio.timeout(timeout):
                await self._empty()
        except TimeoutError:
            log.warning("connections were cut off at the end", extra={"connections": len(self._connections)})
            for connection in list(self._connections):
                connection.expire()
            await self._empty()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._mending is not None:
                self._mending.cancel()

    async def _empty(self) -> None:
        while self._connections:
            self._none_left.clear()
            await self._none_left.wait()

    # What connections ask for, see connection.Site

    def opened(self, connection: Connection) -> bool:
        """Whether the connection may stay. Tells it its party."""
        owner = self._pods.find(connection.address)
        stranger = isinstance(owner, Denial) and owner.reason.passing
        connection.party = STRANGERS if stranger else connection.address
        if not self.limits.connect(connection.address, stranger=stranger):
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """Forget the connection."""
        self._connections.discard(connection)
        self.limits.disconnect(connection.address, stranger=connection.party == STRANGERS)
        if not self._connections:
            self._none_left.set()

    def write_soon(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write `data` at the end of this turn of the loop, or when enough has come together.

        A client that is written to wakes up, and that costs as much as an answer; one with many connections wakes once.
        """
        if not self._unsent:
            self._loop.call_soon(self._end_turn)
        self._unsent.append((transport, data))
        if len(self._unsent) >= _TOGETHER:
            self.write_now()

    def write_now(self) -> None:
        """Write what was to be written soon."""
        unsent, self._unsent = self._unsent, []
        for transport, data in unsent:
            if not transport.is_closing():
                transport.write(data)

    def _end_turn(self) -> None:
        self.write_now()
        self._turns.end()

    def _tick(self) -> None:
        """Move the coarse clock on; close what has had its time. One timer for all connections."""
        self._timer = self._loop.call_later(_TICK, self._tick)
        self._tell_time()
        now = self._loop.time()
        for connection in [connection for connection in self._connections if connection.deadline < now]:
            connection.expire()
        self.limits.sweep()
        self._turns.forget()
        if self._acceptor is not None and self._acceptor.broken and (self._mending is None or self._mending.done()):
            self._mending = self._loop.create_task(self._acceptor.mend())

    def _tell_time(self) -> None:
        now = self._loop.time() + _TICK  # so that nothing is closed early
        self.header_deadline = now + self._header_timeout
        self.idle_deadline = now + self._idle_timeout
        self.linger_deadline = now + _LINGER
        self.date = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        self.date_and_close = self.date + b"Connection: close\r\n"

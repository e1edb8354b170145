"""The sockets under the pods' port: listening, where a connection was sent to, how far a reply travels."""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

log = logging.getLogger(__name__)

METADATA_ADDRESSES = frozenset(("169.254.169.254", "fd00:ec2::254"))

BACKLOG = 4096
_PICKS = 20
"""Ports that are tried where any will do: one that is free for IPv4 may be taken for IPv6."""
_AT_ONCE = 16
"""Connections that asyncio accepts in one turn of its loop, and errors that it logs in one; it calls it a backlog."""
_DUPLICATES = 8
_RECEIVE_BUFFER = 32 * 1024
"""Bytes per connection that the kernel takes in before we read: bounds what a client can make us hold."""
_SO_ORIGINAL_DST = 80
_IP6T_SO_ORIGINAL_DST = 80
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def listen(port: int) -> list[socket.socket]:
    """Listening sockets on every IPv4 and IPv6 address; IPv4 alone where the kernel has no IPv6.

    Port 0 picks one that is free in both. Raises OSError.
    """
    for _ in range(_PICKS if port == 0 else 0):
        with suppress(OSError):
            return _listen_twice(0)
    return _listen_twice(port)


def _listen_twice(port: int) -> list[socket.socket]:
    sockets = [_listen(socket.AF_INET, "", port)]
    try:
        sockets.append(_listen(socket.AF_INET6, "", sockets[0].getsockname()[1]))
    except OSError as error:
        if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            sockets[0].close()
            raise
        log.debug("no IPv6 on this node", extra={"error": str(error)})
    return sockets


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    except OSError:
        listener.close()
        raise
    return listener


class Acceptor:
    """Accepts on listening sockets that stay its owner's, and goes on accepting whatever accept(2) says.

    uvloop accepts one connection of a listener in a turn of its loop, behind which those of a patient pod would wait
    long where another opens hundreds; so it gets several duplicates of each socket. It gives up a listener after an
    error that its emergency descriptor does not cure; `mend`, called now and then, replaces those that it has closed.
    asyncio pauses by itself.
    """

    def __init__(self, sockets: Iterable[socket.socket], factory: Callable[[], asyncio.Protocol]) -> None:
        self.sockets = list(sockets)
        self._factory = factory
        self._accepting: list[tuple[socket.socket, socket.socket, asyncio.Server]] = []

    async def start(self) -> None:
        """Begin to accept."""
        for listener in self.sockets:
            for _ in range(_DUPLICATES):
                await self._accept(listener)

    async def mend(self) -> None:
        """Accept again where the loop has given up."""
        try:
            for given_up in [entry for entry in self._accepting if entry[1].fileno() < 0]:
                await self._accept(given_up[0])
                self._accepting.remove(given_up)
        except OSError as error:
            log.warning("cannot accept connections", extra={"error": str(error)})
        else:
            log.warning("accepting again after an error of the kernel")

    @property
    def broken(self) -> bool:
        """Whether there is something to mend."""
        return any(copy.fileno() < 0 for _, copy, _ in self._accepting)

    def stop(self) -> None:
        """Accept no more; what waits in the kernel's queue is lost unless another process shares the sockets."""
        for _, _, server in self._accepting:
            server.close()
        self._accepting.clear()
        for listener in self.sockets:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        copy = listener.dup()
        try:
            server = await asyncio.get_running_loop().create_server(self._factory, sock=copy, backlog=_AT_ONCE)
            listener.listen(BACKLOG)
        except BaseException:
            copy.close()
            raise
        self._accepting.append((listener, copy, server))


def redirected(connection: socket.socket) -> bool:
    """Whether the client asked another address than the one that its connection arrived at.

    The redirect's address translation leaves the first one with the connection-tracking table.
    """
    local: tuple[str, int] = connection.getsockname()[:2]
    if local[0] in METADATA_ADDRESSES:
        return True
    try:
        original = _original_destination(connection)
    except OSError:
        return False  # not translated, or not tracked at all
    return original != local


def _original_destination(connection: socket.socket) -> tuple[str, int]:
    if connection.family == socket.AF_INET6:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, _IP6T_SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
        port, address = _SOCKADDR_IN6.unpack(raw)
    else:
        raw = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        port, address = _SOCKADDR_IN.unpack(raw)
    return str(ipaddress.ip_address(address)), port


def limit_hops(connection: socket.socket, hops: int) -> None:
    """Set the IP time-to-live of all that is sent on this connection from now on."""
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


def from_here(connection: socket.socket) -> bool:
    """Whether the client is this machine: it asks by the address that it asks from."""
    try:
        return bool(connection.getpeername()[0] == connection.getsockname()[0])
    except OSError:
        return False  # it has gone

"""Hanging up: a blocking HTTP call in a thread ends when its time is over, however slowly the other side answers.

A socket's own time-out begins anew with each byte, so an answer that trickles would hold its thread for as long as it
likes.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_here = threading.local()
"""`call` is the one that this thread is at."""


class Call:
    """One call. `run` is for the thread that makes it, `hang_up` for whoever waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wire: socket.socket | None = None
        self._closes = False
        self._over = False

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns; once hung up on, it fails at its next use of the network."""
        _here.call = self
        try:
            return work()
        finally:
            _here.call = None
            self.leave()

    def hang_up(self) -> None:
        """Shut the connection that is in use, now or as soon as there is one. Never blocks."""
        with self._lock:
            self._over = True
            if self._wire is not None:
                with suppress(OSError):  # the other side was faster
                    self._wire.shutdown(socket.SHUT_RDWR)

    def take(self, wire: socket.socket) -> None:
        """The call goes over `wire` from now on."""
        self.leave()
        with self._lock:
            if self._over:
                raise TimeoutError("the time for this call is over")
            self._wire = wire

    def leave(self) -> None:
        """Its connection is free for other calls."""
        with self._lock:
            if self._closes and self._wire is not None:
                self._wire.close()
            self._wire, self._closes = None, False

    def keep(self, wire: socket.socket) -> bool:
        """Whether `wire` is in use though its connection is closed; then the call closes it.

        After `Connection: close` that is before the answer is read.
        """
        with self._lock:
            self._closes = self._wire is wire
            return self._closes


def under_control(connection: Any) -> Any:
    """A class like `connection`, one of urllib3's, whose connections know the call that they are used for."""

    class Controlled(connection):  # type: ignore[misc] # it is handed in
        _wire: socket.socket | None = None
        _call: Call | None = None

        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            self._wire = sock.dup()  # TLS wraps the other one, and has it for itself during the handshake
            try:
                self._use()
            except TimeoutError:
                sock.close()
                raise
            return sock

        def request(self, *args: Any, **kwargs: Any) -> None:
            self._use()
            super().request(*args, **kwargs)

        def close(self) -> None:
            super().close()
            wire, self._wire = self._wire, None
            if wire is not None and not (self._call and self._call.keep(wire)):
                wire.close()

        def _use(self) -> None:
            """Belong to this thread's call, and to no other any more."""
            call = getattr(_here, "call", None)
            if self._call is not None and self._call is not call:
                self._call.leave()
            self._call = call
            if call is not None and self._wire is not None:
                call.take(self._wire)

    return Controlled

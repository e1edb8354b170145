"""Network namespaces: one for each pod and one for AWS, and sockets made inside them."""

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kube2iam.demo.failure import DemoError
from kube2iam.demo.processes import Children

CLONE_NEWNET = 0x40000000
HOLD = "ip link set lo up && echo ready && exec sleep infinity"

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace, kept by a process that sleeps in it, as a pod's pause container does."""

    name: str
    pid: int

    def command(self, *argv: str) -> list[str]:
        """`argv` as it runs inside."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening socket of this process that belongs to this place."""
        return self._inside(lambda: socket.create_server((address, port)))

    def connect(self, address: str, port: int, *, timeout_s: float) -> socket.socket:
        """A connection of this process that comes from this place, with its source address."""
        return self._inside(lambda: socket.create_connection((address, port), timeout=timeout_s))

    def _inside(self, make: Callable[[], Made]) -> Made:
        """Run `make` in a thread that has entered the namespace; a thread's namespace ends with it."""
        made: list[Made] = []
        failed: list[Exception] = []

        def work() -> None:
            try:
                _enter(self.pid)
                made.append(make())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=work, name=f"inside {self.name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


async def make_place(children: Children, name: str) -> Place:
    """A new, empty network namespace with its loopback up."""
    child = await children.start(f"place {name}", ["unshare", "--net", "--", "sh", "-c", HOLD])
    ready = await child.first_line()
    if ready != "ready":
        raise DemoError(f"no network namespace for {name}: {ready}")
    return Place(name, child.pid)


def _enter(pid: int) -> None:
    """Move this thread into a process's network namespace (os.setns came with Python 3.12 only)."""
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

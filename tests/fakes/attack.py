"""A hostile pod as a process of its own: `python -m tests.fakes.attack KIND PORT`, until killed.

It says `begun` once the attack is at its height.
"""

import asyncio
import random
import resource
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from tests.fakes.front import CREDENTIALS, LIST, TOKEN, TTL, request

HOSTILE = "127.0.0.66"
_RESET = struct.pack("ii", 1, 0)
_ODD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x00" * 64,
    b"GET /" + b"x" * 9000,
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    request(CREDENTIALS)[:-1],
    request(CREDENTIALS) + b"\x00",
    request(CREDENTIALS) * 30 + b"GET",
    request("/latest/meta-data/placement/region"),
    request(TOKEN, f"{TTL}: 60", "Expect: 100-continue", "Content-Length: 9", method="PUT"),
)


async def connect(port: int, source: str = HOSTILE, *, receive_buffer: int = 0) -> socket.socket:
    """A connection whose reading and writing are left to the caller."""
    plain = socket.socket()
    plain.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    return plain


def begun() -> None:
    """Tell the test."""
    print("begun", flush=True)  # noqa: T201 - that is how


class Height:
    """Tells the test once so much has been done: an attack that comes to nothing never begins."""

    def __init__(self, deeds: int) -> None:
        self._left = deeds

    def did(self) -> None:
        """One more."""
        self._left -= 1
        if not self._left:
            begun()


async def silent(port: int) -> None:
    """3,000 connections that say nothing."""
    kept = [await connect(port) for _ in range(3000)]
    begun()
    while kept:
        await asyncio.sleep(1)


async def dribble(port: int) -> None:
    """As many connections as one pod may have, each with almost as long a head as may be, a byte at a time."""
    beginning = b"GET /" + b"x" * 8100 + b" HTTP/1.1\r\nX-aws-ec2-metadata-token: " + b"y" * 15_000
    loop = asyncio.get_running_loop()
    kept = [await connect(port) for _ in range(512)]
    for plain in kept:
        await loop.sock_sendall(plain, beginning)
    begun()
    while True:
        for plain in kept:
            with suppress(OSError):
                plain.send(b"y")
        await asyncio.sleep(0.5)


async def unread(port: int) -> None:
    """As many connections as one pod may have, each full of requests whose answers nobody reads."""
    kept = [await connect(port, receive_buffer=2048) for _ in range(512)]
    begins = False
    while True:
        for plain in kept:
            with suppress(BlockingIOError, ConnectionError):
                while plain.send(b"GET /latest HTTP/1.1\r\nHost: instance-data\r\n\r\n" * 1500):
                    pass
        await asyncio.sleep(0.5)
        if not begins:
            begins = True
            begun()


async def herd(port: int) -> None:
    """Thousands of addresses that nobody knows, each asking again and again."""
    loop, height = asyncio.get_running_loop(), Height(1000)

    async def stranger(address: str) -> None:
        while True:
            with suppress(OSError):
                plain = await connect(port, address)
                with plain:
                    await loop.sock_sendall(plain, request(CREDENTIALS))
                    await loop.sock_recv(plain, 4096)
                    height.did()
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        for third in range(1, 31):
            for fourth in range(1, 101):
                group.create_task(stranger(f"127.1.{third}.{fourth}"))


async def hammer(port: int) -> None:
    """All connections that one pod may have, on which its own answers are asked for as fast as they come."""
    loop, height = asyncio.get_running_loop(), Height(5000)

    async def greedy() -> None:
        while True:
            with suppress(OSError), await connect(port) as plain:
                await loop.sock_sendall(plain, request(CREDENTIALS) * 20)
                while await loop.sock_recv(plain, 65_536):
                    height.did()
                    await loop.sock_sendall(plain, request(CREDENTIALS) * 20)

    async with asyncio.TaskGroup() as group:
        for _ in range(500):
            group.create_task(greedy())


async def odd(port: int) -> None:
    """New connections with whatever is no request, or half of one, hung up on or reset at any moment."""
    loop, height = asyncio.get_running_loop(), Height(1000)

    async def rude(chooser: random.Random) -> None:
        while True:
            with suppress(OSError), await connect(port) as plain:
                await loop.sock_sendall(plain, chooser.choice(_ODD))
                height.did()
                if chooser.random() < 0.5:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                elif chooser.random() < 0.5:
                    plain.shutdown(socket.SHUT_WR)
                    await loop.sock_recv(plain, 100)

    async with asyncio.TaskGroup() as group:
        for seed in range(32):
            group.create_task(rude(random.Random(seed)))


async def ever_new(port: int) -> None:
    """Requests of which no two are alike: paths, names and values, to fill whatever remembers them."""
    loop, height = asyncio.get_running_loop(), Height(1000)

    def said(chooser: random.Random) -> Iterator[bytes]:
        while True:
            word = f"{chooser.getrandbits(64):x}"
            yield request(LIST, f"X-{word}: {'y' * 900}")
            yield request(f"/latest/meta-data/placement/{word}")
            yield request(f"/latest/meta-data/network/interfaces/macs/{word}/{word}")
            yield request(f"/{word}/{word}", method="PROPFIND")
            yield request(f"{LIST}{word}")
            yield request(LIST, f"X-aws-ec2-metadata-token: {word}")

    async def inventive(chooser: random.Random) -> None:
        with await connect(port) as plain:
            for raw in said(chooser):
                await loop.sock_sendall(plain, raw)
                assert await loop.sock_recv(plain, 65_536)
                height.did()

    async with asyncio.TaskGroup() as group:
        for seed in range(8):
            group.create_task(inventive(random.Random(seed)))


KINDS: dict[str, Callable[[int], Awaitable[None]]] = {
    attack.__name__: attack for attack in (silent, dribble, unread, herd, hammer, odd, ever_new)
}


async def main(kind: str, port: int) -> None:
    """Attack."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    await KINDS[kind](port)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))

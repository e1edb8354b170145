"""The pods' port over a scripted resolver, and clients that speak raw bytes to it from any address of 127.0.0.0/8."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from kube2iam.imds.dispatch import Admin
from kube2iam.imds.front import Front
from kube2iam.imds.listen import listen
from kube2iam.imds.replies import Reply
from kube2iam.imds.server import Server
from kube2iam.imds.tokens import SessionTokens
from kube2iam.settings import Settings
from tests.fakes.pods_port import Answer, Counted
from tests.fakes.resolver import ScriptedResolver

POD = "127.0.0.2"
OTHER = "127.0.0.3"
STRANGER = "127.0.0.9"
LIST = "/latest/meta-data/iam/security-credentials/"
CREDENTIALS = f"{LIST}app"
TOKEN = "/latest/api/token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
HOST = "Host: 169.254.169.254"


def request(path: str = CREDENTIALS, *headers: str, method: str = "GET") -> bytes:
    """The bytes of an ordinary request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", HOST, *headers, "", ""]).encode("latin-1")


class OneKey:
    """A key that is always the same."""

    def minting(self, now: float) -> bytes:
        return b"k" * 32

    def find(self, key_id: bytes) -> bytes | None:
        return b"k" * 32


class ScriptedUpstream:
    """A metadata service with one value that is at hand, and others that take their time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()

    def peek(self, path: str) -> Reply | None:
        return Reply(200, b"i-0abc") if path == "meta-data/instance-id" else None

    async def get(self, path: str, deadline: float | None) -> Reply:
        self.asked.append(path)
        await self.open.wait()
        return Reply(200, b"eu-west-1")


class Client:
    """One connection of a pod."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> Self:
        """Write without waiting."""
        self.writer.write(raw)
        return self

    async def reply(self, *, bodiless: bool = False, patience: float = 5.0) -> Answer:
        """The next reply."""
        async with asyncio.timeout(patience):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines if line)}
            body = b"" if bodiless else await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, body, head + body)

    async def ask(self, raw: bytes) -> Answer:
        """Send one request and read its reply."""
        return await self.send(raw).reply()

    async def rest(self, patience: float = 5.0) -> bytes:
        """What still comes until the port closes; TimeoutError if it does not."""
        async with asyncio.timeout(patience):
            return await self.reader.read()

    async def gone(self, patience: float = 5.0) -> bool:
        """Whether the port closes or resets without another word."""
        try:
            return await self.rest(patience) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """Hang up."""
        self.writer.transport.abort()


@dataclass(slots=True)
class Port:
    """The port and what is behind it."""

    server: Server
    number: int
    resolver: ScriptedResolver
    upstream: ScriptedUpstream
    counted: Counted
    clients: list[Client]
    usual: float = 0.0
    """Seconds that a request takes on this machine when nobody attacks; 0 until measured."""

    async def connect(self, source: str = POD, *, to: str = "127.0.0.1", receive_buffer: int = 0) -> Client:
        """A connection from `source`; closed in the end."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.bind((source, 0))
        try:
            await asyncio.get_running_loop().sock_connect(plain, (to, self.number))
            client = Client(*await asyncio.open_connection(sock=plain))
        except BaseException:
            plain.close()
            raise
        self.clients.append(client)
        return client

    async def ask(self, raw: bytes, source: str = POD) -> Answer:
        """One request on a connection of its own."""
        client = await self.connect(source)
        answer = await client.ask(raw)
        client.close()
        return answer


@asynccontextmanager
async def scripted_port(*, hold: float = 0.8, admin: Admin | None = None, **settings: Any) -> AsyncIterator[Port]:
    """The port, listening, with two pods whose credentials are warm."""
    resolver, upstream, counted = ScriptedResolver(), ScriptedUpstream(), Counted()
    resolver.add(POD, "pod")
    resolver.add(OTHER, "other", role="other-role")
    front = Front(resolver=resolver, pods=resolver, tokens=SessionTokens(OneKey()), upstream=upstream, hold=hold)
    server = Server(front, Settings(node="n1", **settings), counted, admin)
    sockets = listen(0)
    await server.start(sockets)
    port = Port(server, sockets[0].getsockname()[1], resolver, upstream, counted, [])
    try:
        yield port
    finally:
        for client in port.clients:
            client.close()
        await server.drain(2.0)

"""The servers that bench.py compares: `python servers.py bare|floor|ours PORT`, until SIGTERM."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import cast

import httptools
import uvloop
from aiohttp import web

from kube2iam.domain.errors import Reason
from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.domain.session import SessionShape
from kube2iam.imds.front import Front
from kube2iam.imds.listen import listen
from kube2iam.imds.replies import CredentialReplies, Reply
from kube2iam.imds.server import Server
from kube2iam.imds.tokens import SessionTokens
from kube2iam.resolve import Resolver
from kube2iam.settings import Settings

ADDRESS = "127.0.0.1"
INSTANCE_ID = b"i-0123456789abcdef0"
NOW = int(time.time())
CREDENTIALS = Credentials("ASIAEXAMPLEEXAMPLE01", "s" * 40, "t" * 720, NOW + 3600, NOW)


class Cache:
    """Credentials that are always at hand."""

    def __init__(self) -> None:
        self._held: dict[AssumeRoleRequest, Credentials] = {}

    def peek(self, request: AssumeRoleRequest) -> Credentials | None:
        return self._held.setdefault(request, CREDENTIALS)

    def start(self, request: AssumeRoleRequest) -> None:
        raise NotImplementedError

    async def get(self, request: AssumeRoleRequest, deadline: float) -> Credentials:
        raise NotImplementedError


class Passed:
    """The real metadata service, its constants cached."""

    def __init__(self) -> None:
        self._constants = {"meta-data/instance-id": Reply(200, INSTANCE_ID)}

    def peek(self, path: str) -> Reply | None:
        return self._constants.get(path)

    async def get(self, path: str, deadline: float | None) -> Reply:
        raise NotImplementedError


class Counts:
    """Metrics as cheap as ours."""

    def observer(self, handler: str, method: str, code: int) -> Callable[[float], None]:
        bounds = [0.001 * 2**power for power in range(14)]
        buckets = [0] * 15
        total = 0.0

        def observe(seconds: float) -> None:
            nonlocal total
            total += seconds
            for number, bound in enumerate(bounds):
                if seconds <= bound:
                    buckets[number] += 1
                    return

        return observe

    def denied(self, reason: Reason) -> None:
        raise NotImplementedError

    def without_token(self, namespace: str) -> None:
        pass


async def ours(port: int) -> None:
    """The pods' port with 110 pods and 300 namespaces."""
    index = PodIndex()
    index.replace_namespaces(Namespace(f"ns{number}") for number in range(300))
    role = {"iam.amazonaws.com/role": "arn:aws:iam::123456789012:role/app"}
    others = [Pod(f"ns{n}", f"pod{n}", f"uid{n}", 1.0, ips=(f"10.0.0.{n}",), annotations=role) for n in range(1, 110)]
    index.replace_pods([Pod("ns0", "pod", "uid", 1.0, ips=(ADDRESS,), annotations=role), *others])
    settings = Settings(node="bench")
    front = Front(
        resolver=Resolver(index=index, policy=Policy(SessionShape(node="bench")), cache=Cache()),
        pods=index,
        tokens=SessionTokens(Keys()),
        upstream=Passed(),
    )
    server = Server(front, settings, Counts())
    await server.start(listen(port))


class Keys:
    """One key."""

    def minting(self, now: float) -> bytes:
        return b"k" * 32

    def find(self, key_id: bytes) -> bytes | None:
        return b"k" * 32


async def bare(port: int) -> None:
    """aiohttp's low-level server: the same bytes, no work."""
    credentials = CredentialReplies().get(CREDENTIALS).body

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        body = INSTANCE_ID if request.path.endswith("instance-id") else credentials
        return web.Response(body=body, content_type="text/plain", headers={"Server": "EC2ws"})

    server = web.Server(handler, access_log=None)
    await asyncio.get_running_loop().create_server(server, ADDRESS, port, backlog=4096)


class Floor(asyncio.Protocol):
    """What the loop and the parser cost: each request gets bytes that lie ready."""

    reply = b""
    closing = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.should_keep_alive():
            self.transport.write(self.reply)
        else:
            self.transport.write(self.closing)
            self.transport.close()


async def floor(port: int) -> None:
    """A protocol that does no work."""
    reply = CredentialReplies().get(CREDENTIALS)
    Floor.reply, Floor.closing = reply.render(b"Date: x\r\n"), reply.render(b"Connection: close\r\n")
    await asyncio.get_running_loop().create_server(Floor, ADDRESS, port, backlog=4096)


async def main(name: str, port: int) -> None:
    await {"ours": ours, "bare": bare, "floor": floor}[name](port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))

"""What the agent is compared with: `python tests/bench/servers.py bare|floor PORT FOLDER`, until SIGTERM.

Both answer with the bytes that lie in FOLDER, as the agent sent them before.
"""

import asyncio
import sys
from pathlib import Path
from typing import cast

import httptools
import uvloop
from aiohttp import web

from kube2iam.imds.listen import Acceptor, listen
from kube2iam.imds.replies import Reply

ADDRESS = "127.0.0.1"
BODIES = ("instance-id", "credentials")
"""Files of FOLDER: the body of the pass-through, and that of all else."""


async def bare(port: int, instance_id: bytes, credentials: bytes) -> None:
    """aiohttp's low-level server: the same bytes, no work."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        body = instance_id if request.path.endswith("instance-id") else credentials
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


async def floor(port: int, _instance_id: bytes, credentials: bytes) -> None:
    """A protocol that does no work, behind the agent's own way to accept: how far down it could go."""
    reply, date = Reply(200, credentials), b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    Floor.reply, Floor.closing = reply.render(date), reply.render(date + b"Connection: close\r\n")
    await Acceptor(listen(port), Floor).start()


async def main(name: str, port: int, folder: Path) -> None:
    await {"bare": bare, "floor": floor}[name](port, *((folder / body).read_bytes() for body in BODIES))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))

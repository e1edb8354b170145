"""A node with a pod for each client, AWS beyond a router, the real metadata service, and the real agent between them.

The parts are the demo's; here STS can be slow, pods are born as a test says, and the agent is started as it likes.
"""

import asyncio
import ctypes
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs

import aiohttp
import boto3
from aiohttp import web

from kube2iam.demo import agent, aws, network
from kube2iam.demo.agent import ADMIN_PORT, Agent
from kube2iam.demo.aws import ACCOUNT, ENDPOINT, REGION, Aws, Role, SessionKeys
from kube2iam.demo.cast import ALLOWED_KEY, NODE_SESSION, ROLE_KEY, PodSpec, running
from kube2iam.demo.cluster import ClusterServer
from kube2iam.demo.metadata import INSTANCE, NODE_ROLE_ARN, MetadataServer, Secrets, canaries
from kube2iam.demo.network import METADATA
from kube2iam.demo.objects import Objects
from kube2iam.demo.places import CLONE_NEWNET, Place
from kube2iam.demo.probes import LISTING, ask, unguarded
from kube2iam.demo.processes import Children, must, tied
from kube2iam.demo.stage import API, API_PORT, NODE_SESSION_SECONDS, serve
from tests.clients.builds import Client

NAMESPACE = "clients"
STS = "203.0.113.11"
"""Where the agent, and only the agent, finds STS."""
PATIENCE = 45.0
"""Seconds after which a client that says nothing has failed."""

ETH_P_ALL = 3
"""<linux/if_ether.h>"""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace of this thread's own, and of all that it starts; the kernel removes what is in it."""
    with Path("/proc/thread-self/ns/net").open("rb") as before:
        _must(_libc.unshare(CLONE_NEWNET))
        try:
            yield
        finally:
            _must(_libc.setns(before.fileno(), CLONE_NEWNET))


def _must(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class SlowSts:
    """STS as the agent sees it: moto's, each answer held back until `seconds` after its request came."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.seconds = 0.0
        self.calls: Counter[str] = Counter()
        """How often each role was asked for."""
        self._http = http

    def app(self) -> web.Application:
        """The application, to be served where the agent looks for STS."""
        app = web.Application()
        app.router.add_post("/", self._pass_on)
        return app

    async def _pass_on(self, request: web.Request) -> web.Response:
        end = asyncio.get_running_loop().time() + self.seconds
        asked = await request.read()
        for arn in parse_qs(asked.decode()).get("RoleArn", []):
            self.calls[arn.rpartition("/")[2]] += 1
        async with self._http.post(ENDPOINT, headers=request.headers, data=asked) as answer:
            body = await answer.read()
        await asyncio.sleep(end - asyncio.get_running_loop().time())
        return web.Response(status=answer.status, body=body, content_type="text/xml")


class FirstPacket:
    """Waits for the first packet that a pod sends to the metadata service, seen on the node's end of its link.

    Not on the bridge: with br_netfilter the redirect has already changed there where the packet goes.
    """

    def __init__(self, link: str) -> None:
        self._wanted = socket.inet_aton(METADATA)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.bind((link, ETH_P_ALL))
        self._socket.settimeout(0)

    async def seen(self) -> None:
        """Returns when it passes."""
        loop = asyncio.get_running_loop()
        with self._socket:
            async with asyncio.timeout(PATIENCE):
                while (await loop.sock_recv(self._socket, 64))[16:20] != self._wanted:
                    pass


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer, as the agent's log has them."""

    remote: str
    method: str
    path: str
    status: int
    seconds: float
    """Between the two."""
    answered: float
    """When, by the wall clock."""

    @property
    def came(self) -> float:
        """When it came, by the wall clock."""
        return self.answered - self.seconds

    @classmethod
    def from_line(cls, line: str) -> "Exchange | None":
        """What a line of the agent's log tells of one; nothing if it tells of something else."""
        fields = json.loads(line) if line.startswith("{") else {}
        if fields.get("msg") != "answered":
            return None
        return cls(
            remote=fields["req.remote"],
            method=fields["req.method"],
            path=fields["req.path"],
            status=fields["res.status"],
            seconds=fields["res.duration"] / 1000,
            answered=datetime.fromisoformat(fields["time"]).timestamp(),
        )


class Exchanges:
    """All exchanges of the agents. The log comes through a pipe of its own, so what is wanted of it is waited for."""

    def __init__(self) -> None:
        self._all: list[Exchange] = []
        self._more = asyncio.Event()

    def hear(self, line: str) -> None:
        """A line of the agent's log."""
        exchange = Exchange.from_line(line)
        if exchange is not None:
            self._all.append(exchange)
            self._more.set()

    def forget(self) -> None:
        """Begin anew."""
        self._all.clear()

    async def until(self, remote: str, path: str, status: int) -> list[Exchange]:
        """Those of one client, once a path (or one that ends so) has been answered with this status."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not any(one.status == status and one.path.endswith(path) for one in self.of(remote)):
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"no {status} for {path}: {self.of(remote)}") from None
        return self.of(remote)

    def of(self, remote: str) -> list[Exchange]:
        """Those of one client that have been heard of."""
        return [exchange for exchange in self._all if exchange.remote == remote]


@dataclass(frozen=True, slots=True)
class Said:
    """A client's answer to one line, and how long it took."""

    text: str
    seconds: float

    @property
    def identity(self) -> str:
        """Who it is, by its session's ARN; nothing if it has no credentials."""
        return self.text.removeprefix("ok ") if self.text.startswith("ok ") else ""


class Program:
    """A client's program in its pod. It has been loaded, and has asked for nothing yet."""

    def __init__(self, process: Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    async def ask(self, line: str) -> Said:
        """Who it is: "new" by a new default chain, "again" by the one it has."""
        assert self._process.stdin is not None
        start = time.monotonic()
        self._process.stdin.write(f"{line}\n".encode())
        text = await self.line()
        seconds = time.monotonic() - start
        return Said(await asyncio.to_thread(_vouched, text) if text.startswith("keys ") else text, seconds)

    async def line(self) -> str:
        """The next line that it writes."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, f"the program has ended: {self.errors()[-2000:]}"
        return line.decode().strip()

    def errors(self) -> str:
        """All that it wrote besides."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


def _vouched(text: str) -> str:
    """Who STS says the keys in `text` belong to."""
    _, key, secret, token = text.split()
    session = boto3.Session(key, secret, token, REGION)
    return f"ok {session.client('sts', endpoint_url=ENDPOINT).get_caller_identity()['Arn']}"


@dataclass
class Node:
    """What a test acts on."""

    children: Children
    http: aiohttp.ClientSession
    objects: Objects
    token: str
    sts: SlowSts
    canaries: Mapping[str, str]
    scratch: Path
    places: Mapping[str, Place]
    """The network of each client's pods, by the client's name."""
    addresses: Mapping[str, str]
    links: Mapping[str, str]
    """The node's ends of the pods' links."""
    exchanges: Exchanges = field(default_factory=Exchanges)
    agent: Agent | None = None
    flags: Sequence[str] = ()

    async def guard(self, *flags: str) -> None:
        """Have the agent run with these flags."""
        if self.agent is None or self.flags != flags:
            self.flags = flags
            await self.restart_agent()

    async def restart_agent(self) -> None:
        """End the agent as a kubelet does, and start another over the same state folder."""
        if self.agent is not None:
            await self.agent.child.stop()
        command = ["env", f"AWS_ENDPOINT_URL_STS=http://{STS}", agent.executable(), "--verbose", "--debug"]
        state = self.scratch / "agent"
        state.mkdir(exist_ok=True)
        self.agent = await agent.start(
            self.children, self.http, command=[*command, *self.flags], api=API, token=self.token, state=state
        )
        self.agent.child.on_line = self.exchanges.hear

    def log(self) -> list[str]:
        """The agent's last lines."""
        return [] if self.agent is None else list(self.agent.child.lines)

    async def answered(self, client: Client, path: str, status: int = 200) -> list[Exchange]:
        """The client's exchanges since `program` began, once this one is among them."""
        return await self.exchanges.until(self.addresses[client.name], path, status)

    def schedule(self, client: Client, role: str | None) -> None:
        """Bind a pod of the client to this node, in place of the one before; it has no address yet."""
        name = client.folder
        if any(raw["metadata"]["name"] == name for raw in self.objects.list("pods", NAMESPACE)):
            self.objects.delete("pods", NAMESPACE, name)
        self.objects.create("pods", NAMESPACE, PodSpec(NAMESPACE, name, role).manifest())

    def give_address(self, client: Client) -> None:
        """Report the pod's address, as a kubelet does some time after its containers run."""
        self.objects.patch("pods", NAMESPACE, client.folder, running(self.addresses[client.name]))

    async def run_pod(self, client: Client, role: str | None) -> None:
        """Schedule a pod and wait until the agent knows it by its address."""
        self.schedule(client, role)
        self.give_address(client)
        await self.known(client, role)

    async def known(self, client: Client, role: str | None) -> None:
        """Wait until the agent knows that the client's address has this role."""
        address = self.addresses[client.name]
        async with asyncio.timeout(PATIENCE):
            while (await self._roles_by_address()).get(address) != (role or ""):
                await asyncio.sleep(0.02)

    async def gone(self, client: Client) -> None:
        """Wait until the agent knows no pod by the client's address."""
        async with asyncio.timeout(PATIENCE):
            while self.addresses[client.name] in await self._roles_by_address():
                await asyncio.sleep(0.02)

    async def _roles_by_address(self) -> Mapping[str, str]:
        async with self.http.get(f"http://127.0.0.1:{ADMIN_PORT}/debug/store") as answer:
            return dict((await answer.json())["rolesByIP"])

    async def warm(self, client: Client, role: str) -> None:
        """Wait until the agent has credentials of the role at hand for the client's pod, and has said all of it."""
        place = self.places[client.name]
        async with asyncio.timeout(PATIENCE):
            while (await asyncio.to_thread(ask, place, f"{LISTING}{role}")).status != 200:
                await asyncio.sleep(0.02)
        await self.answered(client, f"{LISTING}{role}")

    @asynccontextmanager
    async def without_tokens(self, client: Client) -> AsyncIterator[None]:
        """The client's pod loses each packet with which it asks for a session token."""
        place = self.places[client.name]
        # The head of TCP has 32 bytes, its time stamps included; what follows is the request.
        lost = f"tcp dport 80 @th,256,24 0x{b'PUT'.hex()} drop"
        rules = f"table ip lost {{ chain out {{ type filter hook output priority 0; {lost}; }}; }}"
        await must(place.command("nft", "-f", "-"), stdin=rules)
        try:
            yield
        finally:
            await must(place.command("nft", "delete", "table", "ip", "lost"))

    def change_role(self, client: Client, role: str) -> None:
        """Annotate the client's pod with another role."""
        self.objects.patch("pods", NAMESPACE, client.folder, {"metadata": {"annotations": {ROLE_KEY: role}}})

    @asynccontextmanager
    async def program(self, client: Client, **more: str) -> AsyncIterator[Program]:
        """The client's program in its pod, told a region, where AWS is, and `more`."""
        self.exchanges.forget()
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch),
            "LANG": "C.UTF-8",
            "AWS": str(Path(sys.executable).with_name("aws")),
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": ENDPOINT,
            **more,
        }
        command = tied(self.places[client.name].command(*client.command()))
        with tempfile.TemporaryFile() as errors:
            process = await asyncio.create_subprocess_exec(
                *command, env=env, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True
            )
            program = Program(process, errors)
            try:
                assert await program.line() == "ready"
                yield program
            finally:
                process.kill()
                await process.wait()


@asynccontextmanager
async def node(scratch: Path, clients: Sequence[Client], roles: Iterable[str]) -> AsyncIterator[Node]:
    """Build it in this thread's network namespace, with all but the agent; leaving it ends everything."""
    async with AsyncExitStack() as stack:
        children = await stack.enter_async_context(Children())
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)))
        places = await network.build(children, [client.name for client in clients])
        await must(places.aws.command("ip", "address", "add", f"{STS}/32", "dev", "lo"))
        await aws.start(children, places.aws, http)
        keys = await _accounts(Aws(http), roles)
        sts = SlowSts(http)
        await serve(stack, sts.app(), places.aws.listen(STS, 80))
        own = Secrets.fresh()
        await serve(stack, MetadataServer(keys, own).app(), places.aws.listen(METADATA, 80))
        assert await asyncio.to_thread(unguarded, places.pods[0], own.user_data), "else no leak could be seen"
        objects, token = Objects(), secrets.token_hex(16)
        await serve(stack, ClusterServer(objects, token).app(), socket.create_server(("127.0.0.1", API_PORT)))
        metadata = {"name": NAMESPACE, "annotations": {ALLOWED_KEY: '["*"]'}}
        objects.create("namespaces", "", {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata})
        yield Node(
            children=children,
            http=http,
            objects=objects,
            token=token,
            sts=sts,
            canaries=canaries(keys, own),
            scratch=scratch,
            places={client.name: place for client, place in zip(clients, places.pods, strict=True)},
            addresses={client.name: network.pod_address(number) for number, client in enumerate(clients)},
            links={client.name: f"veth{number}" for number, client in enumerate(clients)},
        )


async def _accounts(cloud: Aws, roles: Iterable[str]) -> SessionKeys:
    """Create the roles, and take the node's own session."""
    itself = Role(
        NODE_ROLE_ARN,
        allow={"sts:AssumeRole": [f"arn:aws:iam::{ACCOUNT}:role/*"]},
        trust={"Service": ["ec2.amazonaws.com"]},
    )
    await cloud.create_role(itself)
    for name in roles:
        arn = f"arn:aws:iam::{ACCOUNT}:role/{name}"
        await cloud.create_role(Role(arn, allow={}, trust={"AWS": [NODE_ROLE_ARN, NODE_SESSION]}))
    keys = await cloud.assume(itself, INSTANCE, NODE_SESSION_SECONDS)
    await cloud.enforce()
    return keys

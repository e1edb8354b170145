"""The agent as a process, between a small cluster API, a scripted STS and a forgiving metadata service."""

import asyncio
import json
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from kube2iam.demo.cluster import ClusterServer
from kube2iam.demo.objects import Objects
from tests.fakes.imds import ForgivingImds, forgiving_imds
from tests.fakes.sts_server import StsServer, sts_server

TOKEN = "cluster-token"
NODE = "n1"
HOST_IP = "10.255.255.1"
BASE = "arn:aws:iam::123456789012:role/"
ROLES = "/latest/meta-data/iam/security-credentials/"
EXECUTABLE = Path(sys.executable).with_name("kube2iam")
_PORTS = range(10_000, 32_000)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pod got."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    seconds: float

    @property
    def reason(self) -> str:
        """The short code of a denial."""
        return self.headers.get("X-Kube2iam-Denied", "")

    def json(self) -> dict[str, str]:
        """The body of a document."""
        return dict(json.loads(self.body))


@dataclass(slots=True)
class World:
    """What is around the agents of one test."""

    objects: Objects
    cluster: TestServer
    imds: ForgivingImds
    sts: StsServer
    state: Path
    session: aiohttp.ClientSession
    agents: list["AgentProcess"] = field(default_factory=list)

    def pod(self, name: str, address: str | None, role: str | None = "app", **annotations: str) -> None:
        """Create a pod of this node."""
        named = annotations if role is None else {"iam.amazonaws.com/role": role, **annotations}
        ips = [{"ip": address}] if address else []
        self.objects.create(
            "pods",
            "default",
            {
                "metadata": {"name": name, "namespace": "default", "annotations": named},
                "spec": {"nodeName": NODE},
                "status": {"phase": "Running", "hostIP": HOST_IP, "podIP": address or "", "podIPs": ips},
            },
        )

    def patch_pod(self, name: str, change: dict[str, Any]) -> None:
        """Change a pod by a merge patch."""
        self.objects.patch("pods", "default", name, change)

    @asynccontextmanager
    async def agent(
        self, *flags: str, ready: bool = True, under: Sequence[str] = (), **environment: str
    ) -> AsyncIterator["AgentProcess"]:
        """The agent with `flags` after the usual ones; ended by SIGTERM, when its exit status must be 0.

        `under` is a command that runs it, such as taskset.
        """
        port, metrics_port = free_ports(2)
        arguments = [
            f"--node={NODE}",
            f"--host-ip={HOST_IP}",
            f"--api-server={self.cluster.make_url('/')}".rstrip("/"),
            f"--api-token={TOKEN}",
            f"--metadata-addr={self.imds.address}",
            f"--base-role-arn={BASE}",
            f"--app-port={port}",
            f"--metrics-port={metrics_port}",
            f"--state-dir={self.state}",
            "--log-format=json",
            *flags,
        ]
        keys = {"AWS_ACCESS_KEY_ID": "AKIANODE", "AWS_SECRET_ACCESS_KEY": "node-secret", "AWS_REGION": "eu-west-1"}
        variables = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "AWS_ENDPOINT_URL_STS": self.sts.url,
            **keys,
            **environment,
        }
        begun = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *under, EXECUTABLE, *arguments, env=variables, stderr=asyncio.subprocess.PIPE
        )
        agent = AgentProcess(self, process, port, metrics_port, begun)
        reading = asyncio.create_task(agent.read_log())
        try:
            if ready:
                await agent.until_ready()
            yield agent
            if process.returncode is None:
                assert await agent.stop() == 0, agent.lines
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading


@dataclass(slots=True)
class AgentProcess:
    """A running agent."""

    world: World
    process: asyncio.subprocess.Process
    port: int
    metrics_port: int
    begun: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    said: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_log(self) -> None:
        """Collect the log until the process ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith(b"{") else {"msg": line.decode()})
            self.said.set()
        self.lines.append({"msg": "(end)"})
        self.said.set()

    async def heard(self, message: str, within: float = 10.0) -> dict[str, Any]:
        """The first log line with this message; TimeoutError if it does not come in time."""
        async with asyncio.timeout(within):
            while True:
                self.said.clear()
                for line in self.lines:
                    if line["msg"] == message:
                        return line
                assert self.lines[-1:] != [{"msg": "(end)"}], self.lines
                await self.said.wait()

    async def until_ready(self) -> None:
        """Wait until the agent says that it is ready."""
        await self.heard("ready")

    async def stop(self) -> int:
        """End it as Kubernetes does; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()

    async def ask(self, address: str, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask as the pod at `address` does, a loopback address."""
        connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
        begun = time.monotonic()
        names = {"Host": "169.254.169.254", **{name.replace("_", "-"): text for name, text in headers.items()}}
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=names) as reply,
        ):
            body = await reply.read()
            return Answer(reply.status, body, dict(reply.headers), time.monotonic() - begun)

    async def credentials(self, address: str, role: str = "app") -> Answer:
        """Ask for a role's credentials."""
        return await self.ask(address, f"{ROLES}{role}")

    async def page(self, path: str) -> tuple[int, str]:
        """A page of the operators' port."""
        async with self.world.session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as reply:
            return reply.status, await reply.text()

    @property
    def resident_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@asynccontextmanager
async def world(state: Path) -> AsyncIterator[World]:
    """A world with the namespace `default` and no pods."""
    objects = Objects()
    objects.create("namespaces", "", {"metadata": {"name": "default"}})
    cluster = TestServer(ClusterServer(objects, TOKEN).app(), host="127.0.0.1")
    await cluster.start_server(shutdown_timeout=0.1)
    async with forgiving_imds() as imds, sts_server() as sts, aiohttp.ClientSession() as session:
        try:
            yield World(objects, cluster, imds, sts, state, session)
        finally:
            await cluster.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that the kernel takes for connections in the meantime."""
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.add(port)
    return list(found)

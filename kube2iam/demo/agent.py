"""The real agent, run on the demo's node exactly as a DaemonSet would run it."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from kube2iam.demo.aws import ACCOUNT, ENDPOINT, REGION
from kube2iam.demo.cast import NODE_NAME
from kube2iam.demo.failure import DemoError
from kube2iam.demo.network import BRIDGE, NODE
from kube2iam.demo.processes import Child, Children

PORT = 8181
ADMIN_PORT = 9181
READY = f"http://127.0.0.1:{ADMIN_PORT}/readyz"
READY_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Agent:
    """The running agent."""

    child: Child

    def reasons(self) -> dict[str, str]:
        """Full name of each pod to what the agent's log says of it, the latest line winning."""
        said: dict[str, str] = {}
        for line in self.child.lines:
            fields = _fields(line)
            denied = fields.get("error") if fields.get("msg") == "role denied" else None
            why = denied or fields.get("role.source")
            if why and "pod.name" in fields:
                said[f"{fields.get('pod.namespace', '')}/{fields['pod.name']}"] = str(why)
        return said


def executable() -> str:
    """The installed agent."""
    return str(Path(sys.executable).with_name("kube2iam"))


async def start(
    children: Children, http: aiohttp.ClientSession, *, command: Sequence[str], api: str, token: str, state: Path
) -> Agent:
    """Start `command` with a DaemonSet's flags and wait until it is ready, rule in the kernel included."""
    flags = {
        "api-server": api,
        "api-token": token,
        "node": NODE_NAME,
        "host-ip": NODE,
        "host-interface": BRIDGE,
        "redirect-backend": "auto",
        "base-role-arn": f"arn:aws:iam::{ACCOUNT}:role/",
        "region": REGION,
        "app-port": str(PORT),
        "metrics-port": str(ADMIN_PORT),
        "state-dir": str(state),
        "log-format": "json",
    }
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    child = await children.start(
        "the agent",
        [*command, "--iptables", "--namespace-restrictions", *arguments],
        env=_environment(state),
        grace=10.0,
    )
    await _ready(child, http)
    return Agent(child)


def readable(line: str) -> str:
    """A line of the agent's JSON log for people."""
    fields = _fields(line)
    if not fields:
        return line
    message = fields.pop("msg", fields.pop("message", ""))
    rest = " ".join(f"{name}={value}" for name, value in fields.items() if name not in {"time", "level", "logger"})
    return f"agent  {message}  {rest}"


async def _ready(child: Child, http: aiohttp.ClientSession) -> None:
    reason = "it never answered"
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            while child.running:
                try:
                    async with http.get(READY) as response:
                        if response.status == 200:
                            return
                        reason = await response.text()
                except aiohttp.ClientError as error:
                    reason = str(error)
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    raise DemoError(f"the agent did not become ready ({reason.strip()}):\n{child.tail()}")


def _environment(state: Path) -> Mapping[str, str]:
    """The agent's surroundings: where AWS is, and nothing of this user's own AWS settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    return kept | {
        "HOME": str(state),
        "AWS_ENDPOINT_URL_STS": ENDPOINT,
        "XTABLES_LOCKFILE": str(state / "xtables.lock"),
    }


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}

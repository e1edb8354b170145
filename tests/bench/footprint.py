"""What the agent takes while nothing happens, and how soon it is there: memory, idle processor time, start-up.

`python -m tests.bench.footprint [--rounds 3] [--idle 20] [--json]`. The real executable on a full node (110 pods, 300
namespaces), prefetch off; medians are shown. As root also with the legacy backend, in a network namespace of its own.
The exit status is 1 where a figure is above its bar; on a busy machine look at the seconds of processor time.
"""
# ruff: noqa: T201 - a table is what it is for

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.bench.node import ADDRESSES, agent_on, full_node, role_of
from tests.fakes.world import ROLES, AgentProcess, World

BEFORE = "resident memory before any credentials, MiB"
WARM = "resident memory with 110 roles warm, MiB"
LEGACY = "the same with the legacy backend, MiB"
LISTING = "seconds from exec to the first role listing"
READY = "seconds from exec to ready"
START = "seconds of processor time until ready"
IDLE = "idle processor time, % of a core"
BARS = {BEFORE: 95.0, WARM: 110.0, LEGACY: 122.0, LISTING: 1.2, READY: 2.0, IDLE: 0.5}
_INSIDE = "KUBE2IAM_BENCH_INSIDE"
_TICKS = os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=20, help="seconds to look at the idle agent")
    parser.add_argument("--json", action="store_true")
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)
    alone = os.geteuid() == 0 and shutil.which("unshare") is not None
    if alone and _INSIDE not in os.environ:
        command = ["unshare", "--net", sys.executable, "-m", "tests.bench.footprint", *words]
        return subprocess.run(command, env={**os.environ, _INSIDE: "1"}, check=False).returncode
    if alone:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    figures = asyncio.run(measure(given.rounds, given.idle, legacy=alone))
    if given.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            bar = BARS.get(name)
            print(f"{name:50}{value:>8.2f}" + ("" if bar is None else f"   bar {bar:g}"))
    return 1 if any(figures[name] > bar for name, bar in BARS.items() if name in figures) else 0


async def measure(rounds: int, idle: float, *, legacy: bool) -> dict[str, float]:
    """The figures by name; medians of `rounds` starts."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    async with full_node() as around:
        for _round in range(rounds):
            await _start(around, found)
        await _rest(around, found, idle)
        if legacy:
            async with agent_on(around, "--prefetch=false", "--iptables", "--redirect-backend=legacy") as agent:
                await ask_for_all(agent)
                found[LEGACY].append(agent.resident_mib)
    return {name: median(values) for name, values in found.items()}


async def _start(around: World, found: defaultdict[str, list[float]]) -> None:
    async with agent_on(around, "--prefetch=false", ready=False) as agent:
        await _first_listing(agent)
        found[LISTING].append(time.monotonic() - agent.begun)
        await agent.until_ready()
        found[READY].append(time.monotonic() - agent.begun)
        found[START].append(_processor_seconds(agent))


async def _rest(around: World, found: defaultdict[str, list[float]], idle: float) -> None:
    async with agent_on(around, "--prefetch=false") as agent:
        found[BEFORE].append(agent.resident_mib)
        await ask_for_all(agent)
        found[WARM].append(agent.resident_mib)
        before = _processor_seconds(agent)
        await asyncio.sleep(idle)
        found[IDLE].append(100 * (_processor_seconds(agent) - before) / idle)


async def _first_listing(agent: AgentProcess) -> None:
    while True:
        try:
            answer = await agent.ask(ADDRESSES[1], ROLES)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        if answer.status == 200:
            return


async def ask_for_all(agent: AgentProcess) -> None:
    """Each pod asks until it has its credentials."""

    async def ask(number: int, address: str) -> None:
        while (await agent.credentials(address, role_of(number))).status != 200:
            await asyncio.sleep(0.1)

    async with asyncio.timeout(30):
        await asyncio.gather(*(ask(number, address) for number, address in enumerate(ADDRESSES)))


def _processor_seconds(agent: AgentProcess) -> float:
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    sys.exit(main())

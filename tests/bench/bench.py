"""How many requests the pods' port answers, beside a bare `aiohttp.web.Server` that returns the same bytes.

`python tests/bench/bench.py [--seconds 3] [--rounds 3] [--json]`. Each server in its turn runs on one core, the load
(wrk) on the other; the rounds alternate, and medians are shown.
"""
# ruff: noqa: T201 - a table is what it is for

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SERVERS = Path(__file__).with_name("servers.py")
CREDENTIALS = "/latest/meta-data/iam/security-credentials/app"
HOST = ("-H", "Host: 169.254.169.254")


@dataclass(frozen=True, slots=True)
class Load:
    """One way to ask."""

    name: str
    path: str
    connections: int
    headers: tuple[str, ...] = ()


LOADS = (
    Load("kept alive", CREDENTIALS, 32),
    Load("new connections", CREDENTIALS, 32, ("-H", "Connection: close")),
    Load("pass-through, kept alive", "/latest/meta-data/instance-id", 32),
    Load("pass-through, new connections", "/latest/meta-data/instance-id", 32, ("-H", "Connection: close")),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of wrk. Times are milliseconds."""

    rate: float
    p50: float
    p99: float
    cpu: float
    """Microseconds of the server's processor time for each request: what is left where the machine is busy."""
    failed: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 if an answer failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--servers", default="bare,ours", help="of servers.py; the first is the one to compare with")
    given = parser.parse_args(arguments)
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            print(f"{program} is not installed", file=sys.stderr)
            return 2
    table = measure(given.servers.split(","), given.seconds, given.rounds)
    if given.json:
        rows = [{"load": load, "server": server, **figures} for (load, server), figures in table.items()]
        print(json.dumps(rows, indent=2))
    else:
        show(table)
    return 1 if any(figures["failed"] for figures in table.values()) else 0


def measure(servers: Sequence[str], seconds: int, rounds: int) -> dict[tuple[str, str], dict[str, float]]:
    """Medians over the rounds, by load and server."""
    runs: dict[tuple[str, str], list[Measured]] = {}
    for _ in range(rounds):
        for server in servers:
            with serving(server) as (port, pid):
                for load in LOADS:
                    runs.setdefault((load.name, server), []).append(ask(load, port, pid, seconds))
    table: dict[tuple[str, str], dict[str, float]] = {}
    for load in LOADS:
        for server in servers:
            of_server = runs[load.name, server]
            figures = {name: median(getattr(run, name) for run in of_server) for name in ("rate", "p50", "p99", "cpu")}
            figures["failed"] = sum(run.failed for run in of_server)
            figures["times"] = round(figures["rate"] / table.get((load.name, servers[0]), figures)["rate"], 2)
            table[load.name, server] = figures
    return table


def show(table: dict[tuple[str, str], dict[str, float]]) -> None:
    """Print a table for people."""
    print(f"{'load':32}{'server':12}{'requests/s':>12}{'times':>8}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>9}")
    for (load, server), row in table.items():
        print(
            f"{load:32}{server:12}{row['rate']:>12,.0f}{row['times']:>8.2f}{row['p50']:>9.2f}{row['p99']:>9.2f}{row['cpu']:>9.1f}"
        )


@contextmanager
def serving(server: str) -> Iterator[tuple[int, int]]:
    """The server as a process of its own on the first core; gives its port and its pid."""
    port = free_port()
    cores = sorted(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(cores[0]), sys.executable, str(SERVERS), server, str(port)]
    process = subprocess.Popen(command)
    try:
        wait_for(port, process)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def ask(load: Load, port: int, pid: int, seconds: int) -> Measured:
    """Run wrk on the last core."""
    cores = sorted(os.sched_getaffinity(0))
    url = f"http://127.0.0.1:{port}{load.path}"
    options = ["-t1", f"-c{load.connections}", f"-d{seconds}s", "--latency", *HOST, *load.headers]
    command = ["taskset", "-c", str(cores[-1]), "wrk", *options, url]
    before = processor_seconds(pid)
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    used = processor_seconds(pid) - before
    failures = re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", text)
    return Measured(
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", text)),
        p50=_milliseconds(_find(r"\n\s+50%\s+(\S+)", text)),
        p99=_milliseconds(_find(r"\n\s+99%\s+(\S+)", text)),
        cpu=used * 1e6 / float(_find(r"(\d+) requests in", text)),
        failed=sum(int(one or other) for one, other in failures),
    )


def processor_seconds(pid: int) -> float:
    """User and system time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the port accepts."""
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server did not start")


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk did not say {pattern}: {text}")
    return found[1]


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    if found is None:
        raise RuntimeError(f"wrk said {text}")
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


if __name__ == "__main__":
    sys.exit(main())

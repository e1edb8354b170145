"""How fast a server answers: wrk on the last core, the server on the first one."""

import asyncio
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HOST = "Host: 169.254.169.254"
_CLOSE = "Connection: close"
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_FAILURES = re.compile(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)")


@dataclass(frozen=True, slots=True)
class Load:
    """One way to ask."""

    name: str
    path: str
    headers: tuple[str, ...] = ()
    connections: int = 32


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of wrk. Times are milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float
    cpu: float
    """Microseconds of the server's processor time for each request: hardly moves where the machine is busy."""
    failed: int


@cache
def cores() -> tuple[int, int]:
    """The core of the servers and that of the load, as they were when first asked for: this process pins itself too."""
    return min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


def on(core: int) -> tuple[str, ...]:
    """What runs a command on a core."""
    return "taskset", "-c", str(core)


def loads(role: str, token: str) -> tuple[Load, ...]:
    """Warm credentials and a value that passes through, on connections that are kept and on new ones."""
    credentials, instance = f"/latest/meta-data/iam/security-credentials/{role}", "/latest/meta-data/instance-id"
    return (
        Load("credentials, kept alive", credentials),
        Load("credentials, new connections", credentials, (_CLOSE,)),
        Load("credentials, IMDSv2, kept alive", credentials, (f"X-aws-ec2-metadata-token: {token}",)),
        Load("pass-through, kept alive", instance),
        Load("pass-through, new connections", instance, (_CLOSE,)),
    )


async def ask(load: Load, port: int, pid: int, seconds: float) -> Measured:
    """Run wrk for `seconds`."""
    headers = [word for header in (_HOST, *load.headers) for word in ("-H", header)]
    options = ["-t1", f"-c{load.connections}", f"-d{seconds:g}s", "--latency", *headers]
    before = processor_seconds(pid)
    process = await asyncio.create_subprocess_exec(
        *on(cores()[1]), "wrk", *options, f"http://127.0.0.1:{port}{load.path}", stdout=asyncio.subprocess.PIPE
    )
    text = (await process.communicate())[0].decode()
    used = processor_seconds(pid) - before
    requests = int(_find(r"(\d+) requests in", text))
    return Measured(
        requests=requests,
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", text)),
        p50=_milliseconds(_find(r"\n\s+50%\s+(\S+)", text)),
        p99=_milliseconds(_find(r"\n\s+99%\s+(\S+)", text)),
        cpu=used * 1e6 / requests,
        failed=sum(int(one or other) for one, other in _FAILURES.findall(text)),
    )


def processor_seconds(pid: int) -> float:
    """User and system time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk did not say {pattern}: {text}")
    return found[1]


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    if found is None:
        raise RuntimeError(f"wrk said {text}")
    return float(found[1]) * _MILLISECONDS[found[2]]

"""What happens when the process has no file descriptor left: it goes on, without spinning, and recovers."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.front import LIST, request

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import asyncio, json, os, resource, sys
import uvloop
from tests.fakes.front import scripted_port

async def main():
    async with scripted_port(max_connections=0, max_connections_per_pod=0) as port:
        # No room is kept free, as if something else had used it up.
        port.server.limits._most_connections = 10_000
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, used + 40))
        print(port.number, flush=True)
        taken = []
        for line in await asyncio.get_running_loop().run_in_executor(None, next, iter(sys.stdin)),:
            pass
        before = os.times()
        await asyncio.sleep(1.0)
        after = os.times()
        print(json.dumps({"cpu": after.user + after.system - before.user - before.system}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

runner = {"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[1]]
runner(main())
"""


@contextmanager
def starved(loop: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The pods' port in a process that may open 40 files more; gives the process and the port."""
    command = [sys.executable, "-c", PROGRAM, loop]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def ask(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    connection.sendall(request(LIST))
    return connection.recv(65_536)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_exhausted_descriptors_are_survived(loop: str) -> None:
    with starved(loop) as (process, port):
        kept = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
        assert ask(kept).endswith(b"app")
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        assert ask(kept).endswith(b"app")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("measure\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["cpu"] < 0.3
        assert ask(kept).endswith(b"app")
        for connection in crowd:
            connection.close()
        until = time.monotonic() + 10
        answer = b""
        while not answer.endswith(b"app") and time.monotonic() < until:
            with socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0)) as fresh:
                try:
                    answer = ask(fresh).replace(b"other-role", b"app")
                except OSError:
                    time.sleep(0.05)
        assert answer.endswith(b"app")
        kept.close()

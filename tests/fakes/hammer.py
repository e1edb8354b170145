"""A pod that asks as fast as it can: `python -m tests.fakes.hammer PORT SOURCE CONNECTIONS kept|new`, until killed."""

import asyncio
import contextlib
import sys

from tests.fakes.front import request

COSTLY = "/latest/meta-data/placement/region"


async def ask_for_ever(port: int, source: str, *, keep: bool) -> None:
    raw = request(COSTLY) if keep else request(COSTLY, "Connection: close")
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            while keep:
                writer.write(raw * 10)
                await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await reader.read()
            writer.close()


async def main(port: int, source: str, connections: int, kind: str) -> None:
    print("begun", flush=True)  # noqa: T201 - tells the test
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(ask_for_ever(port, source, keep=kind == "kept"))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))

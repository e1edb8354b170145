"""Child processes that never outlive the demo, each with its last lines at hand."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kube2iam.demo.failure import DemoError

LONGEST_LINE = 1 << 20


@dataclass(eq=False)
class Child:
    """A running program. Its output is read at once; `lines` keeps the last of it."""

    name: str
    process: Process
    grace: float
    """Seconds between SIGTERM and SIGKILL at the end; 0 kills at once."""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    on_line: Callable[[str], None] | None = None
    _spoke: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    def tail(self, count: int = 12) -> str:
        """Its last lines."""
        return "\n".join(list(self.lines)[-count:])

    async def first_line(self) -> str:
        """Its first line, or nothing if it ended without one."""
        await self._spoke.wait()
        return self.lines[0] if self.lines else ""

    async def read(self) -> None:
        """Take its output until it ends."""
        output = self.process.stdout
        while output is not None and (line := await output.readline()):
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            self._spoke.set()
            if self.on_line is not None:
                self.on_line(text)
        self._spoke.set()

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        if self.running and self.grace:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self.grace):
                    await self.process.wait()
            except TimeoutError:
                pass
        if self.running:
            self.process.kill()
        await self.process.wait()


class Children:
    """All children of one demo; leaving the block ends them, the last started first."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            await child.stop()
        await asyncio.gather(*self._readers)

    async def start(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, grace: float = 0
    ) -> Child:
        """Start `command` in a session of its own, so that Ctrl-C reaches the demo alone."""
        process = await asyncio.create_subprocess_exec(
            *tied(command),
            env=env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            limit=LONGEST_LINE,
        )
        child = Child(name, process, grace)
        self._children.append(child)
        self._readers.append(asyncio.create_task(child.read(), name=f"output of {name}"))
        return child


def tied(command: Sequence[str]) -> list[str]:
    """`command` so that the kernel kills it when the demo dies, also by SIGKILL: nobody has to clean up.

    The shell sees whether the demo died before the kernel was told; then nothing starts.
    """
    alive = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", alive, "sh", *command]


async def output_of(
    command: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 30
) -> tuple[int, str, str]:
    """Run a short command: its exit status, output and error output. Killed after `timeout_s` and when cancelled."""
    process = await asyncio.create_subprocess_exec(
        *tied(command), env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise DemoError(f"no end after {timeout_s:.0f} s: {' '.join(command)}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


async def must(command: Sequence[str], *, stdin: str = "") -> str:
    """Run a short command that has to succeed, and return its output."""
    status, out, err = await output_of(command, stdin=stdin)
    if status:
        reason = (err.strip().splitlines() or [f"exit status {status}"])[-1]
        raise DemoError(f"{' '.join(command)}: {reason}")
    return out

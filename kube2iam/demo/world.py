"""`kube2iam demo`: a small world on this machine around the real agent, which shows what every pod gets and why."""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from kube2iam.demo import agent, checks, isolation, report, stage
from kube2iam.demo.cast import PODS
from kube2iam.demo.failure import DemoError
from kube2iam.demo.report import Outcome
from kube2iam.demo.stage import World
from kube2iam.demo.visits import Visit, pod_environment, visit

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the demo in namespaces of its own; does not return where they can be had. Exit status 1: it cannot run."""
    _options(argv)
    try:
        isolation.enter(argv)
    except DemoError as error:
        return _refuse(error)
    return 1


def inside(argv: Sequence[str], *, command: Sequence[str] = ()) -> int:
    """The demo itself, in the namespaces that `main` made; `command` stands for another agent in tests."""
    options = _options(argv)
    if options.outside in {"", isolation.network_namespace()}:
        return _refuse(DemoError("run it as `kube2iam demo`: this part needs namespaces of its own"))
    try:
        scratch = isolation.scratch(avoid=[Path(sys.prefix), Path(__file__), Path.cwd()])
        return asyncio.run(_interruptible(options, command or [agent.executable()], scratch))
    except (DemoError, OSError, aiohttp.ClientError) as error:
        return _refuse(error)
    except asyncio.CancelledError:
        return INTERRUPTED


async def _interruptible(options: argparse.Namespace, command: Sequence[str], scratch: Path) -> int:
    """Run; the first of Ctrl-C, SIGTERM and SIGHUP ends the demo in good order, further ones change nothing."""
    task = asyncio.create_task(_run(options, command, scratch))
    loop = asyncio.get_running_loop()

    def end() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    return await task


async def _run(options: argparse.Namespace, command: Sequence[str], scratch: Path) -> int:
    start = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - start:5.1f} s  {text}\n")

    async with AsyncExitStack() as stack:
        world = await stage.build(stack, command=command, scratch=scratch, say=say)
        visits = await _visits(world, scratch)
        say("pods      each has run boto3 and the AWS CLI, and asked for the node's secrets")
        reasons = world.agent.reasons()
        found = await checks.all_checks(world)
        if options.once:
            found |= await checks.stopped(world)
        outcome = Outcome(visits, reasons, found, time.monotonic() - start)
        sys.stdout.write((report.as_json(outcome) if options.json else f"\n{report.table(outcome)}") + "\n")
        sys.stdout.flush()
        if not options.once:
            await _stay(world)
    return 0 if outcome.right else 1


async def _visits(world: World, scratch: Path) -> list[Visit]:
    home = scratch / "home"
    home.mkdir()
    cores = asyncio.Semaphore(max(2, os.cpu_count() or 2))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(visit(spec, place, pod_environment(home), canaries=world.canaries, cores=cores))
                for spec, place in zip(PODS, world.network.pods, strict=True)
            ]
    except* DemoError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _stay(world: World) -> None:
    """Show what can be tried and what the agent says, until somebody ends it."""
    commands = report.things_to_try(
        pods={spec.full_name: place.pid for spec, place in zip(PODS, world.network.pods, strict=True)},
        node=os.getpid(),
        sts=world.moto.pid,
        api=stage.API,
        token=world.api_token,
    )
    sys.stdout.write(f"\n{commands}\n\n")
    sys.stdout.flush()
    world.agent.child.on_line = lambda line: print(agent.readable(line), flush=True)  # noqa: T201  # the demo's output
    ending = asyncio.create_task(world.agent.child.process.wait())
    try:
        await ending
    except asyncio.CancelledError:
        sys.stderr.write("\nending: namespaces, links, rules and processes go with it\n")
        return
    raise DemoError(f"the agent has ended:\n{world.agent.child.tail()}")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kube2iam demo",
        description="Show the agent at work in a small world on this machine: a cluster, AWS, and five pods.",
    )
    parser.add_argument("--once", action="store_true", help="check that every pod gets what it should, then end")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--outside", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"kube2iam demo: {error}\n")
    return 1

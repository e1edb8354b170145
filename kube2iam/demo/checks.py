"""What else must be true, tried out in the running world."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from kube2iam.demo.cast import PODS, ROLE_KEY
from kube2iam.demo.metadata import NODE_ROLE
from kube2iam.demo.objects import Objects, Raw
from kube2iam.demo.places import Place
from kube2iam.demo.probes import LISTING, Answer, ask
from kube2iam.demo.stage import World

EVENT_TIMEOUT = 5.0
CHANGE_TIMEOUT = 2.0


async def events_of(objects: Objects) -> Mapping[str, Raw]:
    """The Event about each pod that is told why it gets nothing, by the pod's full name; waits a few seconds."""
    wanted = {spec.full_name for spec in PODS if spec.refusal not in {"", "no-role"}}
    found: dict[str, Raw] = {}
    try:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while True:
                version = objects.version
                found = {_about(event): event for event in objects.list("events")}
                if wanted <= found.keys():
                    break
                await objects.changed(version)
    except TimeoutError:
        pass
    return found


async def all_checks(world: World) -> dict[str, bool]:
    """Each check in words, and whether it held."""
    places = dict(zip((spec.full_name for spec in PODS), world.network.pods, strict=True))
    denied = {spec.full_name for spec in PODS if spec.refusal not in {"", "no-role"}}
    return {
        "before the agent came, a pod could read the node's secrets": world.exposed,
        "the node itself still reaches the real metadata service": await _node_is_free(),
        "an Event tells each refused pod's developers why": denied <= (await events_of(world.objects)).keys(),
        "with STS stopped, pods still get their credentials": await _sts_stopped(world, places),
        "an annotation that is edited changes the answer": await _edited(world, places["shop/plain"]),
    }


async def stopped(world: World) -> dict[str, bool]:
    """Stop the agent: pods must then reach nobody, least of all the real service."""
    await world.agent.child.stop()
    answers = [await _ask(place, LISTING) for place in world.network.pods]
    return {
        "the agent ended when it was asked to": world.agent.child.process.returncode == 0,
        "with the agent gone, its rule still keeps pods from the real service": not any(
            answer.status for answer in answers
        ),
    }


async def _node_is_free() -> bool:
    node = Place("node", os.getpid())
    return (await _ask(node, LISTING)).body == NODE_ROLE


async def _sts_stopped(world: World, places: Mapping[str, Place]) -> bool:
    os.kill(world.moto.pid, signal.SIGSTOP)
    try:
        answers = [
            await _ask(places[spec.full_name], LISTING + spec.identity.rpartition("/")[2])
            for spec in PODS
            if spec.identity
        ]
    finally:
        os.kill(world.moto.pid, signal.SIGCONT)
    return all(answer.status == 200 and "SecretAccessKey" in answer.body for answer in answers)


async def _edited(world: World, place: Place) -> bool:
    """Give the pod without a role one, and take it away again."""

    def edit(role: str | None) -> None:
        world.objects.patch("pods", "shop", "plain", {"metadata": {"annotations": {ROLE_KEY: role}}})

    edit("reports")
    given = await _soon(place, lambda answer: answer.body == "reports")
    edit(None)
    return given and await _soon(place, lambda answer: answer.status == 404)


async def _soon(place: Place, right: Callable[[Answer], bool]) -> bool:
    """Whether the role listing becomes right within two seconds."""
    end = time.monotonic() + CHANGE_TIMEOUT
    while time.monotonic() < end:
        if right(await _ask(place, LISTING)):
            return True
        await asyncio.sleep(0.02)
    return False


async def _ask(place: Place, target: str) -> Answer:
    return await asyncio.to_thread(ask, place, target)


def _about(event: Mapping[str, Any]) -> str:
    about = event.get("involvedObject", {})
    return f"{about.get('namespace', '')}/{about.get('name', '')}"

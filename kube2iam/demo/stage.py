"""Builds the demo's world: network, cluster, AWS, the node's metadata service, the agent, and the pods."""

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from kube2iam.demo import agent, aws, network
from kube2iam.demo.agent import Agent
from kube2iam.demo.aws import Aws, SessionKeys
from kube2iam.demo.cast import ALLOWED_KEY, BUCKETS, NAMESPACES, NODE_ITSELF, NODE_NAME, POD_ROLES, PODS, running
from kube2iam.demo.cluster import ClusterServer
from kube2iam.demo.metadata import INSTANCE, MetadataServer, Secrets, canaries
from kube2iam.demo.network import METADATA, Network
from kube2iam.demo.objects import Objects
from kube2iam.demo.probes import unguarded
from kube2iam.demo.processes import Child, Children

API_PORT = 6443
API = f"http://127.0.0.1:{API_PORT}"
NODE_SESSION_SECONDS = 43_200

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class World:
    """Everything that runs."""

    objects: Objects
    api_token: str
    network: Network
    moto: Child
    agent: Agent
    canaries: Mapping[str, str]
    exposed: bool
    """Whether a pod could read the node's secrets before the agent came: if not, the other checks prove nothing."""


async def build(stack: AsyncExitStack, *, command: Sequence[str], scratch: Path, say: Say) -> World:
    """Start everything; `command` is the agent's. Leaving the stack ends it all."""
    children = await stack.enter_async_context(Children())
    http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)))
    places = await network.build(children, [spec.full_name for spec in PODS])
    say("network   a node with a bridge, five pods, and AWS beyond a router")
    moto = await aws.start(children, places.aws, http)
    keys = await _found(Aws(http))
    say("AWS       moto's STS and S3, asking for signatures and policies")
    own = Secrets.fresh()
    await serve(stack, MetadataServer(keys, own).app(), places.aws.listen(METADATA, 80))
    exposed = await asyncio.to_thread(unguarded, places.pods[0], own.user_data)
    objects, token = Objects(), secrets.token_hex(16)
    await serve(stack, ClusterServer(objects, token).app(), socket.create_server(("127.0.0.1", API_PORT)))
    _furnish(objects)
    say("cluster   a Kubernetes API, and the node's real metadata service, which every pod can still read")
    state = scratch / "agent"
    state.mkdir()
    guard = await agent.start(children, http, command=command, api=API, token=token, state=state)
    stack.push_async_callback(guard.child.stop)  # first of all, while the cluster and AWS are still there
    say("agent     ready, its redirect is in the kernel")
    _schedule(objects)
    return World(objects, token, places, moto, guard, canaries(keys, own), exposed)


async def serve(stack: AsyncExitStack, app: web.Application, listener: socket.socket) -> None:
    """Serve an application on a socket until the stack is left."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.SockSite(runner, listener).start()


async def _found(cloud: Aws) -> SessionKeys:
    """Create what the two accounts hold, take the node's own session, and let IAM rule from then on."""
    for role in (NODE_ITSELF, *POD_ROLES):
        await cloud.create_role(role)
    for bucket, account in BUCKETS.items():
        await cloud.create_bucket(bucket, account)
    keys = await cloud.assume(NODE_ITSELF, INSTANCE, NODE_SESSION_SECONDS)
    await cloud.enforce()
    return keys


def _furnish(objects: Objects) -> None:
    objects.create("nodes", "", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE_NAME}})
    for name, allowed in NAMESPACES.items():
        metadata = {"name": name, "annotations": {ALLOWED_KEY: allowed}}
        objects.create("namespaces", "", {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata})


def _schedule(objects: Objects) -> None:
    """What scheduler and kubelet do: bind each pod to the node, then report its address."""
    for index, spec in enumerate(PODS):
        objects.create("pods", spec.namespace, spec.manifest())
        objects.patch("pods", spec.namespace, spec.name, running(network.pod_address(index)))

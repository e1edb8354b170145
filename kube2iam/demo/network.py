"""The demo's network: a node with a bridge for its pods, and AWS beyond a router, as a pod would see it.

    pod 10.42.0.1x --- cni0 10.42.0.1 [ node ] eth0 172.31.16.10 --- 172.31.16.1 [ AWS ] 169.254.169.254, 203.0.113.10

The demo itself runs on the node. Without the agent's rule a pod reaches the real metadata service, as it would on EC2.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kube2iam.demo.failure import DemoError
from kube2iam.demo.places import Place, make_place
from kube2iam.demo.processes import Children, must

BRIDGE = "cni0"
GATEWAY = "10.42.0.1"
NODE = "172.31.16.10"
ROUTER = "172.31.16.1"
AWS = "203.0.113.10"
METADATA = "169.254.169.254"

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True)
class Network:
    """The places of a demo."""

    aws: Place
    pods: tuple[Place, ...]


def pod_address(index: int) -> str:
    """The address of the pod with this number."""
    return f"10.42.0.{11 + index}"


async def build(children: Children, pods: Sequence[str]) -> Network:
    """Make the places and the links between them; they go with their processes."""
    aws, *places = await asyncio.gather(*(make_place(children, name) for name in ("aws", *pods)))
    network = Network(aws, tuple(places))
    await must(["ip", "-batch", "-"], stdin="\n".join(_node_side(network)))
    await asyncio.gather(
        must(aws.command("ip", "-batch", "-"), stdin="\n".join(AWS_SIDE)),
        *(
            must(place.command("ip", "-batch", "-"), stdin="\n".join(_pod_side(pod_address(index))))
            for index, place in enumerate(places)
        ),
    )
    _forward()
    return network


def _node_side(network: Network) -> list[str]:
    lines = [
        "link set dev lo up",
        f"link add name {BRIDGE} type bridge",
        f"address add {GATEWAY}/24 dev {BRIDGE}",
        f"link set dev {BRIDGE} up",
        f"link add name eth0 type veth peer name eth0 netns {network.aws.pid}",
        f"address add {NODE}/20 dev eth0",
        "link set dev eth0 up",
        f"route add default via {ROUTER}",
    ]
    for index, place in enumerate(network.pods):
        lines += [
            f"link add name veth{index} type veth peer name eth0 netns {place.pid}",
            f"link set dev veth{index} master {BRIDGE} up",
        ]
    return lines


AWS_SIDE = (
    f"address add {ROUTER}/20 dev eth0",
    f"address add {AWS}/32 dev lo",
    f"address add {METADATA}/32 dev lo",
    "link set dev eth0 up",
    f"route add 10.42.0.0/24 via {NODE}",
)


def _pod_side(address: str) -> list[str]:
    return [f"address add {address}/24 dev eth0", "link set dev eth0 up", f"route add default via {GATEWAY}"]


def _forward() -> None:
    """Let the node forward between its pods and AWS, as every Kubernetes node does."""
    try:
        FORWARDING.write_text("1")
    except OSError as error:
        if FORWARDING.read_text().strip() != "1":
            raise DemoError(
                f"cannot let the demo's node forward packets ({FORWARDING}: {error.strerror}); "
                "in a container, start it with --privileged"
            ) from None
